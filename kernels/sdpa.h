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
    int64_t queries, keys;                            // keys: the row's own key length
    int64_t dim, value_dim;                           // D, Dv
    float scale;                                      //
    const float *row_scale;                           // [queries] or NULL
    const float *bias;                                // NULL: none
    const uint8_t *mask;                              // NULL: none
    int64_t bias_stride, mask_stride;                 // from query to query, 0: all the same
    bool causal;
    float *lse; // NULL: not asked for
    int64_t lse_stride;
} hd_sdpa_head;

/* Queries first .. first + count - 1 over the visited tiles of key_tile keys; sums in f64.
 * probability is scratch for f64 [head->keys]. */
void hd_sdpa_reference(const hd_sdpa_head *head, hd_visits visits, int64_t key_tile, int64_t first,
                       int64_t count, double *probability);

HD_END_DECLS
#endif
