/* kernels/cpu/sdpa.h: the steps of streaming-softmax attention on vectors: private to
 * engine/ops/sdpa.c, which walks the visit list.
 *
 * A block of up to max_queries queries goes through its key tiles. Vector lanes run along the
 * queries: q, scores and out are kept transposed, so that a row's maximum and sum are vertical
 * operations, any head size works without padding, and a query's result cannot depend on its
 * neighbours. A scalar of k or v is broadcast against a vector of queries.
 *
 * A "unit" is 32 bits: one f32, or two neighbouring bf16 that one vdpbf16ps multiplies (two
 * elements of D in the scores, two keys in the sum over values). Keys and values are packed once
 * per row and key head, tile by tile: keys [key][units of D]; values in panels of 16 channels (a
 * cache line; the last may be narrower), each [units of keys][channels], so that a panel is read
 * from front to back and only once from outside the first-level cache. What a unit lacks is 0. */
#ifndef HD_KERNELS_CPU_SDPA_H
#define HD_KERNELS_CPU_SDPA_H

#include "kernels/sdpa.h"

HD_BEGIN_DECLS

enum { HD_SDPA_MAX_QUERIES = 64, HD_SDPA_PANEL = 16 };

/* Scratch of one thread: a block on its way through its key tiles. All [..][lanes], lanes =
 * vectors x the kernel's lanes; aligned to 64 bytes. */
typedef struct hd_sdpa_block {
    const hd_sdpa_head *head;
    int64_t first; // query of lane 0
    int queries;   // 1 .. max_queries
    int vectors;   // that hold them
    int64_t depth; // units of D
    float *q;      // [depth] units
    float *scores; // [keys of the tile]; then the probabilities [units of keys]
    float *out;    // [Dv], not yet divided by the sum
    float *max;    // in units of log 2, like the scores after `factor`
    float *sum;
    float *factor; // |scale * row scale| * log2 e: what q k^T is multiplied by
} hd_sdpa_block;

typedef struct hd_sdpa_kernel {
    int max_queries; // of a block
    int lanes;       // of a vector
    int unit;        // elements per unit
    /* Keys first .. first + count - 1 as one packed tile. */
    void (*pack)(const hd_sdpa_head *head, int64_t first, int64_t count, float *keys,
                 float *values);
    /* Loads the block's queries; nothing seen yet. */
    void (*begin)(hd_sdpa_block *block);
    /* scores = q k^T of the tile's `count` keys. */
    void (*scores)(hd_sdpa_block *block, const float *keys, int64_t count);
    /* Applies the factor, bias, mask and causality to the scores of keys first .. */
    void (*edit)(hd_sdpa_block *block, int64_t first, int64_t count);
    /* Scores to probabilities against the running maximum; rescales what was summed before. */
    void (*softmax)(hd_sdpa_block *block, int64_t count, bool edited);
    /* out += probabilities x values. */
    void (*accumulate)(hd_sdpa_block *block, const float *values, int64_t count);
    /* Writes out and lse of the block's queries. */
    void (*finish)(const hd_sdpa_block *block);
} hd_sdpa_kernel;

extern const hd_sdpa_kernel hd_sdpa_avx2;   // f32; bf16 tensors are converted as they are packed
extern const hd_sdpa_kernel hd_sdpa_avx512; // the same
extern const hd_sdpa_kernel hd_sdpa_avx512bf16; // bf16 tensors only

HD_END_DECLS
#endif
