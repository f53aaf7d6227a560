/* engine/attention/planner/means.h: mean queries, keys or values of tiles, in f32. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_MEANS_H
#define HD_ENGINE_ATTENTION_PLANNER_MEANS_H

#include "base/exec.h"
#include "kernels/planner.h"

HD_BEGIN_DECLS

const hd_planner_kernels *hd_planner_kernels_of(const hd_exec *ex);
/* The product of bf16 pairs, or NULL where the machine has none. */
hd_planner_product *hd_planner_pairs_of(const hd_exec *ex);

/* mean [heads][tiles][dim] of x[0 .. heads), each over the ranks bound[t] .. bound[t + 1] - 1 that
 * a tile has; bound [tiles + 1], no tile empty. */
HD_CHECKED hd_status hd_planner_means(const hd_exec *ex, float *mean, const hd_planner_tokens *x,
                                      int64_t heads, const int32_t *bound, int64_t tiles);

/* The means of tiles first .. end - 1 alone, on the calling thread. */
void hd_planner_means_some(const hd_planner_kernels *kernels, float *mean,
                           const hd_planner_tokens *x, int64_t heads, const int32_t *bound,
                           int64_t tiles, int64_t first, int64_t end);

HD_END_DECLS
#endif
