/* unet/blocks/transformer2d.c: see transformer2d.h. */
#include "unet/blocks/transformer2d.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"
#include "engine/attention/run.h"
#include "engine/blocks/heads.h"
#include "engine/ops/elementwise.h"

// Of the norms inside; no configuration sets them.
#define TRANSFORMER_GROUP_EPS 1e-6f
#define TRANSFORMER_LAYER_EPS 1e-5f
// The hidden layer of the feed-forward is eight times as wide as the stream: it is worked off in
// pieces of this many tokens, so that it does not decide how much memory a step takes. Pieces cost
// no time that could be measured (256 to 8192 tokens at 4096).
#define TRANSFORMER_FF_TOKENS 1024

typedef struct transformer_attention {
    char path[HD_SITE_PATH_BYTES];
    float *gamma, *beta; // of the layer norm before it
    hd_linear *qkv;      // self attention; NULL for cross
    hd_linear *q, *kv;   // cross attention
    hd_linear *out;
} transformer_attention;

typedef struct transformer_block {
    transformer_attention attention[2];
    float *gamma, *beta;
    hd_linear *ff_in, *ff_out;
} transformer_block;

struct hd_transformer2d {
    hd_transformer2d_spec spec;
    int64_t head_size, inner;
    float *gamma, *beta;
    hd_linear *in, *out;
    transformer_block *block; // [spec.depth]
};

static void transformer_attention_declare(const hd_transformer2d *t, transformer_attention *a,
                                          hd_binder *b, const char *prefix, int which)
{
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    const int64_t outs[] = {t->inner, t->inner, t->inner};
    char name[160];
    snprintf(name, sizeof name, "%s.norm%d", prefix, which + 1);
    hd_bind_norm(b, &a->gamma, &a->beta, name, t->inner);
    snprintf(name, sizeof name, "%s.attn%d", prefix, which + 1);
    if (which == 0 && !t->spec.only_cross_attention) {
        hd_bind_linears(b, &a->qkv, name, 3, qkv, t->inner, outs, false);
    } else {
        hd_bind_linears(b, &a->q, name, 1, qkv, t->inner, outs, false);
        hd_bind_linears(b, &a->kv, name, 2, qkv + 1, t->spec.text_channels, outs, false);
    }
    snprintf(name, sizeof name, "%s.attn%d.to_out.0", prefix, which + 1);
    hd_bind_linear(b, &a->out, name, t->inner, t->inner, true);
}

static void transformer_block_declare(const hd_transformer2d *t, transformer_block *block,
                                      hd_binder *b, const char *prefix, int64_t index)
{
    char base[128], name[160];
    const hd_transformer2d_spec *s = &t->spec;
    snprintf(base, sizeof base, "%s.transformer_blocks.%d", prefix, (int)index);
    for (int i = 0; i < 2; i++) {
        char *path = block->attention[i].path;
        if (s->only_cross_attention)
            snprintf(path, HD_SITE_PATH_BYTES, "%s.%d", s->path, (int)(2 * index + i));
        else if (s->depth > 1)
            snprintf(path, HD_SITE_PATH_BYTES, "%s.%d", s->path, (int)index);
        else
            snprintf(path, HD_SITE_PATH_BYTES, "%s", s->path);
        transformer_attention_declare(t, &block->attention[i], b, base, i);
    }
    snprintf(name, sizeof name, "%s.norm3", base);
    hd_bind_norm(b, &block->gamma, &block->beta, name, t->inner);
    snprintf(name, sizeof name, "%s.ff.net.0.proj", base);
    hd_bind_linear(b, &block->ff_in, name, t->inner, 8 * t->inner, true);
    snprintf(name, sizeof name, "%s.ff.net.2", base);
    hd_bind_linear(b, &block->ff_out, name, 4 * t->inner, t->inner, true);
}

hd_status hd_transformer2d_declare(hd_transformer2d **out, hd_binder *b, const char *prefix,
                                   const hd_transformer2d_spec *spec)
{
    char name[160];
    hd_transformer2d *t = calloc(1, sizeof *t);
    if (!t) return hd_fail(HD_ERR_NOMEM, "transformer: no memory for its record");
    *out = t;
    t->spec = *spec;
    t->block = calloc((size_t)spec->depth, sizeof *t->block);
    if (!t->block) return hd_fail(HD_ERR_NOMEM, "transformer: no memory for its blocks");
    t->head_size = spec->channels / spec->heads;
    t->inner = t->head_size * spec->heads;
    snprintf(name, sizeof name, "%s.norm", prefix);
    hd_bind_norm(b, &t->gamma, &t->beta, name, spec->channels);
    snprintf(name, sizeof name, "%s.proj_in", prefix);
    hd_bind_linear(b, &t->in, name, spec->channels, t->inner, true);
    for (int64_t i = 0; i < spec->depth; i++)
        transformer_block_declare(t, &t->block[i], b, prefix, i);
    snprintf(name, sizeof name, "%s.proj_out", prefix);
    hd_bind_linear(b, &t->out, name, t->inner, spec->channels, true);
    t->spec.path = NULL; // the caller's; the sites have their own copies
    return HD_OK;
}

static void transformer_attention_free(transformer_attention *a)
{
    free(a->gamma);
    free(a->beta);
    hd_linear_free(a->qkv);
    hd_linear_free(a->q);
    hd_linear_free(a->kv);
    hd_linear_free(a->out);
}

void hd_transformer2d_free(hd_transformer2d *t)
{
    if (!t) return;
    for (int64_t i = 0; t->block && i < t->spec.depth; i++) {
        transformer_attention_free(&t->block[i].attention[0]);
        transformer_attention_free(&t->block[i].attention[1]);
        free(t->block[i].gamma);
        free(t->block[i].beta);
        hd_linear_free(t->block[i].ff_in);
        hd_linear_free(t->block[i].ff_out);
    }
    free(t->block);
    free(t->gamma);
    free(t->beta);
    hd_linear_free(t->in);
    hd_linear_free(t->out);
    free(t);
}

// What stays the same through the blocks of one run.
typedef struct transformer_pass {
    const hd_exec *ex;
    const hd_transformer2d *t;
    const hd_forward *forward;
    int64_t rows, height, width;
    hd_tensor text;
} transformer_pass;

static hd_status transformer_call(const transformer_pass *p, const transformer_attention *a,
                                  hd_attention_call *call)
{
    const hd_transformer2d *t = p->t;
    call->forward = p->forward;
    call->site.network = HD_NETWORK_UNET;
    call->site.factor = t->spec.factor;
    call->site.heads = t->spec.heads;
    call->site.tokens = p->height * p->width;
    snprintf(call->site.path, sizeof call->site.path, "%s", a->path);
    call->q_layout = hd_layout_grid(1, p->height, p->width);
    call->scale = 1.0f / sqrtf((float)t->head_size);
    return hd_attention(p->ex, call);
}

static hd_status transformer_self(const transformer_pass *p, const transformer_attention *a,
                                  hd_tensor o, hd_tensor n)
{
    const hd_transformer2d *t = p->t;
    int64_t tokens = n.dim[1], heads = t->spec.heads;
    hd_tensor qkv =
        hd_arena_tensor(p->ex->arena, n.dtype, hd_shape3(p->rows, tokens, 3 * t->inner));
    HD_TRY(hd_linear_run(p->ex, a->qkv, qkv, n, hd_tensor_none()));
    hd_attention_call call = {
        .site.kind = HD_SITE_SELF,
        .x = n,
        .q = hd_heads_view(qkv, 0, heads, t->head_size),
        .k = hd_heads_view(qkv, t->inner, heads, t->head_size),
        .v = hd_heads_view(qkv, 2 * t->inner, heads, t->head_size),
        .out = hd_heads_view(o, 0, heads, t->head_size),
        .k_layout = hd_layout_grid(1, p->height, p->width),
    };
    return transformer_call(p, a, &call);
}

static hd_status transformer_cross(const transformer_pass *p, const transformer_attention *a,
                                   hd_tensor o, hd_tensor n)
{
    const hd_transformer2d *t = p->t;
    int64_t tokens = n.dim[1], heads = t->spec.heads, words = p->text.dim[1];
    hd_tensor q = hd_arena_tensor(p->ex->arena, n.dtype, hd_shape3(p->rows, tokens, t->inner));
    hd_tensor kv = hd_tensor_none();
    HD_TRY(hd_linear_run(p->ex, a->q, q, n, hd_tensor_none()));
    if (p->forward && p->forward->run) {
        HD_TRY(hd_attention_run_text_kv(p->ex, p->forward->run, a->path, a->kv, p->text, &kv));
    } else {
        kv = hd_arena_tensor(p->ex->arena, n.dtype, hd_shape3(p->rows, words, 2 * t->inner));
        HD_TRY(hd_linear_run(p->ex, a->kv, kv, p->text, hd_tensor_none()));
    }
    hd_attention_call call = {
        .site.kind = HD_SITE_CROSS,
        .x = n,
        .q = hd_heads_view(q, 0, heads, t->head_size),
        .k = hd_heads_view(kv, 0, heads, t->head_size),
        .v = hd_heads_view(kv, t->inner, heads, t->head_size),
        .out = hd_heads_view(o, 0, heads, t->head_size),
        .k_layout = hd_layout_text(words),
    };
    return transformer_call(p, a, &call);
}

// h += attention(norm(h)). n is scratch like h.
static hd_status transformer_attend(const transformer_pass *p, const transformer_attention *a,
                                    hd_tensor h, hd_tensor n)
{
    size_t mark = hd_arena_mark(p->ex->arena);
    hd_tensor o = hd_arena_tensor(p->ex->arena, h.dtype, hd_tensor_shape(h));
    HD_TRY(hd_layer_norm(p->ex, n, h, a->gamma, a->beta, TRANSFORMER_LAYER_EPS));
    HD_TRY(a->qkv ? transformer_self(p, a, o, n) : transformer_cross(p, a, o, n));
    HD_TRY(hd_linear_run(p->ex, a->out, h, o, h));
    hd_arena_rewind(p->ex->arena, mark);
    return HD_OK;
}

static hd_status transformer_feed_forward(const transformer_pass *p, const transformer_block *block,
                                          hd_tensor h, hd_tensor n)
{
    const hd_exec *ex = p->ex;
    int64_t tokens = h.dim[1], inner = p->t->inner;
    HD_TRY(hd_layer_norm(ex, n, h, block->gamma, block->beta, TRANSFORMER_LAYER_EPS));
    for (int64_t at = 0; at < tokens; at += TRANSFORMER_FF_TOKENS) {
        int64_t count = tokens - at < TRANSFORMER_FF_TOKENS ? tokens - at : TRANSFORMER_FF_TOKENS;
        size_t mark = hd_arena_mark(ex->arena);
        hd_tensor gated = hd_arena_tensor(ex->arena, h.dtype, hd_shape3(p->rows, count, 4 * inner));
        hd_tensor piece = hd_tensor_slice(h, 1, at, count);
        HD_TRY(hd_linear_run_geglu(ex, block->ff_in, gated, hd_tensor_slice(n, 1, at, count)));
        HD_TRY(hd_linear_run(ex, block->ff_out, piece, gated, piece));
        hd_arena_rewind(ex->arena, mark);
    }
    return HD_OK;
}

hd_status hd_transformer2d_run(const hd_exec *ex, const hd_transformer2d *t,
                               const hd_forward *forward, hd_tensor x, hd_tensor text)
{
    HD_TRY(hd_expect_rank("transformer input", x, 4));
    transformer_pass p = {ex, t, forward, x.dim[0], x.dim[1], x.dim[2], text};
    int64_t tokens = p.height * p.width, channels = t->spec.channels;
    hd_tensor flat = hd_tensor_reshape(x, hd_shape3(p.rows, tokens, channels));
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor h = hd_arena_tensor(ex->arena, x.dtype, hd_shape3(p.rows, tokens, t->inner));

    size_t inner_mark = hd_arena_mark(ex->arena);
    hd_tensor first = hd_arena_tensor(ex->arena, x.dtype, hd_tensor_shape(flat));
    HD_TRY(hd_group_norm(ex, first, flat, t->gamma, t->beta, t->spec.groups, TRANSFORMER_GROUP_EPS,
                         HD_ACT_NONE));
    HD_TRY(hd_linear_run(ex, t->in, h, first, hd_tensor_none()));
    hd_arena_rewind(ex->arena, inner_mark);

    hd_tensor n = hd_arena_tensor(ex->arena, x.dtype, hd_tensor_shape(h));
    for (int64_t i = 0; i < t->spec.depth; i++) {
        HD_TRY(transformer_attend(&p, &t->block[i].attention[0], h, n));
        HD_TRY(transformer_attend(&p, &t->block[i].attention[1], h, n));
        HD_TRY(transformer_feed_forward(&p, &t->block[i], h, n));
    }
    HD_TRY(hd_linear_run(ex, t->out, flat, h, flat));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}
