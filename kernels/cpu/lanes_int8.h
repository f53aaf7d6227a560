/* kernels/cpu/lanes_int8.h: bytes beside kernels/cpu/lanes.h: a vector of 32-bit integers, or of
 * groups of four bytes (units), in the same lanes as a vector of floats.
 *
 * Only for files whose suffix names VNNI. Units travel as `lanes`, as bf16 pairs do: a register has
 * no type. */
#ifndef HD_KERNELS_CPU_LANES_INT8_H
#define HD_KERNELS_CPU_LANES_INT8_H

#include "kernels/cpu/lanes.h"

#ifdef __AVX512F__

typedef __m512i lanes_int;

LANES_INLINE lanes_int lanes_bits(lanes x)
{
    return _mm512_castps_si512(x);
}

LANES_INLINE lanes lanes_of_bits(lanes_int x)
{
    return _mm512_castsi512_ps(x);
}

LANES_INLINE lanes_int lanes_int_zero(void)
{
    return _mm512_setzero_si512();
}

LANES_INLINE lanes_int lanes_int_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}

/* To the nearest, ties to even, and back. */
LANES_INLINE lanes_int lanes_to_int(lanes x)
{
    return _mm512_cvtps_epi32(x);
}

LANES_INLINE lanes lanes_from_int(lanes_int x)
{
    return _mm512_cvtepi32_ps(x);
}

LANES_INLINE lanes_int lanes_int_add(lanes_int a, lanes_int b)
{
    return _mm512_add_epi32(a, b);
}

LANES_INLINE lanes_int lanes_int_xor(lanes_int a, lanes_int b)
{
    return _mm512_xor_si512(a, b);
}

/* sum + the products of four unsigned bytes of a and four signed ones of b, in every lane. Not the
 * intrinsic: GCC 12 then keeps an array of sums in memory, at a third of the speed. */
LANES_INLINE lanes_int lanes_int_dot(lanes_int sum, lanes_int a, lanes_int b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

/* Lane i is the unit a[i], b[i], c[i], d[i]; saturated to signed or unsigned bytes. */
LANES_INLINE lanes_int lanes_int_units(lanes_int a, lanes_int b, lanes_int c, lanes_int d,
                                       bool is_signed)
{
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i ab = _mm512_packs_epi32(a, b), cd = _mm512_packs_epi32(c, d);
    __m512i bytes = is_signed ? _mm512_packs_epi16(ab, cd) : _mm512_packus_epi16(ab, cd);
    return _mm512_shuffle_epi8(bytes, order);
}

/* The lanes as signed bytes, one behind the other. */
LANES_INLINE void lanes_int_store_bytes(int8_t *to, lanes_int x)
{
    _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(x));
}

LANES_INLINE int32_t lanes_int_sum(lanes_int x)
{
    return _mm512_reduce_add_epi32(x);
}

/* The magnitudes as integers: they order as the numbers do, and NaN is the largest of all. */
LANES_INLINE lanes_int lanes_magnitude(lanes x)
{
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

LANES_INLINE lanes_int lanes_int_max(lanes_int a, lanes_int b)
{
    return _mm512_max_epi32(a, b);
}

LANES_INLINE float lanes_largest_magnitude(lanes_int x)
{
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(x))));
}

LANES_INLINE bool lanes_all_zero(lanes x)
{
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ) == 0;
}

LANES_INLINE lanes_mask lanes_below(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

/* 255 * 2^x of lanes_exp2_short, good to 0.03; at most 255 * 2^-30 where x is below -30. */
LANES_INLINE lanes lanes_exp2_255(lanes x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-30.0f), x); // in this order a NaN comes out
    lanes f = lanes_fraction(x), p = lanes_set1(255 * 0x1.3baaa8p-4f);
    p = lanes_fma(p, f, lanes_set1(255 * 0x1.d2378ap-3f));
    p = lanes_fma(p, f, lanes_set1(255 * 0x1.63e658p-1f));
    p = lanes_fma(p, f, lanes_set1(255.0f));
    return _mm512_scalef_ps(p, x);
}

#else // AVX-VNNI

typedef __m256i lanes_int;

LANES_INLINE lanes_int lanes_bits(lanes x)
{
    return _mm256_castps_si256(x);
}

LANES_INLINE lanes lanes_of_bits(lanes_int x)
{
    return _mm256_castsi256_ps(x);
}

LANES_INLINE lanes_int lanes_int_zero(void)
{
    return _mm256_setzero_si256();
}

LANES_INLINE lanes_int lanes_int_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}

/* To the nearest, ties to even, and back. */
LANES_INLINE lanes_int lanes_to_int(lanes x)
{
    return _mm256_cvtps_epi32(x);
}

LANES_INLINE lanes lanes_from_int(lanes_int x)
{
    return _mm256_cvtepi32_ps(x);
}

LANES_INLINE lanes_int lanes_int_add(lanes_int a, lanes_int b)
{
    return _mm256_add_epi32(a, b);
}

LANES_INLINE lanes_int lanes_int_xor(lanes_int a, lanes_int b)
{
    return _mm256_xor_si256(a, b);
}

/* sum + the products of four unsigned bytes of a and four signed ones of b, in every lane. */
LANES_INLINE lanes_int lanes_int_dot(lanes_int sum, lanes_int a, lanes_int b)
{
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}

/* Lane i is the unit a[i], b[i], c[i], d[i]; saturated to signed or unsigned bytes. */
LANES_INLINE lanes_int lanes_int_units(lanes_int a, lanes_int b, lanes_int c, lanes_int d,
                                       bool is_signed)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i ab = _mm256_packs_epi32(a, b), cd = _mm256_packs_epi32(c, d);
    __m256i bytes = is_signed ? _mm256_packs_epi16(ab, cd) : _mm256_packus_epi16(ab, cd);
    return _mm256_shuffle_epi8(bytes, order);
}

/* The lanes as signed bytes, one behind the other. */
LANES_INLINE void lanes_int_store_bytes(int8_t *to, lanes_int x)
{
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(half, half));
}

LANES_INLINE int32_t lanes_int_sum(lanes_int x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* The magnitudes as integers: they order as the numbers do, and NaN is the largest of all. */
LANES_INLINE lanes_int lanes_magnitude(lanes x)
{
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

LANES_INLINE lanes_int lanes_int_max(lanes_int a, lanes_int b)
{
    return _mm256_max_epi32(a, b);
}

LANES_INLINE float lanes_largest_magnitude(lanes_int x)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1))));
}

LANES_INLINE bool lanes_all_zero(lanes x)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ)) == 0;
}

LANES_INLINE lanes_mask lanes_below(lanes a, lanes b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

/* 255 * 2^x of lanes_exp2_short, good to 0.03; at most 255 * 2^-30 where x is below -30. */
LANES_INLINE lanes lanes_exp2_255(lanes x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-30.0f), x); // in this order a NaN comes out
    return lanes_mul(lanes_exp2_short(x), lanes_set1(255.0f));
}

#endif
#endif
