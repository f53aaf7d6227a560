/* codecs/blocks/vae_attention.c: see vae_attention.h. */
#include "codecs/blocks/vae_attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"
#include "engine/blocks/heads.h"
#include "engine/ops/norm.h"

#define VAE_ATTENTION_EPS 1e-6f

void hd_vae_attention_declare(hd_vae_attention *a, hd_binder *b, const char *prefix,
                              int64_t channels, int groups, int64_t factor)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    const int64_t outs[] = {channels, channels, channels};
    char name[128];
    a->channels = channels;
    a->factor = factor;
    a->groups = groups;
    snprintf(name, sizeof name, "%s.group_norm", prefix);
    hd_bind_norm(b, &a->gamma, &a->beta, name, channels);
    hd_bind_linears(b, &a->qkv, prefix, 3, qkv, channels, outs, true);
    snprintf(name, sizeof name, "%s.to_out.0", prefix);
    hd_bind_linear(b, &a->out, name, channels, channels, true);
}

void hd_vae_attention_free(hd_vae_attention *a)
{
    free(a->gamma);
    free(a->beta);
    hd_linear_free(a->qkv);
    hd_linear_free(a->out);
    *a = (hd_vae_attention){0};
}

hd_status hd_vae_attention_run(const hd_exec *ex, const hd_vae_attention *a,
                               const hd_forward *forward, hd_tensor x)
{
    HD_TRY(hd_expect_rank("autoencoder attention", x, 4));
    int64_t rows = x.dim[0], height = x.dim[1], width = x.dim[2], c = a->channels;
    hd_shape shape = hd_shape3(rows, height * width, c);
    hd_tensor flat = hd_tensor_reshape(x, shape);
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor n = hd_arena_tensor(ex->arena, x.dtype, shape);
    hd_tensor o = hd_arena_tensor(ex->arena, x.dtype, shape);
    shape.dim[2] = 3 * c;
    hd_tensor qkv = hd_arena_tensor(ex->arena, x.dtype, shape);
    HD_TRY(
        hd_group_norm(ex, n, flat, a->gamma, a->beta, a->groups, VAE_ATTENTION_EPS, HD_ACT_NONE));
    HD_TRY(hd_linear_run(ex, a->qkv, qkv, n, hd_tensor_none()));
    hd_attention_call call = {
        .forward = forward,
        .site = {.network = HD_NETWORK_VAE,
                 .kind = HD_SITE_SELF,
                 .factor = a->factor,
                 .heads = 1,
                 .tokens = height * width},
        .x = n,
        .q = hd_heads_view(qkv, 0, 1, c),
        .k = hd_heads_view(qkv, c, 1, c),
        .v = hd_heads_view(qkv, 2 * c, 1, c),
        .out = hd_heads_view(o, 0, 1, c),
        .q_layout = hd_layout_grid(1, height, width),
        .k_layout = hd_layout_grid(1, height, width),
        .scale = 1.0f / sqrtf((float)c),
    };
    snprintf(call.site.path, sizeof call.site.path, "mid.attn.0");
    HD_TRY(hd_attention(ex, &call));
    HD_TRY(hd_linear_run(ex, a->out, flat, o, flat));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}
