/* kernels/sdpa.h: one row and head of an attention call in plain pointers: what its kernels are
 * handed by engine/ops/sdpa.c, which has checked it. */
#ifndef HD_KERNELS_SDPA_H
#define HD_KERNELS_SDPA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/plan.h"

HD_BEGIN_DECLS

typedef struct hd_sdpa_head {
    hd_dtype dtype;                                   // of q, k, v and out: f32 or bf16
    const void *q, *k, *v;                            // token 0 of the row and head
    void *out;                                        //
    int64_t q_stride, k_stride, v_stride, out_stride; // elements from token to token
    int64_t queries, keys;            // the row's own lengths: no token behind them is touched
    int64_t all_queries, all_keys;    // of the call, Lq and Lk
    int64_t dim, value_dim;           // D, Dv
    float scale;                      //
    const float *row_scale;           // [queries] or NULL
    const float *column_bias;         // [keys] or NULL
    const float *bias;                // NULL: none
    const uint8_t *mask;              // NULL: none
    int64_t bias_stride, mask_stride; // from query to query, 0: all the same
    const uint8_t *query_label, *key_label; // segments; NULL: none
    int64_t key_labels;
    const float *segment_bias, *segment_gain; // [query labels][key_labels] or NULL
    bool causal;
    float *lse; // NULL: not asked for
    int64_t lse_stride;
    int64_t indicators; // value channels behind Dv, of f32; 0: none
    const float *indicator;
    float *probed; // their sums
    int64_t indicator_stride, probed_stride;
    const float *key_mean;      // [D] int8 scores: taken off the keys; NULL: none
    const float *value_largest; // [Dv] int8 values: the magnitudes that 127 stands for; NULL: none
    const hd_plan *plan;        // never NULL
    int64_t number;             // of the head, in the plan
} hd_sdpa_head;

/* The queries of ranks first .. first + count - 1, all of them of one query tile of the plan
 * (plan->query_tiles: of the tail); sums in f64. scratch is of hd_sdpa_reference_doubles.
 * Returns the entries visited. */
int64_t hd_sdpa_reference(const hd_sdpa_head *head, int64_t query_tile, int64_t first,
                          int64_t count, double *scratch);
/* The same in int8 as plain integers (kernels/reference/sdpa_int8.c): what the codes are made with,
 * those of [D] and [Dv] not NULL; q . k of a query and of a token's key or (not NULL) a mean key;
 * a value of channel d as its code says; the rounding of the probabilities exp(score - max) of some
 * scores, which become weights, and their sum. */
void hd_sdpa_reference_measure(const hd_sdpa_head *head, float *key_mean, float *value_largest);
double hd_sdpa_reference_int8_dot(const hd_sdpa_head *head, int64_t query, int64_t key,
                                  const double *mean);
double hd_sdpa_reference_int8_value(const hd_sdpa_head *head, int64_t d, float value);
double hd_sdpa_reference_int8_weights(double *score, int64_t count, double max);
int64_t hd_sdpa_reference_doubles(const hd_plan *plan, int64_t all_keys, int64_t dim,
                                  int64_t channels);

HD_END_DECLS
#endif
