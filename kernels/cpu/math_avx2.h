/* kernels/cpu/math_avx2.h: eight numbers at a time: the exponential, the logistic function and
 * the normal distribution to a few ulp.
 *
 * For *_avx2.c files only. A lane's result depends on that lane alone, so a padded tail computes
 * what a full vector computes. Same polynomials as math_avx512.h. */
#ifndef HD_KERNELS_CPU_MATH_AVX2_H
#define HD_KERNELS_CPU_MATH_AVX2_H

#include "base/dtype_avx2.h"
#include "kernels/activation.h"

/* e^x. -INFINITY gives 0, underflow is gradual, overflow is INFINITY, NaN stays NaN. */
V8_INLINE __m256 v8_exp(__m256 x)
{
    // beyond these limits the result is 0 or INFINITY anyway; max and min return x for NaN
    x = _mm256_max_ps(_mm256_set1_ps(-104.0f), x);
    x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // ln 2 in two parts, the first with zeros at its end: n times it is exact
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145751953125f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860682e-6f), r);
    __m256 p = _mm256_set1_ps(0.00138368314f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.00837482403f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0416682263f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.166664201f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.499999921f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    // 2^n in two factors: n goes beyond the exponents of an f32
    __m256i bias = _mm256_set1_epi32(127), all = _mm256_cvtps_epi32(n);
    __m256i first = _mm256_srai_epi32(all, 1), second = _mm256_sub_epi32(all, first);
    first = _mm256_slli_epi32(_mm256_add_epi32(first, bias), 23);
    second = _mm256_slli_epi32(_mm256_add_epi32(second, bias), 23);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(first));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(second));
}

/* 1 / (1 + e^-x) */
V8_INLINE __m256 v8_sigmoid(__m256 x)
{
    __m256 one = _mm256_set1_ps(1.0f);
    __m256 e = v8_exp(_mm256_sub_ps(_mm256_setzero_ps(), x));
    return _mm256_div_ps(one, _mm256_add_ps(one, e));
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2: relative error of a few ulp in both tails. Phi(-a) for a >= 0
 * is e^(-a^2/2) times a polynomial in 1 / (1 + 0.35 a). */
V8_INLINE __m256 v8_normal_cdf(__m256 x)
{
    __m256 one = _mm256_set1_ps(1.0f);
    __m256 a = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(a, _mm256_set1_ps(0.35f), one));
    __m256 p = _mm256_set1_ps(-0.0291581566f);
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.144032205f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.255841581f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.159322535f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.0232142264f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.105553255f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.119821108f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.139863539f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.139621306f));
    __m256 e = v8_exp(_mm256_mul_ps(_mm256_mul_ps(a, a), _mm256_set1_ps(-0.5f)));
    __m256 tail = _mm256_mul_ps(_mm256_mul_ps(p, t), e);
    __m256 positive = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_blendv_ps(tail, _mm256_sub_ps(one, tail), positive);
}

/* `act` is a constant where this is inlined: no choice is left in the loop. */
V8_INLINE __m256 v8_activation(__m256 x, hd_activation act)
{
    switch (act) {
    case HD_ACT_SILU:
        return _mm256_mul_ps(x, v8_sigmoid(x));
    case HD_ACT_GELU:
        return _mm256_mul_ps(x, v8_normal_cdf(x));
    case HD_ACT_GELU_TANH: {
        // (1 + tanh u) / 2 is the logistic function of 2u
        __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044715f));
        __m256 u = _mm256_fmadd_ps(cube, x, x);
        return _mm256_mul_ps(x, v8_sigmoid(_mm256_mul_ps(u, _mm256_set1_ps(1.59576912f))));
    }
    case HD_ACT_QUICK_GELU:
        return _mm256_mul_ps(x, v8_sigmoid(_mm256_mul_ps(x, _mm256_set1_ps(1.702f))));
    case HD_ACT_RELU:
        return _mm256_max_ps(_mm256_setzero_ps(), x);
    case HD_ACT_NONE:
        break;
    }
    return x;
}

/* The sum of the lanes, always in the same order. */
V8_INLINE float v8_sum(__m256 v)
{
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

#endif
