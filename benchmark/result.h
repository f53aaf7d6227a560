/* benchmark/result.h: the figures of a comparison, and how they are shown: a table, JSON, CSV, a
 * plot of speed against error. */
#ifndef HD_BENCHMARK_RESULT_H
#define HD_BENCHMARK_RESULT_H

#include <stdio.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* What is measured of a row. A figure that does not apply is NaN. */
typedef enum hd_bench_figure {
    HD_BENCH_MS_MIN,    // the whole call or step, planning included
    HD_BENCH_MS_MEDIAN, //
    HD_BENCH_PLAN_MS,   // of it, the plan hook: median
    HD_BENCH_SETUP_MS,  // before the first step: what a static planner does once
    HD_BENCH_RATIO,     // dense's ms_min over this one's
    HD_BENCH_IDEAL,     // all pairs over the useful ones
    HD_BENCH_EXECUTED,  // FLOPs
    HD_BENCH_USEFUL,    // FLOPs
    HD_BENCH_BYTES,     // read and written by the plan's visits
    HD_BENCH_GFLOPS,    // executed FLOPs per ms_min, in 1e9 per second
    HD_BENCH_DENSITY,   // executed pairs over all pairs
    HD_BENCH_MASS,      // attention mass of the keys seen, mean over queries
    HD_BENCH_REL_L1,    // sum |out - dense| / sum |dense|
    HD_BENCH_COSINE,    // of out and dense
    HD_BENCH_PSNR,      // of whole pictures against dense's: mean
    HD_BENCH_SSIM,
    HD_BENCH_FIGURES,
} hd_bench_figure;

/* "ms_min" ...: as in JSON and CSV. */
extern const char *const hd_bench_figure_names[];

typedef struct hd_bench_result {
    const char *label, *json; // borrowed from the rows
    hd_status status;         // HD_OK, or why it was not measured
    char why[600];
    double figure[HD_BENCH_FIGURES];
} hd_bench_result;

/* A comparison: what was asked, and its results in the order of the rows. */
typedef struct hd_bench_report {
    const char *what;      // "attention", "model"
    char title[240];       // "hunyuan 30x48x80 + 256 text, 24 heads of 128"
    char inputs[240];      // "structured field, gain 16, seed 1"
    char note[240];        // "scaled by 0.5 ...", "" for none
    char machine[160];     // "2 threads, bf16, avx512_bf16+vnni"
    double effective_keys; // NaN: not known
    int repeats;
    int64_t count, room;
    hd_bench_result *result;
} hd_bench_report;

void hd_bench_report_free(hd_bench_report *report);
/* A result with every figure NaN at the end of the report; NULL: no memory. */
hd_bench_result *hd_bench_report_add(hd_bench_report *report, const char *label, const char *json);

/* The figures of time, from the seconds of `repeats` calls and of their plan hooks, which it sorts.
 * *dense_seconds, the dense row's best time, is set if this is that row. */
void hd_bench_set_times(hd_bench_result *result, double *seconds, double *plan_seconds, int repeats,
                        bool dense, double *dense_seconds);

/* Columns aligned, then the reasons of what was not measured. Columns that are empty everywhere are
 * left out. */
void hd_bench_print_table(const hd_bench_report *report, FILE *to);

HD_CHECKED hd_status hd_bench_write_json(const hd_bench_report *report, const char *path);
HD_CHECKED hd_status hd_bench_write_csv(const hd_bench_report *report, const char *path);
/* PNG or SVG by the name's ending. HD_ERR_ARGUMENT for another one; so does hd_bench_plot_check. */
HD_CHECKED hd_status hd_bench_write_plot(const hd_bench_report *report, const char *path);
HD_CHECKED hd_status hd_bench_plot_check(const char *path);

HD_END_DECLS
#endif
