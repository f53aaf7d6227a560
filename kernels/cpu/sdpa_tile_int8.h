/* kernels/cpu/sdpa_tile_int8.h: what kernels/cpu/sdpa_tile.h does otherwise where both products are
 * in int8. Private to it.
 *
 * Scores: a query's and a key's numbers are codes of one step each (kernels/int8.h), the key's
 * after the mean key of the row and head is taken off, which no softmax notices (SageAttention,
 * arXiv 2410.02367, section 3.3). vpdpbusd wants one factor unsigned: the queries' codes are stored
 * + 128, and a key's sums begin at -128 x the sum of its codes, which stands in front of it.
 *
 * Values: one step per channel of the row and head. The probabilities of a step of keys are
 * measured from their own largest and rounded to 0 .. 255, so that no step loses its small ones;
 * the step then counts 2^(its largest - the largest so far) / 255. Queries are divided by the sum
 * of the rounded probabilities: the weights add up to 1. */
#include "kernels/cpu/lanes_int8.h"
#include "kernels/int8.h"

LANES_INLINE lanes tile_dot(lanes sum, lanes a, lanes b)
{
    return lanes_of_bits(lanes_int_dot(lanes_bits(sum), lanes_bits(b), lanes_bits(a)));
}

LANES_INLINE lanes tile_exp2(lanes x)
{
    return lanes_exp2(x); // once per step of keys
}

// The product of a query's and a key's codes as a score, but for the query's step.
LANES_INLINE lanes tile_score(lanes sum, const float *key)
{
    return lanes_mul(lanes_from_int(lanes_bits(sum)), lanes_set1(key[1]));
}

// n channels of a token from d on, less the mean.
LANES_INLINE lanes tile_centred(const void *token, hd_dtype dtype, const float *mean, int64_t d,
                                int n)
{
    lanes x = lanes_read(token, dtype, d, n);
    return mean ? lanes_sub(x, lanes_read(mean, HD_F32, d, n)) : x;
}

static float tile_largest(const void *token, hd_dtype dtype, const float *mean, int64_t dim)
{
    lanes_int largest = lanes_int_zero();
    for (int64_t d = 0; d < dim; d += LANES) {
        lanes x = tile_centred(token, dtype, mean, d, tile_min(dim - d, LANES));
        largest = lanes_int_max(largest, lanes_magnitude(x));
    }
    return lanes_largest_magnitude(largest);
}

enum { MEASURED_VECTORS = 4 }; // at a time: whole cache lines of a token

// Sums and largest magnitudes of `vectors` vectors of channels over all keys; the last has n lanes.
LANES_INLINE void tile_measure_channels(int vectors, const void *data, hd_dtype dtype,
                                        int64_t stride, int64_t keys, int64_t d, int n, lanes *sum,
                                        lanes_int *largest)
{
    for (int v = 0; v < vectors; v++)
        sum[v] = lanes_zero(), largest[v] = lanes_int_zero();
    for (int64_t j = 0; j < keys; j++) {
        const void *token = tile_token(data, dtype, stride, j);
        if (j + TILE_AHEAD < keys)
            tile_expect(tile_token(data, dtype, 1, d), dtype, stride, vectors * LANES,
                        j + TILE_AHEAD);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            lanes x = lanes_read(token, dtype, d + v * LANES, v == vectors - 1 ? n : LANES);
            sum[v] = lanes_add(sum[v], x);
            largest[v] = lanes_int_max(largest[v], lanes_magnitude(x));
        }
    }
}

// Of one of k and v: the means of its channels, or the largest magnitudes.
static void tile_measure(const void *data, hd_dtype dtype, int64_t stride, int64_t keys,
                         int64_t channels, bool means, float *to)
{
    const lanes share = lanes_set1(1.0f / (float)keys);
    lanes sum[MEASURED_VECTORS];
    lanes_int largest[MEASURED_VECTORS];
    int vectors;
    for (int64_t d = 0; d < channels; d += vectors * LANES) {
        vectors = channels - d >= MEASURED_VECTORS * LANES ? MEASURED_VECTORS : 1;
        const int n = vectors > 1 ? LANES : tile_min(channels - d, LANES);
        if (vectors > 1)
            tile_measure_channels(MEASURED_VECTORS, data, dtype, stride, keys, d, LANES, sum,
                                  largest);
        else
            tile_measure_channels(1, data, dtype, stride, keys, d, n, sum, largest);
        for (int v = 0; v < vectors; v++)
            lanes_write(to, HD_F32, d + v * LANES, n,
                        means ? lanes_mul(sum[v], share) : lanes_of_bits(largest[v]));
    }
}

// What the codes are made with, of all the row's keys.
static void tile_quantise(const hd_sdpa_head *h, float *key_mean, float *value_largest)
{
    if (key_mean) tile_measure(h->k, h->dtype, h->k_stride, h->keys, h->dim, true, key_mean);
    if (value_largest)
        tile_measure(h->v, h->dtype, h->v_stride, h->keys, h->value_dim, false, value_largest);
}

static void tile_pack_key(const hd_sdpa_head *h, const void *key, float *to)
{
    const float largest = tile_largest(key, h->dtype, h->key_mean, h->dim);
    if (!isfinite(largest)) { // its scores become NaN, by 0 x its step
        memset(to, 0, (size_t)(TILE_KEY_HEAD + tile_units_of(h->dim)) * sizeof *to);
        to[1] = largest;
        return;
    }
    const lanes inverse = lanes_set1(hd_int8_inverse(largest));
    const int64_t bytes = tile_units_of(h->dim) * TILE_UNIT;
    int8_t *codes = (int8_t *)(to + TILE_KEY_HEAD);
    lanes_int sum = lanes_int_zero();
    for (int64_t d = 0; d < bytes; d += LANES) {
        lanes x = tile_centred(key, h->dtype, h->key_mean, d, tile_min(h->dim - d, LANES));
        lanes_int code = lanes_to_int(lanes_mul(x, inverse));
        sum = lanes_int_add(sum, code);
        if (bytes - d >= LANES) {
            lanes_int_store_bytes(codes + d, code);
        } else {
            int8_t some[LANES];
            lanes_int_store_bytes(some, code);
            memcpy(codes + d, some, (size_t)(bytes - d));
        }
    }
    const int32_t start = -128 * lanes_int_sum(sum);
    memcpy(to, &start, sizeof start);
    to[1] = hd_int8_step(largest);
}

static void tile_pack_keys(const hd_sdpa_head *h, const int32_t *token, int64_t first,
                           int64_t count, const hd_sdpa_packed *to)
{
    const int64_t row = TILE_KEY_HEAD + tile_units_of(h->dim);
    for (int64_t j = 0; j < count; j++) {
        float *key = to->keys + (first + j) * row;
        if (j + TILE_AHEAD < count && token[j + TILE_AHEAD] >= 0)
            tile_expect(h->k, h->dtype, h->k_stride, h->dim, token[j + TILE_AHEAD]);
        if (token[j] < 0)
            memset(key, 0, (size_t)row * sizeof *key);
        else
            tile_pack_key(h, tile_token(h->k, h->dtype, h->k_stride, token[j]), key);
    }
}

static void tile_pack_values(const hd_sdpa_head *h, const int32_t *token, int64_t first,
                             int64_t count, const hd_sdpa_packed *to)
{
    for (int64_t d = 0; d < h->value_dim; d += LANES) {
        const int64_t panel = d / HD_SDPA_PANEL * HD_SDPA_PANEL;
        const int width = tile_min(h->value_dim - panel, HD_SDPA_PANEL);
        const int n = tile_min(h->value_dim - d, LANES);
        float *at = to->values + panel * to->units + first / TILE_UNIT * width + (d - panel);
        float inverse[LANES] = {0.0f};
        for (int i = 0; i < n; i++)
            inverse[i] = hd_int8_inverse(h->value_largest[d + i]);
        for (int64_t j = 0; j < count; j += TILE_UNIT, at += width) {
            lanes_int code[TILE_UNIT];
            for (int i = 0; i < TILE_UNIT; i++) {
                lanes x = lanes_zero();
                if (j + i < count && token[j + i] >= 0)
                    x = lanes_read(tile_token(h->v, h->dtype, h->v_stride, token[j + i]), h->dtype,
                                   d, n);
                code[i] = lanes_to_int(lanes_mul(x, lanes_load(inverse)));
            }
            lanes_int units = lanes_int_units(code[0], code[1], code[2], code[3], true);
            lanes_write(at, HD_F32, 0, n, lanes_of_bits(units));
        }
    }
}

// One vector of queries, transposed; those of a negative factor are negated. The factor takes the
// queries' steps in.
static void tile_load_queries(hd_sdpa_block *b, int vector)
{
    const hd_sdpa_head *h = b->head;
    const int row = b->vectors * LANES;
    const void *token[LANES] = {NULL};
    float inverse[LANES] = {0.0f}, *factor = b->factor + vector * LANES;
    for (int i = 0; i < LANES; i++) {
        const int at = vector * LANES + i;
        if (at >= b->queries || b->token[at] < 0) continue;
        token[i] = tile_token(h->q, h->dtype, h->q_stride, b->token[at]);
        const float largest = tile_largest(token[i], h->dtype, NULL, h->dim);
        inverse[i] = copysignf(hd_int8_inverse(largest), factor[i]);
        factor[i] *= hd_int8_step(largest);
    }
    for (int64_t u = 0; u < b->depth; u += LANES) {
        lanes r[LANES];
        for (int i = 0; i < LANES; i++) {
            int8_t code[LANES * TILE_UNIT] = {0};
            for (int64_t d = u * TILE_UNIT; token[i] && d < h->dim && d < (u + LANES) * TILE_UNIT;
                 d += LANES) {
                lanes x = lanes_read(token[i], h->dtype, d, tile_min(h->dim - d, LANES));
                lanes_int_store_bytes(code + (d - u * TILE_UNIT),
                                      lanes_to_int(lanes_mul(x, lanes_set1(inverse[i]))));
            }
            memcpy(&r[i], code, sizeof r[i]);
            r[i] =
                lanes_of_bits(lanes_int_xor(lanes_bits(r[i]), lanes_int_set1((int32_t)0x80808080)));
        }
        lanes_transpose(r);
        for (int i = 0; i < tile_min(b->depth - u, LANES); i++)
            lanes_store(b->q + (u + i) * row + vector * LANES, r[i]);
    }
}
