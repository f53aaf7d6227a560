/* base/dtype_avx512.c: conversions between 16-bit floats and f32, sixteen at a time. */
#include "base/dtype_avx512.h"
#include "base/dtype_loops.h"
#include "base/exec.h"

V16_INLINE void convert(void *out, hd_dtype out_dtype, const void *in, hd_dtype in_dtype,
                        int64_t count)
{
    V16_STEPS(i, mask, count, v16_store(out, out_dtype, i, mask, v16_load(in, in_dtype, i, mask)));
}

static void widen(float *out, const uint16_t *in, hd_dtype dtype, int64_t count)
{
    if (dtype == HD_BF16)
        convert(out, HD_F32, in, HD_BF16, count);
    else
        convert(out, HD_F32, in, HD_F16, count);
}

static void narrow(uint16_t *out, hd_dtype dtype, const float *in, int64_t count)
{
    if (dtype == HD_BF16)
        convert(out, HD_BF16, in, HD_F32, count);
    else
        convert(out, HD_F16, in, HD_F32, count);
}

const hd_dtype_loops hd_dtype_avx512 = {HD_CPU | HD_AVX512, widen, narrow};
