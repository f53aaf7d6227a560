/* engine/blocks/heads.h: the heads of a projection as a strided view, without a copy. */
#ifndef HD_ENGINE_BLOCKS_HEADS_H
#define HD_ENGINE_BLOCKS_HEADS_H

#include "base/tensor.h"

HD_BEGIN_DECLS

/* Columns column .. column + heads * size - 1 of x [B, L, C] as [B, L, heads, size]. */
static inline hd_tensor hd_heads_view(hd_tensor x, int64_t column, int64_t heads, int64_t size)
{
    hd_tensor v = x;
    v.rank = 4;
    v.dim[2] = heads;
    v.dim[3] = size;
    v.stride[2] = size;
    v.stride[3] = 1;
    if (x.data) v.data = (char *)x.data + (size_t)column * hd_dtype_size(x.dtype);
    return v;
}

HD_END_DECLS
#endif
