/* unet/unet2d.c: the spatial UNet: its blocks, where their values lie, one forward pass. */
#include "unet/unet2d.h"

#include <stdlib.h>

#include "engine/ops/elementwise.h"
#include "unet/blocks/time_embedding.h"
#include "unet/blocks/unet_block.h"

struct hd_unet2d {
    hd_unet2d_config config;
    hd_dtype compute;
    hd_time_embedding time;
    hd_conv *conv_in, *conv_out;
    float *gamma_out, *beta_out;
    hd_unet_block down[HD_UNET_MAX_LEVELS], mid, up[HD_UNET_MAX_LEVELS];
};

static hd_status unet2d_declare(hd_unet2d *u, hd_binder *b)
{
    const hd_unet2d_config *c = &u->config;
    int in = (int)(c->conv_in_kernel / 2), out = (int)(c->conv_out_kernel / 2);
    int64_t first = c->level[0].channels;
    const hd_conv_spec same_in = {1, in, in, in, in}, same_out = {1, out, out, out, out};
    const hd_time_embedding_spec time = {
        .in = first,
        .out = c->time_channels,
        .guidance = c->guidance_channels,
        .flip_sin_to_cos = c->flip_sin_to_cos,
        .freq_shift = (float)c->freq_shift,
        .act = c->act,
        .post_act = c->time_post_act,
    };
    hd_bind_conv(b, &u->conv_in, "conv_in", c->in_channels, first, c->conv_in_kernel, same_in,
                 true);
    hd_time_embedding_declare(&u->time, b, &time);
    for (int i = 0; i < c->levels; i++)
        HD_TRY(hd_unet_down_declare(&u->down[i], b, c, i));
    HD_TRY(hd_unet_mid_declare(&u->mid, b, c));
    for (int i = 0; i < c->levels; i++)
        HD_TRY(hd_unet_up_declare(&u->up[i], b, c, i));
    hd_bind_norm(b, &u->gamma_out, &u->beta_out, "conv_norm_out", first);
    hd_bind_conv(b, &u->conv_out, "conv_out", first, c->out_channels, c->conv_out_kernel, same_out,
                 true);
    return HD_OK;
}

// The network without its weights, and the binder that knows what they are. Both are the caller's,
// also after a failure.
static hd_status unet2d_skeleton(hd_unet2d **u, hd_binder **b, const hd_unet2d_config *c)
{
    *u = calloc(1, sizeof **u);
    if (!*u) return hd_fail(HD_ERR_NOMEM, "unet: no memory for its record");
    (*u)->config = *c;
    HD_TRY(hd_binder_create(b));
    return unet2d_declare(*u, *b);
}

hd_status hd_unet2d_create(hd_unet2d **out, const hd_exec *ex, const hd_unet2d_config *c,
                           const hd_weights *weights, hd_dtype compute,
                           int (*progress)(void *arg, int64_t done, int64_t all),
                           void *progress_arg)
{
    hd_unet2d *u = NULL;
    hd_binder *b = NULL;
    hd_status status = unet2d_skeleton(&u, &b, c);
    if (status == HD_OK) status = hd_binder_load(b, ex, weights, compute, progress, progress_arg);
    if (status == HD_OK) status = hd_time_embedding_pack(&u->time, ex);
    hd_binder_free(b);
    if (status != HD_OK) {
        hd_unet2d_free(u);
        return hd_note(status, "while loading the UNet");
    }
    u->compute = compute;
    *out = u;
    return HD_OK;
}

void hd_unet2d_free(hd_unet2d *u)
{
    if (!u) return;
    hd_time_embedding_free(&u->time);
    hd_conv_free(u->conv_in);
    hd_conv_free(u->conv_out);
    free(u->gamma_out);
    free(u->beta_out);
    for (int i = 0; i < HD_UNET_MAX_LEVELS; i++) {
        hd_unet_block_free(&u->down[i]);
        hd_unet_block_free(&u->up[i]);
    }
    hd_unet_block_free(&u->mid);
    free(u);
}

const hd_unet2d_config *hd_unet2d_configuration(const hd_unet2d *u)
{
    return &u->config;
}

hd_dtype hd_unet2d_compute(const hd_unet2d *u)
{
    return u->compute;
}

hd_status hd_unet2d_check(const hd_unet2d_config *c, const char *what, int64_t count,
                          const hd_weight_info *infos)
{
    hd_unet2d *u = NULL;
    hd_binder *b = NULL;
    hd_status status = unet2d_skeleton(&u, &b, c);
    if (status == HD_OK) status = hd_binder_check(b, what, count, infos);
    hd_binder_free(b);
    hd_unet2d_free(u);
    return status;
}

hd_status hd_unet2d_shapes(const hd_unet2d_config *c, int most, int64_t (*in_out)[2], int *count)
{
    hd_unet2d *u = NULL;
    hd_binder *b = NULL;
    hd_status status = unet2d_skeleton(&u, &b, c);
    if (status == HD_OK) *count = hd_binder_shapes(b, most, in_out);
    hd_binder_free(b);
    hd_unet2d_free(u);
    return status;
}

// The time embedding, activated once for all residual blocks, in the compute type.
static hd_status unet2d_time(const hd_exec *ex, const hd_unet2d *u, hd_tensor time,
                             const hd_unet2d_inputs *in)
{
    const hd_unet2d_config *c = &u->config;
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor raw = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(time));
    HD_TRY(hd_time_embedding_run(ex, &u->time, raw, in->timestep, in->guidance));
    if (c->time_act != HD_ACT_NONE) HD_TRY(hd_activate(ex, raw, raw, c->time_act));
    HD_TRY(hd_activate(ex, raw, raw, c->act));
    HD_TRY(hd_copy(ex, time, raw));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}

typedef struct unet2d_sizes {
    int64_t height[HD_UNET_MAX_LEVELS], width[HD_UNET_MAX_LEVELS];
} unet2d_sizes;

static unet2d_sizes unet2d_level_sizes(const hd_unet2d *u, int64_t height, int64_t width)
{
    unet2d_sizes s = {{height}, {width}};
    for (int i = 1; i < u->config.levels; i++)
        hd_conv_out_size(u->down[i - 1].resize, s.height[i - 1], s.width[i - 1], &s.height[i],
                         &s.width[i]);
    return s;
}

// The two slots of the way up: upsampling goes from one to the other, so that each holds the
// results of every second level and the upsampled results of the levels between.
static void unet2d_make_slots(const hd_exec *ex, const hd_unet2d *u, const unet2d_sizes *s,
                              int64_t rows, hd_unet_stream *stream)
{
    const hd_unet2d_config *c = &u->config;
    int64_t most[2] = {1, 1};
    for (int i = c->levels - 1; i >= 0; i--) {
        int at = (c->levels - 1 - i) % 2;
        int64_t pixels = rows * s->height[i] * s->width[i], channels = c->level[i].channels;
        if (i < c->levels - 1 && c->level[i + 1].channels > channels)
            channels = c->level[i + 1].channels;
        if (pixels * channels > most[at]) most[at] = pixels * channels;
    }
    for (int i = 0; i < 2; i++)
        stream->slot[i] = hd_arena_bytes(ex->arena, (size_t)most[i] * hd_dtype_size(u->compute));
}

static hd_status unet2d_blocks(const hd_unet2d *u, hd_unet_pass *pass, hd_tensor out,
                               hd_tensor latent)
{
    const hd_unet2d_config *c = &u->config;
    const hd_exec *ex = pass->ex;
    hd_unet_skips skips = {0};
    hd_unet_stream stream = {0};
    int64_t rows = latent.dim[0], height = latent.dim[1], width = latent.dim[2];
    unet2d_sizes sizes = unet2d_level_sizes(u, height, width);
    unet2d_make_slots(ex, u, &sizes, out.dim[0], &stream);

    hd_tensor first = hd_unet_skips_push(&skips, ex->arena, u->compute,
                                         hd_shape4(rows, height, width, c->level[0].channels));
    HD_TRY(hd_conv_run(ex, u->conv_in, first, latent, NULL));
    for (int i = 0; i < c->levels; i++)
        HD_TRY(hd_unet_down_run(pass, &u->down[i], &skips));
    HD_TRY(hd_unet_mid_run(pass, &u->mid, &skips, &stream));
    for (int i = 0; i < c->levels; i++) {
        int next = c->levels - 2 - i; // the finer level's number
        HD_TRY(hd_unet_up_run(pass, &u->up[i], &skips, &stream, next < 0 ? 0 : sizes.height[next],
                              next < 0 ? 0 : sizes.width[next]));
    }
    hd_tensor last = stream.x;
    hd_conv_norm norm = {u->gamma_out, u->beta_out, (int)c->groups, (float)c->eps, true};
    hd_conv_extra extra = {.norm = &norm};
    if (c->act != HD_ACT_SILU) {
        HD_TRY(hd_group_norm(ex, last, last, u->gamma_out, u->beta_out, (int)c->groups,
                             (float)c->eps, c->act));
        extra.norm = NULL;
    }
    return hd_conv_run(ex, u->conv_out, out, last, &extra);
}

static hd_status unet2d_inputs_check(const hd_unet2d *u, hd_tensor out, hd_tensor latent,
                                     const hd_unet2d_inputs *in)
{
    const hd_unet2d_config *c = &u->config;
    HD_TRY(hd_expect_rank("unet: latent", latent, 4));
    hd_shape shape = hd_tensor_shape(latent);
    int64_t smallest = shape.dim[1] < shape.dim[2] ? shape.dim[1] : shape.dim[2];
    // Without padding before, halving rounds down.
    int64_t least = c->downsample_padding == 0 ? (int64_t)1 << (c->levels - 1) : 1;
    if (shape.dim[0] < 1 || smallest < least)
        return hd_fail(HD_ERR_SHAPE, "unet: a latent of %lld x %lld, must be at least %lld x %lld",
                       (long long)shape.dim[1], (long long)shape.dim[2], (long long)least,
                       (long long)least);
    shape.dim[3] = c->in_channels;
    HD_TRY(hd_expect_shape("unet: latent", latent, HD_F32, shape));
    shape.dim[3] = c->out_channels;
    HD_TRY(hd_expect_shape("unet: output", out, HD_F32, shape));
    if (in->guidance && c->guidance_channels == 0)
        return hd_fail(HD_ERR_ARGUMENT, "unet: a guidance scale, but the model's config.json has "
                                        "no time_cond_proj_dim");
    if (c->text_channels == 0) return HD_OK;
    HD_TRY(hd_expect_rank("unet: text", in->text, 3));
    return hd_expect_shape("unet: text", in->text, in->text.dtype,
                           hd_shape3(latent.dim[0], in->text.dim[1], c->text_channels));
}

// The rows that run from the beginning when the pass forks: of each the first row of the call that
// equals it. y [R, ...] from x [B, ...].
static hd_status unet2d_before_fork(const hd_exec *ex, const hd_fork *fork, hd_tensor *y,
                                    hd_tensor x)
{
    hd_shape shape = hd_tensor_shape(x);
    shape.dim[0] = fork->before.count;
    *y = hd_arena_tensor(ex->arena, x.dtype, shape);
    for (int64_t r = x.dim[0] - 1; r >= 0; r--)
        HD_TRY(hd_copy(ex, hd_tensor_slice(*y, 0, fork->from[r], 1), hd_tensor_slice(x, 0, r, 1)));
    return HD_OK;
}

static hd_status unet2d_run(const hd_exec *ex, const hd_unet2d *u, const hd_forward *forward,
                            hd_tensor out, hd_tensor latent, const hd_unet2d_inputs *in)
{
    const hd_unet2d_config *c = &u->config;
    hd_unet_rows all = {.forward = forward, .text = in->text};
    all.time = hd_arena_tensor(ex->arena, u->compute, hd_shape2(latent.dim[0], c->time_channels));
    HD_TRY(unet2d_time(ex, u, all.time, in));
    if (hd_tensor_given(in->text) && in->text.dtype != u->compute) {
        all.text = hd_arena_tensor(ex->arena, u->compute, hd_tensor_shape(in->text));
        HD_TRY(hd_copy(ex, all.text, in->text));
    }
    if (c->center_input) {
        hd_tensor centred = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(latent));
        HD_TRY(hd_affine(ex, centred, latent, 2.0f, -1.0f));
        latent = centred;
    }
    hd_unet_pass pass = {.ex = ex, .now = all, .after = all};
    hd_forward first;
    if (forward && forward->fork) {
        pass.fork = forward->fork;
        first = *forward;
        first.rows = pass.fork->before;
        pass.now.forward = &first;
        HD_TRY(unet2d_before_fork(ex, pass.fork, &latent, latent));
        HD_TRY(unet2d_before_fork(ex, pass.fork, &pass.now.time, all.time));
        if (hd_tensor_given(all.text))
            HD_TRY(unet2d_before_fork(ex, pass.fork, &pass.now.text, all.text));
    }
    return unet2d_blocks(u, &pass, out, latent);
}

hd_status hd_unet2d_forward(const hd_exec *ex, const hd_unet2d *u, const hd_forward *forward,
                            hd_tensor out, hd_tensor latent, const hd_unet2d_inputs *in)
{
    HD_TRY(unet2d_inputs_check(u, out, latent, in));
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = unet2d_run(ex, u, forward, out, latent, in);
    hd_arena_rewind(ex->arena, mark);
    return hd_note(status, "in the UNet");
}
