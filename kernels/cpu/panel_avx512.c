/* kernels/cpu/panel_avx512.c: what surrounds a panel's multiplication, sixteen elements at a time.
 */
#include "kernels/panel.h"

#include "base/exec.h"
#include "kernels/cpu/math_avx512.h"

V16_INLINE void convert_loop(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                             int64_t count)
{
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = v16_mask(count - i);
        v16_store(y, y_dtype, i, mask, v16_load(x, x_dtype, i, mask));
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

V16_INLINE void store_loop(hd_panel_out out, hd_dtype dtype, bool residual, const float *sums,
                           int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += 16) {
            __mmask16 mask = v16_mask(columns - c);
            __m512 v = v16_load(sums, HD_F32, r * columns + c, mask);
            if (out.bias) v = _mm512_add_ps(v, v16_load(out.bias, HD_F32, c, mask));
            if (residual)
                v = _mm512_add_ps(v,
                                  v16_load(out.residual, dtype, r * out.residual_stride + c, mask));
            v16_store(out.y, dtype, r * out.stride + c, mask, v);
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

V16_INLINE void geglu_loop(hd_panel_out out, hd_dtype dtype, const float *value, const float *gate,
                           const float *gate_bias, int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += 16) {
            __mmask16 mask = v16_mask(columns - c);
            __m512 v = v16_load(value, HD_F32, r * columns + c, mask);
            __m512 g = v16_load(gate, HD_F32, r * columns + c, mask);
            if (out.bias) v = _mm512_add_ps(v, v16_load(out.bias, HD_F32, c, mask));
            if (gate_bias) g = _mm512_add_ps(g, v16_load(gate_bias, HD_F32, c, mask));
            __m512 y = _mm512_mul_ps(v, v16_activation(g, HD_ACT_GELU));
            v16_store(out.y, dtype, r * out.stride + c, mask, y);
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

const hd_panel_kernels hd_panel_avx512 = {HD_CPU | HD_AVX512, convert, store_geglu, store};
