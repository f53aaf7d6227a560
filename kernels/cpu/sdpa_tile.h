/* kernels/cpu/sdpa_tile.h: the steps of kernels/cpu/sdpa.h, written once over lanes; a file of one
 * instruction set includes it and names its table.
 *
 * The includer says TILE_VECTORS (vectors per block, 1 .. 4), and defines TILE_BF16_PAIRS if its
 * units are bf16 pairs, TILE_INT8 if they are four bytes. Both products keep 6 x TILE_VECTORS sums
 * in registers: per step of the shared axis 6 broadcasts and TILE_VECTORS loads feed 6 x
 * TILE_VECTORS multiply-adds, so that the multipliers, not the loads, are what limits. Blocks of
 * half the vectors have twice the rows. */
#include <math.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/sdpa.h"

enum { TILE_ROWS = 6, TILE_AHEAD = 20 };

static const float tile_log2e = 1.44269504088896341f;
static const double tile_ln2 = 0.693147180559945309;

// Elements of a unit; floats in front of a packed key.
#if defined TILE_INT8
enum { TILE_UNIT = 4, TILE_KEY_HEAD = HD_SDPA_INT8_KEY_HEAD };
#elif defined TILE_BF16_PAIRS
enum { TILE_UNIT = 2, TILE_KEY_HEAD = 0 };
#else
enum { TILE_UNIT = 1, TILE_KEY_HEAD = 0 };
#endif

LANES_INLINE int64_t tile_units_of(int64_t elements)
{
    return (elements + TILE_UNIT - 1) / TILE_UNIT;
}

LANES_INLINE int tile_min(int64_t n, int limit)
{
    return n < limit ? (int)n : limit;
}

LANES_INLINE const void *tile_token(const void *data, hd_dtype dtype, int64_t stride, int64_t i)
{
    return (const char *)data + i * stride * (dtype == HD_BF16 ? 2 : 4);
}

// Asks for a token's elements ahead of their use: tokens of a head lie far apart, in runs too short
// for the processor to see.
LANES_INLINE void tile_expect(const void *data, hd_dtype dtype, int64_t stride, int64_t elements,
                              int64_t token)
{
    const char *at = tile_token(data, dtype, stride, token);
    const int64_t bytes = elements * (dtype == HD_BF16 ? 2 : 4);
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(at + i);
}

#if defined TILE_INT8

#include "kernels/cpu/sdpa_tile_int8.h"

#elif defined TILE_BF16_PAIRS

LANES_INLINE lanes tile_dot(lanes sum, lanes a, lanes b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

LANES_INLINE lanes tile_exp2(lanes x)
{
    return lanes_exp2_short(x); // its error is far below the rounding of p to bf16
}

// `count` elements from element i of a token on, as units.
LANES_INLINE lanes tile_units(const void *token, hd_dtype dtype, int64_t i, int count)
{
    (void)dtype;
    const hd_bf16 *p = (const hd_bf16 *)token + i;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p));
}

// What a unit is xor-ed with to be negated where x < 0.
LANES_INLINE lanes tile_sign(lanes x)
{
    __m512i sign = _mm512_castps_si512(lanes_sign(x));
    return _mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_srli_epi32(sign, 16)));
}

// The numbers of two keys, rounded, side by side.
LANES_INLINE lanes tile_probability_units(lanes even, lanes odd)
{
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both));
}

// `count` channels from d on of two keys side by side: lane i is (even[d + i], odd[d + i]). NULL:
// zeros.
LANES_INLINE lanes tile_value_units(const void *even, const void *odd, hd_dtype dtype, int64_t d,
                                    int count)
{
    const lanes_mask some = lanes_first(count);
    if (dtype == HD_F32)
        return tile_probability_units(even ? lanes_read(even, HD_F32, d, count) : lanes_zero(),
                                      odd ? lanes_read(odd, HD_F32, d, count) : lanes_zero());
    __m256i low = _mm256_setzero_si256(), high = low;
    if (even) low = _mm256_maskz_loadu_epi16(some, (const hd_bf16 *)even + d);
    if (odd) high = _mm256_maskz_loadu_epi16(some, (const hd_bf16 *)odd + d);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}

#else

LANES_INLINE lanes tile_dot(lanes sum, lanes a, lanes b)
{
    return lanes_fma(a, b, sum);
}

LANES_INLINE lanes tile_exp2(lanes x)
{
    return lanes_exp2(x);
}

// `count` elements from element i of a token on, as units.
LANES_INLINE lanes tile_units(const void *token, hd_dtype dtype, int64_t i, int count)
{
    return lanes_read(token, dtype, i, count);
}

// What a unit is xor-ed with to be negated where x < 0.
LANES_INLINE lanes tile_sign(lanes x)
{
    return lanes_sign(x);
}

LANES_INLINE lanes tile_value_units(const void *key, const void *none, hd_dtype dtype, int64_t d,
                                    int count)
{
    (void)none;
    return key ? tile_units(key, dtype, d, count) : lanes_zero();
}

LANES_INLINE lanes tile_probability_units(lanes p, lanes none)
{
    (void)none;
    return p;
}

#endif

// Calls step(vectors, ...) with a constant for every number of vectors that a block may have.
#if TILE_VECTORS == 4
#define TILE_FOR_VECTORS(vectors, step, ...)                                                       \
    do {                                                                                           \
        switch (vectors) {                                                                         \
        case 1:                                                                                    \
            step(1, __VA_ARGS__);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            step(2, __VA_ARGS__);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            step(3, __VA_ARGS__);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            step(4, __VA_ARGS__);                                                                  \
            break;                                                                                 \
        }                                                                                          \
    } while (0)
#else
#define TILE_FOR_VECTORS(vectors, step, ...)                                                       \
    do {                                                                                           \
        if ((vectors) == 1)                                                                        \
            step(1, __VA_ARGS__);                                                                  \
        else                                                                                       \
            step(2, __VA_ARGS__);                                                                  \
    } while (0)
#endif

#ifndef TILE_INT8

static void tile_pack_keys(const hd_sdpa_head *h, const int32_t *token, int64_t first,
                           int64_t count, const hd_sdpa_packed *to)
{
    const int64_t depth = tile_units_of(h->dim);
    float *keys = to->keys + first * depth;
    for (int64_t j = 0; j < count; j++, keys += depth) {
        if (j + TILE_AHEAD < count && token[j + TILE_AHEAD] >= 0)
            tile_expect(h->k, h->dtype, h->k_stride, h->dim, token[j + TILE_AHEAD]);
        if (token[j] < 0) {
            memset(keys, 0, (size_t)depth * sizeof *keys);
            continue;
        }
        const void *key = tile_token(h->k, h->dtype, h->k_stride, token[j]);
        int64_t d = 0;
        for (; (d + LANES) * TILE_UNIT <= h->dim; d += LANES) // whole vectors need no masks
            lanes_write(keys, HD_F32, d, LANES,
                        tile_units(key, h->dtype, d * TILE_UNIT, LANES * TILE_UNIT));
        if (d < depth)
            lanes_write(keys, HD_F32, d, (int)(depth - d),
                        tile_units(key, h->dtype, d * TILE_UNIT, (int)(h->dim - d * TILE_UNIT)));
    }
}

// Panels of `channels` channels from `values` on; a panel has `units` units, those of the tokens
// begin at unit `first`.
static void tile_pack_panels(const void *data, hd_dtype dtype, int64_t stride, int64_t channels,
                             const int32_t *token, int64_t first, int64_t count, float *values,
                             int64_t units)
{
    for (int64_t j = 0; j < count; j += TILE_UNIT) {
        for (int64_t i = j + TILE_AHEAD; i < j + TILE_AHEAD + TILE_UNIT && i < count; i++)
            if (token[i] >= 0) tile_expect(data, dtype, stride, channels, token[i]);
        const void *even = NULL, *odd = NULL;
        if (token[j] >= 0) even = tile_token(data, dtype, stride, token[j]);
        if (TILE_UNIT == 2 && j + 1 < count && token[j + 1] >= 0)
            odd = tile_token(data, dtype, stride, token[j + 1]);
        for (int64_t panel = 0; panel < channels; panel += HD_SDPA_PANEL) {
            const int width = tile_min(channels - panel, HD_SDPA_PANEL);
            float *to = values + panel * units + (first + j / TILE_UNIT) * width;
            int d = 0;
            for (; d + LANES <= width; d += LANES)
                lanes_write(to, HD_F32, d, LANES,
                            tile_value_units(even, odd, dtype, panel + d, LANES));
            if (d < width)
                lanes_write(to, HD_F32, d, width - d,
                            tile_value_units(even, odd, dtype, panel + d, width - d));
        }
    }
}

static void tile_pack_values(const hd_sdpa_head *h, const int32_t *token, int64_t first,
                             int64_t count, const hd_sdpa_packed *to)
{
    tile_pack_panels(h->v, h->dtype, h->v_stride, h->value_dim, token, first / TILE_UNIT, count,
                     to->values, to->units);
    if (h->indicators)
        tile_pack_panels(h->indicator, HD_F32, h->indicator_stride, h->indicators, token,
                         first / TILE_UNIT, count, to->values + h->value_dim * to->units,
                         to->units);
}

LANES_INLINE void tile_query_units(lanes r[LANES], const void *const query[LANES], hd_dtype dtype,
                                   int64_t first, int elements)
{
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        r[i] = query[i] ? tile_units(query[i], dtype, first, elements) : lanes_zero();
}

// One vector of queries, transposed; lanes without a query are 0.
static void tile_load_queries(hd_sdpa_block *b, int vector)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES, queries = tile_min(b->queries - vector * LANES, LANES);
    const lanes sign = tile_sign(lanes_load(b->factor + vector * LANES));
    const void *query[LANES];
    for (int i = 0; i < LANES; i++) {
        const int32_t token = i < queries ? b->token[vector * LANES + i] : -1;
        query[i] = token < 0 ? NULL : tile_token(h->q, h->dtype, h->q_stride, token);
    }
    for (int64_t d = 0; d < b->depth; d += LANES) {
        const int elements = tile_min(h->dim - d * TILE_UNIT, LANES * TILE_UNIT);
        lanes r[LANES];
        if (elements == LANES * TILE_UNIT)
            tile_query_units(r, query, h->dtype, d * TILE_UNIT, LANES * TILE_UNIT);
        else
            tile_query_units(r, query, h->dtype, d * TILE_UNIT, elements);
        lanes_transpose(r);
        for (int i = 0; i < tile_min(b->depth - d, LANES); i++)
            lanes_store(b->q + (d + i) * row + vector * LANES, lanes_xor(r[i], sign));
    }
}

#endif

// The rows of the segment tables that belong to the block's queries, transposed.
static void tile_begin_segments(hd_sdpa_block *b)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES;
    for (int i = 0; i < row; i++) {
        const int32_t token = i < b->queries ? b->token[i] : -1;
        for (int64_t label = 0; label < h->key_labels; label++) {
            const int64_t at = token < 0 ? 0 : h->query_label[token] * h->key_labels + label;
            if (b->bias) b->bias[label * row + i] = h->segment_bias[at] * tile_log2e;
            if (b->gain) b->gain[label * row + i] = h->segment_gain[at];
        }
    }
}

static void tile_begin(hd_sdpa_block *b)
{
    const hd_sdpa_head *h = b->head;
    b->depth = tile_units_of(h->dim);
    b->vectors = (b->queries + LANES - 1) / LANES;
    for (int i = 0; i < b->vectors * LANES; i++) {
        const int32_t token = i < b->queries ? b->token[i] : -1;
        float scale = token >= 0 ? h->scale * tile_log2e : 0.0f;
        if (h->row_scale && token >= 0) scale *= h->row_scale[token];
        b->factor[i] = scale;
        b->max[i] = -INFINITY;
        b->sum[i] = 0.0f;
    }
    for (int v = 0; v < b->vectors; v++)
        tile_load_queries(b, v);
    // the sign has gone into the queries: the largest q k^T is then the largest score
    for (int i = 0; i < b->vectors * LANES; i++)
        b->factor[i] = fabsf(b->factor[i]);
    if (b->bias || b->gain) tile_begin_segments(b);
    memset(b->out, 0,
           (size_t)((h->value_dim + h->indicators) * b->vectors * LANES) * sizeof *b->out);
}

typedef lanes tile_sums[2 * TILE_ROWS][TILE_VECTORS];

LANES_INLINE void tile_sums_load(int rows, int vectors, tile_sums sum, const float *from)
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sum[i][v] = from ? lanes_load(from + (i * vectors + v) * LANES) : lanes_zero();
    }
}

LANES_INLINE void tile_sums_store(int rows, int vectors, tile_sums sum, float *to)
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            lanes_store(to + (i * vectors + v) * LANES, sum[i][v]);
    }
}

#ifdef TILE_INT8

// Of keys from `keys` on, `row` floats apart.
LANES_INLINE void tile_sums_begin(int rows, int vectors, tile_sums sum, const float *keys,
                                  int64_t row)
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sum[i][v] = lanes_set1(keys[i * row]);
    }
}

// The integer sums of a step's products join those in `to`, each query's times its weight. They
// fit: 128 keys x 255 x 127.
LANES_INLINE void tile_sums_join(int rows, int vectors, tile_sums sum, const float *weight,
                                 float *to)
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            float *out = to + (i * vectors + v) * LANES;
            lanes_store(out, lanes_fma(lanes_from_int(lanes_bits(sum[i][v])),
                                       lanes_load(weight + v * LANES), lanes_load(out)));
        }
    }
}

#endif

// sum [rows][vectors] += a [rows][shared] x b [shared][vectors]
LANES_INLINE void tile_sums_add(int rows, int vectors, tile_sums sum, const float *a, int64_t a_row,
                                int64_t a_step, const float *b, int64_t shared)
{
    for (int64_t s = 0; s < shared; s++) {
        lanes x[TILE_VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            x[v] = lanes_load(b + (s * vectors + v) * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            lanes w = lanes_set1(a[i * a_row + s * a_step]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                sum[i][v] = tile_dot(sum[i][v], w, x[v]);
        }
    }
}

// Calls rows(n) for n rows from row i on until `count` are done: 6 at a time, then 4, 2, 1; 8 are 4
// and 4. Narrow blocks, of half the vectors or fewer, have registers for 12.
#define TILE_FOR_ROWS(vectors, count, i, rows)                                                     \
    do {                                                                                           \
        int64_t i = 0, tile_left_ = (count);                                                       \
        for (; 2 * (vectors) <= TILE_VECTORS && tile_left_ >= 12; tile_left_ -= 12, i += 12)       \
            rows(12);                                                                              \
        for (; tile_left_ >= 6 && tile_left_ != 8; tile_left_ -= 6, i += 6)                        \
            rows(6);                                                                               \
        for (; tile_left_ >= 4; tile_left_ -= 4, i += 4)                                           \
            rows(4);                                                                               \
        if (tile_left_ & 2) {                                                                      \
            rows(2);                                                                               \
            i += 2;                                                                                \
        }                                                                                          \
        if (tile_left_ & 1) rows(1);                                                               \
    } while (0)

// Scores of some keys, and the largest of every query.
LANES_INLINE void tile_score_rows(int rows, int vectors, const hd_sdpa_block *b, const float *keys,
                                  float *to, lanes *largest)
{
    const int64_t row = TILE_KEY_HEAD + b->depth;
    tile_sums sum;
#ifdef TILE_INT8
    tile_sums_begin(rows, vectors, sum, keys, row);
#else
    tile_sums_load(rows, vectors, sum, NULL);
#endif
    tile_sums_add(rows, vectors, sum, keys + TILE_KEY_HEAD, row, 1, b->q, b->depth);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
#ifdef TILE_INT8
            sum[i][v] = tile_score(sum[i][v], keys + i * row);
#endif
            largest[v] = lanes_max(sum[i][v], largest[v]);
            lanes_store(to + (i * vectors + v) * LANES, sum[i][v]);
        }
    }
}

LANES_INLINE void tile_score_spans(int vectors, hd_sdpa_block *b, const hd_sdpa_step *step)
{
    const int64_t row = TILE_KEY_HEAD + b->depth;
    lanes largest[TILE_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        largest[v] = lanes_set1(-INFINITY);
    float *to = b->scores;
    for (int s = 0; s < step->spans; s++) {
        const hd_sdpa_span span = step->span[s];
        const float *keys = step->packed->keys + span.start * row;
#define ROWS(n) tile_score_rows(n, vectors, b, keys + i * row, to + i * vectors * LANES, largest)
        TILE_FOR_ROWS(vectors, span.count, i, ROWS);
#undef ROWS
        to += span.count * vectors * LANES;
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        lanes_store(b->largest + v * LANES, largest[v]);
}

static void tile_scores(hd_sdpa_block *b, const hd_sdpa_step *step)
{
    TILE_FOR_VECTORS(b->vectors, tile_score_spans, b, step);
}

// Channels of one panel, `width` wide.
LANES_INLINE
void tile_value_rows(int rows, int vectors, const hd_sdpa_block *b, const hd_sdpa_step *step,
                     const float *panel, int64_t width, float *out)
{
    tile_sums sum;
    const float *p = b->scores;
#ifdef TILE_INT8
    tile_sums_load(rows, vectors, sum, NULL);
#else
    tile_sums_load(rows, vectors, sum, out);
#endif
    for (int s = 0; s < step->spans; s++) {
        const int64_t units = tile_units_of(step->span[s].count);
        tile_sums_add(rows, vectors, sum, panel + step->span[s].start / TILE_UNIT * width, 1, width,
                      p, units);
        p += units * vectors * LANES;
    }
#ifdef TILE_INT8
    tile_sums_join(rows, vectors, sum, b->weight, out);
#else
    tile_sums_store(rows, vectors, sum, out);
#endif
}

// Channels first .. first + count - 1, whose panels begin with them.
LANES_INLINE void tile_value_panels(int vectors, hd_sdpa_block *b, const hd_sdpa_step *step,
                                    int64_t first, int64_t count)
{
    for (int64_t c = 0; c < count; c += HD_SDPA_PANEL) {
        const int64_t width = tile_min(count - c, HD_SDPA_PANEL);
        const float *panel = step->packed->values + (first + c) * step->packed->units;
        float *out = b->out + (first + c) * vectors * LANES;
#define ROWS(n) tile_value_rows(n, vectors, b, step, panel + i, width, out + i * vectors * LANES)
        TILE_FOR_ROWS(vectors, width, i, ROWS);
#undef ROWS
    }
}

static void tile_accumulate(hd_sdpa_block *b, const hd_sdpa_step *step)
{
    const hd_sdpa_head *h = b->head;
#ifdef TILE_INT8
    if (b->faint) return;
#endif
    TILE_FOR_VECTORS(b->vectors, tile_value_panels, b, step, 0, h->value_dim);
    if (h->indicators)
        TILE_FOR_VECTORS(b->vectors, tile_value_panels, b, step, h->value_dim, h->indicators);
}

// n elements of a query's row of a dense bias or mask, gathered; what has no token is 0, and seen.
LANES_INLINE lanes tile_gather(const float *bias, const int32_t *token, int n)
{
    float x[LANES] = {0.0f};
    for (int i = 0; i < n; i++)
        if (token[i] >= 0) x[i] = bias[token[i]];
    return lanes_load(x);
}

LANES_INLINE lanes_mask tile_gather_mask(const uint8_t *mask, const int32_t *token, int n)
{
    uint8_t x[LANES] = {0};
    for (int i = 0; i < n; i++)
        x[i] = token[i] < 0 || mask[token[i]];
    return lanes_bytes_n(x, LANES);
}

// What is added to the scores of one query and n keys: bias, and -inf where it does not see them.
LANES_INLINE lanes tile_edit_row(const hd_sdpa_head *h, int64_t query, const int32_t *token, int n,
                                 bool neighbours)
{
    lanes add = lanes_zero();
    lanes_mask seen = lanes_first(LANES);
    if (h->bias) {
        const float *bias = h->bias + query * h->bias_stride;
        add = neighbours ? lanes_read(bias, HD_F32, token[0], n) : tile_gather(bias, token, n);
        add = lanes_mul(add, lanes_set1(tile_log2e));
    }
    if (h->mask) {
        const uint8_t *mask = h->mask + query * h->mask_stride;
        seen = neighbours ? lanes_bytes_n(mask + token[0], n) : tile_gather_mask(mask, token, n);
    }
    return lanes_select(seen, add, lanes_set1(-INFINITY));
}

// add [LANES keys] of dense bias and mask for one vector of queries and n keys from key j on.
LANES_INLINE void tile_edit_dense(const hd_sdpa_block *b, const hd_sdpa_step *step, int vector,
                                  int64_t j, int n, lanes *add)
{
    const int queries = tile_min(b->queries - vector * LANES, LANES);
    const int32_t *token = step->token + j, *query = b->token + vector * LANES;
    bool neighbours = token[0] >= 0;
    for (int i = 1; i < n; i++)
        neighbours &= token[i] == token[0] + i;
    for (int i = 0; i < LANES; i++)
        add[i] = i < queries && query[i] >= 0
                     ? tile_edit_row(b->head, query[i], token, n, neighbours)
                     : lanes_zero();
    lanes_transpose(add);
}

// The lanes of vector v whose bit of the word is set.
LANES_INLINE lanes_mask tile_seen(uint64_t word, int v)
{
#ifdef __AVX512F__
    return (lanes_mask)(word >> (v * LANES));
#else
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i bits = _mm256_set1_epi32((int)(uint32_t)(word >> (v * LANES)));
    return _mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit);
#endif
}

static void tile_edit(hd_sdpa_block *b, const hd_sdpa_step *step)
{
    const int row = b->vectors * LANES;
    for (int v = 0; v < b->vectors; v++) {
        const lanes factor = lanes_load(b->factor + v * LANES);
        for (int64_t j = 0; j < step->count; j += LANES) {
            const int keys = tile_min(step->count - j, LANES);
            lanes add[LANES];
            for (int i = 0; i < LANES; i++)
                add[i] = lanes_zero();
            if (b->head->bias || b->head->mask) tile_edit_dense(b, step, v, j, keys, add);
            for (int i = 0; i < keys; i++) {
                float *s = b->scores + (j + i) * row + v * LANES;
                lanes more = lanes_add(add[i], lanes_set1(step->column_bias[j + i]));
                if (b->bias)
                    more =
                        lanes_add(more, lanes_load(b->bias + step->label[j + i] * row + v * LANES));
                lanes score = lanes_fma(lanes_load(s), factor, more);
                if (step->masked)
                    score =
                        lanes_select(tile_seen(step->word[j + i], v), score, lanes_set1(-INFINITY));
                lanes_store(s, score);
            }
        }
    }
}

// max [vectors] of the new maximum, which the block takes over; where it rose, what was summed
// under the old one is scaled to it. A lane whose maximum stays is multiplied by exactly 1, so that
// it does not matter for a query whether its neighbours need this.
LANES_INLINE void tile_raise_max(int vectors, hd_sdpa_block *b, lanes *max)
{
    lanes scale[TILE_VECTORS];
    bool rose = false;
    const lanes lowest = lanes_set1(-INFINITY);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        lanes old = lanes_load(b->max + v * LANES);
        max[v] = lanes_max(max[v], old);
        rose |= lanes_any_above(max[v], old);
        lanes_store(b->max + v * LANES, max[v]);
        // nothing seen yet: measured from 0, every score of -inf gives 0 and never NaN
        max[v] = lanes_select(lanes_equal(max[v], lowest), lanes_zero(), max[v]);
        scale[v] = lanes_exp2(lanes_sub(old, max[v]));
    }
    if (!rose) return;
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        lanes_store(b->sum + v * LANES, lanes_mul(lanes_load(b->sum + v * LANES), scale[v]));
    for (int64_t d = 0; d < b->head->value_dim + b->head->indicators; d++) {
        float *out = b->out + d * vectors * LANES;
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            lanes_store(out + v * LANES, lanes_mul(lanes_load(out + v * LANES), scale[v]));
    }
}

// How a step's scores become probabilities. EDITED ones have their factor and masks already.
enum tile_softmax_mode { TILE_PLAIN, TILE_MASKED, TILE_EDITED, TILE_GAINED };

// The largest score of every query, in units of log 2.
LANES_INLINE void tile_step_max(int vectors, const hd_sdpa_block *b, const hd_sdpa_step *step,
                                int mode, const lanes *factor, lanes *max)
{
    const bool masked = mode == TILE_MASKED;
    const int row = vectors * LANES;
    const lanes lowest = lanes_set1(-INFINITY);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        max[v] = mode == TILE_PLAIN ? lanes_load(b->largest + v * LANES) : lowest;
    for (int64_t j = 0; mode != TILE_PLAIN && j < step->count; j++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            lanes s = lanes_load(b->scores + j * row + v * LANES);
            if (masked) s = lanes_select(tile_seen(step->word[j], v), s, lowest);
            max[v] = lanes_max(s, max[v]);
        }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        lanes largest = lanes_mul(max[v], factor[v]);
        // not -inf x 0
        max[v] = masked ? lanes_select(lanes_equal(max[v], lowest), lowest, largest) : largest;
    }
}

#ifdef TILE_INT8

#include "kernels/cpu/sdpa_tile_int8_values.h"

#else

// The probability of key j, which joins the sum; what multiplies its value.
LANES_INLINE lanes tile_probability(int vectors, const hd_sdpa_block *b, const hd_sdpa_step *step,
                                    int mode, int64_t j, int v, lanes factor, lanes max, lanes *sum)
{
    const int row = vectors * LANES;
    lanes s = lanes_load(b->scores + j * row + v * LANES);
    lanes p = tile_exp2(lanes_fms(s, factor, max));
    if (mode == TILE_MASKED) p = lanes_select(tile_seen(step->word[j], v), p, lanes_zero());
    *sum = lanes_add(*sum, p);
    if (mode == TILE_GAINED)
        p = lanes_mul(p, lanes_load(b->gain + step->label[j] * row + v * LANES));
    return p;
}

LANES_INLINE void tile_softmax_vectors(int vectors, int mode, hd_sdpa_block *b,
                                       const hd_sdpa_step *step)
{
    const int row = vectors * LANES;
    const int64_t count = step->count;
    lanes factor[TILE_VECTORS], max[TILE_VECTORS], sum[TILE_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        factor[v] = mode >= TILE_EDITED ? lanes_set1(1.0f) : lanes_load(b->factor + v * LANES);
    tile_step_max(vectors, b, step, mode, factor, max);
    tile_raise_max(vectors, b, max);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        sum[v] = lanes_load(b->sum + v * LANES);
    for (int64_t j = 0; j < count; j += TILE_UNIT) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            lanes p = tile_probability(vectors, b, step, mode, j, v, factor[v], max[v], &sum[v]);
            lanes odd = lanes_zero();
            if (TILE_UNIT == 2 && j + 1 < count)
                odd =
                    tile_probability(vectors, b, step, mode, j + 1, v, factor[v], max[v], &sum[v]);
            // over scores that have been read
            lanes_store(b->scores + j / TILE_UNIT * row + v * LANES,
                        tile_probability_units(p, odd));
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        lanes_store(b->sum + v * LANES, sum[v]);
}

static void tile_softmax(hd_sdpa_block *b, const hd_sdpa_step *step)
{
    if (step->edited && b->gain)
        TILE_FOR_VECTORS(b->vectors, tile_softmax_vectors, TILE_GAINED, b, step);
    else if (step->edited)
        TILE_FOR_VECTORS(b->vectors, tile_softmax_vectors, TILE_EDITED, b, step);
    else if (step->masked)
        TILE_FOR_VECTORS(b->vectors, tile_softmax_vectors, TILE_MASKED, b, step);
    else
        TILE_FOR_VECTORS(b->vectors, tile_softmax_vectors, TILE_PLAIN, b, step);
}

#endif

#ifdef TILE_BF16_PAIRS

// 2 LANES channels of one vector of queries from `out` on, of which n are there, as pairs, divided.
LANES_INLINE void tile_out_pairs(lanes r[LANES], const float *out, int row, int n, lanes inverse)
{
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        lanes even = lanes_zero(), odd = even;
        if (2 * i < n) even = lanes_mul(lanes_load(out + (int64_t)(2 * i) * row), inverse);
        if (2 * i + 1 < n) odd = lanes_mul(lanes_load(out + (int64_t)(2 * i + 1) * row), inverse);
        r[i] = tile_probability_units(even, odd);
    }
}

// tile_store_queries of bf16: half as much to transpose, whole cache lines to store.
static void tile_store_pairs(const hd_sdpa_block *b, int vector, lanes inverse)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES, queries = tile_min(b->queries - vector * LANES, LANES);
    const float *out = b->out + vector * LANES;
    for (int64_t d = 0; d < h->value_dim; d += 2 * LANES) {
        const int n = tile_min(h->value_dim - d, 2 * LANES);
        const __mmask32 some = (__mmask32)((1ull << n) - 1);
        lanes r[LANES];
        if (n == 2 * LANES)
            tile_out_pairs(r, out + d * row, row, 2 * LANES, inverse);
        else
            tile_out_pairs(r, out + d * row, row, n, inverse);
        lanes_transpose(r);
        for (int i = 0; i < queries; i++) {
            const int64_t token = b->token[vector * LANES + i];
            if (token >= 0)
                _mm512_mask_storeu_epi16((hd_bf16 *)h->out + token * h->out_stride + d, some,
                                         _mm512_castps_si512(r[i]));
        }
    }
}

#endif

// One vector of queries, `channels` of their sums from b->out row `first` on, divided and
// transposed back.
static void tile_store_queries(const hd_sdpa_block *b, int vector, lanes inverse, int64_t first,
                               int64_t channels, void *to, hd_dtype dtype, int64_t stride)
{
    const int row = b->vectors * LANES, queries = tile_min(b->queries - vector * LANES, LANES);
    const float *out = b->out + first * row + vector * LANES;
    for (int64_t d = 0; d < channels; d += LANES) {
        const int n = tile_min(channels - d, LANES);
        lanes r[LANES];
        for (int i = 0; i < LANES; i++)
            r[i] = i < n ? lanes_mul(lanes_load(out + (d + i) * row), inverse) : lanes_zero();
#ifdef TILE_INT8
        for (int i = 0; i < n; i++)
            r[i] = lanes_mul(r[i], lanes_set1(hd_int8_step(b->head->value_largest[d + i])));
#endif
        lanes_transpose(r);
        for (int i = 0; i < queries; i++) {
            const int64_t token = b->token[vector * LANES + i];
            if (token >= 0) lanes_write(to, dtype, token * stride + d, n, r[i]);
        }
    }
}

// q . c where int8 has taken the mean key c off the keys (kernels/cpu/sdpa_tile_int8.h); else 0.
static double tile_mean_score(const hd_sdpa_head *h, int64_t query)
{
    double dot = 0.0;
    const void *q = tile_token(h->q, h->dtype, h->q_stride, query);
    for (int64_t d = 0; h->key_mean && d < h->dim; d++)
        dot += (double)(h->dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)q)[d])
                                            : ((const float *)q)[d]) *
               (double)h->key_mean[d];
    return dot * (double)h->scale * (h->row_scale ? (double)h->row_scale[query] : 1.0);
}

static void tile_finish(const hd_sdpa_block *b)
{
    const hd_sdpa_head *h = b->head;
    for (int v = 0; v < b->vectors; v++) {
        float inverse[LANES];
        for (int i = 0; i < LANES; i++) {
            float sum = b->sum[v * LANES + i];
            inverse[i] = sum == 0.0f ? 0.0f : 1.0f / sum;
        }
#ifdef TILE_BF16_PAIRS
        tile_store_pairs(b, v, lanes_load(inverse));
#else
        tile_store_queries(b, v, lanes_load(inverse), 0, h->value_dim, h->out, h->dtype,
                           h->out_stride);
#endif
        if (h->indicators)
            tile_store_queries(b, v, lanes_load(inverse), h->value_dim, h->indicators, h->probed,
                               HD_F32, h->probed_stride);
    }
    for (int i = 0; h->lse && i < b->queries; i++) // log 0 = -inf
        if (b->token[i] >= 0)
            h->lse[b->token[i] * h->lse_stride] =
                (float)((double)b->max[i] * tile_ln2 + log((double)b->sum[i]) +
                        tile_mean_score(h, b->token[i]));
}

/* The kernel of the file that includes this one, as an initialiser. */
#ifdef TILE_INT8
#define TILE_MEASURE tile_quantise
#else
#define TILE_MEASURE NULL
#endif
#define TILE_KERNEL                                                                                \
    {                                                                                              \
        .max_queries = TILE_VECTORS * LANES, .lanes = LANES, .dim_unit = TILE_UNIT,                \
        .key_head = TILE_KEY_HEAD, .unit = TILE_UNIT, .measure = TILE_MEASURE,                     \
        .pack_keys = tile_pack_keys, .pack_values = tile_pack_values, .begin = tile_begin,         \
        .scores = tile_scores, .edit = tile_edit, .softmax = tile_softmax,                         \
        .accumulate = tile_accumulate, .finish = tile_finish,                                      \
    }
