/* kernels/planner.h: the loops of the planners that look at q and k before an attention call: sums
 * of tokens, products of their means, exponential sums per tile, the best rows of each column.
 *
 * Queries stand in lanes: a panel is 64 of them side by side, [units][64], and scores are
 * [rows][64], a row per key group. A unit is one f32 or a pair of bf16 in the bits of an f32; the
 * product of pairs has a table of its own, for the instruction set that has it. */
#ifndef HD_KERNELS_PLANNER_H
#define HD_KERNELS_PLANNER_H

#include "base/tensor.h"

HD_BEGIN_DECLS

enum { HD_PLANNER_LANES = 64 };

/* The tokens of one batch row and head. */
typedef struct hd_planner_tokens {
    const void *data;
    hd_dtype dtype; // f32 or bf16
    int64_t stride; // elements from one token to the next
    int64_t dim;
    const int32_t *order; // token of a rank; NULL: the same
} hd_planner_tokens;

static inline const void *hd_planner_token(const hd_planner_tokens *x, int64_t rank)
{
    int64_t token = x->order ? x->order[rank] : rank;
    return (const char *)x->data + token * x->stride * (x->dtype == HD_BF16 ? 2 : 4);
}

/* scores [rows][64] = a [rows][units], `a_stride` units from row to row, times panel [units][64] */
typedef void hd_planner_product(float *scores, int64_t rows, const float *a, int64_t a_stride,
                                const float *panel, int64_t units);

typedef struct hd_planner_kernels {
    unsigned needs; // instruction sets, as in base/exec.h
    /* sum [dim] = the sum of ranks first .. first + count - 1, in that order. */
    void (*sum)(float *sum, const hd_planner_tokens *x, int64_t first, int64_t count);
    /* panel [dim][64] from the first `dim` elements at token[0 .. 63], to f32; NULL: zeros. */
    void (*pack)(float *panel, const void *const *token, hd_dtype dtype, int64_t dim);
    hd_planner_product *product; // of f32
    /* max [64] over the rows; rows >= 1 */
    void (*max)(float *max, const float *scores, int64_t rows);
    /* sum [64] of 2^(factor (score - max)), factor >= 0; a lane whose max is -inf: 0 */
    void (*exp_sum)(float *sum, const float *scores, int64_t rows, const float *max, float factor);
    /* words [rows], bit i for lane i: the `keep` best rows of each lane, of two equal ones the
     * lower first. own [64] (NULL: none): that row is one of them whatever its score; -1: no row.
     */
    void (*top)(uint64_t *words, const float *scores, int64_t rows, int64_t keep,
                const int32_t *own);
} hd_planner_kernels;

extern const hd_planner_kernels hd_planner_reference; // kernels/reference/planner.c
extern const hd_planner_kernels hd_planner_avx2;      // kernels/cpu/planner_avx2.c
extern const hd_planner_kernels hd_planner_avx512;    // kernels/cpu/planner_avx512.c
hd_planner_product hd_planner_product_avx512bf16;     // kernels/cpu/planner_avx512bf16.c

HD_END_DECLS
#endif
