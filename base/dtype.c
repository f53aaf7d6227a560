/* base/dtype.c: sizes, names and conversions of element types. */
#include "base/dtype.h"

#include "base/dtype_loops.h"
#include "base/exec.h"

static const struct {
    size_t size;
    const char *name;
} dtypes[HD_DTYPE_COUNT] = {
    [HD_F32] = {4, "f32"},   [HD_BF16] = {2, "bf16"}, [HD_F16] = {2, "f16"}, [HD_F64] = {8, "f64"},
    [HD_I8] = {1, "i8"},     [HD_U8] = {1, "u8"},     [HD_I16] = {2, "i16"}, [HD_U16] = {2, "u16"},
    [HD_I32] = {4, "i32"},   [HD_U32] = {4, "u32"},   [HD_I64] = {8, "i64"}, [HD_U64] = {8, "u64"},
    [HD_BOOL] = {1, "bool"},
};

size_t hd_dtype_size(hd_dtype dtype)
{
    return (unsigned)dtype < HD_DTYPE_COUNT ? dtypes[dtype].size : 0;
}

const char *hd_dtype_name(hd_dtype dtype)
{
    return (unsigned)dtype < HD_DTYPE_COUNT ? dtypes[dtype].name : "unknown type";
}

float hd_f16_to_f32(hd_f16 h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t u;
    float f;
    if (exponent == 0x1f) {
        // NaN becomes quiet, as processors do it
        u = sign | 0x7f800000u | (mantissa ? 0x400000u : 0u) | (mantissa << 13);
    } else if (exponent) {
        u = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else {
        // subnormal halves are normal floats: mantissa x 2^-24, exact
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    memcpy(&f, &u, sizeof f);
    return f;
}

hd_f16 hd_f16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (hd_f16)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
    if (u >= 0x477ff000u) return (hd_f16)(sign | 0x7c00u); // rounds past the largest half
    if (u < 0x38800000u) {
        // subnormal result: adding 0.5 lets the float adder do the rounding at 2^-24
        float shifted;
        memcpy(&shifted, &u, sizeof shifted);
        shifted += 0.5f;
        memcpy(&u, &shifted, sizeof u);
        return (hd_f16)(sign | (u - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1u);
    return (hd_f16)(sign | ((u - 0x38000000u) >> 13));
}

static void widen(float *out, const uint16_t *in, hd_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = dtype == HD_BF16 ? hd_bf16_to_f32(in[i]) : hd_f16_to_f32(in[i]);
}

static void narrow(uint16_t *out, hd_dtype dtype, const float *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = dtype == HD_BF16 ? hd_bf16_from_f32(in[i]) : hd_f16_from_f32(in[i]);
}

const hd_dtype_loops hd_dtype_plain = {HD_CPU, widen, narrow};

static const hd_dtype_loops *best_loops(void)
{
    static const hd_dtype_loops *const sets[] = {
#if HD_WITH_AVX512
        &hd_dtype_avx512,
#endif
#if HD_WITH_AVX2
        &hd_dtype_avx2,
#endif
        &hd_dtype_plain,
    };
    unsigned has = hd_cpu_features();
    for (size_t i = 0; i + 1 < HD_COUNT(sets); i++)
        if ((has & sets[i]->needs) == sets[i]->needs) return sets[i];
    return &hd_dtype_plain;
}

hd_status hd_convert_to_f32(float *out, const void *in, hd_dtype dtype, int64_t count)
{
    switch (dtype) {
    case HD_F32:
        if (count > 0) memcpy(out, in, (size_t)count * sizeof *out);
        return HD_OK;
    case HD_BF16:
    case HD_F16:
        best_loops()->widen(out, in, dtype, count);
        return HD_OK;
    case HD_F64:
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)((const double *)in)[i];
        return HD_OK;
    default:
        return hd_fail(HD_ERR_UNSUPPORTED, "convert: %s is not a floating type",
                       hd_dtype_name(dtype));
    }
}

hd_status hd_convert_from_f32(void *out, hd_dtype dtype, const float *in, int64_t count)
{
    switch (dtype) {
    case HD_F32:
        if (count > 0) memcpy(out, in, (size_t)count * sizeof *in);
        return HD_OK;
    case HD_BF16:
    case HD_F16:
        best_loops()->narrow(out, dtype, in, count);
        return HD_OK;
    default:
        return hd_fail(HD_ERR_UNSUPPORTED, "convert: f32 does not become %s", hd_dtype_name(dtype));
    }
}

void hd_convert_f32_to_bf16(hd_bf16 *out, const float *in, int64_t count)
{
    best_loops()->narrow(out, HD_BF16, in, count);
}
