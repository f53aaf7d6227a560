/* benchmark/default_rows.h: the accelerators that a shape is compared with when nobody says which.
 */
#ifndef HD_BENCHMARK_DEFAULT_ROWS_H
#define HD_BENCHMARK_DEFAULT_ROWS_H

#include "benchmark/shape.h"

HD_BEGIN_DECLS

/* A JSON array of processors with names, for the shape as it is before scaling: published windows
 * where there are any, else about a quarter of the keys kept. The caller frees *json with free. */
HD_CHECKED hd_status hd_bench_default_rows(char **json, const hd_bench_shape *shape);

HD_END_DECLS
#endif
