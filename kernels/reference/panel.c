/* kernels/reference/panel.c: what surrounds a panel's multiplication, as plain loops. */
#include "kernels/panel.h"

#include "base/exec.h"
#include "kernels/reference/scalar.h"

static void convert(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        hd_scalar_store(y, y_dtype, i, hd_scalar_load(x, x_dtype, i));
}

static void store(hd_panel_out out, const float *sums, int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            float value = sums[r * columns + c];
            if (out.bias) value += out.bias[c];
            if (out.residual)
                value += hd_scalar_load(out.residual, out.dtype, r * out.residual_stride + c);
            hd_scalar_store(out.y, out.dtype, r * out.stride + c, value);
        }
}

static void store_geglu(hd_panel_out out, const float *value, const float *gate,
                        const float *gate_bias, int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            double v = (double)value[r * columns + c], g = (double)gate[r * columns + c];
            if (out.bias) v += (double)out.bias[c];
            if (gate_bias) g += (double)gate_bias[c];
            float y = (float)(v * hd_scalar_activation(g, HD_ACT_GELU));
            hd_scalar_store(out.y, out.dtype, r * out.stride + c, y);
        }
}

const hd_panel_kernels hd_panel_reference = {HD_CPU, convert, store_geglu, store};
