/* engine/attention/edit.h: what tokens and output hooks do to rows of q, k, v and out: copy, mix,
 * add, recombine tokens. Tensors are [B, L, H, D] in f32 or bf16, those of a call in one type,
 * any strides, last axis contiguous; arithmetic is f32. A row is one index of B. */
#ifndef HD_ENGINE_ATTENTION_EDIT_H
#define HD_ENGINE_ATTENTION_EDIT_H

#include "base/tensor.h"

HD_BEGIN_DECLS

/* to[row] = from[source], for the first `tokens` tokens. Bits are copied. */
void hd_edit_copy(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens);
/* to[row] += share (from[source] - to[row]): share 1 copies, 0 changes nothing, and where both are
 * equal nothing changes whatever the share. weight [tokens] multiplies the share; NULL: 1. */
void hd_edit_mix(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens,
                 float share, const float *weight);
/* to[row] += factor from[source] */
void hd_edit_add(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens,
                 float factor);

/* Element number i of the tensor's memory. */
static inline float hd_edit_get(hd_tensor t, int64_t i)
{
    return t.dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)t.data)[i])
                              : ((const float *)t.data)[i];
}
static inline void hd_edit_put(hd_tensor t, int64_t i, float x)
{
    if (t.dtype == HD_BF16)
        ((hd_bf16 *)t.data)[i] = hd_bf16_from_f32(x);
    else
        ((float *)t.data)[i] = x;
}

/* A term of a recombination: token `to` gets `share` times token `from`. */
typedef struct hd_edit_term {
    int32_t to, from;
    float share;
} hd_edit_term;

/* to[row], all its tokens: 0, then the terms, which ascend by `to`; from may not be the memory of
 * to. */
void hd_edit_recombine(hd_tensor to, int64_t row, hd_tensor from, int64_t source,
                       const hd_edit_term *term, int64_t terms);

HD_END_DECLS
#endif
