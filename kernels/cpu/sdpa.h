/* kernels/cpu/sdpa.h: the steps of streaming-softmax attention on vectors: private to
 * engine/ops/sdpa*.c, which decide which keys a block of queries meets.
 *
 * A block of up to max_queries queries goes through its keys, some spans of them at a time (a
 * step). Vector lanes run along the queries: q, scores and out are kept transposed, so that a row's
 * maximum and sum are vertical operations, any head size works without padding, and a query's
 * result cannot depend on its neighbours. A scalar of k or v is broadcast against a vector of
 * queries.
 *
 * A "unit" is 32 bits: one f32, or two neighbouring bf16 that one vdpbf16ps multiplies (two
 * elements of D in the scores, two keys in the sum over values), or four bytes that one vpdpbusd
 * multiplies (kernels/cpu/sdpa_tile_int8.h). Keys and values are packed once
 * per row and key head, in the order that the plan wants: keys [position][units of D]; values in
 * panels of 16 channels (a cache line; the last may be narrower), each [units of positions]
 * [channels], so that a span of a panel is read from front to back. What a unit lacks is 0. */
#ifndef HD_KERNELS_CPU_SDPA_H
#define HD_KERNELS_CPU_SDPA_H

#include "kernels/sdpa.h"

HD_BEGIN_DECLS

enum { HD_SDPA_MAX_QUERIES = 64, HD_SDPA_PANEL = 16, HD_SDPA_STEP = 128, HD_SDPA_MAX_UNIT = 4 };
enum { HD_SDPA_INT8_KEY_HEAD = 2 }; // in front of an int8 key: where its sums begin, its step

/* Keys and values of a row and key head. */
typedef struct hd_sdpa_packed {
    float *keys;
    float *values;
    int64_t units; // of positions, in a panel
} hd_sdpa_packed;

/* Neighbouring positions; `start` is the first of a unit. */
typedef struct hd_sdpa_span {
    int32_t start, count;
} hd_sdpa_span;

/* What a block meets at a time: spans whose scores lie one behind the other. All of them but the
 * last fill their units. */
typedef struct hd_sdpa_step {
    const hd_sdpa_packed *packed;
    int64_t count; // of keys, at most HD_SDPA_STEP
    int spans;
    bool masked; // `word` holds: else every query sees every key
    bool edited; // the scores are changed: the arrays below `word` hold
    hd_sdpa_span span[HD_SDPA_STEP];
    uint64_t word[HD_SDPA_STEP];     // bit i: the query of lane i sees this key
    int32_t token[HD_SDPA_STEP];     // -1: none, and `word` is 0
    float column_bias[HD_SDPA_STEP]; // in units of log 2
    uint8_t label[HD_SDPA_STEP];
} hd_sdpa_step;

/* Scratch of one thread: a block on its way through its keys. All [..][lanes], lanes =
 * vectors x the kernel's lanes; aligned to 64 bytes. */
typedef struct hd_sdpa_block {
    const hd_sdpa_head *head;
    const int32_t *token; // of each query; -1: none, not to be written
    int queries;          // 1 .. max_queries
    int vectors;          // that hold them
    int64_t depth;        // units of D
    float *q;             // [depth] units
    float *scores;        // [keys of the step]; then the probabilities [units of keys]
    float *out;           // [Dv + indicators], not yet divided by the sum
    float *max;           // in units of log 2, like the scores after `factor`
    float *largest;       // of the step's scores, before `factor`
    float *weight;        // int8 values: what the step's probabilities count
    bool faint;           // all of them nothing
    float *sum;
    float *factor; // |scale * row scale| * log2 e: what q k^T is multiplied by
    float *bias;   // [key labels] in units of log 2; NULL: none
    float *gain;   // [key labels]; NULL: none
} hd_sdpa_block;

typedef struct hd_sdpa_kernel {
    int max_queries; // of a block
    int lanes;       // of a vector
    int dim_unit;    // elements per unit, of D
    int key_head;    // floats in front of a packed key
    int unit;        // elements per unit, of keys
    /* Finds what int8 codes are made with, of all the row's keys: [D] and [Dv] of hd_sdpa_head,
     * those not NULL. NULL: nothing to find. */
    void (*measure)(const hd_sdpa_head *head, float *key_mean, float *value_largest);
    /* The keys token[0] .. [count - 1] to positions first ..; -1: zeros. first is the first of a
     * unit. */
    void (*pack_keys)(const hd_sdpa_head *head, const int32_t *token, int64_t first, int64_t count,
                      const hd_sdpa_packed *to);
    void (*pack_values)(const hd_sdpa_head *head, const int32_t *token, int64_t first,
                        int64_t count, const hd_sdpa_packed *to);
    /* Loads the block's queries; nothing seen yet. */
    void (*begin)(hd_sdpa_block *block);
    /* scores = q k^T of the step's keys. */
    void (*scores)(hd_sdpa_block *block, const hd_sdpa_step *step);
    /* Of an edited step: applies the factor, all biases and masks and the words. */
    void (*edit)(hd_sdpa_block *block, const hd_sdpa_step *step);
    /* Scores to probabilities against the running maximum; rescales what was summed before. */
    void (*softmax)(hd_sdpa_block *block, const hd_sdpa_step *step);
    /* out += probabilities x values. */
    void (*accumulate)(hd_sdpa_block *block, const hd_sdpa_step *step);
    /* Writes out, lse and probed of the block's queries. */
    void (*finish)(const hd_sdpa_block *block);
} hd_sdpa_kernel;

extern const hd_sdpa_kernel hd_sdpa_avx2;   // f32; bf16 tensors are converted as they are packed
extern const hd_sdpa_kernel hd_sdpa_avx512; // the same
extern const hd_sdpa_kernel hd_sdpa_avx512bf16; // bf16 tensors only
extern const hd_sdpa_kernel hd_sdpa_avxvnni;    // the same on 8 lanes
extern const hd_sdpa_kernel hd_sdpa_avx512vnni; // both products in int8, tensors of either type

/* One product of each: lanes and max_queries must agree. Scores are f32 between the two. */
static inline hd_sdpa_kernel hd_sdpa_mixed(const hd_sdpa_kernel *scores,
                                           const hd_sdpa_kernel *values)
{
    hd_sdpa_kernel mixed = *values;
    mixed.dim_unit = scores->dim_unit, mixed.key_head = scores->key_head;
    mixed.pack_keys = scores->pack_keys;
    mixed.begin = scores->begin, mixed.scores = scores->scores;
    if (scores->measure) mixed.measure = scores->measure;
    return mixed;
}

HD_END_DECLS
#endif
