/* kernels/reference/norm.c: the norms as their formulas read, in f64. */
#include "kernels/norm.h"

#include "base/exec.h"
#include "kernels/reference/scalar.h"

static void channel_sums(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                         int64_t channels)
{
    for (int64_t i = 0; i < rows * channels; i++) {
        double v = (double)hd_scalar_load(x, dtype, i);
        sum[i % channels] += v;
        square[i % channels] += v * v;
    }
}

static void scale_shift(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                        const float *scale, const float *shift, int64_t rows, int64_t channels,
                        hd_activation act)
{
    for (int64_t i = 0; i < rows * channels; i++) {
        int64_t c = i % channels;
        double v = (double)hd_scalar_load(x, x_dtype, i) * (double)scale[c] + (double)shift[c];
        hd_scalar_store(y, y_dtype, i, (float)hd_scalar_activation(v, act));
    }
}

static void layer_norm(void *y, const void *x, hd_dtype dtype, const float *gamma,
                       const float *beta, float eps, int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < channels; c++)
            mean += (double)hd_scalar_load(x, dtype, from + c) / (double)channels;
        for (int64_t c = 0; c < channels; c++) {
            double d = (double)hd_scalar_load(x, dtype, from + c) - mean;
            variance += d * d / (double)channels;
        }
        double rate = 1 / sqrt(variance + (double)eps);
        for (int64_t c = 0; c < channels; c++) {
            double v = ((double)hd_scalar_load(x, dtype, from + c) - mean) * rate;
            v = v * (gamma ? (double)gamma[c] : 1) + (beta ? (double)beta[c] : 0);
            hd_scalar_store(y, dtype, from + c, (float)v);
        }
    }
}

static void rms_norm(void *y, const void *x, hd_dtype dtype, const float *gamma, float eps,
                     int64_t rows, int64_t channels)
{
    for (int64_t from = 0; from < rows * channels; from += channels) {
        double square = 0;
        for (int64_t c = 0; c < channels; c++) {
            double v = (double)hd_scalar_load(x, dtype, from + c);
            square += v * v;
        }
        double rate = 1 / sqrt(square / (double)channels + (double)eps);
        for (int64_t c = 0; c < channels; c++) {
            double v = (double)hd_scalar_load(x, dtype, from + c) * rate;
            hd_scalar_store(y, dtype, from + c, (float)(v * (gamma ? (double)gamma[c] : 1)));
        }
    }
}

const hd_norm_kernels hd_norm_reference = {HD_CPU, channel_sums, scale_shift, layer_norm, rms_norm};
