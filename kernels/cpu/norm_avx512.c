/* kernels/cpu/norm_avx512.c: the norms, sixteen channels at a time. */
#include "kernels/norm.h"

#include <math.h>

#include "base/exec.h"
#include "kernels/cpu/math_avx512.h"

#define SUM_BLOCK   32    // channels whose sums stay in registers
#define CACHE_BYTES 65536 // rows are taken in pieces that are still in the cache for the next block

typedef struct sums8 {
    __m512d sum, square;
} sums8;

V16_INLINE sums8 sums8_load(const double *sum, const double *square, int64_t at, unsigned mask)
{
    sums8 s = {_mm512_maskz_loadu_pd((__mmask8)mask, sum + at),
               _mm512_maskz_loadu_pd((__mmask8)mask, square + at)};
    return s;
}

V16_INLINE void sums8_store(sums8 s, double *sum, double *square, int64_t at, unsigned mask)
{
    _mm512_mask_storeu_pd(sum + at, (__mmask8)mask, s.sum);
    _mm512_mask_storeu_pd(square + at, (__mmask8)mask, s.square);
}

V16_INLINE sums8 sums8_add(sums8 s, __m256 x)
{
    __m512d wide = _mm512_cvtps_pd(x);
    s.sum = _mm512_add_pd(s.sum, wide);
    s.square = _mm512_fmadd_pd(wide, wide, s.square);
    return s;
}

// Up to 32 channels from `first` on, over `rows` rows. Four named sums and not an array: at -O2 an
// array stays in memory.
V16_INLINE void sum_block(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                          int64_t channels, int64_t first)
{
    int64_t left = channels - first;
    __mmask16 low = v16_mask(left), high = left > 16 ? v16_mask(left - 16) : 0;
    sums8 a = sums8_load(sum, square, first, low);
    sums8 b = sums8_load(sum, square, first + 8, low >> 8);
    sums8 c = sums8_load(sum, square, first + 16, high);
    sums8 d = sums8_load(sum, square, first + 24, high >> 8);
    for (int64_t r = 0; r < rows; r++) {
        __m512 v = v16_load(x, dtype, r * channels + first, low);
        __m512 w = v16_load(x, dtype, r * channels + first + 16, high);
        a = sums8_add(a, _mm512_castps512_ps256(v));
        b = sums8_add(b, _mm512_extractf32x8_ps(v, 1));
        c = sums8_add(c, _mm512_castps512_ps256(w));
        d = sums8_add(d, _mm512_extractf32x8_ps(w, 1));
    }
    sums8_store(a, sum, square, first, low);
    sums8_store(b, sum, square, first + 8, low >> 8);
    sums8_store(c, sum, square, first + 16, high);
    sums8_store(d, sum, square, first + 24, high >> 8);
}

static void channel_sums(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                         int64_t channels)
{
    int64_t row_bytes = channels * (int64_t)hd_dtype_size(dtype);
    int64_t piece = row_bytes < CACHE_BYTES ? CACHE_BYTES / row_bytes : 1;
    for (int64_t from = 0; from < rows; from += piece) {
        const char *at = (const char *)x + from * row_bytes;
        int64_t count = rows - from < piece ? rows - from : piece;
        for (int64_t first = 0; first < channels; first += SUM_BLOCK)
            if (dtype == HD_BF16)
                sum_block(sum, square, at, HD_BF16, count, channels, first);
            else
                sum_block(sum, square, at, HD_F32, count, channels, first);
    }
}

V16_INLINE void scale_shift_loop(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                                 const float *scale, const float *shift, int64_t rows,
                                 int64_t channels, hd_activation act)
{
    for (int64_t r = 0; r < rows; r++)
        V16_STEPS(c, mask, channels, {
            __m512 v =
                _mm512_fmadd_ps(v16_load(x, x_dtype, r * channels + c, mask),
                                v16_load(scale, HD_F32, c, mask), v16_load(shift, HD_F32, c, mask));
            v16_store(y, y_dtype, r * channels + c, mask, v16_activation(v, act));
        });
}

static void scale_shift(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                        const float *scale, const float *shift, int64_t rows, int64_t channels,
                        hd_activation act)
{
#define LOOP(act_constant)                                                                         \
    if (x_dtype == HD_BF16 && y_dtype == HD_BF16)                                                  \
        scale_shift_loop(y, HD_BF16, x, HD_BF16, scale, shift, rows, channels, act_constant);      \
    else if (y_dtype == HD_BF16)                                                                   \
        scale_shift_loop(y, HD_BF16, x, HD_F32, scale, shift, rows, channels, act_constant);       \
    else if (x_dtype == HD_BF16)                                                                   \
        scale_shift_loop(y, HD_F32, x, HD_BF16, scale, shift, rows, channels, act_constant);       \
    else                                                                                           \
        scale_shift_loop(y, HD_F32, x, HD_F32, scale, shift, rows, channels, act_constant)
    HD_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

// y = (x - mean) * rate * gamma + beta over one row
V16_INLINE void norm_row(void *y, const void *x, hd_dtype dtype, float mean, float rate,
                         const float *gamma, const float *beta, int64_t from, int64_t channels)
{
    V16_STEPS(c, mask, channels, {
        __m512 v = _mm512_sub_ps(v16_load(x, dtype, from + c, mask), _mm512_set1_ps(mean));
        v = _mm512_mul_ps(v, _mm512_set1_ps(rate));
        __m512 g = gamma ? v16_load(gamma, HD_F32, c, mask) : _mm512_set1_ps(1.0f);
        __m512 b = beta ? v16_load(beta, HD_F32, c, mask) : _mm512_setzero_ps();
        v16_store(y, dtype, from + c, mask, _mm512_fmadd_ps(v, g, b));
    });
}

V16_INLINE void layer_norm_rows(void *y, const void *x, hd_dtype dtype, const float *gamma,
                                const float *beta, float eps, int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps();
        V16_STEPS(c, mask, channels, sum = _mm512_add_ps(sum, v16_load(x, dtype, from + c, mask)));
        float mean = v16_sum(sum) / (float)channels;
        V16_STEPS(c, mask, channels, {
            __m512 d =
                _mm512_maskz_sub_ps(mask, v16_load(x, dtype, from + c, mask), _mm512_set1_ps(mean));
            square = _mm512_fmadd_ps(d, d, square);
        });
        float rate = 1.0f / sqrtf(v16_sum(square) / (float)channels + eps);
        norm_row(y, x, dtype, mean, rate, gamma, beta, from, channels);
    }
}

static void layer_norm(void *y, const void *x, hd_dtype dtype, const float *gamma,
                       const float *beta, float eps, int64_t rows, int64_t channels)
{
    if (dtype == HD_BF16)
        layer_norm_rows(y, x, HD_BF16, gamma, beta, eps, rows, channels);
    else
        layer_norm_rows(y, x, HD_F32, gamma, beta, eps, rows, channels);
}

V16_INLINE void rms_norm_rows(void *y, const void *x, hd_dtype dtype, const float *gamma, float eps,
                              int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        __m512 square = _mm512_setzero_ps();
        V16_STEPS(c, mask, channels, {
            __m512 v = v16_load(x, dtype, from + c, mask);
            square = _mm512_fmadd_ps(v, v, square);
        });
        float rate = 1.0f / sqrtf(v16_sum(square) / (float)channels + eps);
        norm_row(y, x, dtype, 0.0f, rate, gamma, NULL, from, channels);
    }
}

static void rms_norm(void *y, const void *x, hd_dtype dtype, const float *gamma, float eps,
                     int64_t rows, int64_t channels)
{
    if (dtype == HD_BF16)
        rms_norm_rows(y, x, HD_BF16, gamma, eps, rows, channels);
    else
        rms_norm_rows(y, x, HD_F32, gamma, eps, rows, channels);
}

const hd_norm_kernels hd_norm_avx512 = {HD_CPU | HD_AVX512, channel_sums, scale_shift, layer_norm,
                                        rms_norm};
