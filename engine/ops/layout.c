/* engine/ops/layout.c: what moves memory and computes nothing: copies between types and strides,
 * joins, upsampling, picking rows, channels first and last. Declared in elementwise.h. */
#include "engine/ops/elementwise.h"

#include "engine/ops/spans.h"

#define LINE 256 // numbers that are on their way from one type or order to another

typedef struct layout_work {
    hd_tensor y, a, b;
    int64_t inner; // numbers without a gap
    int axes;      // before those
    const int64_t *index;
} layout_work;

static void *at(hd_tensor t, int64_t element)
{
    return (char *)t.data + element * (int64_t)hd_dtype_size(t.dtype);
}

static bool is_float(hd_dtype dtype)
{
    return dtype == HD_F32 || dtype == HD_BF16 || dtype == HD_F16;
}

static hd_status layout_expect(const char *what, hd_tensor x, int rank, bool half_too)
{
    char text[200];
    if (!is_float(x.dtype) || (x.dtype == HD_F16 && !half_too))
        return hd_fail(HD_ERR_SHAPE, "%s is %s, expected f32%s", what,
                       hd_tensor_text(text, sizeof text, x),
                       half_too ? ", bf16 or f16" : " or bf16");
    return hd_expect_rank(what, x, rank);
}

/* count numbers from one of f32, bf16, f16 to another. */
static hd_status convert(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype, int64_t count)
{
    if (y_dtype == x_dtype) {
        if (y != x) memcpy(y, x, (size_t)count * hd_dtype_size(x_dtype));
        return HD_OK;
    }
    if (y_dtype == HD_F32) return hd_convert_to_f32(y, x, x_dtype, count);
    if (x_dtype == HD_F32) return hd_convert_from_f32(y, y_dtype, x, count);
    const uint16_t *from = x;
    uint16_t *to = y;
    float line[LINE];
    for (int64_t i = 0; i < count; i += LINE) {
        int64_t part = count - i < LINE ? count - i : LINE;
        HD_TRY(hd_convert_to_f32(line, from + i, x_dtype, part));
        HD_TRY(hd_convert_from_f32(to + i, y_dtype, line, part));
    }
    return HD_OK;
}

static hd_status run_copy_flat(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    return convert(at(w->y, from), w->y.dtype, at(w->a, from), w->a.dtype, count);
}

static hd_status run_copy_rows(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    for (int64_t row = from; row < from + count; row++) {
        int64_t rest = row, to = 0, source = 0;
        for (int axis = w->axes - 1; axis >= 0; axis--) {
            int64_t i = rest % w->y.dim[axis];
            rest /= w->y.dim[axis];
            to += i * w->y.stride[axis];
            source += i * w->a.stride[axis];
        }
        HD_TRY(convert(at(w->y, to), w->y.dtype, at(w->a, source), w->a.dtype, w->inner));
    }
    return HD_OK;
}

hd_status hd_copy(const hd_exec *ex, hd_tensor y, hd_tensor x)
{
    char text[200];
    HD_TRY(hd_expect_shape("copy: y", y, y.dtype, hd_tensor_shape(x)));
    HD_TRY(hd_expect_shape("copy: x", x, x.dtype, hd_tensor_shape(x)));
    if (!is_float(x.dtype) || !is_float(y.dtype))
        return hd_fail(HD_ERR_SHAPE, "copy: %s to %s, expected f32, bf16 or f16",
                       hd_tensor_text(text, sizeof text, x), hd_dtype_name(y.dtype));
    int last = x.rank - 1;
    if (x.rank > 0 && x.dim[last] > 1 && (x.stride[last] != 1 || y.stride[last] != 1))
        return hd_fail(HD_ERR_SHAPE, "copy: the last axis of %s has gaps",
                       hd_tensor_text(text, sizeof text, x));
    if (ex->recording) return HD_OK;
    layout_work w = {.y = y, .a = x, .inner = 1, .axes = x.rank};
    int64_t count = hd_tensor_count(x);
    if (hd_tensor_contiguous(x) && hd_tensor_contiguous(y))
        return hd_for_spans(ex, count, 1, run_copy_flat, &w);
    // the axes from the end that neither side interrupts
    while (w.axes > 0) {
        int axis = w.axes - 1;
        if (x.dim[axis] != 1 && (x.stride[axis] != w.inner || y.stride[axis] != w.inner)) break;
        w.inner *= x.dim[axis];
        w.axes--;
    }
    return hd_for_spans(ex, w.inner ? count / w.inner : 0, w.inner, run_copy_rows, &w);
}

static hd_status run_concat(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    size_t bytes = hd_dtype_size(w->y.dtype);
    int64_t ca = w->a.dim[w->a.rank - 1], cb = w->b.dim[w->b.rank - 1];
    for (int64_t row = from; row < from + count; row++) {
        char *to = at(w->y, row * (ca + cb));
        memcpy(to, at(w->a, row * ca), (size_t)ca * bytes);
        memcpy(to + (size_t)ca * bytes, at(w->b, row * cb), (size_t)cb * bytes);
    }
    return HD_OK;
}

hd_status hd_concat_channels(const hd_exec *ex, hd_tensor y, hd_tensor a, hd_tensor b)
{
    HD_TRY(layout_expect("concat: a", a, a.rank, false));
    hd_shape expected = hd_tensor_shape(a);
    int last = a.rank - 1;
    HD_ENSURE(a.rank >= 1 && b.rank == a.rank);
    expected.dim[last] = b.dim[last];
    HD_TRY(hd_expect_shape("concat: b", b, a.dtype, expected));
    HD_TRY(hd_expect_rank("concat: b", b, b.rank));
    expected.dim[last] = a.dim[last] + b.dim[last];
    HD_TRY(hd_expect_shape("concat: y", y, a.dtype, expected));
    HD_TRY(hd_expect_rank("concat: y", y, y.rank));
    if (ex->recording || expected.dim[last] == 0) return HD_OK;
    layout_work w = {.y = y, .a = a, .b = b};
    int64_t rows = hd_tensor_count(y) / expected.dim[last];
    return hd_for_spans(ex, rows, expected.dim[last], run_concat, &w);
}

// One unit is one line of the output.
static hd_status run_upsample(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    int64_t height = w->a.dim[1], width = w->a.dim[2], channels = w->a.dim[3];
    int64_t out_height = w->y.dim[1], out_width = w->y.dim[2];
    size_t bytes = (size_t)channels * hd_dtype_size(w->y.dtype);
    for (int64_t line = from; line < from + count; line++) {
        int64_t row = line / out_height, i = line % out_height;
        int64_t source = (row * height + i * height / out_height) * width;
        for (int64_t j = 0; j < out_width; j++)
            memcpy(at(w->y, (line * out_width + j) * channels),
                   at(w->a, (source + j * width / out_width) * channels), bytes);
    }
    return HD_OK;
}

hd_status hd_upsample_nearest(const hd_exec *ex, hd_tensor y, hd_tensor x)
{
    HD_TRY(layout_expect("upsample: x", x, 4, false));
    HD_TRY(layout_expect("upsample: y", y, 4, false));
    hd_shape expected = hd_tensor_shape(x);
    expected.dim[1] = y.dim[1];
    expected.dim[2] = y.dim[2];
    HD_TRY(hd_expect_shape("upsample: y", y, x.dtype, expected));
    if (ex->recording) return HD_OK;
    layout_work w = {.y = y, .a = x};
    return hd_for_spans(ex, y.dim[0] * y.dim[1], y.dim[2] * y.dim[3], run_upsample, &w);
}

// One unit is one line of one image: `width` pixels of `channels` numbers, from one order to the
// other through a line of f32.
static hd_status run_channels_last(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    int64_t height = w->y.dim[1], width = w->y.dim[2], channels = w->y.dim[3];
    float line[LINE];
    for (int64_t unit = from; unit < from + count; unit++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t j = 0; j < width; j += LINE) {
                int64_t part = width - j < LINE ? width - j : LINE;
                int64_t source =
                    ((unit / height * channels + c) * height + unit % height) * width + j;
                HD_TRY(convert(line, HD_F32, at(w->a, source), w->a.dtype, part));
                int64_t to = (unit * width + j) * channels + c;
                for (int64_t k = 0; k < part; k++, to += channels)
                    if (w->y.dtype == HD_BF16)
                        ((hd_bf16 *)w->y.data)[to] = hd_bf16_from_f32(line[k]);
                    else
                        ((float *)w->y.data)[to] = line[k];
            }
    return HD_OK;
}

static hd_status run_channels_first(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    int64_t height = w->a.dim[1], width = w->a.dim[2], channels = w->a.dim[3];
    float line[LINE];
    for (int64_t unit = from; unit < from + count; unit++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t j = 0; j < width; j += LINE) {
                int64_t part = width - j < LINE ? width - j : LINE;
                int64_t source = (unit * width + j) * channels + c;
                for (int64_t k = 0; k < part; k++, source += channels)
                    line[k] = w->a.dtype == HD_BF16
                                  ? hd_bf16_to_f32(((const hd_bf16 *)w->a.data)[source])
                                  : ((const float *)w->a.data)[source];
                int64_t to = ((unit / height * channels + c) * height + unit % height) * width + j;
                HD_TRY(convert(at(w->y, to), w->y.dtype, line, HD_F32, part));
            }
    return HD_OK;
}

hd_status hd_nchw_to_nhwc(const hd_exec *ex, hd_tensor y, hd_tensor x)
{
    HD_TRY(layout_expect("nchw_to_nhwc: x", x, 4, false));
    HD_TRY(layout_expect("nchw_to_nhwc: y", y, 4, false));
    hd_shape expected = hd_shape4(x.dim[0], x.dim[2], x.dim[3], x.dim[1]);
    HD_TRY(hd_expect_shape("nchw_to_nhwc: y", y, y.dtype, expected));
    if (ex->recording) return HD_OK;
    layout_work w = {.y = y, .a = x};
    return hd_for_spans(ex, y.dim[0] * y.dim[1], y.dim[2] * y.dim[3], run_channels_last, &w);
}

hd_status hd_nhwc_to_nchw(const hd_exec *ex, hd_tensor y, hd_tensor x)
{
    HD_TRY(layout_expect("nhwc_to_nchw: x", x, 4, false));
    HD_TRY(layout_expect("nhwc_to_nchw: y", y, 4, false));
    hd_shape expected = hd_shape4(x.dim[0], x.dim[3], x.dim[1], x.dim[2]);
    HD_TRY(hd_expect_shape("nhwc_to_nchw: y", y, y.dtype, expected));
    if (ex->recording) return HD_OK;
    layout_work w = {.y = y, .a = x};
    return hd_for_spans(ex, x.dim[0] * x.dim[1], x.dim[2] * x.dim[3], run_channels_first, &w);
}

static hd_status run_gather(const void *arg, int64_t from, int64_t count)
{
    const layout_work *w = arg;
    for (int64_t i = from; i < from + count; i++)
        HD_TRY(convert(at(w->y, i * w->inner), w->y.dtype, at(w->a, w->index[i] * w->inner),
                       w->a.dtype, w->inner));
    return HD_OK;
}

hd_status hd_gather_rows(const hd_exec *ex, hd_tensor y, hd_tensor table, const int64_t *index,
                         int64_t count)
{
    HD_TRY(layout_expect("gather_rows: table", table, 2, true));
    HD_TRY(layout_expect("gather_rows: y", y, 2, false));
    HD_TRY(hd_expect_shape("gather_rows: y", y, y.dtype, hd_shape2(count, table.dim[1])));
    if (ex->recording) return HD_OK;
    for (int64_t i = 0; i < count; i++)
        if (index[i] < 0 || index[i] >= table.dim[0])
            return hd_fail(HD_ERR_ARGUMENT, "gather_rows: number %lld is %lld, must be 0 to %lld",
                           (long long)i, (long long)index[i], (long long)table.dim[0] - 1);
    layout_work w = {.y = y, .a = table, .inner = table.dim[1], .index = index};
    return hd_for_spans(ex, count, w.inner, run_gather, &w);
}
