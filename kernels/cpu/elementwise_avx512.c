/* kernels/cpu/elementwise_avx512.c: activations and sums, sixteen elements at a time. */
#include "kernels/elementwise.h"

#include "base/exec.h"
#include "kernels/cpu/math_avx512.h"

V16_INLINE void activate_loop(void *y, const void *x, hd_dtype dtype, int64_t count,
                              hd_activation act)
{
    V16_STEPS(i, mask, count,
              v16_store(y, dtype, i, mask, v16_activation(v16_load(x, dtype, i, mask), act)));
}

static void activate(void *y, const void *x, hd_dtype dtype, int64_t count, hd_activation act)
{
#define LOOP(act_constant)                                                                         \
    if (dtype == HD_BF16)                                                                          \
        activate_loop(y, x, HD_BF16, count, act_constant);                                         \
    else                                                                                           \
        activate_loop(y, x, HD_F32, count, act_constant)
    HD_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

V16_INLINE void geglu_rows(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels)
{
    for (int64_t r = 0; r < rows; r++)
        V16_STEPS(c, mask, channels, {
            __m512 v = v16_load(x, dtype, r * 2 * channels + c, mask);
            __m512 gate = v16_load(x, dtype, (r * 2 + 1) * channels + c, mask);
            v = _mm512_mul_ps(v, v16_activation(gate, HD_ACT_GELU));
            v16_store(y, dtype, r * channels + c, mask, v);
        });
}

static void geglu(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels)
{
    if (dtype == HD_BF16)
        geglu_rows(y, x, HD_BF16, rows, channels);
    else
        geglu_rows(y, x, HD_F32, rows, channels);
}

V16_INLINE void add_loop(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count)
{
    V16_STEPS(i, mask, count, {
        __m512 sum = _mm512_add_ps(v16_load(a, dtype, i, mask), v16_load(b, dtype, i, mask));
        v16_store(y, dtype, i, mask, sum);
    });
}

static void add(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count)
{
    if (dtype == HD_BF16)
        add_loop(y, a, b, HD_BF16, count);
    else
        add_loop(y, a, b, HD_F32, count);
}

V16_INLINE void affine_loop(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                            float offset)
{
    __m512 f = _mm512_set1_ps(factor), o = _mm512_set1_ps(offset);
    V16_STEPS(i, mask, count,
              v16_store(y, dtype, i, mask, _mm512_fmadd_ps(v16_load(x, dtype, i, mask), f, o)));
}

static void affine(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                   float offset)
{
    if (dtype == HD_BF16)
        affine_loop(y, x, HD_BF16, count, factor, offset);
    else
        affine_loop(y, x, HD_F32, count, factor, offset);
}

const hd_elementwise_kernels hd_elementwise_avx512 = {HD_CPU | HD_AVX512, activate, geglu, add,
                                                      affine};
