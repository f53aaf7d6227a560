/* kernels/cpu/panel_avx2.c: what surrounds a panel's multiplication, eight elements at a time.
 */
#include "kernels/panel.h"

#include "base/exec.h"
#include "kernels/cpu/math_avx2.h"

V8_INLINE void convert_loop(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                            int64_t count)
{
    for (int64_t i = 0; i < count; i += 8) {
        v8_store(y, y_dtype, i, count - i, v8_load(x, x_dtype, i, count - i));
    }
}

static void convert(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype, int64_t count)
{
    if (y_dtype == x_dtype)
        memcpy(y, x, (size_t)count * hd_dtype_size(x_dtype));
    else if (y_dtype == HD_BF16)
        convert_loop(y, HD_BF16, x, HD_F32, count);
    else
        convert_loop(y, HD_F32, x, HD_BF16, count);
}

V8_INLINE void store_loop(hd_panel_out out, hd_dtype dtype, bool residual, const float *sums,
                          int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += 8) {
            int64_t left = columns - c;
            __m256 v = v8_load(sums, HD_F32, r * columns + c, left);
            if (out.bias) v = _mm256_add_ps(v, v8_load(out.bias, HD_F32, c, left));
            if (residual)
                v = _mm256_add_ps(v,
                                  v8_load(out.residual, dtype, r * out.residual_stride + c, left));
            v8_store(out.y, dtype, r * out.stride + c, left, v);
        }
}

static void store(hd_panel_out out, const float *sums, int64_t rows, int64_t columns)
{
    if (out.dtype == HD_BF16 && out.residual)
        store_loop(out, HD_BF16, true, sums, rows, columns);
    else if (out.dtype == HD_BF16)
        store_loop(out, HD_BF16, false, sums, rows, columns);
    else if (out.residual)
        store_loop(out, HD_F32, true, sums, rows, columns);
    else
        store_loop(out, HD_F32, false, sums, rows, columns);
}

V8_INLINE void geglu_loop(hd_panel_out out, hd_dtype dtype, const float *value, const float *gate,
                          const float *gate_bias, int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += 8) {
            int64_t left = columns - c;
            __m256 v = v8_load(value, HD_F32, r * columns + c, left);
            __m256 g = v8_load(gate, HD_F32, r * columns + c, left);
            if (out.bias) v = _mm256_add_ps(v, v8_load(out.bias, HD_F32, c, left));
            if (gate_bias) g = _mm256_add_ps(g, v8_load(gate_bias, HD_F32, c, left));
            __m256 y = _mm256_mul_ps(v, v8_activation(g, HD_ACT_GELU));
            v8_store(out.y, dtype, r * out.stride + c, left, y);
        }
}

static void store_geglu(hd_panel_out out, const float *value, const float *gate,
                        const float *gate_bias, int64_t rows, int64_t columns)
{
    if (out.dtype == HD_BF16)
        geglu_loop(out, HD_BF16, value, gate, gate_bias, rows, columns);
    else
        geglu_loop(out, HD_F32, value, gate, gate_bias, rows, columns);
}

const hd_panel_kernels hd_panel_avx2 = {HD_CPU | HD_AVX2, convert, store_geglu, store};
