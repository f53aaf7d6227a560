/* kernels/cpu/lanes.h: a vector of floats, as wide as the including file's instruction set has it:
 * 16 with AVX-512, 8 with AVX2. Only for files whose suffix names one.
 *
 * `n` is the number of elements that exist, 0 .. LANES: nothing beyond them is read or written. */
#ifndef HD_KERNELS_CPU_LANES_H
#define HD_KERNELS_CPU_LANES_H

#include <stdbool.h>

#ifdef __AVX512F__
#include "base/dtype_avx512.h"
#else
#include "base/dtype_avx2.h"
#endif

#define LANES_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

#define LANES 16
typedef __m512 lanes;
typedef __mmask16 lanes_mask;

LANES_INLINE lanes lanes_zero(void)
{
    return _mm512_setzero_ps();
}

LANES_INLINE lanes lanes_set1(float x)
{
    return _mm512_set1_ps(x);
}

LANES_INLINE lanes lanes_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

LANES_INLINE void lanes_store(float *p, lanes x)
{
    _mm512_storeu_ps(p, x);
}

LANES_INLINE lanes_mask lanes_first(int n)
{
    return v16_mask(n);
}

/* Elements i .. i + n - 1 of x, f32 or bf16; the other lanes are 0. */
LANES_INLINE lanes lanes_read(const void *x, hd_dtype dtype, int64_t i, int n)
{
    return v16_load(x, dtype, i, v16_mask(n));
}

LANES_INLINE void lanes_write(void *y, hd_dtype dtype, int64_t i, int n, lanes x)
{
    v16_store(y, dtype, i, v16_mask(n), x);
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
    return _mm512_add_ps(a, b);
}

LANES_INLINE lanes lanes_sub(lanes a, lanes b)
{
    return _mm512_sub_ps(a, b);
}

LANES_INLINE lanes lanes_mul(lanes a, lanes b)
{
    return _mm512_mul_ps(a, b);
}

LANES_INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* a * b - c */
LANES_INLINE lanes lanes_fms(lanes a, lanes b, lanes c)
{
    return _mm512_fmsub_ps(a, b, c);
}

LANES_INLINE lanes lanes_max(lanes a, lanes b)
{
    return _mm512_max_ps(a, b);
}

LANES_INLINE lanes lanes_xor(lanes a, lanes b)
{
    return _mm512_xor_ps(a, b);
}

/* The sign bits alone. */
LANES_INLINE lanes lanes_sign(lanes x)
{
    return _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
}

LANES_INLINE lanes_mask lanes_equal(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

LANES_INLINE bool lanes_any_above(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}

/* Lanes whose byte is not 0. */
LANES_INLINE lanes_mask lanes_bytes_n(const uint8_t *p, int n)
{
    __m128i bytes = _mm_maskz_loadu_epi8(lanes_first(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
}

LANES_INLINE lanes_mask lanes_and(lanes_mask a, lanes_mask b)
{
    return a & b;
}

LANES_INLINE lanes lanes_select(lanes_mask m, lanes yes, lanes no)
{
    return _mm512_mask_mov_ps(no, m, yes);
}

/* The parts of 2^x: f = x - floor(x), and p * 2^floor(x), which is 0 where x < -126. A NaN in x
 * comes out. */
LANES_INLINE lanes lanes_fraction(lanes x)
{
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

LANES_INLINE lanes lanes_scale2(lanes p, lanes x)
{
    __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, p, x);
}

/* r[i][j] and r[j][i] change places. */
LANES_INLINE void lanes_transpose(lanes r[LANES])
{
    lanes t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

#else // AVX2

#define LANES 8
typedef __m256 lanes;
typedef __m256i lanes_mask; // all ones or all zeros per lane

LANES_INLINE lanes lanes_zero(void)
{
    return _mm256_setzero_ps();
}

LANES_INLINE lanes lanes_set1(float x)
{
    return _mm256_set1_ps(x);
}

LANES_INLINE lanes lanes_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

LANES_INLINE void lanes_store(float *p, lanes x)
{
    _mm256_storeu_ps(p, x);
}

LANES_INLINE lanes_mask lanes_first(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Elements i .. i + n - 1 of x, f32 or bf16; the other lanes are 0. */
LANES_INLINE lanes lanes_read(const void *x, hd_dtype dtype, int64_t i, int n)
{
    return v8_load(x, dtype, i, n);
}

LANES_INLINE void lanes_write(void *y, hd_dtype dtype, int64_t i, int n, lanes x)
{
    v8_store(y, dtype, i, n, x);
}

LANES_INLINE lanes lanes_add(lanes a, lanes b)
{
    return _mm256_add_ps(a, b);
}

LANES_INLINE lanes lanes_sub(lanes a, lanes b)
{
    return _mm256_sub_ps(a, b);
}

LANES_INLINE lanes lanes_mul(lanes a, lanes b)
{
    return _mm256_mul_ps(a, b);
}

LANES_INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* a * b - c */
LANES_INLINE lanes lanes_fms(lanes a, lanes b, lanes c)
{
    return _mm256_fmsub_ps(a, b, c);
}

LANES_INLINE lanes lanes_max(lanes a, lanes b)
{
    return _mm256_max_ps(a, b);
}

LANES_INLINE lanes lanes_xor(lanes a, lanes b)
{
    return _mm256_xor_ps(a, b);
}

/* The sign bits alone. */
LANES_INLINE lanes lanes_sign(lanes x)
{
    return _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
}

LANES_INLINE lanes_mask lanes_equal(lanes a, lanes b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

LANES_INLINE bool lanes_any_above(lanes a, lanes b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}

/* Lanes whose byte is not 0. */
LANES_INLINE lanes_mask lanes_bytes_n(const uint8_t *p, int n)
{
    uint64_t bytes = 0;
    memcpy(&bytes, p, (size_t)n);
    __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    return _mm256_cmpgt_epi32(wide, _mm256_setzero_si256());
}

LANES_INLINE lanes_mask lanes_and(lanes_mask a, lanes_mask b)
{
    return _mm256_and_si256(a, b);
}

LANES_INLINE lanes lanes_select(lanes_mask m, lanes yes, lanes no)
{
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m));
}

/* The parts of 2^x: f = x - floor(x), and p * 2^floor(x), which is 0 where x < -126. A NaN in x
 * comes out. p is within [1, 2], x at most 0 or a rounding above it. */
LANES_INLINE lanes lanes_fraction(lanes x)
{
    return _mm256_sub_ps(x, _mm256_floor_ps(x));
}

LANES_INLINE lanes lanes_scale2(lanes p, lanes x)
{
    __m256i n = _mm256_slli_epi32(_mm256_cvttps_epi32(_mm256_floor_ps(x)), 23);
    lanes scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
    lanes tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    lanes nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_or_ps(_mm256_andnot_ps(tiny, scaled), nan);
}

/* r[i][j] and r[j][i] change places. */
LANES_INLINE void lanes_transpose(lanes r[LANES])
{
    lanes t[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

#endif

/* 2^x for x <= 0 (and a rounding above), exactly 1 at 0. Relative error 1e-7; short: 9e-5. The
 * polynomials are minimax fits of 2^f on [0, 1] with p(0) = 1. */
LANES_INLINE lanes lanes_exp2(lanes x)
{
    lanes f = lanes_fraction(x), p = lanes_set1(0x1.e97512p-10f);
    p = lanes_fma(p, f, lanes_set1(0x1.27784ap-7f));
    p = lanes_fma(p, f, lanes_set1(0x1.c91ceap-5f));
    p = lanes_fma(p, f, lanes_set1(0x1.ebdb56p-3f));
    p = lanes_fma(p, f, lanes_set1(0x1.62e4bap-1f));
    p = lanes_fma(p, f, lanes_set1(1.0f));
    return lanes_scale2(p, x);
}

LANES_INLINE lanes lanes_exp2_short(lanes x)
{
    lanes f = lanes_fraction(x), p = lanes_set1(0x1.3baaa8p-4f);
    p = lanes_fma(p, f, lanes_set1(0x1.d2378ap-3f));
    p = lanes_fma(p, f, lanes_set1(0x1.63e658p-1f));
    p = lanes_fma(p, f, lanes_set1(1.0f));
    return lanes_scale2(p, x);
}

#endif
