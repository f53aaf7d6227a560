/* engine/ops/linear.c: the cut of a linear layer into panels of one row's tokens by blocks of
 * outputs.
 *
 * An item of work is one panel times one block of weights, in oneDNN, into f32 sums that stay in
 * the cache; then bias and residual are added and the result goes to y in its type and stride. The
 * block is the outer loop: its weights stay in the cache while the panels of all rows pass. */
#include "engine/ops/linear.h"

#include <stdlib.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"
#include "engine/ops/panel.h"

#define PANEL_TOKENS  128
#define BLOCK_WEIGHTS 102400 // of a block: its product with a panel takes some tens of microseconds
#define BLOCK_STEP    64     // outputs that oneDNN packs together
#define BLOCK_MOST    512

struct hd_linear {
    int64_t in, out, block;
    hd_dtype compute;
    hd_dnn *dnn;
    float *bias; // NULL: none
};

// The largest multiple of BLOCK_STEP up to `most` that divides n; 0 if it is below most / 2.
static int64_t block_divisor(int64_t n, int64_t most)
{
    for (int64_t block = most; block >= most / 2 && n >= block; block -= BLOCK_STEP)
        if (n % block == 0) return block;
    return 0;
}

// Blocks of equal size where there is a good one, not across the middle if that can be avoided: a
// gated layer pairs the blocks of its halves.
static int64_t linear_block(int64_t in, int64_t out)
{
    int64_t most = hd_div_up(BLOCK_WEIGHTS / in + 1, BLOCK_STEP) * BLOCK_STEP;
    if (most > BLOCK_MOST) most = BLOCK_MOST;
    int64_t block = out % 2 ? 0 : block_divisor(out / 2, most);
    if (!block) block = block_divisor(out, most);
    if (block) return block;
    int64_t blocks = out > most ? hd_div_up(out, most) : 1;
    return hd_div_up(hd_div_up(out, blocks), BLOCK_STEP) * BLOCK_STEP;
}

static hd_status linear_expect_part(const hd_tensor *weight, const hd_tensor *bias, int64_t in)
{
    char text[200];
    bool fits = weight->rank >= 2 && weight->dim[0] > 0 && weight->dim[1] > 0 && weight->data &&
                hd_tensor_contiguous(*weight) && (in == 0 || weight->dim[1] == in);
    for (int i = 2; i < weight->rank; i++)
        fits = fits && weight->dim[i] == 1;
    if (!fits)
        return hd_fail(HD_ERR_SHAPE, "linear: weight is %s, expected [out, %s]",
                       hd_tensor_text(text, sizeof text, *weight),
                       in ? "the same in as the first part" : "in");
    if (bias && hd_tensor_given(*bias))
        return hd_expect_shape("linear: bias", *bias, bias->dtype, hd_shape1(weight->dim[0]));
    return HD_OK;
}

static hd_status linear_expect_weights(int parts, const hd_tensor *weight, const hd_tensor *bias,
                                       hd_dtype compute)
{
    HD_ENSURE(parts > 0);
    if (compute != HD_F32 && compute != HD_BF16)
        return hd_fail(HD_ERR_ARGUMENT, "linear: cannot compute in %s, only in f32 or bf16",
                       hd_dtype_name(compute));
    for (int i = 0; i < parts; i++)
        HD_TRY(linear_expect_part(&weight[i], bias ? &bias[i] : NULL, i ? weight[0].dim[1] : 0));
    return HD_OK;
}

static hd_status linear_bias(hd_linear *linear, int parts, const hd_tensor *weight,
                             const hd_tensor *bias)
{
    bool any = false;
    for (int i = 0; bias && i < parts; i++)
        any = any || hd_tensor_given(bias[i]);
    if (!any) return HD_OK;
    int64_t *sizes = calloc((size_t)parts, sizeof *sizes);
    if (!sizes) return hd_fail(HD_ERR_NOMEM, "linear: no memory");
    for (int i = 0; i < parts; i++)
        sizes[i] = weight[i].dim[0];
    hd_status status = hd_panel_bias(&linear->bias, parts, sizes, bias);
    free(sizes);
    return status;
}

hd_status hd_linear_create(hd_linear **out, const hd_exec *ex, int parts, const hd_tensor *weight,
                           const hd_tensor *bias, hd_dtype compute)
{
    HD_TRY(linear_expect_weights(parts, weight, bias, compute));
    hd_linear *linear = calloc(1, sizeof *linear);
    if (!linear) return hd_fail(HD_ERR_NOMEM, "linear: no memory");
    linear->in = weight[0].dim[1];
    linear->compute = compute;
    for (int i = 0; i < parts; i++)
        linear->out += weight[i].dim[0];
    linear->block = linear_block(linear->in, linear->out);
    hd_status status = linear_bias(linear, parts, weight, bias);
    if (status == HD_OK)
        status = hd_dnn_create(&linear->dnn, (hd_dnn_filter){.in = linear->in,
                                                             .out = linear->out,
                                                             .block = linear->block,
                                                             .compute = compute});
    if (status == HD_OK) status = hd_panel_pack(ex, linear->dnn, compute, parts, weight);
    if (status != HD_OK) {
        hd_linear_free(linear);
        return status;
    }
    *out = linear;
    return HD_OK;
}

void hd_linear_free(hd_linear *linear)
{
    if (!linear) return;
    hd_dnn_free(linear->dnn);
    free(linear->bias);
    free(linear);
}

int64_t hd_linear_in(const hd_linear *linear)
{
    return linear->in;
}

int64_t hd_linear_out(const hd_linear *linear)
{
    return linear->out;
}

hd_dtype hd_linear_compute(const hd_linear *linear)
{
    return linear->compute;
}

int64_t hd_linear_bytes(const hd_linear *linear)
{
    return hd_dnn_bytes(linear->dnn) + (linear->bias ? linear->out * (int64_t)sizeof(float) : 0);
}

// [B, ..., C] seen as [B, tokens, C].
typedef struct token_view {
    char *data;
    hd_dtype dtype;
    int64_t rows, tokens, row_stride, stride; // strides in elements
} token_view;

static hd_status token_view_of(token_view *out, const char *what, hd_tensor t)
{
    char text[200];
    *out = (token_view){.data = t.data, .dtype = t.dtype, .rows = t.dim[0], .tokens = 1};
    out->row_stride = t.stride[0];
    out->stride = t.rank > 2 ? t.stride[t.rank - 2] : t.stride[0];
    bool fits = t.dim[t.rank - 1] == 1 || t.stride[t.rank - 1] == 1;
    for (int i = t.rank - 2; i > 0; i--) {
        fits = fits && (t.dim[i] == 1 || t.stride[i] == out->stride * out->tokens);
        out->tokens *= t.dim[i];
    }
    if (fits) return HD_OK;
    return hd_fail(HD_ERR_SHAPE,
                   "%s %s has gaps where it may not: its tokens must be evenly spaced and the "
                   "numbers of a token contiguous",
                   what, hd_tensor_text(text, sizeof text, t));
}

typedef struct linear_work {
    const hd_linear *linear;
    const hd_panel_kernels *kernels;
    token_view x, y, residual;
    bool gated;                 // y is half as wide: GEGLU
    int64_t panel, panels;      // tokens of a panel, panels of a row
    hd_dnn_panel *whole, *rest; // rest: of the last, shorter panel
    char *scratch;              // per thread: sums, then oneDNN's own
    size_t scratch_stride, sums_bytes;
} linear_work;

static char *token_at(const token_view *t, int64_t row, int64_t token, int64_t column)
{
    int64_t at = row * t->row_stride + token * t->stride + column;
    return t->data + at * (int64_t)hd_dtype_size(t->dtype);
}

static hd_status linear_item(void *arg, int64_t item, int thread)
{
    const linear_work *w = arg;
    const hd_linear *l = w->linear;
    int64_t row = item % w->x.rows, panel = item / w->x.rows % w->panels;
    int64_t block = item / w->x.rows / w->panels;
    int64_t from = panel * w->panel, tokens = w->panel;
    if (tokens > w->x.tokens - from) tokens = w->x.tokens - from;
    hd_dnn_panel *run = tokens == w->panel ? w->whole : w->rest;
    char *scratch = w->scratch + (size_t)thread * w->scratch_stride;
    char *own = scratch + w->sums_bytes * (w->gated ? 2 : 1);
    const char *x = token_at(&w->x, row, from, 0);
    int64_t column = block * l->block, count = hd_dnn_block_out(l->dnn, block);
    const float *bias = l->bias ? l->bias + column : NULL;
    hd_panel_out out = {.y = token_at(&w->y, row, from, column),
                        .dtype = w->y.dtype,
                        .stride = w->y.stride,
                        .bias = bias};
    float *sums = (float *)scratch, *gate = (float *)(scratch + w->sums_bytes);
    HD_TRY(hd_dnn_panel_run(run, thread, block, sums, x, own));
    if (w->gated) {
        int64_t half = l->out / 2;
        HD_TRY(hd_dnn_panel_run(run, thread, block + half / l->block, gate, x, own));
        w->kernels->store_geglu(out, sums, gate, bias ? bias + half : NULL, tokens, count);
        return HD_OK;
    }
    if (w->residual.data) out.residual = token_at(&w->residual, row, from, column);
    out.residual_stride = w->residual.stride;
    w->kernels->store(out, sums, tokens, count);
    return HD_OK;
}

static hd_status linear_expect(const hd_linear *l, hd_tensor y, int64_t out, hd_tensor x,
                               hd_tensor residual)
{
    char text[200];
    if (x.rank < 2 || x.dim[x.rank - 1] != l->in || x.dtype != l->compute)
        return hd_fail(HD_ERR_SHAPE, "linear: x is %s, expected [B, ..., %lld] %s",
                       hd_tensor_text(text, sizeof text, x), (long long)l->in,
                       hd_dtype_name(l->compute));
    hd_shape shape = hd_tensor_shape(x);
    HD_TRY(hd_expect_shape("linear: x", x, l->compute, shape));
    shape.dim[shape.rank - 1] = out;
    HD_TRY(hd_expect_shape("linear: y", y, y.dtype == HD_F32 ? HD_F32 : l->compute, shape));
    if (hd_tensor_given(residual)) HD_TRY(hd_expect_like("linear: residual", residual, y));
    return HD_OK;
}

static hd_status linear_prepare(linear_work *w, const hd_exec *ex)
{
    const hd_linear *l = w->linear;
    int threads = hd_pool_threads(ex->pool);
    w->panels = hd_div_up(w->x.tokens, PANEL_TOKENS);
    w->panel = hd_div_up(w->x.tokens, w->panels);
    hd_dnn_input input = {.h = 1, .w = w->panel, .x_stride = w->x.stride};
    HD_TRY(hd_dnn_panel_get(l->dnn, threads, input, &w->whole));
    size_t dnn_bytes = hd_dnn_panel_scratch_bytes(w->whole);
    input.w = w->x.tokens - (w->panels - 1) * w->panel;
    if (input.w != w->panel) {
        HD_TRY(hd_dnn_panel_get(l->dnn, threads, input, &w->rest));
        size_t bytes = hd_dnn_panel_scratch_bytes(w->rest);
        if (bytes > dnn_bytes) dnn_bytes = bytes;
    }
    w->sums_bytes = ((size_t)(w->panel * l->block) * sizeof(float) + 63) & ~(size_t)63;
    size_t bytes = w->sums_bytes * (w->gated ? 2 : 1) + dnn_bytes;
    w->scratch = hd_panel_scratch(ex, bytes, &w->scratch_stride);
    if (!w->scratch) return hd_fail(HD_ERR_NOMEM, "linear: the arena is full");
    return HD_OK;
}

static hd_status linear_run(linear_work *w, const hd_exec *ex, hd_tensor y, hd_tensor x,
                            hd_tensor residual)
{
    const hd_linear *l = w->linear;
    w->kernels = hd_panel_kernels_of(ex);
    HD_ENSURE(ex->arena && w->kernels);
    HD_TRY(token_view_of(&w->x, "linear: x", x));
    HD_TRY(token_view_of(&w->y, "linear: y", y));
    if (hd_tensor_given(residual))
        HD_TRY(token_view_of(&w->residual, "linear: residual", residual));
    if (w->x.rows == 0 || w->x.tokens == 0) return HD_OK;
    // a token alone has no distance to the next: one panel for every caller's strides
    if (w->x.tokens == 1) w->x.stride = l->in;
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = linear_prepare(w, ex);
    int64_t blocks = w->gated ? l->out / 2 / l->block : hd_dnn_blocks(l->dnn);
    if (status == HD_OK && !ex->recording)
        status = hd_parallel_for(ex->pool, w->x.rows * w->panels * blocks, linear_item, w);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

hd_status hd_linear_run(const hd_exec *ex, const hd_linear *linear, hd_tensor y, hd_tensor x,
                        hd_tensor residual)
{
    HD_TRY(linear_expect(linear, y, linear->out, x, residual));
    linear_work w = {.linear = linear};
    return linear_run(&w, ex, y, x, residual);
}

hd_status hd_linear_run_geglu(const hd_exec *ex, const hd_linear *linear, hd_tensor y, hd_tensor x)
{
    HD_ENSURE(linear->out % 2 == 0);
    HD_TRY(linear_expect(linear, y, linear->out / 2, x, hd_tensor_none()));
    linear_work w = {.linear = linear, .gated = true};
    if (linear->out / 2 % linear->block == 0) return linear_run(&w, ex, y, x, hd_tensor_none());
    // a width whose halves share a block: no network of note has one
    HD_ENSURE(ex->arena);
    size_t mark = hd_arena_mark(ex->arena);
    hd_shape shape = hd_tensor_shape(y);
    shape.dim[shape.rank - 1] = linear->out;
    hd_tensor wide = hd_arena_tensor(ex->arena, y.dtype, shape);
    hd_status status = hd_linear_run(ex, linear, wide, x, hd_tensor_none());
    if (status == HD_OK) status = hd_geglu(ex, y, wide);
    hd_arena_rewind(ex->arena, mark);
    return status;
}
