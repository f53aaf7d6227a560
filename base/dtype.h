/* base/dtype.h: the types of a tensor's elements, and the conversions between the floating ones. */
#ifndef HD_BASE_DTYPE_H
#define HD_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef enum hd_dtype {
    HD_F32 = 0,
    HD_BF16,
    HD_F16,
    HD_F64,
    HD_I8,
    HD_U8,
    HD_I16,
    HD_U16,
    HD_I32,
    HD_U32,
    HD_I64,
    HD_U64,
    HD_BOOL,
    HD_DTYPE_COUNT
} hd_dtype;

typedef uint16_t hd_bf16; // the bits of a bfloat16
typedef uint16_t hd_f16;  // the bits of an IEEE half

size_t hd_dtype_size(hd_dtype dtype);      // bytes of one element
const char *hd_dtype_name(hd_dtype dtype); // "f32", "bf16", ...

static inline float hd_bf16_to_f32(hd_bf16 b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline hd_bf16 hd_bf16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (hd_bf16)((u >> 16) | 0x40u);
    return (hd_bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float hd_f16_to_f32(hd_f16 h);
hd_f16 hd_f16_from_f32(float f);

/* count elements of any of f32, bf16, f16, f64 to f32, and f32 to f32, bf16 or f16 (nearest even):
 * vectorised where the machine can, the same bits everywhere. The ranges must not overlap. */
HD_CHECKED hd_status hd_convert_to_f32(float *out, const void *in, hd_dtype dtype, int64_t count);
HD_CHECKED hd_status hd_convert_from_f32(void *out, hd_dtype dtype, const float *in, int64_t count);
void hd_convert_f32_to_bf16(hd_bf16 *out, const float *in, int64_t count);

HD_END_DECLS
#endif
