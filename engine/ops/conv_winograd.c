/* engine/ops/conv_winograd.c: 3x3 convolutions by Winograd's F(4x4, 3x3), for images large enough.
 *
 * In f32 throughout, whatever the compute type: 36 multiplications for 144, at an error that stays
 * well below that of bf16 and a few times that of the plain sum in f32. The transformed weights are
 * four times as many, so they are made anew in each call, from the packed ones, into the arena, for
 * a group of output channels at a time; that is what makes small images not pay. Then an item of
 * work is a stack of tile rows: it gathers its input as the other ways do, transforms a chunk of
 * tiles, multiplies the 36 planes and transforms back. An image of few tiles goes through the same
 * steps as a whole, each shared out over the threads: planes are then the items of the product. */
#include "engine/arena.h"
#include "engine/ops/conv_work.h"

#define CHUNK_TILES  64                  // at least, of one multiplication
#define STACKS       16                  // items of an image
#define WHOLE_TILES  128                 // an image with no more goes step by step
#define GROUP_BYTES  ((int64_t)96 << 20) // of transformed weights
#define PLANE_PAD    16 // floats between planes, so that they do not share cache sets
#define FILTER_STEP  32 // inputs of an item that transforms weights
#define MIN_CHANNELS 32

// Costs in f32 multiplications of the matrix units: measured on Zen 5 and AVX-512 in general.
#define COST_FILTER    70 // per transformed weight
#define COST_TRANSFORM 40 // per transformed input or output
#define CALLS          2  // rows of a batch that share transformed weights: guidance

static const hd_winograd_kernels *winograd_kernels(const hd_exec *ex)
{
    static const hd_winograd_kernels *const variants[] = {
#if HD_WITH_AVX512
        &hd_winograd_avx512,
#endif
#if HD_WITH_AVX2
        &hd_winograd_avx2,
#endif
        &hd_winograd_reference,
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i]->needs)) return variants[i];
    return NULL;
}

// Output channels per group: whole blocks, in equal groups; 0 if there is no such cut.
static int64_t winograd_group(const hd_conv *conv)
{
    int64_t blocks = hd_dnn_blocks(conv->dnn);
    for (int64_t groups = 1; groups <= blocks; groups++) {
        int64_t out = conv->out / groups;
        if (groups > 1 && (conv->out % groups || out % CONV_BLOCK)) continue;
        int64_t bytes = HD_WINOGRAD_PLANES * conv->in * out * (int64_t)sizeof(float);
        if (bytes <= GROUP_BYTES) return out;
    }
    return 0;
}

hd_status hd_conv_winograd_create(hd_conv *conv)
{
    hd_dnn_packed packed;
    bool fits = conv->kh == 3 && conv->kw == 3 && conv->spec.stride == 1 &&
                conv->in >= MIN_CHANNELS && conv->out >= MIN_CHANNELS;
    for (int64_t b = 0; fits && b < hd_dnn_blocks(conv->dnn); b++)
        fits = hd_dnn_packed_block(conv->dnn, b, &packed);
    if (fits) conv->tiles_out = winograd_group(conv);
    if (!conv->tiles_out) return HD_OK;
    return hd_dnn_create(&conv->tiles, (hd_dnn_filter){.in = conv->in,
                                                       .out = conv->tiles_out,
                                                       .block = conv->tiles_out,
                                                       .compute = HD_F32,
                                                       .plain = true});
}

bool hd_conv_winograd_pays(const conv_work *w, const hd_exec *ex)
{
    const hd_conv *c = w->conv;
    if (!c->tiles || !winograd_kernels(ex)) return false;
    double pairs = (double)(c->in * c->out);
    double tiles =
        (double)(hd_div_up(w->oh, HD_WINOGRAD_TILE) * hd_div_up(w->ow, HD_WINOGRAD_TILE));
    double direct = 9.0 * (double)(w->oh * w->ow) * pairs;
    if (c->compute == HD_BF16) direct /= 2;
    double winograd = HD_WINOGRAD_PLANES * (tiles * pairs + pairs * COST_FILTER / CALLS +
                                            tiles * (double)(c->in + c->out) * COST_TRANSFORM);
    return winograd < 0.95 * direct;
}

typedef struct winograd_work {
    conv_work *w;
    const hd_winograd_kernels *kernels;
    int64_t rows, columns;             // of tiles in an image
    bool step_by_step;                 // whole images, their planes in the arena
    int64_t chunk;                     // tile rows of a multiplication
    int64_t stack, stacks;             // tile rows of an item, items of an image
    int64_t out, first;                // output channels of a group, the first of this one
    int64_t steps;                     // items per block of weights that is transformed
    int64_t u_plane, v_plane, m_plane; // floats
    float *u;                          // [36, in, out]
    char *planes;                      // v and m of each image: step by step
    char *scratch;                     // per thread: oneDNN's own, input rows; else v and m too
    hd_dnn_panel *whole, *rest;        // rest: of a last chunk with fewer rows
    size_t stride, v_bytes, m_bytes, dnn_bytes, row_bytes;
} winograd_work;

static hd_status winograd_filter(void *arg, int64_t item, int thread)
{
    const winograd_work *k = arg;
    const hd_conv *c = k->w->conv;
    (void)thread;
    int64_t block = item / k->steps, from = item % k->steps * FILTER_STEP;
    int64_t to = from + FILTER_STEP < c->in ? from + FILTER_STEP : c->in;
    hd_dnn_packed packed;
    HD_ENSURE(hd_dnn_packed_block(c->dnn, k->first / CONV_BLOCK + block, &packed));
    hd_winograd_weights g = {.data = packed.data,
                             .dtype = c->compute,
                             .in = c->in,
                             .columns = hd_dnn_block_out(c->dnn, k->first / CONV_BLOCK + block),
                             .pair = packed.pair};
    k->kernels->filter(k->u + block * CONV_BLOCK, k->u_plane, k->out, g, from, to);
    return HD_OK;
}

// Tile row `row` of an image into v. x holds its 6 input rows; the first `kept` are there already.
static void winograd_input(const winograd_work *k, int64_t image, int64_t row, int64_t kept,
                           float *v, char *x)
{
    const conv_work *w = k->w;
    for (int64_t r = kept; r < HD_WINOGRAD_INPUT; r++)
        hd_conv_gather_row(w, image, row * HD_WINOGRAD_TILE + r, x + (size_t)r * k->row_bytes);
    int64_t x_stride = (int64_t)(k->row_bytes / hd_dtype_size(w->conv->compute));
    k->kernels->input(v, k->v_plane, x, w->conv->compute, x_stride, k->columns, w->conv->in);
}

// Tile row `row` of an image from m to pixels.
static void winograd_output(const winograd_work *k, int64_t image, int64_t row, const float *m)
{
    const conv_work *w = k->w;
    int64_t out = w->conv->out, size = (int64_t)hd_dtype_size(w->y.dtype);
    hd_winograd_out to = {.out = {.dtype = w->y.dtype, .stride = out}, .row_stride = w->ow * out};
    to.out.bias = w->bias + image * w->bias_stride + k->first;
    int64_t top = row * HD_WINOGRAD_TILE;
    to.rows = w->oh - top < HD_WINOGRAD_TILE ? w->oh - top : HD_WINOGRAD_TILE;
    for (int64_t t = 0; t < k->columns; t++) {
        int64_t left = t * HD_WINOGRAD_TILE;
        int64_t at = (((image * w->oh + top) * w->ow + left) * out + k->first) * size;
        to.columns = w->ow - left < HD_WINOGRAD_TILE ? w->ow - left : HD_WINOGRAD_TILE;
        to.out.y = (char *)w->y.data + at;
        if (hd_tensor_given(w->residual)) to.out.residual = (const char *)w->residual.data + at;
        k->kernels->output(to, m + t * k->out, k->m_plane, k->out);
    }
}

static hd_status winograd_stack(void *arg, int64_t item, int thread)
{
    const winograd_work *k = arg;
    const hd_conv *c = k->w->conv;
    int64_t image = item % k->w->batch, first = item / k->w->batch * k->stack;
    int64_t last = first + k->stack < k->rows ? first + k->stack : k->rows;
    char *scratch = k->scratch + (size_t)thread * k->stride;
    char *x = scratch + k->dnn_bytes, *planes = x + HD_WINOGRAD_INPUT * k->row_bytes;
    float *v = (float *)planes, *m = (float *)(planes + k->v_bytes);
    const int64_t kept = HD_WINOGRAD_INPUT - HD_WINOGRAD_TILE;
    int64_t filled = 0; // tile rows in v
    for (int64_t row = first; row < last; row++) {
        winograd_input(k, image, row, row == first ? 0 : kept, v + filled * k->columns * c->in, x);
        // the last input rows of a tile row are the first of the next
        memmove(x, x + HD_WINOGRAD_TILE * k->row_bytes, (size_t)kept * k->row_bytes);
        if (++filled < k->chunk && row + 1 < last) continue;
        for (int64_t p = 0; p < HD_WINOGRAD_PLANES; p++)
            HD_TRY(hd_dnn_panel_run_plain(filled == k->chunk ? k->whole : k->rest, thread,
                                          m + p * k->m_plane, v + p * k->v_plane,
                                          k->u + p * k->u_plane, scratch));
        for (int64_t r = 0; r < filled; r++)
            winograd_output(k, image, row + 1 - filled + r, m + r * k->columns * k->out);
        filled = 0;
    }
    return HD_OK;
}

static float *image_v(const winograd_work *k, int64_t image)
{
    return (float *)(k->planes + (size_t)image * (k->v_bytes + k->m_bytes));
}

static float *image_m(const winograd_work *k, int64_t image)
{
    return (float *)(k->planes + (size_t)image * (k->v_bytes + k->m_bytes) + k->v_bytes);
}

static hd_status winograd_input_item(void *arg, int64_t item, int thread)
{
    const winograd_work *k = arg;
    int64_t image = item / k->rows, row = item % k->rows;
    char *x = k->scratch + (size_t)thread * k->stride + k->dnn_bytes;
    winograd_input(k, image, row, 0, image_v(k, image) + row * k->columns * k->w->conv->in, x);
    return HD_OK;
}

static hd_status winograd_plane_item(void *arg, int64_t item, int thread)
{
    const winograd_work *k = arg;
    int64_t image = item % k->w->batch, p = item / k->w->batch;
    return hd_dnn_panel_run_plain(k->whole, thread, image_m(k, image) + p * k->m_plane,
                                  image_v(k, image) + p * k->v_plane, k->u + p * k->u_plane,
                                  k->scratch + (size_t)thread * k->stride);
}

static hd_status winograd_output_item(void *arg, int64_t item, int thread)
{
    const winograd_work *k = arg;
    int64_t image = item / k->rows, row = item % k->rows;
    (void)thread;
    winograd_output(k, image, row, image_m(k, image) + row * k->columns * k->out);
    return HD_OK;
}

static void winograd_cut(winograd_work *k)
{
    conv_work *w = k->w;
    k->rows = hd_div_up(w->oh, HD_WINOGRAD_TILE);
    k->columns = hd_div_up(w->ow, HD_WINOGRAD_TILE);
    w->ph = k->rows * HD_WINOGRAD_TILE + 2;
    w->pw = k->columns * HD_WINOGRAD_TILE + 2;
    k->step_by_step = k->rows * k->columns <= WHOLE_TILES;
    k->chunk = k->step_by_step ? k->rows : hd_div_up(CHUNK_TILES, k->columns);
    int64_t chunks = hd_div_up(k->rows, k->chunk);
    k->stack = hd_div_up(chunks, STACKS) * k->chunk;
    k->stacks = hd_div_up(k->rows, k->stack);
    k->out = w->conv->tiles_out;
    k->steps = hd_div_up(w->conv->in, FILTER_STEP);
}

static size_t plane_bytes(int64_t plane)
{
    return ((size_t)(HD_WINOGRAD_PLANES * plane) * sizeof(float) + 63) & ~(size_t)63;
}

static hd_status winograd_panels(winograd_work *k, int threads)
{
    const hd_conv *c = k->w->conv;
    hd_dnn_input input = {.h = 1, .w = k->chunk * k->columns, .x_stride = c->in};
    HD_TRY(hd_dnn_panel_get(c->tiles, threads, input, &k->whole));
    k->dnn_bytes = hd_dnn_panel_scratch_bytes(k->whole);
    int64_t rest = k->rows % k->chunk;
    if (rest) {
        input.w = rest * k->columns;
        HD_TRY(hd_dnn_panel_get(c->tiles, threads, input, &k->rest));
        size_t bytes = hd_dnn_panel_scratch_bytes(k->rest);
        if (bytes > k->dnn_bytes) k->dnn_bytes = bytes;
    }
    k->dnn_bytes = (k->dnn_bytes + 63) & ~(size_t)63;
    return HD_OK;
}

static hd_status winograd_memory(winograd_work *k, const hd_exec *ex)
{
    const conv_work *w = k->w;
    int64_t in = w->conv->in, tiles = k->chunk * k->columns;
    k->u_plane = in * k->out + PLANE_PAD;
    k->v_plane = tiles * in + PLANE_PAD;
    k->m_plane = tiles * k->out + PLANE_PAD;
    k->v_bytes = plane_bytes(k->v_plane);
    k->m_bytes = plane_bytes(k->m_plane);
    k->row_bytes = ((size_t)(w->pw * in) * hd_dtype_size(w->conv->compute) + 63) & ~(size_t)63;
    k->u = hd_arena_bytes(ex->arena, plane_bytes(k->u_plane));
    size_t planes = k->v_bytes + k->m_bytes;
    size_t bytes = k->dnn_bytes + HD_WINOGRAD_INPUT * k->row_bytes;
    if (k->step_by_step)
        k->planes = hd_arena_bytes(ex->arena, planes * (size_t)w->batch);
    else
        bytes += planes;
    k->scratch = hd_panel_scratch(ex, bytes, &k->stride);
    if (!k->u || !k->scratch || (k->step_by_step && !k->planes))
        return hd_fail(HD_ERR_NOMEM, "conv: the arena is full");
    return HD_OK;
}

static hd_status winograd_group_run(winograd_work *k, const hd_exec *ex)
{
    int64_t blocks = hd_div_up(k->out, CONV_BLOCK), rows = k->w->batch * k->rows;
    HD_TRY(hd_parallel_for(ex->pool, blocks * k->steps, winograd_filter, k));
    if (!k->step_by_step)
        return hd_parallel_for(ex->pool, k->w->batch * k->stacks, winograd_stack, k);
    if (k->first == 0) HD_TRY(hd_parallel_for(ex->pool, rows, winograd_input_item, k));
    HD_TRY(hd_parallel_for(ex->pool, HD_WINOGRAD_PLANES * k->w->batch, winograd_plane_item, k));
    return hd_parallel_for(ex->pool, rows, winograd_output_item, k);
}

hd_status hd_conv_winograd_run(conv_work *w, const hd_exec *ex)
{
    winograd_work k = {.w = w, .kernels = winograd_kernels(ex)};
    w->way = CONV_WINOGRAD;
    winograd_cut(&k);
    HD_TRY(winograd_panels(&k, hd_pool_threads(ex->pool)));
    HD_TRY(winograd_memory(&k, ex));
    for (; !ex->recording && k.first < w->conv->out; k.first += k.out)
        HD_TRY(winograd_group_run(&k, ex));
    return HD_OK;
}
