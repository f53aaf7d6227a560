/* kernels/reference/winograd.c: the transforms of F(4x4, 3x3), as products with their matrices. */
#include "kernels/winograd.h"

#include "base/exec.h"
#include "kernels/reference/scalar.h"

#define A  ((double)HD_WINOGRAD_A)
#define B  ((double)HD_WINOGRAD_B)
#define A2 (A * A)
#define B2 (B * B)
#define NA (1 / (2 * A2 * (A2 - B2)))
#define NB (1 / (2 * B2 * (B2 - A2)))

// Rows: the points 0, A, -A, B, -B, infinity.
static const double input_matrix[6][6] = {
    {A2 * B2, 0, -(A2 + B2), 0, 1, 0}, {0, -A *B2, -B2, A, 1, 0}, {0, A *B2, -B2, -A, 1, 0},
    {0, -B *A2, -A2, B, 1, 0},         {0, B *A2, -A2, -B, 1, 0}, {0, A2 *B2, 0, -(A2 + B2), 0, 1}};
static const double filter_matrix[6][3] = {{1 / (A2 * B2), 0, 0}, {NA, NA *A, NA *A2},
                                           {NA, -NA *A, NA *A2},  {NB, NB *B, NB *B2},
                                           {NB, -NB *B, NB *B2},  {0, 0, 1}};
static const double output_matrix[4][6] = {{1, 1, 1, 1, 1, 0},
                                           {0, A, -A, B, -B, 0},
                                           {0, A2, A2, B2, B2, 0},
                                           {0, A2 *A, -A2 *A, B2 *B, -B2 *B, 1}};

// out = m in m^T; m [n, k], in [k, k], out [n, n]
static void sandwich(double *out, const double *m, const double *in, int n, int k)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int a = 0; a < k; a++)
                for (int b = 0; b < k; b++)
                    sum += m[i * k + a] * in[a * k + b] * m[j * k + b];
            out[i * n + j] = sum;
        }
}

static void filter(float *u, int64_t plane, int64_t u_stride, hd_winograd_weights g, int64_t from,
                   int64_t to)
{
    for (int64_t i = from; i < to; i++)
        for (int64_t c = 0; c < g.columns; c++) {
            double in[9], out[HD_WINOGRAD_PLANES];
            for (int k = 0; k < 9; k++) {
                int64_t at = k * g.in * g.columns + i / g.pair * g.columns * g.pair;
                in[k] = (double)hd_scalar_load(g.data, g.dtype, at + c * g.pair + i % g.pair);
            }
            sandwich(out, &filter_matrix[0][0], in, 6, 3);
            for (int p = 0; p < HD_WINOGRAD_PLANES; p++)
                u[p * plane + i * u_stride + c] = (float)out[p];
        }
}

static void input(float *v, int64_t plane, const void *x, hd_dtype dtype, int64_t x_stride,
                  int64_t tiles, int64_t channels)
{
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t c = 0; c < channels; c++) {
            double in[HD_WINOGRAD_PLANES], out[HD_WINOGRAD_PLANES];
            for (int i = 0; i < 6; i++)
                for (int j = 0; j < 6; j++)
                    in[i * 6 + j] = (double)hd_scalar_load(
                        x, dtype, i * x_stride + (HD_WINOGRAD_TILE * t + j) * channels + c);
            sandwich(out, &input_matrix[0][0], in, 6, 6);
            for (int p = 0; p < HD_WINOGRAD_PLANES; p++)
                v[p * plane + t * channels + c] = (float)out[p];
        }
}

static void output(hd_winograd_out to, const float *m, int64_t plane, int64_t channels)
{
    const hd_panel_out *o = &to.out;
    for (int64_t c = 0; c < channels; c++) {
        double in[HD_WINOGRAD_PLANES], out[16];
        for (int p = 0; p < HD_WINOGRAD_PLANES; p++)
            in[p] = (double)m[p * plane + c];
        sandwich(out, &output_matrix[0][0], in, 4, 6);
        for (int64_t i = 0; i < to.rows; i++)
            for (int64_t j = 0; j < to.columns; j++) {
                float value = (float)out[i * 4 + j];
                int64_t at = i * to.row_stride + j * o->stride + c;
                if (o->bias) value += o->bias[c];
                if (o->residual) value += hd_scalar_load(o->residual, o->dtype, at);
                hd_scalar_store(o->y, o->dtype, at, value);
            }
    }
}

const hd_winograd_kernels hd_winograd_reference = {HD_CPU, filter, input, output};
