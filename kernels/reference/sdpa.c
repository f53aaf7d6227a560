/* kernels/reference/sdpa.c: attention as the formula has it, one query after the other, in f64.
 *
 * out_i = sum_j p_ij v_j / sum_j p_ij, p_ij = exp(s_ij - max_j s_ij),
 * s_ij = scale * row_scale_i * q_i . k_j + bias_ij, over the keys j that i sees. */
#include <math.h>

#include "kernels/sdpa.h"

static const double minus_infinity = -(double)INFINITY;

static double element(const void *data, hd_dtype dtype, int64_t i)
{
    if (dtype == HD_BF16) return (double)hd_bf16_to_f32(((const hd_bf16 *)data)[i]);
    return (double)((const float *)data)[i];
}

// s_ij, or -inf where query i does not see key j.
static double score(const hd_sdpa_head *h, int64_t i, int64_t j)
{
    if (h->causal && j > i) return minus_infinity;
    if (h->mask && !h->mask[i * h->mask_stride + j]) return minus_infinity;
    double dot = 0.0;
    for (int64_t d = 0; d < h->dim; d++)
        dot += element(h->q, h->dtype, i * h->q_stride + d) *
               element(h->k, h->dtype, j * h->k_stride + d);
    double scale = (double)h->scale * (h->row_scale ? (double)h->row_scale[i] : 1.0);
    return scale * dot + (h->bias ? (double)h->bias[i * h->bias_stride + j] : 0.0);
}

static void store_value(const hd_sdpa_head *h, int64_t i, int64_t d, double value)
{
    if (h->dtype == HD_BF16)
        ((hd_bf16 *)h->out)[i * h->out_stride + d] = hd_bf16_from_f32((float)value);
    else
        ((float *)h->out)[i * h->out_stride + d] = (float)value;
}

static int64_t tile_end(const hd_sdpa_head *h, int64_t tile, int64_t key_tile)
{
    int64_t end = (tile + 1) * key_tile;
    return end < h->keys ? end : h->keys;
}

// p_ij of every visited key into probability [keys]; returns their sum, and the largest score.
static double softmax(const hd_sdpa_head *h, hd_visits visits, int64_t key_tile, int64_t i,
                      double *probability, double *max)
{
    *max = minus_infinity;
    for (int64_t t = 0; t < visits.count; t++) {
        int64_t tile = hd_visits_entry(visits, t).key;
        for (int64_t j = tile * key_tile; j < tile_end(h, tile, key_tile); j++) {
            probability[j] = score(h, i, j);
            // not fmax, which would lose a NaN
            if (!(probability[j] <= *max)) *max = probability[j];
        }
    }
    double sum = 0.0;
    for (int64_t t = 0; t < visits.count; t++) {
        int64_t tile = hd_visits_entry(visits, t).key;
        for (int64_t j = tile * key_tile; j < tile_end(h, tile, key_tile); j++) {
            bool seen = probability[j] != minus_infinity;
            probability[j] = seen ? exp(probability[j] - *max) : 0.0;
            sum += probability[j];
        }
    }
    return sum;
}

void hd_sdpa_reference(const hd_sdpa_head *h, hd_visits visits, int64_t key_tile, int64_t first,
                       int64_t count, double *probability)
{
    for (int64_t i = first; i < first + count; i++) {
        double max, sum = softmax(h, visits, key_tile, i, probability, &max);
        for (int64_t d = 0; d < h->value_dim; d++) {
            double value = 0.0;
            for (int64_t t = 0; t < visits.count; t++) {
                int64_t tile = hd_visits_entry(visits, t).key;
                for (int64_t j = tile * key_tile; j < tile_end(h, tile, key_tile); j++)
                    value += probability[j] * element(h->v, h->dtype, j * h->v_stride + d);
            }
            store_value(h, i, d, sum == 0.0 ? 0.0 : value / sum);
        }
        if (h->lse) h->lse[i * h->lse_stride] = (float)(max + log(sum)); // log 0 = -inf
    }
}
