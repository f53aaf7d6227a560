/* benchmark/calibrated.h: plans for rows that need one made ahead ("paro" without a plan file). */
#ifndef HD_BENCHMARK_CALIBRATED_H
#define HD_BENCHMARK_CALIBRATED_H

#include "benchmark/attention.h"

HD_BEGIN_DECLS

bool hd_bench_row_needs_calibration(const hd_bench_row *row);
bool hd_bench_needs_calibration(const hd_bench_rows *rows);

/* Computes what is to be measured, dense, with the run's watch looking on: once on the dry pass,
 * once with an arena. */
typedef hd_status (*hd_bench_dense)(void *user, const hd_exec *ex, hd_attention_run *run);

/* Measures dense attention as `heddle calibrate` does and puts the plan, a file without a name,
 * into the row's processors. Rows that need none stay as they are. */
HD_CHECKED hd_status hd_bench_calibrate(hd_bench_row *row, const hd_processor_list *list,
                                        const hd_exec *ex, hd_bench_dense dense, void *user);

/* `dense` of one layer, over the options' `other` inputs; user is this. */
typedef struct hd_bench_other {
    const hd_bench_attention_options *options;
    const hd_row *who;
} hd_bench_other;

HD_CHECKED hd_status hd_bench_dense_other(void *user, const hd_exec *ex, hd_attention_run *run);

HD_END_DECLS
#endif
