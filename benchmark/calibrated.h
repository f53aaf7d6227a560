/* benchmark/calibrated.h: plans for rows that need one made ahead ("paro" without a plan file). */
#ifndef HD_BENCHMARK_CALIBRATED_H
#define HD_BENCHMARK_CALIBRATED_H

#include "benchmark/attention.h"

HD_BEGIN_DECLS

bool hd_bench_needs_calibration(const hd_bench_rows *rows);

/* Measures dense attention over the options' `other` inputs as `heddle calibrate` does and puts the
 * plan, a file without a name, into the row's processors. Rows that need none stay as they are. */
HD_CHECKED hd_status hd_bench_calibrate(hd_bench_row *row,
                                        const hd_bench_attention_options *options,
                                        const hd_row *who);

HD_END_DECLS
#endif
