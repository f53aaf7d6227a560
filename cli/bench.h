/* cli/bench.h: what `bench attention` and `bench model` share. */
#ifndef HD_CLI_BENCH_H
#define HD_CLI_BENCH_H

#include "benchmark/result.h"
#include "benchmark/rows.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "pipelines/preset.h"

HD_BEGIN_DECLS

typedef struct hd_bench_options {
    // attention
    char *shape, *grid, *input;
    int64_t heads, head_dim, text, block;
    float scale, gain;
    // model
    char *model, *prompt;
    int64_t width, height, pictures, steps;
    // both
    char *rows, *json, *csv, *plot;
    hd_precision_option precision;
    int64_t threads, repeat;
    uint64_t seed;
    bool quiet;
} hd_bench_options;

/* A comparison in the making. */
typedef struct hd_bench_job {
    hd_bench_options options;
    const hd_args *args;
    hd_processor_list list;
    const hd_processor_class **classes; // of the list, owned
    hd_exec ex;
    hd_bench_rows rows;
    hd_bench_report report;
    hd_progress_bar bar;
    double row_begin;
} hd_bench_job;

/* For hd_bench_attention and hd_bench_model: draws the progress line; user is the job. */
void hd_bench_job_progress(void *user, const char *label, int step, int count);

/* Fill the report; what fails after some rows leaves those. */
HD_CHECKED hd_status hd_bench_job_attention(hd_bench_job *job);
HD_CHECKED hd_status hd_bench_job_model(hd_bench_job *job);

HD_END_DECLS
#endif
