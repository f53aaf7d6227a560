/* kernels/cpu/sdpa_tile.h: the steps of kernels/cpu/sdpa.h, written once over lanes; a file of one
 * instruction set includes it and names its table.
 *
 * The includer says TILE_VECTORS (vectors per block, 1 .. 4), and defines TILE_BF16_PAIRS if its
 * units are bf16 pairs. Both products keep 6 x TILE_VECTORS sums in registers: per step of the
 * shared axis 6 broadcasts and TILE_VECTORS loads feed 6 x TILE_VECTORS multiply-adds, so that the
 * multipliers, not the loads, are what limits. */
#include <math.h>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/sdpa.h"

enum { TILE_ROWS = 6 };

static const float tile_log2e = 1.44269504088896341f;
static const double tile_ln2 = 0.693147180559945309;

#ifdef TILE_BF16_PAIRS

enum { TILE_UNIT = 2 };

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

// `count` value channels from d on of two keys side by side: lane i is (even[d + i], odd[d + i]).
LANES_INLINE lanes tile_value_units(const void *even, const void *odd, hd_dtype dtype, int64_t d,
                                    int count)
{
    (void)dtype;
    const lanes_mask some = lanes_first(count);
    __m256i low = _mm256_maskz_loadu_epi16(some, (const hd_bf16 *)even + d);
    __m256i high = _mm256_setzero_si256();
    if (odd) high = _mm256_maskz_loadu_epi16(some, (const hd_bf16 *)odd + d);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}

// The probabilities of two keys, rounded, side by side.
LANES_INLINE lanes tile_probability_units(lanes even, lanes odd)
{
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both));
}

#else

enum { TILE_UNIT = 1 };

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
    return tile_units(key, dtype, d, count);
}

LANES_INLINE lanes tile_probability_units(lanes p, lanes none)
{
    (void)none;
    return p;
}

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

// Calls step(vectors, ...) with a constant for every number of vectors that a block may have.
#if TILE_VECTORS == 4
#define TILE_FOR_VECTORS(vectors, step, ...)                                                       \
    switch (vectors) {                                                                             \
    case 1:                                                                                        \
        step(1, __VA_ARGS__);                                                                      \
        break;                                                                                     \
    case 2:                                                                                        \
        step(2, __VA_ARGS__);                                                                      \
        break;                                                                                     \
    case 3:                                                                                        \
        step(3, __VA_ARGS__);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        step(4, __VA_ARGS__);                                                                      \
        break;                                                                                     \
    }
#else
#define TILE_FOR_VECTORS(vectors, step, ...)                                                       \
    if ((vectors) == 1)                                                                            \
        step(1, __VA_ARGS__);                                                                      \
    else                                                                                           \
        step(2, __VA_ARGS__);
#endif

static void tile_pack_keys(const hd_sdpa_head *h, int64_t first, int64_t count, float *keys)
{
    const int64_t depth = tile_units_of(h->dim);
    for (int64_t j = 0; j < count; j++, keys += depth) {
        const void *key = tile_token(h->k, h->dtype, h->k_stride, first + j);
        for (int64_t d = 0; d < depth; d += LANES) {
            int elements = tile_min(h->dim - d * TILE_UNIT, LANES * TILE_UNIT);
            lanes_write(keys, HD_F32, d, tile_min(depth - d, LANES),
                        tile_units(key, h->dtype, d * TILE_UNIT, elements));
        }
    }
}

static void tile_pack_values(const hd_sdpa_head *h, int64_t first, int64_t count, float *values)
{
    const int64_t units = tile_units_of(count);
    for (int64_t j = 0; j < units; j++) {
        const int64_t key = first + j * TILE_UNIT;
        const void *even = tile_token(h->v, h->dtype, h->v_stride, key);
        const void *odd = NULL; // the last unit of an odd number of keys
        if (j * TILE_UNIT + 1 < count) odd = tile_token(h->v, h->dtype, h->v_stride, key + 1);
        for (int64_t panel = 0; panel < h->value_dim; panel += HD_SDPA_PANEL) {
            const int width = tile_min(h->value_dim - panel, HD_SDPA_PANEL);
            float *to = values + panel * units + j * width;
            for (int d = 0; d < width; d += LANES) {
                const int n = tile_min(width - d, LANES);
                lanes_write(to, HD_F32, d, n, tile_value_units(even, odd, h->dtype, panel + d, n));
            }
        }
    }
}

static void tile_pack(const hd_sdpa_head *h, int64_t first, int64_t count, float *keys,
                      float *values)
{
    tile_pack_keys(h, first, count, keys);
    tile_pack_values(h, first, count, values);
}

// One vector of queries, transposed; lanes beyond the block's queries are 0.
static void tile_load_queries(hd_sdpa_block *b, int vector)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES, queries = tile_min(b->queries - vector * LANES, LANES);
    const lanes sign = tile_sign(lanes_load(b->factor + vector * LANES));
    for (int64_t d = 0; d < b->depth; d += LANES) {
        int elements = tile_min(h->dim - d * TILE_UNIT, LANES * TILE_UNIT);
        lanes r[LANES];
        for (int i = 0; i < LANES; i++) {
            int64_t query = b->first + vector * LANES + i;
            r[i] = lanes_zero();
            if (i < queries)
                r[i] = tile_units(tile_token(h->q, h->dtype, h->q_stride, query), h->dtype,
                                  d * TILE_UNIT, elements);
        }
        lanes_transpose(r);
        for (int i = 0; i < tile_min(b->depth - d, LANES); i++)
            lanes_store(b->q + (d + i) * row + vector * LANES, lanes_xor(r[i], sign));
    }
}

static void tile_begin(hd_sdpa_block *b)
{
    const hd_sdpa_head *h = b->head;
    b->depth = tile_units_of(h->dim);
    b->vectors = (b->queries + LANES - 1) / LANES;
    for (int i = 0; i < b->vectors * LANES; i++) {
        float scale = i < b->queries ? h->scale * tile_log2e : 0.0f;
        if (h->row_scale && i < b->queries) scale *= h->row_scale[b->first + i];
        b->factor[i] = scale;
        b->max[i] = -INFINITY;
        b->sum[i] = 0.0f;
    }
    for (int v = 0; v < b->vectors; v++)
        tile_load_queries(b, v);
    // the sign has gone into the queries: the largest q k^T is then the largest score
    for (int i = 0; i < b->vectors * LANES; i++)
        b->factor[i] = fabsf(b->factor[i]);
    memset(b->out, 0, (size_t)(h->value_dim * b->vectors * LANES) * sizeof *b->out);
}

// out [rows][vectors] (+)= a [rows][shared] x b [shared][vectors], in registers throughout.
LANES_INLINE void tile_product(int rows, int vectors, float *out, bool add, const float *a,
                               int64_t a_row, int64_t a_step, const float *b, int64_t shared)
{
    lanes sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sum[i][v] = add ? lanes_load(out + (i * vectors + v) * LANES) : lanes_zero();
    }
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
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            lanes_store(out + (i * vectors + v) * LANES, sum[i][v]);
    }
}

// Any number of rows: 6 at a time, then 4, 2, 1; 8 are 4 and 4.
LANES_INLINE void tile_products(int vectors, int64_t rows, float *out, bool add, const float *a,
                                int64_t a_row, int64_t a_step, const float *b, int64_t shared)
{
    const int64_t lane_count = vectors * LANES;
    for (; rows >= 6 && rows != 8; rows -= 6, a += 6 * a_row, out += 6 * lane_count)
        tile_product(6, vectors, out, add, a, a_row, a_step, b, shared);
    for (; rows >= 4; rows -= 4, a += 4 * a_row, out += 4 * lane_count)
        tile_product(4, vectors, out, add, a, a_row, a_step, b, shared);
    if (rows & 2) {
        tile_product(2, vectors, out, add, a, a_row, a_step, b, shared);
        a += 2 * a_row, out += 2 * lane_count;
    }
    if (rows & 1) tile_product(1, vectors, out, add, a, a_row, a_step, b, shared);
}

static void tile_scores(hd_sdpa_block *b, const float *keys, int64_t count)
{
    TILE_FOR_VECTORS(b->vectors, tile_products, count, b->scores, false, keys, b->depth, 1, b->q,
                     b->depth)
}

static void tile_accumulate(hd_sdpa_block *b, const float *values, int64_t count)
{
    const int64_t units = tile_units_of(count), channels = b->head->value_dim;
    for (int64_t panel = 0; panel < channels; panel += HD_SDPA_PANEL) {
        const int64_t width = tile_min(channels - panel, HD_SDPA_PANEL);
        TILE_FOR_VECTORS(b->vectors, tile_products, width, b->out + panel * b->vectors * LANES,
                         true, values + panel * units, 1, width, b->scores, units)
    }
}

// What is added to the scores of one query and n keys: bias, and -inf where it does not see them.
LANES_INLINE lanes tile_edit_row(const hd_sdpa_head *h, int64_t query, int64_t key, int n)
{
    lanes add = lanes_zero();
    lanes_mask seen = lanes_first(LANES);
    if (h->bias)
        add = lanes_mul(lanes_read(h->bias, HD_F32, query * h->bias_stride + key, n),
                        lanes_set1(tile_log2e));
    if (h->mask) seen = lanes_bytes_n(h->mask + query * h->mask_stride + key, n);
    if (h->causal)
        seen = lanes_and(seen, lanes_first(query < key ? 0 : tile_min(query - key + 1, LANES)));
    return lanes_select(seen, add, lanes_set1(-INFINITY));
}

static void tile_edit(hd_sdpa_block *b, int64_t first, int64_t count)
{
    const int row = b->vectors * LANES;
    for (int v = 0; v < b->vectors; v++) {
        const lanes factor = lanes_load(b->factor + v * LANES);
        const int queries = tile_min(b->queries - v * LANES, LANES);
        for (int64_t j = 0; j < count; j += LANES) {
            const int keys = tile_min(count - j, LANES);
            lanes add[LANES];
            for (int i = 0; i < LANES; i++)
                add[i] = i < queries
                             ? tile_edit_row(b->head, b->first + v * LANES + i, first + j, keys)
                             : lanes_zero();
            lanes_transpose(add);
            for (int i = 0; i < keys; i++) {
                float *s = b->scores + (j + i) * row + v * LANES;
                lanes_store(s, lanes_fma(lanes_load(s), factor, add[i]));
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
    for (int64_t d = 0; d < b->head->value_dim; d++) {
        float *out = b->out + d * vectors * LANES;
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            lanes_store(out + v * LANES, lanes_mul(lanes_load(out + v * LANES), scale[v]));
    }
}

LANES_INLINE void tile_softmax_vectors(int vectors, hd_sdpa_block *b, int64_t count, bool edited)
{
    const int row = vectors * LANES;
    lanes factor[TILE_VECTORS], max[TILE_VECTORS], sum[TILE_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        factor[v] = edited ? lanes_set1(1.0f) : lanes_load(b->factor + v * LANES);
        max[v] = lanes_load(b->scores + v * LANES);
    }
    for (int64_t j = 1; j < count; j++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            max[v] = lanes_max(lanes_load(b->scores + j * row + v * LANES), max[v]);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        max[v] = lanes_mul(max[v], factor[v]);
    tile_raise_max(vectors, b, max);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        sum[v] = lanes_load(b->sum + v * LANES);
    for (int64_t j = 0; j < count; j += TILE_UNIT) {
        const float *s = b->scores + j * row;
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            lanes p = tile_exp2(lanes_fms(lanes_load(s + v * LANES), factor[v], max[v]));
            lanes odd = lanes_zero();
            if (TILE_UNIT == 2 && j + 1 < count)
                odd = tile_exp2(lanes_fms(lanes_load(s + row + v * LANES), factor[v], max[v]));
            sum[v] = lanes_add(sum[v], p);
            if (TILE_UNIT == 2) sum[v] = lanes_add(sum[v], odd);
            // over scores that have been read
            lanes_store(b->scores + j / TILE_UNIT * row + v * LANES,
                        tile_probability_units(p, odd));
        }
    }
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        lanes_store(b->sum + v * LANES, sum[v]);
}

static void tile_softmax(hd_sdpa_block *b, int64_t count, bool edited)
{
    TILE_FOR_VECTORS(b->vectors, tile_softmax_vectors, b, count, edited)
}

// One vector of queries, divided by their sums and transposed back.
static void tile_store_queries(const hd_sdpa_block *b, int vector, lanes inverse)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES, queries = tile_min(b->queries - vector * LANES, LANES);
    for (int64_t d = 0; d < h->value_dim; d += LANES) {
        const int n = tile_min(h->value_dim - d, LANES);
        lanes r[LANES];
        for (int i = 0; i < LANES; i++)
            r[i] = i < n ? lanes_mul(lanes_load(b->out + (d + i) * row + vector * LANES), inverse)
                         : lanes_zero();
        lanes_transpose(r);
        for (int i = 0; i < queries; i++) {
            int64_t token = (b->first + vector * LANES + i) * h->out_stride;
            lanes_write(h->out, h->dtype, token + d, n, r[i]);
        }
    }
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
        tile_store_queries(b, v, lanes_load(inverse));
    }
    if (!h->lse) return;
    for (int i = 0; i < b->queries; i++) // log 0 = -inf
        h->lse[(b->first + i) * h->lse_stride] =
            (float)((double)b->max[i] * tile_ln2 + log((double)b->sum[i]));
}
