/* kernels/reference/sdpa_int8.c: the products of attention in int8 as plain integers, one pair of
 * tokens after the other. The rules are those of kernels/cpu/sdpa_tile_int8.h.
 *
 * Probabilities are rounded 128 keys at a time, in the tokens' order; the vector kernels take
 * theirs in the plan's, so that with most plans the two agree to the rounding only. */
#include <math.h>

#include "kernels/int8.h"
#include "kernels/sdpa.h"

enum { ROUNDED_KEYS = 128 };

static float element(const void *data, hd_dtype dtype, int64_t i)
{
    if (dtype == HD_BF16) return hd_bf16_to_f32(((const hd_bf16 *)data)[i]);
    return ((const float *)data)[i];
}

// The larger of two, NaN if one is.
static float larger(float x, float largest)
{
    return x > largest || isnan(x) ? x : largest;
}

void hd_sdpa_reference_measure(const hd_sdpa_head *h, float *key_mean, float *value_largest)
{
    for (int64_t d = 0; key_mean && d < h->dim; d++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < h->keys; j++)
            sum += element(h->k, h->dtype, j * h->k_stride + d);
        key_mean[d] = sum * (1.0f / (float)h->keys);
    }
    for (int64_t d = 0; value_largest && d < h->value_dim; d++) {
        value_largest[d] = 0.0f;
        for (int64_t j = 0; j < h->keys; j++) {
            const float x = fabsf(element(h->v, h->dtype, j * h->v_stride + d));
            value_largest[d] = larger(x, value_largest[d]);
        }
    }
}

static float query_element(const hd_sdpa_head *h, int64_t query, int64_t d)
{
    return element(h->q, h->dtype, query * h->q_stride + d);
}

static float key_element(const hd_sdpa_head *h, int64_t key, const double *mean, int64_t d)
{
    const float k = mean ? (float)mean[d] : element(h->k, h->dtype, key * h->k_stride + d);
    return k - h->key_mean[d];
}

double hd_sdpa_reference_int8_dot(const hd_sdpa_head *h, int64_t query, int64_t key,
                                  const double *mean)
{
    float q_largest = 0.0f, k_largest = 0.0f;
    for (int64_t d = 0; d < h->dim; d++) {
        q_largest = larger(fabsf(query_element(h, query, d)), q_largest);
        k_largest = larger(fabsf(key_element(h, key, mean, d)), k_largest);
    }
    const float q_inverse = hd_int8_inverse(q_largest), k_inverse = hd_int8_inverse(k_largest);
    int64_t sum = 0;
    for (int64_t d = 0; d < h->dim; d++)
        sum += hd_int8_code(query_element(h, query, d), q_inverse) *
               hd_int8_code(key_element(h, key, mean, d), k_inverse);
    return (double)sum * (double)hd_int8_step(q_largest) * (double)hd_int8_step(k_largest);
}

double hd_sdpa_reference_int8_value(const hd_sdpa_head *h, int64_t d, float value)
{
    const float largest = h->value_largest[d];
    return (double)hd_int8_code(value, hd_int8_inverse(largest)) * (double)hd_int8_step(largest);
}

// Of the keys that are rounded together.
static double round_together(double *score, int64_t count, double max)
{
    double largest = -(double)INFINITY, sum = 0.0;
    for (int64_t j = 0; j < count; j++)
        if (!(score[j] <= largest)) largest = score[j];
    const double seen = largest == -(double)INFINITY ? 0.0 : exp(largest - max);
    for (int64_t j = 0; j < count; j++) {
        score[j] = seen < 0x1p-24 ? 0.0 : seen * rint(255.0 * exp(score[j] - largest)) / 255.0;
        sum += score[j];
    }
    return sum;
}

double hd_sdpa_reference_int8_weights(double *score, int64_t count, double max)
{
    double sum = 0.0;
    for (int64_t j = 0; j < count; j += ROUNDED_KEYS)
        sum += round_together(score + j, count - j < ROUNDED_KEYS ? count - j : ROUNDED_KEYS, max);
    return sum;
}
