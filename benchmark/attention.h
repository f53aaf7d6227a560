/* benchmark/attention.h: one attention layer, dense and with every accelerator, through the
 * engine's own call: planning, hooks and kernel are those of a generation. */
#ifndef HD_BENCHMARK_ATTENTION_H
#define HD_BENCHMARK_ATTENTION_H

#include "benchmark/inputs.h"
#include "benchmark/result.h"
#include "benchmark/rows.h"

HD_BEGIN_DECLS

/* Asked to tell how far it is; step 0 .. count of row `label`. */
typedef void (*hd_bench_progress)(void *user, const char *label, int step, int count);

typedef struct hd_bench_attention_options {
    const hd_bench_shape *shape;
    const hd_bench_inputs *inputs;
    const hd_bench_inputs *other; // another draw of them, for plans made ahead; NULL: the same
    hd_bench_rows *rows;          // those get their plans
    const hd_processor_list *list;
    const hd_exec *ex; // threads and cancel; an arena is made per row
    int64_t block; // number of the layer: "block.7" (some accelerators differ from layer to layer)
    int repeats;   // timed calls, after one that is not
    hd_bench_progress progress; // may be NULL
    void *user;
} hd_bench_attention_options;

/* Adds a result per row to the report, whose other fields are the caller's. A row that is refused
 * is a result with its reason. HD_ERR_CANCELLED: the rows before are there. */
HD_CHECKED hd_status hd_bench_attention(hd_bench_report *report,
                                        const hd_bench_attention_options *options);

HD_END_DECLS
#endif
