/* benchmark/model.h: one guided step of a network, dense and with every accelerator, and whole
 * pictures beside each other. */
#ifndef HD_BENCHMARK_MODEL_H
#define HD_BENCHMARK_MODEL_H

#include "benchmark/attention.h"
#include "pipelines/model.h"

HD_BEGIN_DECLS

typedef struct hd_bench_model_options {
    hd_model *model;
    const char *prompt;
    int64_t width, height; // pixels; 0: the model's own
    uint64_t seed;
    int64_t pictures, steps; // pictures 0: none are drawn
    const hd_bench_rows *rows;
    const hd_processor_list *list;
    hd_exec *ex; // threads and cancel; arenas are made here
    int repeats;
    hd_bench_progress progress; // may be NULL
    void *user;
} hd_bench_model_options;

/* The first level's tokens of a picture of that size, for the rows' windows. */
HD_CHECKED hd_status hd_bench_model_shape(hd_bench_shape *out, const hd_model *model, int64_t width,
                                          int64_t height);

/* Adds a result per row. The step is the second of two: its latent is what a dense first step left,
 * and the error is that of the guided prediction. A row that is refused is a result with its
 * reason. HD_ERR_CANCELLED: the rows before are there. */
HD_CHECKED hd_status hd_bench_model(hd_bench_report *report, const hd_bench_model_options *options);

HD_END_DECLS
#endif
