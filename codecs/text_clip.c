/* codecs/text_clip.c: the text encoder of CLIP: token and position embeddings, pre-norm transformer
 * blocks with causal attention, a final norm. Reference: transformers 5.23, modeling_clip.py. */
#include "codecs/text_clip.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"

typedef struct text_clip_block {
    float *norm1_gamma, *norm1_beta, *norm2_gamma, *norm2_beta;
    hd_linear *qkv, *out, *up, *down;
} text_clip_block;

struct hd_text_clip {
    hd_text_clip_config config;
    hd_dtype compute;
    float *tokens;    // [vocabulary, channels]
    float *positions; // [length, channels]
    text_clip_block *block;
    float *final_gamma, *final_beta;
    hd_linear *projection; // NULL: none
};

static const hd_config_rule text_clip_rules[] = {
    {"architectures", HD_CONFIG_READ, NULL},
    {"model_type", HD_CONFIG_READ, NULL},
    {"vocab_size", HD_CONFIG_READ, NULL},
    {"hidden_size", HD_CONFIG_READ, NULL},
    {"intermediate_size", HD_CONFIG_READ, NULL},
    {"projection_dim", HD_CONFIG_READ, NULL},
    {"num_hidden_layers", HD_CONFIG_READ, NULL},
    {"num_attention_heads", HD_CONFIG_READ, NULL},
    {"max_position_embeddings", HD_CONFIG_READ, NULL},
    {"hidden_act", HD_CONFIG_READ, NULL},
    {"layer_norm_eps", HD_CONFIG_READ, NULL},
    {"eos_token_id", HD_CONFIG_READ, NULL},
    // The tokenizer has its own.
    {"bos_token_id", HD_CONFIG_INERT, NULL},
    {"pad_token_id", HD_CONFIG_INERT, NULL},
    // Training, and how the file was written.
    {"attention_dropout", HD_CONFIG_INERT, NULL},
    {"dropout", HD_CONFIG_INERT, NULL},
    {"initializer_factor", HD_CONFIG_INERT, NULL},
    {"initializer_range", HD_CONFIG_INERT, NULL},
    {"gradient_checkpointing", HD_CONFIG_INERT, NULL},
    {"dtype", HD_CONFIG_INERT, NULL},
    {"torch_dtype", HD_CONFIG_INERT, NULL},
    {"transformers_version", HD_CONFIG_INERT, NULL},
    {"transformers.js_config", HD_CONFIG_INERT, NULL},
    // What transformers writes for every model in a verbose configuration; none of it is CLIP's.
    {"return_dict", HD_CONFIG_INERT, NULL},
    {"torchscript", HD_CONFIG_INERT, NULL},
    {"tie_word_embeddings", HD_CONFIG_INERT, NULL},
    {"tie_encoder_decoder", HD_CONFIG_INERT, NULL},
    {"pruned_heads", HD_CONFIG_INERT, NULL},
    {"chunk_size_feed_forward", HD_CONFIG_INERT, NULL},
    {"problem_type", HD_CONFIG_INERT, NULL},
    {"id2label", HD_CONFIG_INERT, NULL},
    {"label2id", HD_CONFIG_INERT, NULL},
    {"use_cache", HD_CONFIG_INERT, NULL},
    {"max_length", HD_CONFIG_INERT, NULL},
    {"min_length", HD_CONFIG_INERT, NULL},
    {"num_beams", HD_CONFIG_INERT, NULL},
    {"num_beam_groups", HD_CONFIG_INERT, NULL},
    {"diversity_penalty", HD_CONFIG_INERT, NULL},
    {"temperature", HD_CONFIG_INERT, NULL},
    {"top_k", HD_CONFIG_INERT, NULL},
    {"top_p", HD_CONFIG_INERT, NULL},
    {"typical_p", HD_CONFIG_INERT, NULL},
    {"repetition_penalty", HD_CONFIG_INERT, NULL},
    {"length_penalty", HD_CONFIG_INERT, NULL},
    {"no_repeat_ngram_size", HD_CONFIG_INERT, NULL},
    {"encoder_no_repeat_ngram_size", HD_CONFIG_INERT, NULL},
    {"num_return_sequences", HD_CONFIG_INERT, NULL},
    {"text_config", HD_CONFIG_UNSET, "a whole CLIP; its text encoder alone is wanted"},
    {"vision_config", HD_CONFIG_UNSET, "a whole CLIP; its text encoder alone is wanted"},
    {"quantization_config", HD_CONFIG_UNSET, "quantised weights"},
    {NULL, HD_CONFIG_READ, NULL},
};

static hd_status text_clip_read_act(hd_text_clip_config *c, const hd_json *root)
{
    static const char *const names[] = {
        "quick_gelu", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh",
        "gelu_fast",  "silu", "swish",       "relu",     NULL};
    static const hd_activation acts[] = {HD_ACT_QUICK_GELU, HD_ACT_GELU,      HD_ACT_GELU,
                                         HD_ACT_GELU_TANH,  HD_ACT_GELU_TANH, HD_ACT_GELU_TANH,
                                         HD_ACT_SILU,       HD_ACT_SILU,      HD_ACT_RELU};
    const hd_json *node = hd_json_get(root, "hidden_act");
    int index = 0;
    if (node) HD_TRY(hd_config_choice(node, names, &index));
    c->act = acts[index];
    return HD_OK;
}

/* Whether the network ends in text_projection is in the name of its class alone. */
static hd_status text_clip_read_class(hd_text_clip_config *c, const hd_json *root)
{
    static const char *const types[] = {"clip_text_model", "clip", NULL};
    static const char *const names[] = {"CLIPTextModel", "CLIPTextModelWithProjection", NULL};
    const hd_json *list = hd_config_given(root, "architectures");
    const hd_json *type = hd_config_given(root, "model_type");
    int index = 0;
    if (type) HD_TRY(hd_config_choice(type, types, &index));
    index = 0;
    if (list) HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    if (list && hd_json_count(list) > 0)
        HD_TRY(hd_config_choice(hd_json_at(list, 0), names, &index));
    HD_TRY(hd_config_int(root, "projection_dim", 1, 1 << 20, 512, &c->projection));
    if (index == 0) c->projection = 0;
    return HD_OK;
}

hd_status hd_text_clip_config_read(hd_text_clip_config *out, const hd_json *root)
{
    hd_text_clip_config c = {0};
    HD_TRY(hd_config_check(root, text_clip_rules));
    HD_TRY(text_clip_read_class(&c, root));
    HD_TRY(text_clip_read_act(&c, root));
    HD_TRY(hd_config_int(root, "vocab_size", 1, 1 << 24, 49408, &c.vocabulary));
    HD_TRY(hd_config_int(root, "hidden_size", 1, 1 << 16, 512, &c.channels));
    HD_TRY(hd_config_int(root, "intermediate_size", 1, 1 << 20, 2048, &c.hidden));
    HD_TRY(hd_config_int(root, "num_hidden_layers", 1, 1024, 12, &c.layers));
    HD_TRY(hd_config_int(root, "num_attention_heads", 1, 1 << 16, 8, &c.heads));
    HD_TRY(hd_config_int(root, "max_position_embeddings", 1, 1 << 20, 77, &c.length));
    HD_TRY(hd_config_int(root, "eos_token_id", 0, INT32_MAX, 49407, &c.eos));
    HD_TRY(hd_config_double(root, "layer_norm_eps", 0, 1, 1e-5, &c.eps));
    if (c.channels % c.heads != 0)
        return hd_json_fail(root, HD_ERR_ARGUMENT,
                            "hidden_size is %lld, must be divisible by num_attention_heads: %lld",
                            (long long)c.channels, (long long)c.heads);
    *out = c;
    return HD_OK;
}

static void text_clip_bind_block(hd_binder *b, const hd_text_clip_config *c, text_clip_block *block,
                                 const char *prefix, int64_t index)
{
    static const char *const parts[] = {"q_proj", "k_proj", "v_proj"};
    const int64_t widths[] = {c->channels, c->channels, c->channels};
    char name[128], at[96];
    snprintf(at, sizeof at, "%sencoder.layers.%lld", prefix, (long long)index);
    snprintf(name, sizeof name, "%s.layer_norm1", at);
    hd_bind_norm(b, &block->norm1_gamma, &block->norm1_beta, name, c->channels);
    snprintf(name, sizeof name, "%s.self_attn", at);
    hd_bind_linears(b, &block->qkv, name, 3, parts, c->channels, widths, true);
    snprintf(name, sizeof name, "%s.self_attn.out_proj", at);
    hd_bind_linear(b, &block->out, name, c->channels, c->channels, true);
    snprintf(name, sizeof name, "%s.layer_norm2", at);
    hd_bind_norm(b, &block->norm2_gamma, &block->norm2_beta, name, c->channels);
    snprintf(name, sizeof name, "%s.mlp.fc1", at);
    hd_bind_linear(b, &block->up, name, c->channels, c->hidden, true);
    snprintf(name, sizeof name, "%s.mlp.fc2", at);
    hd_bind_linear(b, &block->down, name, c->hidden, c->channels, true);
}

/* The table of weights. Newer files leave the prefix "text_model." out. */
static void text_clip_bind(hd_binder *b, hd_text_clip *m, const char *prefix)
{
    const hd_text_clip_config *c = &m->config;
    char name[128];
    snprintf(name, sizeof name, "%sembeddings.token_embedding.weight", prefix);
    hd_bind_table(b, &m->tokens, name, c->vocabulary, c->channels);
    snprintf(name, sizeof name, "%sembeddings.position_embedding.weight", prefix);
    hd_bind_table(b, &m->positions, name, c->length, c->channels);
    for (int64_t i = 0; i < c->layers; i++)
        text_clip_bind_block(b, c, &m->block[i], prefix, i);
    snprintf(name, sizeof name, "%sfinal_layer_norm", prefix);
    hd_bind_norm(b, &m->final_gamma, &m->final_beta, name, c->channels);
    if (c->projection)
        hd_bind_linear(b, &m->projection, "text_projection", c->channels, c->projection, false);
    hd_bind_ignore(b, "*.position_ids");
}

static const char text_clip_prefix[] = "text_model.";

static hd_status text_clip_new(hd_text_clip **out, const hd_text_clip_config *c)
{
    hd_text_clip *m = calloc(1, sizeof *m);
    if (m) m->block = calloc((size_t)c->layers, sizeof *m->block);
    if (!m || !m->block) {
        free(m);
        return hd_fail(HD_ERR_NOMEM, "text encoder: no memory for %lld blocks",
                       (long long)c->layers);
    }
    m->config = *c;
    *out = m;
    return HD_OK;
}

void hd_text_clip_free(hd_text_clip *text)
{
    if (!text) return;
    for (int64_t i = 0; i < text->config.layers; i++) {
        text_clip_block *b = &text->block[i];
        free(b->norm1_gamma);
        free(b->norm1_beta);
        free(b->norm2_gamma);
        free(b->norm2_beta);
        hd_linear_free(b->qkv);
        hd_linear_free(b->out);
        hd_linear_free(b->up);
        hd_linear_free(b->down);
    }
    free(text->block);
    free(text->tokens);
    free(text->positions);
    free(text->final_gamma);
    free(text->final_beta);
    hd_linear_free(text->projection);
    free(text);
}

hd_status hd_text_clip_create(hd_text_clip **out, const hd_exec *ex, const hd_text_clip_config *c,
                              const hd_weights *weights, hd_dtype compute,
                              int (*progress)(void *arg, int64_t done, int64_t all),
                              void *progress_arg)
{
    hd_text_clip *m = NULL;
    hd_binder *binder = NULL;
    HD_TRY(text_clip_new(&m, c));
    m->compute = compute;
    hd_status status = hd_binder_create(&binder);
    if (status == HD_OK) {
        bool prefixed = hd_weights_find(weights, "text_model.final_layer_norm.weight") >= 0;
        text_clip_bind(binder, m, prefixed ? text_clip_prefix : "");
        status = hd_binder_load(binder, ex, weights, compute, progress, progress_arg);
    }
    hd_binder_free(binder);
    if (status != HD_OK) {
        hd_text_clip_free(m);
        return status;
    }
    *out = m;
    return HD_OK;
}

const hd_text_clip_config *hd_text_clip_configuration(const hd_text_clip *text)
{
    return &text->config;
}

hd_dtype hd_text_clip_compute(const hd_text_clip *text)
{
    return text->compute;
}

hd_status hd_text_clip_check(const hd_text_clip_config *c, const char *what, int64_t count,
                             const hd_weight_info *infos)
{
    hd_text_clip *m = NULL;
    hd_binder *binder = NULL;
    HD_TRY(text_clip_new(&m, c));
    bool prefixed = false;
    for (int64_t i = 0; i < count && !prefixed; i++)
        prefixed = strcmp(infos[i].name, "text_model.final_layer_norm.weight") == 0;
    hd_status status = hd_binder_create(&binder);
    if (status == HD_OK) {
        text_clip_bind(binder, m, prefixed ? text_clip_prefix : "");
        status = hd_binder_check(binder, what, count, infos);
    }
    hd_binder_free(binder);
    hd_text_clip_free(m);
    return status;
}

/* What a forward pass carries along. */
typedef struct text_clip_pass {
    const hd_exec *ex;
    const hd_text_clip *m;
    const hd_forward *forward;
    int64_t rows, tokens;
    hd_tensor h; // the residual stream [rows, tokens, channels] f32
} text_clip_pass;

static hd_tensor text_clip_new_tensor(const text_clip_pass *p, hd_dtype dtype, int64_t channels)
{
    return hd_arena_tensor(p->ex->arena, dtype, hd_shape3(p->rows, p->tokens, channels));
}

/* The norm of the residual stream, in the compute type. */
static hd_status text_clip_norm(const text_clip_pass *p, hd_tensor *out, const float *gamma,
                                const float *beta)
{
    const hd_text_clip_config *c = &p->m->config;
    hd_tensor y = text_clip_new_tensor(p, HD_F32, c->channels);
    HD_TRY(hd_layer_norm(p->ex, y, p->h, gamma, beta, (float)c->eps));
    *out = y;
    if (p->m->compute == HD_F32) return HD_OK;
    *out = text_clip_new_tensor(p, p->m->compute, c->channels);
    return hd_copy(p->ex, *out, y);
}

/* Third `part` of qkv [B, L, 3C] as [B, L, H, D]. */
static hd_tensor text_clip_heads(hd_tensor qkv, int part, int64_t heads)
{
    int64_t channels = qkv.dim[2] / 3;
    hd_tensor t = hd_tensor_slice(qkv, 2, part * channels, channels);
    t.rank = 4;
    t.dim[2] = heads;
    t.dim[3] = channels / heads;
    t.stride[2] = t.dim[3];
    t.stride[3] = 1;
    return t;
}

static hd_status text_clip_attention(const text_clip_pass *p, const text_clip_block *block,
                                     int64_t index)
{
    const hd_text_clip_config *c = &p->m->config;
    hd_dtype compute = p->m->compute;
    hd_tensor x;
    HD_TRY(text_clip_norm(p, &x, block->norm1_gamma, block->norm1_beta));
    hd_tensor qkv = text_clip_new_tensor(p, compute, 3 * c->channels);
    HD_TRY(hd_linear_run(p->ex, block->qkv, qkv, x, hd_tensor_none()));
    hd_tensor y = text_clip_new_tensor(p, compute, c->channels);
    hd_attention_call call = {
        .forward = p->forward,
        .site = {.network = HD_NETWORK_TEXT, .kind = HD_SITE_SELF, .factor = 1, .heads = c->heads},
        .x = x,
        .q = text_clip_heads(qkv, 0, c->heads),
        .k = text_clip_heads(qkv, 1, c->heads),
        .v = text_clip_heads(qkv, 2, c->heads),
        .out =
            hd_tensor_reshape(y, hd_shape4(p->rows, p->tokens, c->heads, c->channels / c->heads)),
        .q_layout = hd_layout_text(p->tokens),
        .k_layout = hd_layout_text(p->tokens),
        .scale = 1.0f / sqrtf((float)(c->channels / c->heads)),
        .causal = true,
    };
    call.site.tokens = p->tokens;
    snprintf(call.site.path, sizeof call.site.path, "block.%lld", (long long)index);
    HD_TRY(hd_attention(p->ex, &call));
    return hd_linear_run(p->ex, block->out, p->h, y, p->h);
}

static hd_status text_clip_mlp(const text_clip_pass *p, const text_clip_block *block)
{
    const hd_text_clip_config *c = &p->m->config;
    hd_tensor x, y;
    HD_TRY(text_clip_norm(p, &x, block->norm2_gamma, block->norm2_beta));
    y = text_clip_new_tensor(p, p->m->compute, c->hidden);
    HD_TRY(hd_linear_run(p->ex, block->up, y, x, hd_tensor_none()));
    HD_TRY(hd_activate(p->ex, y, y, c->act));
    return hd_linear_run(p->ex, block->down, p->h, y, p->h);
}

static hd_status text_clip_blocks(const text_clip_pass *p, int64_t from, int64_t to)
{
    for (int64_t i = from; i < to; i++) {
        size_t mark = hd_arena_mark(p->ex->arena);
        HD_TRY(text_clip_attention(p, &p->m->block[i], i));
        hd_arena_rewind(p->ex->arena, mark);
        HD_TRY(text_clip_mlp(p, &p->m->block[i]));
        hd_arena_rewind(p->ex->arena, mark);
    }
    return HD_OK;
}

// Row by row, from the vocabulary's table or from the learned one.
static hd_status text_clip_gather(const text_clip_pass *p, hd_tensor flat,
                                  const hd_text_clip_inputs *in)
{
    const hd_text_clip_config *c = &p->m->config;
    hd_tensor tokens = hd_tensor_of(p->m->tokens, HD_F32, hd_shape2(c->vocabulary, c->channels));
    const int64_t count = p->rows * p->tokens;
    if (!in->learned_count) return hd_gather_rows(p->ex, flat, tokens, in->ids, count);
    hd_tensor learned =
        hd_tensor_of((float *)in->learned, HD_F32, hd_shape2(in->learned_count, c->channels));
    for (int64_t i = 0; i < count; i++) {
        const bool more = in->ids[i] >= c->vocabulary;
        const int64_t id = in->ids[i] - (more ? c->vocabulary : 0);
        HD_TRY(
            hd_gather_rows(p->ex, hd_tensor_slice(flat, 0, i, 1), more ? learned : tokens, &id, 1));
    }
    return HD_OK;
}

static hd_status text_clip_embed(const text_clip_pass *p, const hd_text_clip_inputs *in)
{
    const hd_text_clip_config *c = &p->m->config;
    int64_t count = p->rows * p->tokens;
    for (int64_t i = 0; i < count; i++)
        if (in->ids[i] < 0 || in->ids[i] >= c->vocabulary + in->learned_count)
            return hd_fail(HD_ERR_ARGUMENT,
                           "text encoder: token %lld, its vocab_size is %lld; do tokenizer and "
                           "text_encoder belong together?",
                           (long long)in->ids[i], (long long)c->vocabulary);
    hd_tensor positions = hd_tensor_of(p->m->positions, HD_F32, hd_shape2(c->length, c->channels));
    hd_tensor flat = hd_tensor_reshape(p->h, hd_shape2(count, c->channels));
    HD_TRY(text_clip_gather(p, flat, in));
    for (int64_t b = 0; b < p->rows; b++) {
        hd_tensor row = hd_tensor_slice(flat, 0, b * p->tokens, p->tokens);
        HD_TRY(hd_add(p->ex, row, row, hd_tensor_slice(positions, 0, 0, p->tokens)));
    }
    return HD_OK;
}

/* The token of a row whose vector stands for the whole text. Models whose configuration says
 * eos_token_id 2, which is not their end token, mean the highest id. */
static int64_t text_clip_pooled_token(const hd_text_clip_config *c, const int64_t *ids,
                                      int64_t tokens)
{
    int64_t best = 0;
    for (int64_t i = 0; i < tokens; i++) {
        if (c->eos != 2 && ids[i] == c->eos) return i;
        if (c->eos == 2 && ids[i] < c->vocabulary && ids[i] > ids[best]) best = i;
    }
    return best;
}

/* pooled from the last layer's normed states. */
static hd_status text_clip_pool(const text_clip_pass *p, hd_tensor pooled, const int64_t *ids)
{
    const hd_text_clip_config *c = &p->m->config;
    const hd_exec *ex = p->ex;
    hd_tensor last = text_clip_new_tensor(p, HD_F32, c->channels);
    HD_TRY(hd_layer_norm(ex, last, p->h, p->m->final_gamma, p->m->final_beta, (float)c->eps));
    hd_tensor flat = hd_tensor_reshape(last, hd_shape2(p->rows * p->tokens, c->channels));
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, hd_shape2(p->rows, c->channels));
    for (int64_t b = 0; b < p->rows; b++) {
        int64_t token = b * p->tokens + text_clip_pooled_token(c, ids + b * p->tokens, p->tokens);
        HD_TRY(hd_copy(ex, hd_tensor_slice(x, 0, b, 1), hd_tensor_slice(flat, 0, token, 1)));
    }
    if (!c->projection) return hd_copy(ex, pooled, x);
    hd_tensor y = hd_arena_tensor(ex->arena, p->m->compute, hd_tensor_shape(x));
    HD_TRY(hd_copy(ex, y, x));
    return hd_linear_run(
        ex, p->m->projection, hd_tensor_reshape(pooled, hd_shape3(p->rows, 1, c->projection)),
        hd_tensor_reshape(y, hd_shape3(p->rows, 1, c->channels)), hd_tensor_none());
}

static hd_status text_clip_expect(const hd_text_clip_config *c, hd_tensor hidden, hd_tensor pooled,
                                  const hd_text_clip_inputs *in)
{
    if (in->rows < 1 || in->tokens < 1 || in->tokens > c->length)
        return hd_fail(HD_ERR_ARGUMENT,
                       "text encoder: %lld rows of %lld tokens; it takes 1 to %lld tokens "
                       "(max_position_embeddings)",
                       (long long)in->rows, (long long)in->tokens, (long long)c->length);
    if (in->clip_skip < 0 || in->clip_skip > c->layers)
        return hd_fail(HD_ERR_ARGUMENT, "clip skip is %lld, must be 0 to %lld for this model",
                       (long long)in->clip_skip, (long long)c->layers);
    HD_TRY(hd_expect_shape("text encoder: hidden", hidden, HD_F32,
                           hd_shape3(in->rows, in->tokens, c->channels)));
    if (!hd_tensor_given(pooled)) return HD_OK;
    return hd_expect_shape("text encoder: pooled", pooled, HD_F32,
                           hd_shape2(in->rows, c->projection ? c->projection : c->channels));
}

hd_status hd_text_clip_forward(const hd_exec *ex, const hd_text_clip *text,
                               const hd_forward *forward, hd_tensor hidden, hd_tensor pooled,
                               const hd_text_clip_inputs *in)
{
    const hd_text_clip_config *c = &text->config;
    HD_TRY(text_clip_expect(c, hidden, pooled, in));
    size_t mark = hd_arena_mark(ex->arena);
    text_clip_pass p = {ex, text, forward, in->rows, in->tokens, hd_tensor_none()};
    p.h = text_clip_new_tensor(&p, HD_F32, c->channels);
    HD_TRY(text_clip_embed(&p, in));
    int64_t kept = c->layers - in->clip_skip;
    HD_TRY(text_clip_blocks(&p, 0, kept));
    HD_TRY(hd_layer_norm(ex, hidden, p.h, text->final_gamma, text->final_beta, (float)c->eps));
    if (hd_tensor_given(pooled)) {
        HD_TRY(text_clip_blocks(&p, kept, c->layers));
        HD_TRY(text_clip_pool(&p, pooled, in->ids));
    }
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}
