/* controls/attention_masks.c: where each word of the prompt was read: heat maps and masks. It
 * reads and changes nothing: the picture keeps its bytes.
 *
 * { "use": "attention_masks", "words": ["fish", "background"], "recipe": "daam" }
 *
 * and "maps": "maps.png", "masks": "masks.png" or "map_values": "maps.safetensors" of the run say
 * what is written. The weights of a word's columns in cross attention come from indicator channels
 * beside the values (so no map is made), are summed over heads, layers and steps, brought to the
 * picture's size and scaled. Recipes: Tang et al., DAAM (arXiv 2210.04885); the average of
 * Prompt-to-Prompt (Hertz et al., 2208.01626); DiffuMask (Wu et al., 2303.11681) without its
 * trained affinities; AttenCraft (Shentu et al., 2405.17965), whose maps are multiplied by self
 * attention. Under a sparse plan, or in int8, the weights are those that were computed. Where
 * another processor lets a row attend with other queries or keys, they are that row's all the same,
 * column by column. */
#include "controls/attention_masks.h"

#include <string.h>

#include "controls/all.h"

static const char *const recipes[] = {"daam", "p2p", "diffumask", "attencraft", NULL};
static const char *const pieces_names[] = {"mean", "sum", "max", NULL};
static const char *const normalize_names[] = {"none", "max", "minmax", "compete", NULL};
static const char *const refine_names[] = {"none", "pool", "guided", NULL};

#define GIVEN(field_) .given_flag = true, .given_offset = offsetof(attention_masks, field_)

static const hd_param masks_params[] = {
    HD_PARAM_ENUM(attention_masks, recipe, .names = recipes,
                  .help = "whose figures are taken for what is not given"),
    HD_PARAM_JSON(attention_masks, words,
                  .help = "words of the prompt: [\"fish\", \"cat#2\"]; all when not given"),
    HD_PARAM_STRING(attention_masks, branch, .def_text = "main", .help = "whose words and picture"),
    HD_PARAM_JSON(attention_masks, resolutions,
                  .help = "layers so far below the latent: [1, 2, 4], p2p and attencraft [4]"),
    HD_PARAM_JSON(attention_masks, blocks,
                  .help = "[\"down\", \"up.1\"]; when not given all, with daam and p2p but mid"),
    HD_PARAM_ENUM(attention_masks, pieces, .names = pieces_names, GIVEN(pieces_given),
                  .help = "pieces of a word together: p2p sum, attencraft max"),
    HD_PARAM_ENUM(attention_masks, normalize, .def_text = "minmax", .names = normalize_names,
                  GIVEN(normalize_given), .help = "scale: p2p and diffumask max"),
    HD_PARAM_BOOL(attention_masks, shared_scale, .def = 1,
                  .help = "heat maps of all words on one scale; masks are on their word's own"),
    HD_PARAM_JSON(attention_masks, threshold,
                  .help =
                      "of masks: a number, \"otsu\", \"search\" or {\"area\": SHARE} (daam 0.4, "
                      "p2p 0.3, diffumask search)"),
    HD_PARAM_ENUM(attention_masks, refine, .names = refine_names,
                  .help = "widen by a neighbour, or draw to the picture's edges"),
    HD_PARAM_FLOAT(attention_masks, min_area, .def = 0, .min = 0, .max = 1,
                   .help = "parts of a mask smaller than this share of the picture are dropped"),
    HD_PARAM_INT(attention_masks, self_power, .def = 0, .min = 0, .max = MASKS_MOST_POWER,
                 GIVEN(power_given), .help = "times self attention spreads a map: attencraft 4"),
    HD_PARAM_INT(attention_masks, self_factor, .def = 2, .min = 1, .max = 64,
                 .help = "self attention so far below the latent"),
    HD_PARAM_FLOAT(attention_masks, margin, .def = 0.1, .min = 0, .max = 1,
                   .help = "attencraft: a place belongs to a word so far above all others"),
    HD_PARAM_BOOL(attention_masks, fill, .help = "attencraft: undecided places go to the highest"),
    HD_PARAM_STRING(attention_masks, background, .def_text = "bos",
                    .help = "attencraft: the begin token, \"complement\", or a word"),
    HD_PARAM_BOOL(attention_masks, per_head, .help = "heads are kept apart until the mean"),
    HD_PARAM_END,
};

static hd_status masks_begin(const hd_begin_ctx *ctx)
{
    return masks_read_options(ctx->params, ctx);
}

/* --- which sites --- */

static bool among(const int64_t *list, int64_t count, int64_t value)
{
    for (int64_t i = 0; i < count; i++)
        if (list[i] == value) return true;
    return false;
}

static bool in_blocks(const attention_masks *p, const char *path)
{
    if (p->blocks_given == 0)
        return strncmp(path, "mid", 3) != 0 || p->recipe == MASKS_DIFFUMASK ||
               p->recipe == MASKS_ATTENCRAFT;
    for (int64_t i = 0; i < p->blocks_given; i++) {
        const size_t bytes = strlen(p->block[i]);
        if (strncmp(path, p->block[i], bytes) == 0 && (path[bytes] == '.' || path[bytes] == 0))
            return true;
    }
    return false;
}

static const hd_token_segment *segment_of(const hd_token_layout *layout, hd_token_kind kind)
{
    for (int i = 0; i < layout->segments; i++)
        if (layout->segment[i].kind == kind) return &layout->segment[i];
    return NULL;
}

static hd_status prepare_words(hd_prepare_ctx *ctx)
{
    const attention_masks *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const hd_token_segment *grid = segment_of(&call->q_layout, HD_TOKENS_GRID);
    const hd_token_segment *text = segment_of(&call->k_layout, HD_TOKENS_TEXT);
    if (!grid || !text || grid->frames != 1)
        return hd_fail(HD_ERR_UNSUPPORTED, "maps are of one picture read by one text");
    if (text->count != p->columns)
        return hd_fail(HD_ERR_SHAPE, "the prompt has %lld tokens, the site's text %lld",
                       (long long)p->columns, (long long)text->count);
    const int64_t heads = p->per_head ? call->site.heads : 1;
    ctx->indicators = p->channels;
    ctx->state_bytes =
        sizeof(masks_sums) + (size_t)(heads * grid->count * p->channels) * sizeof(float);
    if (p->self_power > 0)
        ctx->scratch_bytes = (size_t)(grid->count + p->self_height * p->self_width) * sizeof(float);
    return HD_OK;
}

static hd_status prepare_spread(hd_prepare_ctx *ctx)
{
    const attention_masks *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const int64_t tokens = p->self_height * p->self_width;
    if (call->q.dim[1] != tokens)
        return hd_fail(HD_ERR_SHAPE, "it has %lld tokens, self_factor %lld means %lld x %lld",
                       (long long)call->q.dim[1], (long long)p->self_factor,
                       (long long)p->self_height, (long long)p->self_width);
    if (call->v.dim[3] < p->channels)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "its heads have %lld channels, %lld words and what is beside them need "
                       "%lld; name fewer words",
                       (long long)call->v.dim[3], (long long)p->count, (long long)p->channels);
    hd_tensor v = hd_tensor_of(NULL, call->v.dtype,
                               hd_shape4(call->v.dim[0], tokens, call->v.dim[2], call->v.dim[3]));
    ctx->scratch_bytes =
        (((size_t)hd_tensor_bytes(v) + 63) & ~(size_t)63) + (size_t)tokens * sizeof(float);
    ctx->passes = (int)p->self_power;
    for (int i = 0; i < ctx->passes; i++)
        ctx->pass[i] = (hd_pass){.when = HD_PASS_AFTER, .query_len = tokens, .key_len = tokens};
    return HD_OK;
}

static hd_status masks_prepare(hd_prepare_ctx *ctx)
{
    const attention_masks *p = ctx->params;
    const hd_site *site = &ctx->call->site;
    const bool reads = site->kind == HD_SITE_CROSS || site->kind == HD_SITE_JOINT;
    if (reads && among(p->factor, p->factors, site->factor) && in_blocks(p, site->path))
        return prepare_words(ctx);
    if (site->kind == HD_SITE_SELF && p->self_power > 0 && site->factor == p->self_factor)
        return prepare_spread(ctx);
    ctx->idle = true;
    return HD_OK;
}

// Before step 0: what the options ask for has to be there.
static hd_status masks_latent(const hd_beside_ctx *ctx)
{
    const attention_masks *p = ctx->params;
    if (ctx->when != HD_LATENT_START) return HD_OK;
    bool words = false, spreads = false;
    const hd_site *site;
    for (int64_t i = 0; (site = hd_beside_site(ctx, i)) != NULL; i++) {
        spreads |= site->kind == HD_SITE_SELF;
        words |= site->kind != HD_SITE_SELF;
    }
    if (!words)
        return hd_fail(HD_ERR_ARGUMENT, "no layer of \"blocks\" that reads the prompt is so far "
                                        "below the latent as \"resolutions\" says");
    if (p->self_power > 0 && !spreads)
        return hd_fail(HD_ERR_ARGUMENT,
                       "self_power is %lld, but no self attention is %lld below the latent "
                       "(self_factor)",
                       (long long)p->self_power, (long long)p->self_factor);
    return HD_OK;
}

/* --- inside a call --- */

static bool looks_at(const hd_hook_ctx *ctx, int64_t row)
{
    const attention_masks *p = ctx->params;
    const hd_row *r = &ctx->call->forward->rows.row[row];
    return ctx->active[row] && strcmp(r->role, "cond") == 0 && strcmp(r->branch, p->name) == 0;
}

static hd_status masks_probe(const hd_hook_ctx *ctx, hd_tensor indicator)
{
    const attention_masks *p = ctx->params;
    const hd_token_segment *text = segment_of(&ctx->call->k_layout, HD_TOKENS_TEXT);
    for (int64_t row = 0; row < indicator.dim[0]; row++) {
        if (!looks_at(ctx, row)) continue;
        for (int64_t j = 0; j < p->columns; j++)
            memcpy((float *)indicator.data + row * indicator.stride[0] +
                       (text->start + j) * indicator.stride[1],
                   p->indicator + j * p->channels, (size_t)p->channels * sizeof(float));
    }
    return HD_OK;
}

// The rows that self attention is asked for; others cost nothing but the pass itself.
static hd_status masks_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    const attention_masks *p = ctx->params;
    const int64_t tokens = p->self_height * p->self_width;
    const hd_tensor own = ctx->call->v;
    hd_tensor v = hd_tensor_of(ctx->scratch, own.dtype,
                               hd_shape4(own.dim[0], tokens, own.dim[2], own.dim[3]));
    float *scratch =
        (float *)((char *)ctx->scratch + (((size_t)hd_tensor_bytes(v) + 63) & ~(size_t)63));
    if (index == 0) memset(v.data, 0, (size_t)hd_tensor_bytes(v));
    for (int64_t row = 0; row < v.dim[0]; row++) {
        if (!looks_at(ctx, row)) continue;
        if (index == 0)
            masks_spread_values_of(p, ctx->picture_state[row], v, row, scratch);
        else
            masks_spread_again(p, v, ctx->pass[index - 1].out, row);
    }
    pass->q = hd_tensor_slice(ctx->call->q, 1, 0, tokens);
    pass->k = hd_tensor_slice(ctx->call->k, 1, 0, tokens);
    pass->v = v;
    return HD_OK;
}

static void keep_words(const hd_hook_ctx *ctx, int64_t row, hd_tensor probed)
{
    const attention_masks *p = ctx->params;
    const hd_token_segment *grid = segment_of(&ctx->call->q_layout, HD_TOKENS_GRID);
    masks_sums *s = ctx->state[row];
    *s = (masks_sums){s->calls + 1, grid->height, grid->width, p->per_head ? probed.dim[1] : 1,
                      p->per_head ? 1 : probed.dim[1]};
    for (int64_t h = 0; h < probed.dim[1]; h++) {
        float *sum = masks_sums_values(s) + (p->per_head ? h : 0) * grid->count * p->channels;
        for (int64_t i = 0; i < grid->count; i++) {
            const float *from = (const float *)probed.data + row * probed.stride[0] +
                                h * probed.stride[1] + (grid->start + i) * probed.stride[2];
            for (int64_t c = 0; c < p->channels; c++)
                sum[i * p->channels + c] += from[c];
        }
    }
    if (p->self_power > 0)
        masks_spread_see(p, ctx->picture_state[row], probed, row, grid->start, grid->height,
                         grid->width, ctx->scratch);
}

static hd_status masks_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const attention_masks *p = ctx->params;
    for (int64_t row = 0; row < output->out.dim[0]; row++) {
        if (!looks_at(ctx, row)) continue;
        if (ctx->call->site.kind == HD_SITE_SELF)
            masks_spread_add(p, ctx->picture_state[row], ctx->pass[p->self_power - 1].out, row);
        else
            keep_words(ctx, row, output->probed);
    }
    return HD_OK;
}

const hd_processor_class hd_attention_masks = {
    .name = "attention_masks",
    .summary = "Heat maps and masks of the prompt's words; the picture stays as it is.",
    .params = masks_params,
    .params_size = sizeof(attention_masks),
    .clear = masks_clear,
    .begin = masks_begin,
    .prepare = masks_prepare,
    .pass = masks_pass,
    .probe = masks_probe,
    .output = masks_output,
    .latent = masks_latent,
    .show = masks_show,
    .rows_alike = true,
};
