/* benchmark/watch.h: looks at the attention calls of a run: how long their plans took, and, when it
 * is asked for details, what they cost and how much attention they keep. */
#ifndef HD_BENCHMARK_WATCH_H
#define HD_BENCHMARK_WATCH_H

#include "engine/attention/run.h"

HD_BEGIN_DECLS

typedef struct hd_bench_watch {
    double plan_seconds;     // of all calls since it was reset
    bool details;            // count what follows
    double executed, useful; // FLOPs of both products
    double bytes;            // q and out once, k and v as often as they are visited
    int64_t entries;         // visited by the kernel
    float *lse;              // [B, H, L], or NULL: not wanted
    hd_tensor spare;         // with lse: [B, L, H, D], to be overwritten
    bool lse_taken;          // of the keys that are seen, without what stands for others
} hd_bench_watch;

/* `watch` is told of the calls of `run` from now on. */
void hd_bench_watch_begin(hd_bench_watch *watch, hd_attention_run *run);
/* Before calls that are looked at. */
void hd_bench_watch_reset(hd_bench_watch *watch);

HD_END_DECLS
#endif
