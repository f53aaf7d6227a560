/* base/dtype_avx512.h: sixteen numbers at a time between memory (f32, bf16 or f16) and f32 lanes.
 *
 * For *_avx512.c files only. `dtype` is a constant where these are inlined. */
#ifndef HD_BASE_DTYPE_AVX512_H
#define HD_BASE_DTYPE_AVX512_H

#include <immintrin.h>

#include "base/dtype.h"

#define V16_INLINE static inline __attribute__((always_inline))
#define V16_ALL    ((__mmask16)0xffff)

/* The mask of a vector that starts `left` elements before the end. */
V16_INLINE __mmask16 v16_mask(int64_t left)
{
    return left >= 16 ? V16_ALL : (__mmask16)((1u << left) - 1u);
}

/* Runs `step` (a statement that uses i and mask) for the vectors of [0, count). Whole vectors have
 * a constant mask and become plain loads and stores: masked stores take several times as long on
 * some processors. */
#define V16_STEPS(i, mask, count, step)                                                            \
    do {                                                                                           \
        int64_t i = 0, v16_count_ = (count);                                                       \
        for (; i + 16 <= v16_count_; i += 16) {                                                    \
            const __mmask16 mask = V16_ALL;                                                        \
            step;                                                                                  \
        }                                                                                          \
        if (i < v16_count_) {                                                                      \
            const __mmask16 mask = v16_mask(v16_count_ - i);                                       \
            step;                                                                                  \
        }                                                                                          \
    } while (0)

/* Elements i .. i + 15 of x as f32; lanes outside the mask are 0 and not read. */
V16_INLINE __m512 v16_load(const void *x, hd_dtype dtype, int64_t i, __mmask16 mask)
{
    if (dtype == HD_F32)
        return mask == V16_ALL ? _mm512_loadu_ps((const float *)x + i)
                               : _mm512_maskz_loadu_ps(mask, (const float *)x + i);
    const uint16_t *at = (const uint16_t *)x + i;
    __m256i half = mask == V16_ALL ? _mm256_loadu_si256((const __m256i *)at)
                                   : _mm256_maskz_loadu_epi16(mask, at);
    if (dtype == HD_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* To the nearest bf16, ties to even, as hd_bf16_from_f32. */
V16_INLINE __m256i v16_to_bf16(__m512 v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m512i bits = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), nan, high,
                                        _mm512_set1_epi32(0x40)); // quiet, whatever was cut off
    return _mm512_cvtepi32_epi16(bits);
}

V16_INLINE void v16_store(void *y, hd_dtype dtype, int64_t i, __mmask16 mask, __m512 v)
{
    if (dtype == HD_F32) {
        if (mask == V16_ALL)
            _mm512_storeu_ps((float *)y + i, v);
        else
            _mm512_mask_storeu_ps((float *)y + i, mask, v);
        return;
    }
    __m256i half = dtype == HD_F16
                       ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                       : v16_to_bf16(v);
    if (mask == V16_ALL)
        _mm256_storeu_si256((__m256i *)((uint16_t *)y + i), half);
    else
        _mm256_mask_storeu_epi16((uint16_t *)y + i, mask, half);
}

#endif
