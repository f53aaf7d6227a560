/* codecs/image_ops.c: pixels to f32 and back, Lanczos and nearest resampling.
 *
 * The resampling repeats Pillow's ImagingResample for 8-bit pictures: weights of each output
 * position in double, normalised, rounded to 22 fractional bits; a pass along the rows, rounded to
 * 8 bits, then one along the columns; a pass that changes nothing is left out. */
#include "codecs/image_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22

void hd_image_to_f32(float *x, const hd_image *image)
{
    size_t count = hd_image_bytes(image);
    for (size_t i = 0; i < count; i++)
        x[i] = 2.0f * ((float)image->rgb[i] / 255.0f) - 1.0f;
}

void hd_image_from_f32(hd_image *image, const float *x)
{
    size_t count = hd_image_bytes(image);
    for (size_t i = 0; i < count; i++) {
        float v = x[i] * 0.5f + 0.5f;
        v = v > 0.0f ? v : 0.0f; // NaN fails the comparison
        v = v < 1.0f ? v : 1.0f;
        image->rgb[i] = (uint8_t)lrintf(v * 255.0f);
    }
}

// How one axis is resampled: output i is the sum over k < taps(i) of in[first(i) + k] * weight.
typedef struct axis {
    int size;        // of the output
    int room;        // weights kept per output position
    int *first;      // [size]
    int *taps;       // [size]
    int32_t *weight; // [size, room]
} axis;

static double sinc(double x)
{
    if (x == 0.0) return 1.0;
    x *= 3.14159265358979323846;
    return sin(x) / x;
}

static double lanczos3(double x)
{
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

static void axis_free(axis *a)
{
    free(a->first);
    free(a->taps);
    free(a->weight);
}

// Weights of output position i. `exact` holds room doubles.
static void axis_position(axis *a, int i, int from, double scale, double *exact)
{
    double stretch = scale > 1.0 ? scale : 1.0, support = 3.0 * stretch;
    double centre = (i + 0.5) * scale, sum = 0.0;
    int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (last > from) last = from;
    int taps = last - first;
    for (int k = 0; k < taps; k++) {
        exact[k] = lanczos3((k + first - centre + 0.5) * (1.0 / stretch));
        sum += exact[k];
    }
    for (int k = 0; k < taps; k++) {
        double w = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
        a->weight[(size_t)i * (size_t)a->room + (size_t)k] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
    }
    a->first[i] = first;
    a->taps[i] = taps;
}

static hd_status axis_create(axis *out, int from, int to)
{
    double scale = (double)from / to, stretch = scale > 1.0 ? scale : 1.0;
    axis a = {.size = to, .room = (int)ceil(3.0 * stretch) * 2 + 1};
    a.first = malloc((size_t)to * sizeof *a.first);
    a.taps = malloc((size_t)to * sizeof *a.taps);
    a.weight = malloc((size_t)to * (size_t)a.room * sizeof *a.weight);
    double *exact = malloc((size_t)a.room * sizeof *exact);
    if (!a.first || !a.taps || !a.weight || !exact) {
        axis_free(&a);
        free(exact);
        return hd_fail(HD_ERR_NOMEM, "resize: no memory for the weights of %d to %d pixels", from,
                       to);
    }
    for (int i = 0; i < to; i++)
        axis_position(&a, i, from, scale, exact);
    free(exact);
    *out = a;
    return HD_OK;
}

static uint8_t round_sum(int32_t sum)
{
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// out [height, a->size, 3] from in [height, width, 3].
static void resample_rows(uint8_t *out, const uint8_t *in, int width, int height, const axis *a)
{
    for (int y = 0; y < height; y++) {
        const uint8_t *row = in + (size_t)y * (size_t)width * 3;
        for (int x = 0; x < a->size; x++) {
            const int32_t *weight = a->weight + (size_t)x * (size_t)a->room;
            const uint8_t *pixel = row + (size_t)a->first[x] * 3;
            int32_t sum[3] = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1),
                              1 << (WEIGHT_BITS - 1)};
            for (int k = 0; k < a->taps[x]; k++, pixel += 3)
                for (int c = 0; c < 3; c++)
                    sum[c] += pixel[c] * weight[k];
            for (int c = 0; c < 3; c++)
                *out++ = round_sum(sum[c]);
        }
    }
}

// out [a->size, width, 3] from in [*, width, 3].
static void resample_columns(uint8_t *out, const uint8_t *in, int width, const axis *a)
{
    size_t stride = (size_t)width * 3;
    for (int y = 0; y < a->size; y++) {
        const int32_t *weight = a->weight + (size_t)y * (size_t)a->room;
        const uint8_t *column = in + (size_t)a->first[y] * stride;
        for (size_t x = 0; x < stride; x++) {
            int32_t sum = 1 << (WEIGHT_BITS - 1);
            for (int k = 0; k < a->taps[y]; k++)
                sum += column[(size_t)k * stride + x] * weight[k];
            *out++ = round_sum(sum);
        }
    }
}

static hd_status resize_width(hd_image *out, const hd_image *in, int width)
{
    axis a = {0};
    HD_TRY(axis_create(&a, in->width, width));
    hd_status status = hd_image_create(out, width, in->height, "resize");
    if (status == HD_OK) resample_rows(out->rgb, in->rgb, in->width, in->height, &a);
    axis_free(&a);
    return status;
}

static hd_status resize_height(hd_image *out, const hd_image *in, int height)
{
    axis a = {0};
    HD_TRY(axis_create(&a, in->height, height));
    hd_status status = hd_image_create(out, in->width, height, "resize");
    if (status == HD_OK) resample_columns(out->rgb, in->rgb, in->width, &a);
    axis_free(&a);
    return status;
}

hd_status hd_image_resize(hd_image *out, const hd_image *in, int width, int height)
{
    // The weights are sized by this; hd_image_create judges the pixels in all, also of the picture
    // between the two passes.
    if (width < 1 || height < 1 || width > HD_IMAGE_MAX_SIDE || height > HD_IMAGE_MAX_SIDE)
        return hd_fail(HD_ERR_ARGUMENT, "resize: to %dx%d, each side may be 1 to %d", width, height,
                       HD_IMAGE_MAX_SIDE);
    hd_image wide = {0};
    if (width == in->width && height == in->height) return hd_image_enlarge(out, in, 1);
    if (width == in->width) return resize_height(out, in, height);
    if (height == in->height) return resize_width(out, in, width);
    HD_TRY(resize_width(&wide, in, width));
    hd_status status = resize_height(out, &wide, height);
    hd_image_free(&wide);
    return status;
}

hd_status hd_image_enlarge(hd_image *out, const hd_image *in, int factor)
{
    HD_ENSURE(factor >= 1);
    hd_image image = {0};
    HD_TRY(hd_image_create(&image, (int64_t)in->width * factor, (int64_t)in->height * factor,
                           "enlarge"));
    uint8_t *to = image.rgb;
    size_t stride = (size_t)image.width * 3;
    for (int y = 0; y < in->height; y++) {
        const uint8_t *from = in->rgb + (size_t)y * (size_t)in->width * 3;
        uint8_t *row = to;
        for (int x = 0; x < in->width; x++, from += 3)
            for (int k = 0; k < factor; k++, to += 3)
                memcpy(to, from, 3);
        for (int k = 1; k < factor; k++, to += stride)
            memcpy(to, row, stride);
    }
    *out = image;
    return HD_OK;
}
