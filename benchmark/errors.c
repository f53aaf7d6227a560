/* benchmark/errors.c: relative L1, cosine, retained mass, PSNR and SSIM.
 *
 * SSIM: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
 * structural similarity", 2004, section III. */
#include "benchmark/errors.h"

#include <math.h>
#include <stdlib.h>

static double value_at(hd_tensor t, int64_t i)
{
    if (t.dtype == HD_F32) return (double)((const float *)t.data)[i];
    return (double)hd_bf16_to_f32(((const hd_bf16 *)t.data)[i]);
}

void hd_bench_compare(hd_tensor a, hd_tensor b, double *rel_l1, double *cosine)
{
    double difference = 0, size = 0, aa = 0, bb = 0, ab = 0;
    const int64_t count = hd_tensor_count(a);
    for (int64_t i = 0; i < count; i++) {
        const double x = value_at(a, i), y = value_at(b, i);
        difference += fabs(x - y);
        size += fabs(y);
        aa += x * x, bb += y * y, ab += x * y;
    }
    *rel_l1 = size > 0 ? difference / size : difference > 0 ? (double)INFINITY : difference;
    *cosine = aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : (double)NAN;
}

double hd_bench_retained_mass(const float *lse, const float *dense_lse, int64_t count)
{
    double sum = 0;
    int64_t seen = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(dense_lse[i])) continue;
        sum += fmin(1.0, exp((double)lse[i] - (double)dense_lse[i]));
        seen++;
    }
    return seen ? sum / (double)seen : (double)NAN;
}

double hd_bench_psnr(const hd_image *a, const hd_image *b)
{
    const size_t count = hd_image_bytes(a);
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        const double d = (double)a->rgb[i] - (double)b->rgb[i];
        sum += d * d;
    }
    return sum == 0 ? (double)INFINITY : 10 * log10(255.0 * 255.0 * (double)count / sum);
}

enum { TAPS = 11, SUMS = 5 }; // sums of a, b, aa, bb, ab under the window

// Columns first: [height][width - 10][SUMS], then rows on the fly.
static void blur_rows(double *out, const hd_image *a, const hd_image *b, int channel,
                      const double tap[TAPS])
{
    const int wide = a->width - TAPS + 1;
    for (int y = 0; y < a->height; y++)
        for (int x = 0; x < wide; x++) {
            double *s = out + ((size_t)y * (size_t)wide + (size_t)x) * SUMS;
            for (int i = 0; i < SUMS; i++)
                s[i] = 0;
            for (int t = 0; t < TAPS; t++) {
                const size_t at = ((size_t)y * (size_t)a->width + (size_t)(x + t)) * 3;
                const double p = a->rgb[at + (size_t)channel], q = b->rgb[at + (size_t)channel];
                s[0] += tap[t] * p, s[1] += tap[t] * q;
                s[2] += tap[t] * p * p, s[3] += tap[t] * q * q, s[4] += tap[t] * p * q;
            }
        }
}

static double similarity(const double *blurred, int wide, int y, int x, const double tap[TAPS])
{
    const double c1 = 0.01 * 255 * 0.01 * 255, c2 = 0.03 * 255 * 0.03 * 255;
    double m[SUMS] = {0};
    for (int t = 0; t < TAPS; t++)
        for (int i = 0; i < SUMS; i++)
            m[i] +=
                tap[t] * blurred[((size_t)(y + t) * (size_t)wide + (size_t)x) * SUMS + (size_t)i];
    const double va = m[2] - m[0] * m[0], vb = m[3] - m[1] * m[1], cov = m[4] - m[0] * m[1];
    return (2 * m[0] * m[1] + c1) * (2 * cov + c2) /
           ((m[0] * m[0] + m[1] * m[1] + c1) * (va + vb + c2));
}

hd_status hd_bench_ssim(double *out, const hd_image *a, const hd_image *b)
{
    const int wide = a->width - TAPS + 1, high = a->height - TAPS + 1;
    *out = NAN;
    if (wide < 1 || high < 1) return HD_OK;
    double *blurred = malloc((size_t)a->height * (size_t)wide * SUMS * sizeof *blurred);
    if (!blurred) return hd_fail(HD_ERR_NOMEM, "bench: no memory to compare pictures");
    double tap[TAPS], total = 0, sum = 0;
    for (int t = 0; t < TAPS; t++)
        total += tap[t] = exp(-0.5 * (t - TAPS / 2) * (t - TAPS / 2) / (1.5 * 1.5));
    for (int t = 0; t < TAPS; t++)
        tap[t] /= total;
    for (int channel = 0; channel < 3; channel++) {
        blur_rows(blurred, a, b, channel, tap);
        for (int y = 0; y < high; y++)
            for (int x = 0; x < wide; x++)
                sum += similarity(blurred, wide, y, x, tap);
    }
    free(blurred);
    *out = sum / (3.0 * wide * high);
    return HD_OK;
}
