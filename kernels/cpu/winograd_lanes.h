/* kernels/cpu/winograd_lanes.h: the transforms of F(4x4, 3x3), a vector of channels at a time. Each
 * is two passes of a one-dimensional transform that shares what opposite points have in common.
 *
 * Included once by each winograd_*.c; formulas in kernels/winograd.h and kernels/reference. */
#include "kernels/winograd.h"

#include "base/exec.h"
#include "kernels/cpu/lanes.h"

#define A  HD_WINOGRAD_A
#define B  HD_WINOGRAD_B
#define A2 (A * A)
#define B2 (B * B)
#define NA (1 / (2 * A2 * (A2 - B2)))
#define NB (1 / (2 * B2 * (B2 - A2)))

// c - k a
LANES_INLINE lanes less(lanes c, float k, lanes a)
{
    return lanes_fma(lanes_set1(-k), a, c);
}

// c + k a
LANES_INLINE lanes more(lanes c, float k, lanes a)
{
    return lanes_fma(lanes_set1(k), a, c);
}

LANES_INLINE lanes times(float k, lanes a)
{
    return lanes_mul(lanes_set1(k), a);
}

// Elements 0, step, 2 step ... of out from those of in.
LANES_INLINE void input_line(lanes *out, const lanes *d, int step)
{
    lanes even_a = less(d[4 * step], B2, d[2 * step]);
    lanes odd_a = times(A, less(d[3 * step], B2, d[step]));
    lanes even_b = less(d[4 * step], A2, d[2 * step]);
    lanes odd_b = times(B, less(d[3 * step], A2, d[step]));
    lanes first = more(less(d[4 * step], A2 + B2, d[2 * step]), A2 * B2, d[0]);
    lanes last = more(less(d[5 * step], A2 + B2, d[3 * step]), A2 * B2, d[step]);
    out[0] = first;
    out[step] = lanes_add(even_a, odd_a);
    out[2 * step] = lanes_sub(even_a, odd_a);
    out[3 * step] = lanes_add(even_b, odd_b);
    out[4 * step] = lanes_sub(even_b, odd_b);
    out[5 * step] = last;
}

LANES_INLINE void filter_line(lanes *out, const lanes *g, int step)
{
    lanes even_a = times(NA, more(g[0], A2, g[2 * step])), odd_a = times(NA * A, g[step]);
    lanes even_b = times(NB, more(g[0], B2, g[2 * step])), odd_b = times(NB * B, g[step]);
    lanes last = g[2 * step];
    out[0] = times(1 / (A2 * B2), g[0]);
    out[step] = lanes_add(even_a, odd_a);
    out[2 * step] = lanes_sub(even_a, odd_a);
    out[3 * step] = lanes_add(even_b, odd_b);
    out[4 * step] = lanes_sub(even_b, odd_b);
    out[5 * step] = last;
}

LANES_INLINE void output_line(lanes *out, const lanes *m, int step)
{
    lanes sum_a = lanes_add(m[step], m[2 * step]), gap_a = lanes_sub(m[step], m[2 * step]);
    lanes sum_b = lanes_add(m[3 * step], m[4 * step]), gap_b = lanes_sub(m[3 * step], m[4 * step]);
    lanes last = m[5 * step];
    out[0] = lanes_add(m[0], lanes_add(sum_a, sum_b));
    out[step] = more(times(A, gap_a), B, gap_b);
    out[2 * step] = more(times(A2, sum_a), B2, sum_b);
    out[3 * step] = more(more(last, A2 * A, gap_a), B2 * B, gap_b);
}

LANES_INLINE void input_tile(float *v, int64_t plane, const void *x, hd_dtype dtype,
                             int64_t x_stride, int64_t channels, int64_t c, int n)
{
    lanes d[36];
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            d[i * 6 + j] = lanes_read(x, dtype, i * x_stride + j * channels + c, n);
    for (int j = 0; j < 6; j++)
        input_line(d + j, d + j, 6);
    for (int i = 0; i < 6; i++) {
        lanes t[6];
        input_line(t, d + i * 6, 1);
        for (int j = 0; j < 6; j++)
            lanes_write(v, HD_F32, (i * 6 + j) * plane + c, n, t[j]);
    }
}

LANES_INLINE void input_tiles(float *v, int64_t plane, const void *x, hd_dtype dtype,
                              int64_t x_stride, int64_t tiles, int64_t channels)
{
    int64_t step = HD_WINOGRAD_TILE * channels * (int64_t)hd_dtype_size(dtype);
    for (int64_t t = 0; t < tiles; t++) {
        const char *from = (const char *)x + t * step;
        float *to = v + t * channels;
        int64_t c = 0;
        for (; c + LANES <= channels; c += LANES)
            input_tile(to, plane, from, dtype, x_stride, channels, c, LANES);
        if (c < channels)
            input_tile(to, plane, from, dtype, x_stride, channels, c, (int)(channels - c));
    }
}

static void input(float *v, int64_t plane, const void *x, hd_dtype dtype, int64_t x_stride,
                  int64_t tiles, int64_t channels)
{
    if (dtype == HD_BF16)
        input_tiles(v, plane, x, HD_BF16, x_stride, tiles, channels);
    else
        input_tiles(v, plane, x, HD_F32, x_stride, tiles, channels);
}

LANES_INLINE void filter_store(float *u, int64_t plane, const lanes *g, int n)
{
    lanes t[18]; // [6, 3]
    for (int j = 0; j < 3; j++) {
        lanes column[6], in[3] = {g[j], g[3 + j], g[6 + j]};
        filter_line(column, in, 1);
        for (int i = 0; i < 6; i++)
            t[i * 3 + j] = column[i];
    }
    for (int i = 0; i < 6; i++) {
        lanes row[6];
        filter_line(row, t + i * 3, 1);
        for (int j = 0; j < 6; j++)
            lanes_write(u, HD_F32, (i * 6 + j) * plane, n, row[j]);
    }
}

// n pairs of bf16: the first of each, and the second.
LANES_INLINE void read_pairs(lanes *first, lanes *second, const hd_bf16 *pairs, int n)
{
#ifdef __AVX512F__
    __m512i both = _mm512_maskz_loadu_epi32(v16_mask(n), pairs);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
#else
    hd_bf16 whole[2 * LANES] = {0};
    if (n < LANES) {
        memcpy(whole, pairs, (size_t)n * 2 * sizeof *pairs);
        pairs = whole;
    }
    __m256i both = _mm256_loadu_si256((const __m256i *)pairs);
    *first = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *second = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
#endif
}

static void filter(float *u, int64_t plane, int64_t u_stride, hd_winograd_weights g, int64_t from,
                   int64_t to)
{
    for (int64_t i = from; i < to; i += g.pair)
        for (int64_t c = 0; c < g.columns; c += LANES) {
            int n = g.columns - c < LANES ? (int)(g.columns - c) : LANES;
            lanes first[9], second[9];
            for (int k = 0; k < 9; k++) {
                int64_t at = k * g.in * g.columns + i * g.columns + c * g.pair;
                if (g.pair == 2)
                    read_pairs(&first[k], &second[k], (const hd_bf16 *)g.data + at, n);
                else
                    first[k] = lanes_read(g.data, g.dtype, at, n);
            }
            filter_store(u + i * u_stride + c, plane, first, n);
            if (g.pair == 2) filter_store(u + (i + 1) * u_stride + c, plane, second, n);
        }
}

LANES_INLINE void output_part(const hd_winograd_out *to, hd_dtype dtype, bool residual,
                              const float *m, int64_t plane, int64_t c, int n)
{
    lanes t[36];
    for (int p = 0; p < 36; p++)
        t[p] = lanes_read(m, HD_F32, p * plane + c, n);
    for (int j = 0; j < 6; j++)
        output_line(t + j, t + j, 6);
    lanes bias = to->out.bias ? lanes_read(to->out.bias, HD_F32, c, n) : lanes_zero();
    for (int i = 0; i < to->rows; i++) {
        lanes row[4];
        output_line(row, t + i * 6, 1);
        for (int j = 0; j < to->columns; j++) {
            int64_t at = i * to->row_stride + j * to->out.stride + c;
            lanes value = lanes_add(row[j], bias);
            if (residual) value = lanes_add(value, lanes_read(to->out.residual, dtype, at, n));
            lanes_write(to->out.y, dtype, at, n, value);
        }
    }
}

LANES_INLINE void output_tile(const hd_winograd_out *to, hd_dtype dtype, bool residual,
                              const float *m, int64_t plane, int64_t channels)
{
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES)
        output_part(to, dtype, residual, m, plane, c, LANES);
    if (c < channels) output_part(to, dtype, residual, m, plane, c, (int)(channels - c));
}

static void output(hd_winograd_out to, const float *m, int64_t plane, int64_t channels)
{
    if (to.out.dtype == HD_BF16 && to.out.residual)
        output_tile(&to, HD_BF16, true, m, plane, channels);
    else if (to.out.dtype == HD_BF16)
        output_tile(&to, HD_BF16, false, m, plane, channels);
    else if (to.out.residual)
        output_tile(&to, HD_F32, true, m, plane, channels);
    else
        output_tile(&to, HD_F32, false, m, plane, channels);
}
