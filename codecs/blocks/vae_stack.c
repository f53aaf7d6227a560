/* codecs/blocks/vae_stack.c: see vae_stack.h. */
#include "codecs/blocks/vae_stack.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"

#define VAE_EPS 1e-6f // of every norm; no configuration sets it

static const hd_conv_spec vae_same = {.stride = 1, 1, 1, 1, 1};

static hd_vae_stage *stack_add(hd_vae_stack *s, hd_vae_stage_kind kind, int64_t channels)
{
    hd_vae_stage *stage = &s->stage[s->count++];
    stage->kind = kind;
    stage->channels = channels;
    return stage;
}

static void stack_add_resnet(hd_vae_stack *s, hd_binder *b, const hd_vae_kl_config *c,
                             const char *name, int64_t in, int64_t out)
{
    const hd_resnet_spec spec = {
        .in = in,
        .out = out,
        .groups = (int)c->groups,
        .eps = VAE_EPS,
        .act = c->act,
        .out_scale = 1.0f,
    };
    hd_resnet_declare(&stack_add(s, HD_VAE_RESNET, out)->resnet, b, name, &spec);
}

static void stack_add_mid(hd_vae_stack *s, hd_binder *b, const hd_vae_kl_config *c,
                          const char *half)
{
    int64_t channels = c->channels[c->levels - 1];
    char name[96];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", half);
    stack_add_resnet(s, b, c, name, channels, channels);
    if (c->mid_attention) {
        snprintf(name, sizeof name, "%s.mid_block.attentions.0", half);
        hd_vae_attention_declare(&stack_add(s, HD_VAE_ATTENTION, channels)->attention, b, name,
                                 channels, (int)c->groups, hd_vae_kl_factor(c));
    }
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", half);
    stack_add_resnet(s, b, c, name, channels, channels);
}

static void stack_declare_ends(hd_vae_stack *s, hd_binder *b, const hd_vae_kl_config *c,
                               const char *half, int64_t in, int64_t first, int64_t last,
                               int64_t out)
{
    char name[64];
    s->groups = (int)c->groups;
    s->first = first;
    snprintf(name, sizeof name, "%s.conv_in", half);
    hd_bind_conv(b, &s->conv_in, name, in, first, 3, vae_same, true);
    snprintf(name, sizeof name, "%s.conv_norm_out", half);
    hd_bind_norm(b, &s->gamma, &s->beta, name, last);
    snprintf(name, sizeof name, "%s.conv_out", half);
    hd_bind_conv(b, &s->conv_out, name, last, out, 3, vae_same, true);
}

static hd_status stack_make(hd_vae_stack *s, const hd_vae_kl_config *c)
{
    // At most layers + 1 residual blocks and a change of resolution per level, three in the middle.
    s->stage = calloc((size_t)(c->levels * (c->layers + 2) + 3), sizeof *s->stage);
    if (s->stage) return HD_OK;
    return hd_fail(HD_ERR_NOMEM, "autoencoder: no memory for its blocks");
}

hd_status hd_vae_encoder_declare(hd_vae_stack *s, hd_binder *b, const hd_vae_kl_config *c)
{
    // A row and a column of zeros at the end only.
    const hd_conv_spec half = {.stride = 2, .pad_bottom = 1, .pad_right = 1};
    char name[96];
    int64_t channels = c->channels[0], last = c->channels[c->levels - 1];
    HD_TRY(stack_make(s, c));
    stack_declare_ends(s, b, c, "encoder", c->in_channels, channels, last, 2 * c->latent_channels);
    for (int i = 0; i < c->levels; i++) {
        for (int j = 0; j < c->layers; j++) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d.resnets.%d", i, j);
            stack_add_resnet(s, b, c, name, channels, c->channels[i]);
            channels = c->channels[i];
        }
        if (i == c->levels - 1) continue;
        snprintf(name, sizeof name, "encoder.down_blocks.%d.downsamplers.0.conv", i);
        hd_bind_conv(b, &stack_add(s, HD_VAE_DOWN, channels)->resize, name, channels, channels, 3,
                     half, true);
    }
    stack_add_mid(s, b, c, "encoder");
    return HD_OK;
}

hd_status hd_vae_decoder_declare(hd_vae_stack *s, hd_binder *b, const hd_vae_kl_config *c)
{
    char name[96];
    int64_t channels = c->channels[c->levels - 1];
    HD_TRY(stack_make(s, c));
    stack_declare_ends(s, b, c, "decoder", c->latent_channels, channels, c->channels[0],
                       c->out_channels);
    stack_add_mid(s, b, c, "decoder");
    for (int i = 0; i < c->levels; i++) {
        int64_t out = c->channels[c->levels - 1 - i];
        for (int j = 0; j <= c->layers; j++) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", i, j);
            stack_add_resnet(s, b, c, name, channels, out);
            channels = out;
        }
        if (i == c->levels - 1) continue;
        snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0.conv", i);
        hd_bind_conv(b, &stack_add(s, HD_VAE_UP, channels)->resize, name, channels, channels, 3,
                     vae_same, true);
    }
    return HD_OK;
}

void hd_vae_stack_free(hd_vae_stack *s)
{
    for (int i = 0; i < s->count; i++) {
        hd_resnet_free(&s->stage[i].resnet);
        hd_vae_attention_free(&s->stage[i].attention);
        hd_conv_free(s->stage[i].resize);
    }
    free(s->stage);
    free(s->gamma);
    free(s->beta);
    hd_conv_free(s->conv_in);
    hd_conv_free(s->conv_out);
    *s = (hd_vae_stack){0};
}

// The shape of a stage's result; *moves: it lies in the other slot than the stage's input.
static hd_shape stack_next(const hd_vae_stage *stage, hd_shape x, bool *moves)
{
    *moves = stage->kind == HD_VAE_DOWN || stage->kind == HD_VAE_UP || stage->channels != x.dim[3];
    if (stage->kind == HD_VAE_DOWN)
        hd_conv_out_size(stage->resize, x.dim[1], x.dim[2], &x.dim[1], &x.dim[2]);
    if (stage->kind == HD_VAE_UP) {
        x.dim[1] *= 2;
        x.dim[2] *= 2;
    }
    x.dim[3] = stage->channels;
    return x;
}

static void stack_make_slots(const hd_exec *ex, const hd_vae_stack *s, hd_shape x, hd_dtype dtype,
                             void *slot[2])
{
    int64_t most[2] = {hd_shape_count(x), 1};
    int at = 0;
    for (int i = 0; i < s->count; i++) {
        bool moves;
        x = stack_next(&s->stage[i], x, &moves);
        at ^= moves;
        if (hd_shape_count(x) > most[at]) most[at] = hd_shape_count(x);
    }
    for (int i = 0; i < 2; i++)
        slot[i] = hd_arena_bytes(ex->arena, (size_t)most[i] * hd_dtype_size(dtype));
}

static hd_status stack_stage(const hd_exec *ex, const hd_vae_stage *stage,
                             const hd_forward *forward, hd_tensor y, hd_tensor x)
{
    hd_conv_extra up = {.upsample_h = y.dim[1], .upsample_w = y.dim[2]};
    switch (stage->kind) {
    case HD_VAE_RESNET:
        return hd_resnet_run(ex, &stage->resnet, y, x, hd_tensor_none());
    case HD_VAE_ATTENTION:
        return hd_vae_attention_run(ex, &stage->attention, forward, x);
    case HD_VAE_DOWN:
        return hd_conv_run(ex, stage->resize, y, x, NULL);
    case HD_VAE_UP:
        return hd_conv_run(ex, stage->resize, y, x, &up);
    }
    return HD_OK;
}

hd_status hd_vae_stack_run(const hd_exec *ex, const hd_vae_stack *s, const hd_forward *forward,
                           hd_tensor y, hd_tensor x)
{
    HD_TRY(hd_expect_rank("autoencoder input", x, 4));
    size_t mark = hd_arena_mark(ex->arena);
    hd_dtype dtype = hd_conv_compute(s->conv_in);
    hd_shape shape = hd_shape4(x.dim[0], x.dim[1], x.dim[2], s->first);
    void *slot[2];
    int at = 0;
    stack_make_slots(ex, s, shape, dtype, slot);
    hd_tensor stream = hd_tensor_of(slot[at], dtype, shape);
    HD_TRY(hd_conv_run(ex, s->conv_in, stream, x, NULL));
    for (int i = 0; i < s->count; i++) {
        bool moves;
        shape = stack_next(&s->stage[i], shape, &moves);
        at ^= moves;
        hd_tensor next = hd_tensor_of(slot[at], dtype, shape);
        HD_TRY(stack_stage(ex, &s->stage[i], forward, next, stream));
        stream = next;
    }
    // Of every autoencoder, whatever the activation of its blocks.
    hd_conv_norm norm = {s->gamma, s->beta, s->groups, VAE_EPS, true};
    hd_conv_extra extra = {.norm = &norm};
    HD_TRY(hd_conv_run(ex, s->conv_out, y, stream, &extra));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}
