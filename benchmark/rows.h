/* benchmark/rows.h: what is compared: dense attention and the accelerators, each a chain of
 * processors as a preset would name them. */
#ifndef HD_BENCHMARK_ROWS_H
#define HD_BENCHMARK_ROWS_H

#include "benchmark/shape.h"
#include "engine/attention/processor.h"

HD_BEGIN_DECLS

typedef struct hd_bench_row {
    char *label;      // "gna window=18x24x24 stride=16x8x8"
    char *json;       // its processors, an array
    hd_json_doc *doc; // of json; with the path of the plan that was made for it
    int plan_fd;      // the plan's file; 0: none
} hd_bench_row;

typedef struct hd_bench_rows {
    int64_t count;
    hd_bench_row *row; // the first is dense
} hd_bench_rows;

/* What `text` says: NULL, the list that suits the shape; names joined by commas, those of that
 * list; JSON, or a file of it that ends in ".json": an array whose entries are processors, or
 * arrays of processors that act together, or a preset, whose processors are taken. A processor's
 * "name" is the row's; "steps" and "branches" are left out, so that it acts, and unless keep_sites
 * "sites". Dense comes first, whatever is said. With a scaled shape, windows and strides follow the
 * grid: "base_size" is added to "gna", the blocks of "vmoba" and the windows of
 * "swin_windows" are scaled alike. */
HD_CHECKED hd_status hd_bench_rows_read(hd_bench_rows *out, const char *text,
                                        const hd_bench_shape *shape, bool keep_sites,
                                        const hd_processor_list *list);
void hd_bench_rows_free(hd_bench_rows *rows);

HD_END_DECLS
#endif
