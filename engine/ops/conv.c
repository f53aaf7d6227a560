/* engine/ops/conv.c: the cut of a convolution into strips of one image's output rows by blocks of
 * output channels.
 *
 * The input of a strip is gathered: padding, upsampling, norm, activation and the change of type
 * happen on the way, so that oneDNN convolves a plain image without borders. Small images are
 * gathered once, by all threads, and every (block, strip) is an item of work. A large image would
 * travel through memory: there an item is a stack of strips, gathered into the thread's own buffer,
 * whose last rows move on to be the first of the next strip. An image that needs no change is read
 * where it lies. Where tiles pay, conv_winograd.c takes over. Everything is decided by the shape of
 * one image. */
#include "engine/ops/conv.h"

#include <stdlib.h>

#include "engine/arena.h"
#include "engine/ops/conv_work.h"

#define STRIP_PIXELS 512                // of output: some hundreds of microseconds for a block
#define SHARED_BYTES ((int64_t)8 << 20) // above this a gathered image is a large one
#define STACKS       16                 // items of a large image

static hd_status conv_expect_weights(hd_conv_spec spec, hd_tensor weight, hd_tensor bias,
                                     hd_dtype compute)
{
    char text[200];
    if (compute != HD_F32 && compute != HD_BF16)
        return hd_fail(HD_ERR_ARGUMENT, "conv: cannot compute in %s, only in f32 or bf16",
                       hd_dtype_name(compute));
    bool fits = weight.rank == 4 && weight.data && hd_tensor_contiguous(weight);
    for (int i = 0; i < weight.rank; i++)
        fits = fits && weight.dim[i] > 0;
    if (!fits)
        return hd_fail(HD_ERR_SHAPE, "conv: weight is %s, expected [out, in, kh, kw]",
                       hd_tensor_text(text, sizeof text, weight));
    if (spec.stride < 1 || spec.pad_top < 0 || spec.pad_left < 0 || spec.pad_bottom < 0 ||
        spec.pad_right < 0)
        return hd_fail(HD_ERR_ARGUMENT, "conv: stride %d with padding %d, %d, %d, %d is not one",
                       spec.stride, spec.pad_top, spec.pad_left, spec.pad_bottom, spec.pad_right);
    if (hd_tensor_given(bias))
        return hd_expect_shape("conv: bias", bias, bias.dtype, hd_shape1(weight.dim[0]));
    return HD_OK;
}

hd_status hd_conv_create(hd_conv **out, const hd_exec *ex, hd_conv_spec spec, hd_tensor weight,
                         hd_tensor bias, hd_dtype compute)
{
    HD_TRY(conv_expect_weights(spec, weight, bias, compute));
    hd_conv *conv = calloc(1, sizeof *conv);
    if (!conv) return hd_fail(HD_ERR_NOMEM, "conv: no memory");
    conv->spec = spec;
    conv->out = weight.dim[0];
    conv->in = weight.dim[1];
    conv->kh = weight.dim[2];
    conv->kw = weight.dim[3];
    conv->compute = compute;
    hd_status status = hd_panel_bias(&conv->bias, 1, &conv->out, &bias);
    if (status == HD_OK)
        status = hd_dnn_create(&conv->dnn, (hd_dnn_filter){.in = conv->in,
                                                           .out = conv->out,
                                                           .kh = conv->kh,
                                                           .kw = conv->kw,
                                                           .stride = spec.stride,
                                                           .block = CONV_BLOCK,
                                                           .compute = compute});
    if (status == HD_OK) status = hd_panel_pack(ex, conv->dnn, compute, 1, &weight);
    if (status == HD_OK) status = hd_conv_winograd_create(conv);
    if (status != HD_OK) {
        hd_conv_free(conv);
        return status;
    }
    *out = conv;
    return HD_OK;
}

void hd_conv_free(hd_conv *conv)
{
    if (!conv) return;
    hd_dnn_free(conv->dnn);
    hd_dnn_free(conv->tiles);
    free(conv->bias);
    free(conv);
}

int64_t hd_conv_in(const hd_conv *conv)
{
    return conv->in;
}

int64_t hd_conv_out(const hd_conv *conv)
{
    return conv->out;
}

int64_t hd_conv_bytes(const hd_conv *conv)
{
    return hd_dnn_bytes(conv->dnn) + conv->out * (int64_t)sizeof(float);
}

hd_dtype hd_conv_compute(const hd_conv *conv)
{
    return conv->compute;
}

void hd_conv_out_size(const hd_conv *conv, int64_t h, int64_t w, int64_t *oh, int64_t *ow)
{
    const hd_conv_spec *s = &conv->spec;
    int64_t height = h + s->pad_top + s->pad_bottom - conv->kh;
    int64_t width = w + s->pad_left + s->pad_right - conv->kw;
    *oh = height < 0 ? 0 : height / s->stride + 1;
    *ow = width < 0 ? 0 : width / s->stride + 1;
}

static hd_status gather_item(void *arg, int64_t item, int thread)
{
    const conv_work *w = arg;
    (void)thread;
    int64_t row_bytes = w->pw * w->conv->in * (int64_t)hd_dtype_size(w->conv->compute);
    hd_conv_gather_row(w, item / w->ph, item % w->ph, w->image + item * row_bytes);
    return HD_OK;
}

// One strip times one block of weights; x is the strip's padded input.
static hd_status conv_strip(const conv_work *w, int64_t image, int64_t strip, int64_t block,
                            const char *x, int thread)
{
    const hd_conv *c = w->conv;
    char *scratch = w->scratch + (size_t)thread * w->scratch_stride;
    int64_t from = strip * w->strip, rows = w->strip;
    if (rows > w->oh - from) rows = w->oh - from;
    HD_TRY(hd_dnn_panel_run(rows == w->strip ? w->whole : w->rest, thread, block, (float *)scratch,
                            x, scratch + w->sums_bytes));
    int64_t channel = block * CONV_BLOCK;
    int64_t at =
        ((image * w->oh + from) * w->ow * c->out + channel) * (int64_t)hd_dtype_size(w->y.dtype);
    hd_panel_out out = {.y = (char *)w->y.data + at,
                        .dtype = w->y.dtype,
                        .stride = c->out,
                        .residual_stride = c->out,
                        .bias = w->bias + image * w->bias_stride + channel};
    if (hd_tensor_given(w->residual)) out.residual = (const char *)w->residual.data + at;
    w->kernels->store(out, (const float *)scratch, rows * w->ow, hd_dnn_block_out(c->dnn, block));
    return HD_OK;
}

static hd_status conv_item(void *arg, int64_t item, int thread)
{
    const conv_work *w = arg;
    const hd_conv *c = w->conv;
    int64_t image = item % w->batch, strip = item / w->batch % w->strips;
    int64_t block = item / w->batch / w->strips;
    int64_t row = image * w->ph + strip * w->strip * c->spec.stride;
    const char *x = w->image + row * w->pw * c->in * (int64_t)hd_dtype_size(c->compute);
    return conv_strip(w, image, strip, block, x, thread);
}

static hd_status conv_stack(void *arg, int64_t item, int thread)
{
    const conv_work *w = arg;
    const hd_conv *c = w->conv;
    int64_t image = item % w->batch, first = item / w->batch * w->stack;
    int64_t last = first + w->stack < w->strips ? first + w->stack : w->strips;
    int64_t row_bytes = w->pw * c->in * (int64_t)hd_dtype_size(c->compute);
    char *x = w->scratch + (size_t)thread * w->scratch_stride + w->sums_bytes + w->dnn_bytes;
    int64_t step = w->strip * c->spec.stride, height = step - c->spec.stride + c->kh;
    int64_t kept = 0; // rows of the buffer that the strip before left there
    for (int64_t strip = first; strip < last; strip++) {
        int64_t top = strip * step;
        for (int64_t r = kept; r < height && top + r < w->ph; r++)
            hd_conv_gather_row(w, image, top + r, x + r * row_bytes);
        for (int64_t block = 0; block < hd_dnn_blocks(c->dnn); block++)
            HD_TRY(conv_strip(w, image, strip, block, x, thread));
        kept = height > step ? height - step : 0;
        memmove(x, x + step * row_bytes, (size_t)(kept * row_bytes));
    }
    return HD_OK;
}

static hd_status conv_expect(const hd_conv *c, conv_work *w, const hd_conv_extra *extra)
{
    char text[200];
    hd_tensor x = w->x, y = w->y;
    HD_TRY(hd_expect_rank("conv: x", x, 4));
    if (x.dim[3] != c->in || (x.dtype != HD_F32 && x.dtype != c->compute))
        return hd_fail(HD_ERR_SHAPE, "conv: x is %s, expected [B, H, W, %lld] %s or f32",
                       hd_tensor_text(text, sizeof text, x), (long long)c->in,
                       hd_dtype_name(c->compute));
    w->batch = x.dim[0];
    bool up = extra && extra->upsample_h > 0 && extra->upsample_w > 0;
    w->up_h = up ? extra->upsample_h : x.dim[1];
    w->up_w = up ? extra->upsample_w : x.dim[2];
    hd_conv_out_size(c, w->up_h, w->up_w, &w->oh, &w->ow);
    if (w->oh < 1 || w->ow < 1)
        return hd_fail(HD_ERR_SHAPE, "conv: x is %s, smaller than the %lld x %lld kernel",
                       hd_tensor_text(text, sizeof text, x), (long long)c->kh, (long long)c->kw);
    hd_shape shape = hd_shape4(w->batch, w->oh, w->ow, c->out);
    HD_TRY(hd_expect_shape("conv: y", y, y.dtype == HD_F32 ? HD_F32 : c->compute, shape));
    HD_TRY(hd_expect_rank("conv: y", y, 4));
    if (!extra) return HD_OK;
    if (hd_tensor_given(extra->residual)) {
        HD_TRY(hd_expect_like("conv: residual", extra->residual, y));
        HD_TRY(hd_expect_rank("conv: residual", extra->residual, 4));
        w->residual = extra->residual;
    }
    if (hd_tensor_given(extra->row_bias)) {
        HD_TRY(hd_expect_shape("conv: row_bias", extra->row_bias, HD_F32,
                               hd_shape2(w->batch, c->out)));
        HD_TRY(hd_expect_rank("conv: row_bias", extra->row_bias, 2));
    }
    return HD_OK;
}

static hd_status conv_norm(conv_work *w, const hd_exec *ex, const hd_conv_norm *norm)
{
    hd_shape shape = hd_shape2(w->batch, w->conv->in);
    hd_tensor scale = hd_arena_tensor(ex->arena, HD_F32, shape);
    hd_tensor shift = hd_arena_tensor(ex->arena, HD_F32, shape);
    HD_TRY(hd_group_norm_stats(ex, scale, shift, w->x, norm->gamma, norm->beta, norm->groups,
                               norm->eps));
    w->scale = scale.data;
    w->shift = shift.data;
    w->normalise = hd_scale_shift_kernel(ex);
    w->act = norm->silu ? HD_ACT_SILU : HD_ACT_NONE;
    return HD_OK;
}

static hd_status conv_bias(conv_work *w, const hd_exec *ex, hd_tensor row_bias)
{
    const hd_conv *c = w->conv;
    w->bias = c->bias;
    if (!hd_tensor_given(row_bias)) return HD_OK;
    float *bias = hd_arena_bytes(ex->arena, (size_t)(w->batch * c->out) * sizeof *bias);
    if (!bias) return hd_fail(HD_ERR_NOMEM, "conv: the arena is full");
    for (int64_t i = 0; !ex->recording && i < w->batch * c->out; i++)
        bias[i] = c->bias[i % c->out] + ((const float *)row_bias.data)[i];
    w->bias = bias;
    w->bias_stride = c->out;
    return HD_OK;
}

static hd_status conv_columns(conv_work *w, const hd_exec *ex)
{
    if (w->up_h == w->x.dim[1] && w->up_w == w->x.dim[2]) return HD_OK;
    int32_t *column = hd_arena_bytes(ex->arena, (size_t)w->up_w * sizeof *column);
    if (!column) return hd_fail(HD_ERR_NOMEM, "conv: the arena is full");
    for (int64_t i = 0; !ex->recording && i < w->up_w; i++)
        column[i] = (int32_t)(i * w->x.dim[2] / w->up_w);
    w->column = column;
    return HD_OK;
}

static void conv_cut(conv_work *w)
{
    const hd_conv *c = w->conv;
    int64_t size = (int64_t)hd_dtype_size(c->compute);
    w->ph = (w->oh - 1) * c->spec.stride + c->kh;
    w->pw = (w->ow - 1) * c->spec.stride + c->kw;
    bool plain = !w->normalise && !w->column && w->x.dtype == c->compute &&
                 c->spec.pad_top + c->spec.pad_left == 0 && w->ph == w->up_h && w->pw == w->up_w;
    int64_t image_bytes = w->ph * w->pw * c->in * size;
    w->way = plain ? CONV_DIRECT : image_bytes <= SHARED_BYTES ? CONV_SHARED : CONV_STACKS;
    w->strip = STRIP_PIXELS / w->ow;
    if (w->strip < 1) w->strip = 1;
    if (w->strip > w->oh) w->strip = w->oh;
    w->strips = hd_div_up(w->oh, w->strip);
    w->stack = hd_div_up(w->strips, STACKS);
    w->stacks = hd_div_up(w->strips, w->stack);
}

static hd_status conv_panels(conv_work *w, const hd_exec *ex)
{
    const hd_conv *c = w->conv;
    int threads = hd_pool_threads(ex->pool);
    int64_t stride = c->spec.stride, height = (w->strip - 1) * stride + c->kh;
    hd_dnn_input input = {.h = height, .w = w->pw, .x_stride = c->in};
    HD_TRY(hd_dnn_panel_get(c->dnn, threads, input, &w->whole));
    w->dnn_bytes = hd_dnn_panel_scratch_bytes(w->whole);
    int64_t rest = w->oh - (w->strips - 1) * w->strip;
    if (rest != w->strip) {
        input.h = (rest - 1) * stride + c->kh;
        HD_TRY(hd_dnn_panel_get(c->dnn, threads, input, &w->rest));
        size_t bytes = hd_dnn_panel_scratch_bytes(w->rest);
        if (bytes > w->dnn_bytes) w->dnn_bytes = bytes;
    }
    w->dnn_bytes = (w->dnn_bytes + 63) & ~(size_t)63;
    w->sums_bytes = (size_t)(w->strip * w->ow * CONV_BLOCK) * sizeof(float);
    size_t pixel = (size_t)c->in * hd_dtype_size(c->compute);
    if (w->way == CONV_STACKS) w->strip_bytes = (size_t)(height * w->pw) * pixel;
    size_t image = (size_t)(w->batch * w->ph * w->pw) * pixel;
    w->image = w->way == CONV_SHARED ? hd_arena_bytes(ex->arena, image) : w->x.data;
    w->scratch =
        hd_panel_scratch(ex, w->sums_bytes + w->dnn_bytes + w->strip_bytes, &w->scratch_stride);
    if (!w->image || !w->scratch) return hd_fail(HD_ERR_NOMEM, "conv: the arena is full");
    return HD_OK;
}

static hd_status conv_run(conv_work *w, const hd_exec *ex, const hd_conv_extra *extra)
{
    const hd_conv *c = w->conv;
    if (extra && extra->norm) HD_TRY(conv_norm(w, ex, extra->norm));
    HD_TRY(conv_bias(w, ex, extra ? extra->row_bias : hd_tensor_none()));
    HD_TRY(conv_columns(w, ex));
    if (hd_conv_winograd_pays(w, ex)) return hd_conv_winograd_run(w, ex);
    conv_cut(w);
    HD_TRY(conv_panels(w, ex));
    if (ex->recording) return HD_OK;
    if (w->way == CONV_STACKS)
        return hd_parallel_for(ex->pool, w->batch * w->stacks, conv_stack, w);
    if (w->way == CONV_SHARED) HD_TRY(hd_parallel_for(ex->pool, w->batch * w->ph, gather_item, w));
    return hd_parallel_for(ex->pool, w->batch * w->strips * hd_dnn_blocks(c->dnn), conv_item, w);
}

hd_status hd_conv_run(const hd_exec *ex, const hd_conv *conv, hd_tensor y, hd_tensor x,
                      const hd_conv_extra *extra)
{
    conv_work w = {.conv = conv, .kernels = hd_panel_kernels_of(ex), .y = y, .x = x};
    HD_ENSURE(ex->arena && w.kernels);
    HD_TRY(conv_expect(conv, &w, extra));
    if (w.batch == 0) return HD_OK;
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = conv_run(&w, ex, extra);
    hd_arena_rewind(ex->arena, mark);
    return status;
}
