/* base/dtype_avx2.h: eight numbers at a time between memory (f32, bf16 or f16) and f32 lanes.
 *
 * For *_avx2.c files only. `dtype` is a constant where these are inlined. */
#ifndef HD_BASE_DTYPE_AVX2_H
#define HD_BASE_DTYPE_AVX2_H

#include <immintrin.h>

#include "base/dtype.h"

#define V8_INLINE static inline __attribute__((always_inline))

/* Elements i .. i + 7 of x as f32, of which `left` exist; the others are 0 and not read. */
V8_INLINE __m256 v8_load(const void *x, hd_dtype dtype, int64_t i, int64_t left)
{
    if (dtype == HD_F32) {
        float full[8] = {0};
        if (left >= 8) return _mm256_loadu_ps((const float *)x + i);
        memcpy(full, (const float *)x + i, (size_t)left * sizeof *full);
        return _mm256_loadu_ps(full);
    }
    const uint16_t *from = (const uint16_t *)x + i;
    uint16_t part[8] = {0};
    if (left < 8) from = memcpy(part, from, (size_t)left * sizeof *part);
    __m128i half = _mm_loadu_si128((const __m128i *)from);
    if (dtype == HD_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* To the nearest bf16, ties to even, as hd_bf16_from_f32. */
V8_INLINE __m128i v8_to_bf16(__m256 v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i bits = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

V8_INLINE void v8_store(void *y, hd_dtype dtype, int64_t i, int64_t left, __m256 v)
{
    if (dtype == HD_F32) {
        float *to = (float *)y + i, full[8];
        _mm256_storeu_ps(left >= 8 ? to : full, v);
        if (left < 8) memcpy(to, full, (size_t)left * sizeof *full);
        return;
    }
    uint16_t *to = (uint16_t *)y + i, part[8];
    __m128i half = dtype == HD_F16 ? _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT) : v8_to_bf16(v);
    _mm_storeu_si128((__m128i *)(left >= 8 ? to : part), half);
    if (left < 8) memcpy(to, part, (size_t)left * sizeof *part);
}

/* v with the lanes from `left` on set to 0. */
V8_INLINE __m256 v8_keep(__m256 v, int64_t left)
{
    if (left >= 8) return v;
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), lane);
    return _mm256_and_ps(v, _mm256_castsi256_ps(keep));
}

#endif
