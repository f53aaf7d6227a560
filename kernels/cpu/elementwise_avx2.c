/* kernels/cpu/elementwise_avx2.c: activations and sums, eight elements at a time. */
#include "kernels/elementwise.h"

#include "base/exec.h"
#include "kernels/cpu/math_avx2.h"

V8_INLINE void activate_loop(void *y, const void *x, hd_dtype dtype, int64_t count,
                             hd_activation act)
{
    for (int64_t i = 0; i < count; i += 8) {
        int64_t left = count - i;
        v8_store(y, dtype, i, left, v8_activation(v8_load(x, dtype, i, left), act));
    }
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

V8_INLINE void geglu_rows(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += 8) {
            int64_t left = channels - c;
            __m256 v = v8_load(x, dtype, r * 2 * channels + c, left);
            __m256 gate = v8_load(x, dtype, (r * 2 + 1) * channels + c, left);
            v = _mm256_mul_ps(v, v8_activation(gate, HD_ACT_GELU));
            v8_store(y, dtype, r * channels + c, left, v);
        }
}

static void geglu(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels)
{
    if (dtype == HD_BF16)
        geglu_rows(y, x, HD_BF16, rows, channels);
    else
        geglu_rows(y, x, HD_F32, rows, channels);
}

V8_INLINE void add_loop(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i += 8) {
        int64_t left = count - i;
        __m256 sum = _mm256_add_ps(v8_load(a, dtype, i, left), v8_load(b, dtype, i, left));
        v8_store(y, dtype, i, left, sum);
    }
}

static void add(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count)
{
    if (dtype == HD_BF16)
        add_loop(y, a, b, HD_BF16, count);
    else
        add_loop(y, a, b, HD_F32, count);
}

V8_INLINE void affine_loop(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                           float offset)
{
    __m256 f = _mm256_set1_ps(factor), o = _mm256_set1_ps(offset);
    for (int64_t i = 0; i < count; i += 8) {
        int64_t left = count - i;
        v8_store(y, dtype, i, left, _mm256_fmadd_ps(v8_load(x, dtype, i, left), f, o));
    }
}

static void affine(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                   float offset)
{
    if (dtype == HD_BF16)
        affine_loop(y, x, HD_BF16, count, factor, offset);
    else
        affine_loop(y, x, HD_F32, count, factor, offset);
}

const hd_elementwise_kernels hd_elementwise_avx2 = {HD_CPU | HD_AVX2, activate, geglu, add, affine};
