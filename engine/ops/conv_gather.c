/* engine/ops/conv_gather.c: rows of a convolution's input on their way into its buffer: padding,
 * upsampling, norm, activation and change of type in one pass. */
#include <string.h>

#include "engine/ops/conv_work.h"

static void gather_pixels(const conv_work *w, int64_t image, char *to, const char *from,
                          int64_t pixels)
{
    int64_t in = w->conv->in;
    if (w->normalise)
        w->normalise(to, w->conv->compute, from, w->x.dtype, w->scale + image * in,
                     w->shift + image * in, pixels, in, w->act);
    else
        w->kernels->convert(to, w->conv->compute, from, w->x.dtype, pixels * in);
}

void hd_conv_gather_row(const conv_work *w, int64_t image, int64_t row, char *to)
{
    const hd_conv *c = w->conv;
    int64_t pixel = c->in * (int64_t)hd_dtype_size(c->compute);
    int64_t source_pixel = c->in * (int64_t)hd_dtype_size(w->x.dtype);
    int64_t at = row - c->spec.pad_top, left = c->spec.pad_left;
    if (at < 0 || at >= w->up_h) {
        memset(to, 0, (size_t)(w->pw * pixel));
        return;
    }
    int64_t inside = w->pw - left < w->up_w ? w->pw - left : w->up_w;
    memset(to, 0, (size_t)(left * pixel));
    memset(to + (left + inside) * pixel, 0, (size_t)((w->pw - left - inside) * pixel));
    to += left * pixel;
    int64_t h = w->x.dim[1], width = w->x.dim[2];
    const char *from = (const char *)w->x.data +
                       (image * h + (w->column ? at * h / w->up_h : at)) * width * source_pixel;
    if (!w->column) {
        gather_pixels(w, image, to, from, inside);
        return;
    }
    for (int64_t i = 0; i < inside; i++)
        gather_pixels(w, image, to + i * pixel, from + w->column[i] * source_pixel, 1);
}
