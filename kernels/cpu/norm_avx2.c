/* kernels/cpu/norm_avx2.c: the norms, eight channels at a time. */
#include "kernels/norm.h"

#include <math.h>

#include "base/exec.h"
#include "kernels/cpu/math_avx2.h"

#define SUM_BLOCK   16    // channels whose sums stay in registers
#define CACHE_BYTES 32768 // rows are taken in pieces that are still in the cache for the next block

// 16 channels from `first` on, over `rows` rows.
V8_INLINE void sum_block(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                         int64_t channels, int64_t first)
{
    __m256d s[SUM_BLOCK / 4], q[SUM_BLOCK / 4];
    for (int64_t i = 0; i < SUM_BLOCK / 4; i++) {
        s[i] = _mm256_loadu_pd(sum + first + 4 * i);
        q[i] = _mm256_loadu_pd(square + first + 4 * i);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < SUM_BLOCK / 4; i += 2) {
            __m256 v = v8_load(x, dtype, r * channels + first + 4 * i, 8);
            __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
            __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
            s[i] = _mm256_add_pd(s[i], low);
            q[i] = _mm256_fmadd_pd(low, low, q[i]);
            s[i + 1] = _mm256_add_pd(s[i + 1], high);
            q[i + 1] = _mm256_fmadd_pd(high, high, q[i + 1]);
        }
    for (int64_t i = 0; i < SUM_BLOCK / 4; i++) {
        _mm256_storeu_pd(sum + first + 4 * i, s[i]);
        _mm256_storeu_pd(square + first + 4 * i, q[i]);
    }
}

// The channels from `first` on, fewer than a block, one by one.
V8_INLINE void sum_tail(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                        int64_t channels, int64_t first)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = first; c < channels; c++) {
            int64_t i = r * channels + c;
            double v = dtype == HD_BF16 ? (double)hd_bf16_to_f32(((const hd_bf16 *)x)[i])
                                        : (double)((const float *)x)[i];
            sum[c] += v;
            square[c] += v * v;
        }
}

V8_INLINE void channel_sums_of(double *sum, double *square, const void *x, hd_dtype dtype,
                               int64_t rows, int64_t channels)
{
    int64_t first = 0;
    for (; first + SUM_BLOCK <= channels; first += SUM_BLOCK)
        sum_block(sum, square, x, dtype, rows, channels, first);
    if (first < channels) sum_tail(sum, square, x, dtype, rows, channels, first);
}

static void channel_sums(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                         int64_t channels)
{
    int64_t row_bytes = channels * (int64_t)hd_dtype_size(dtype);
    int64_t piece = row_bytes < CACHE_BYTES ? CACHE_BYTES / row_bytes : 1;
    for (int64_t from = 0; from < rows; from += piece) {
        const char *at = (const char *)x + from * row_bytes;
        int64_t count = rows - from < piece ? rows - from : piece;
        if (dtype == HD_BF16)
            channel_sums_of(sum, square, at, HD_BF16, count, channels);
        else
            channel_sums_of(sum, square, at, HD_F32, count, channels);
    }
}

V8_INLINE void scale_shift_loop(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                                const float *scale, const float *shift, int64_t rows,
                                int64_t channels, hd_activation act)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += 8) {
            int64_t left = channels - c;
            __m256 v =
                _mm256_fmadd_ps(v8_load(x, x_dtype, r * channels + c, left),
                                v8_load(scale, HD_F32, c, left), v8_load(shift, HD_F32, c, left));
            v8_store(y, y_dtype, r * channels + c, left, v8_activation(v, act));
        }
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
V8_INLINE void norm_row(void *y, const void *x, hd_dtype dtype, float mean, float rate,
                        const float *gamma, const float *beta, int64_t from, int64_t channels)
{
    for (int64_t c = 0; c < channels; c += 8) {
        int64_t left = channels - c;
        __m256 v = _mm256_sub_ps(v8_load(x, dtype, from + c, left), _mm256_set1_ps(mean));
        v = _mm256_mul_ps(v, _mm256_set1_ps(rate));
        __m256 g = gamma ? v8_load(gamma, HD_F32, c, left) : _mm256_set1_ps(1.0f);
        __m256 b = beta ? v8_load(beta, HD_F32, c, left) : _mm256_setzero_ps();
        v8_store(y, dtype, from + c, left, _mm256_fmadd_ps(v, g, b));
    }
}

V8_INLINE void layer_norm_rows(void *y, const void *x, hd_dtype dtype, const float *gamma,
                               const float *beta, float eps, int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        __m256 sum = _mm256_setzero_ps(), square = _mm256_setzero_ps();
        for (int64_t c = 0; c < channels; c += 8)
            sum = _mm256_add_ps(sum, v8_load(x, dtype, from + c, channels - c));
        float mean = v8_sum(sum) / (float)channels;
        for (int64_t c = 0; c < channels; c += 8) {
            __m256 v = v8_load(x, dtype, from + c, channels - c);
            __m256 d = v8_keep(_mm256_sub_ps(v, _mm256_set1_ps(mean)), channels - c);
            square = _mm256_fmadd_ps(d, d, square);
        }
        float rate = 1.0f / sqrtf(v8_sum(square) / (float)channels + eps);
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

V8_INLINE void rms_norm_rows(void *y, const void *x, hd_dtype dtype, const float *gamma, float eps,
                             int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        __m256 square = _mm256_setzero_ps();
        for (int64_t c = 0; c < channels; c += 8) {
            __m256 v = v8_load(x, dtype, from + c, channels - c);
            square = _mm256_fmadd_ps(v, v, square);
        }
        float rate = 1.0f / sqrtf(v8_sum(square) / (float)channels + eps);
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

const hd_norm_kernels hd_norm_avx2 = {HD_CPU | HD_AVX2, channel_sums, scale_shift, layer_norm,
                                      rms_norm};
