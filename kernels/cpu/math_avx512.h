/* kernels/cpu/math_avx512.h: sixteen numbers at a time: the exponential, the logistic function
 * and the normal distribution to a few ulp.
 *
 * For *_avx512.c files only. A lane's result depends on that lane alone, so a masked tail computes
 * what a full vector computes. The coefficients are our own minimax fits (relative error, by
 * reweighted least squares in f64). */
#ifndef HD_KERNELS_CPU_MATH_AVX512_H
#define HD_KERNELS_CPU_MATH_AVX512_H

#include "base/dtype_avx512.h"
#include "kernels/activation.h"

/* e^x. -INFINITY gives 0, underflow is gradual, overflow is INFINITY, NaN stays NaN. */
V16_INLINE __m512 v16_exp(__m512 x)
{
    // beyond these limits the result is 0 or INFINITY anyway; max and min return x for NaN
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts, the first with zeros at its end: n times it is exact
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860682e-6f), r);
    __m512 p = _mm512_set1_ps(0.00138368314f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00837482403f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0416682263f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.166664201f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.499999921f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* 1 / (1 + e^-x) */
V16_INLINE __m512 v16_sigmoid(__m512 x)
{
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 e = v16_exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2: relative error of a few ulp in both tails. Phi(-a) for a >= 0
 * is e^(-a^2/2) times a polynomial in 1 / (1 + 0.35 a). */
V16_INLINE __m512 v16_normal_cdf(__m512 x)
{
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 a = _mm512_abs_ps(x);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(a, _mm512_set1_ps(0.35f), one));
    __m512 p = _mm512_set1_ps(-0.0291581566f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.144032205f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.255841581f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.159322535f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.0232142264f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.105553255f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.119821108f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.139863539f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.139621306f));
    __m512 e = v16_exp(_mm512_mul_ps(_mm512_mul_ps(a, a), _mm512_set1_ps(-0.5f)));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(tail, positive, one, tail);
}

/* `act` is a constant where this is inlined: no choice is left in the loop. */
V16_INLINE __m512 v16_activation(__m512 x, hd_activation act)
{
    switch (act) {
    case HD_ACT_SILU:
        return _mm512_mul_ps(x, v16_sigmoid(x));
    case HD_ACT_GELU:
        return _mm512_mul_ps(x, v16_normal_cdf(x));
    case HD_ACT_GELU_TANH: {
        // (1 + tanh u) / 2 is the logistic function of 2u
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f));
        __m512 u = _mm512_fmadd_ps(cube, x, x);
        return _mm512_mul_ps(x, v16_sigmoid(_mm512_mul_ps(u, _mm512_set1_ps(1.59576912f))));
    }
    case HD_ACT_QUICK_GELU:
        return _mm512_mul_ps(x, v16_sigmoid(_mm512_mul_ps(x, _mm512_set1_ps(1.702f))));
    case HD_ACT_RELU:
        return _mm512_max_ps(_mm512_setzero_ps(), x);
    case HD_ACT_NONE:
        break;
    }
    return x;
}

/* The sum of the lanes, always in the same order. */
V16_INLINE float v16_sum(__m512 v)
{
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

#endif
