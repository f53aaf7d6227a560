/* controls/self_subject.c: a picture of a subject steers a generation: its keys and values stand
 * behind those of the picture that is drawn.
 *
 * { "use": "self_subject", "references": [ { "image": "cat.png", "mask": "cat-mask.png",
 *                                            "caption": "a photo of a cat", "weight": 3 } ] }
 *
 * Hua et al., "DreamTuner: Single Image is Enough for Subject-Driven Generation", arXiv 2312.13691,
 * section 3.3 (self-subject attention; its trained parts are not here). At each step the reference
 * is noised to the step's level less delta_t, runs through the network with its own text
 * (branch reference.0) and hands its keys to the rows that draw. A column weighs
 * ln(weight * mask); where the mask is 0 there is no column. Guidance has two directions: with
 * against without reference (row noref), and with against without the text, whose opposite sees
 * the reference at the level plus delta_t_uncond.
 *
 * Without "image" the reference is the branch reference.0 of the preset: a picture with its own
 * prompt that is sampled beside, always at the step's own level (delta_t 0). `reference_only` of
 * diffusers' community is this with weight 1, guidance_mode "none" and style_fidelity. */
#include "controls/self_subject.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/attention/edit.h"

static const char *const subject_noises[] = {"fixed", "fresh", NULL};
static const char *const subject_resizes[] = {"area", "bilinear", NULL};
static const char *const subject_modes[] = {"blend", "interleave", "schedule", "none", NULL};
static const char *const subject_places[] = {"offset_w", "offset_t", "same", NULL};

static const hd_param subject_params[] = {
    HD_PARAM_JSON(self_subject, references, .required = true,
                  .help =
                      "list of {image, mask, caption, weight}: PNG, PNG that is white where the "
                      "subject is, its own prompt (the run's), how much its keys weigh (3)"),
    HD_PARAM_ENUM(self_subject, mask_resize, .names = subject_resizes,
                  .help = "of a mask to the size of a site"),
    HD_PARAM_INT(self_subject, delta_t, .def = 1, .min = 0, .max = 1000,
                 .help = "timesteps by which the reference is less noisy than the picture"),
    HD_PARAM_JSON(self_subject, delta_t_uncond,
                  .help = "timesteps by which it is noisier for the unconditioned row: 0 to 1000, "
                          "default 1; null: that row sees no reference"),
    HD_PARAM_ENUM(self_subject, ref_noise, .names = subject_noises,
                  .help = "of the reference: drawn once, or anew at each step"),
    HD_PARAM_FLOAT(self_subject, guidance_reference, .def = 2.0, .min = 0.0, .max = 100.0,
                   .help = "scale of the direction towards the reference"),
    HD_PARAM_FLOAT(self_subject, guidance_text, .def = 7.5, .min = 0.0, .max = 100.0,
                   .help = "scale of the direction towards the text"),
    HD_PARAM_FLOAT(self_subject, p_reference, .def = 0.9, .min = 0.0, .max = 1.0,
                   .help = "share of the first of them"),
    HD_PARAM_ENUM(self_subject, guidance_mode, .names = subject_modes,
                  .help = "blend: both at each step; interleave: one, drawn; schedule: one, in "
                          "turn; none: the run's own guidance"),
    HD_PARAM_U64(self_subject, guidance_seed, .help = "of what interleave draws"),
    HD_PARAM_ENUM(self_subject, ref_pos, .names = subject_places,
                  .help = "places of the reference's tokens in networks that turn keys by place; "
                          "others ignore it"),
    HD_PARAM_JSON(self_subject, style_fidelity,
                  .help = "0 to 1, of a null delta_t_uncond: share of the unconditioned row's "
                          "attention that sees no reference (default 1)"),
    HD_PARAM_END,
};

/* --- options --- */

static hd_status read_text(const hd_json *object, const char *key, const char **out)
{
    const hd_json *node = hd_json_get(object, key);
    if (!node) return HD_OK;
    HD_TRY(hd_json_to_string(node, out));
    if (**out) return HD_OK;
    return hd_json_fail(node, HD_ERR_ARGUMENT, "is empty; leave it out instead");
}

static hd_status read_reference(subject_reference *r, const hd_json *node)
{
    static const char *const known[] = {"image", "mask", "caption", "weight", "keep_size"};
    double weight = 3.0;
    r->node = node;
    HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        const char *key = hd_json_key(hd_json_at(node, i));
        bool found = false;
        for (size_t k = 0; k < HD_COUNT(known); k++)
            found |= strcmp(key, known[k]) == 0;
        if (found) continue;
        const char *near = hd_nearest_name(key, known, HD_COUNT(known));
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "has no \"%s\"%s%s%s; it has: image, mask, caption, weight, keep_size",
                            key, near ? "; did you mean \"" : "", near ? near : "",
                            near ? "\"?" : "");
    }
    HD_TRY(read_text(node, "image", &r->image));
    HD_TRY(read_text(node, "mask", &r->mask_path));
    HD_TRY(read_text(node, "caption", &r->caption));
    const hd_json *given = hd_json_get(node, "weight"), *keep = hd_json_get(node, "keep_size");
    if (keep) HD_TRY(hd_json_to_bool(keep, &r->keep_size));
    if (given) HD_TRY(hd_json_to_double(given, 0.0, 1000.0, &weight));
    r->weight = (float)weight;
    return HD_OK;
}

// null: the row of the negative prompt sees no reference, or a part of it (style_fidelity).
static hd_status read_uncond(self_subject *p)
{
    const bool null = p->delta_t_uncond && hd_json_kind(p->delta_t_uncond) == HD_JSON_NULL;
    const bool given = p->style_fidelity && hd_json_kind(p->style_fidelity) != HD_JSON_NULL;
    double fidelity = 1.0;
    p->opposite = 1.0;
    if (p->delta_t_uncond && !null)
        HD_TRY(hd_json_to_double(p->delta_t_uncond, 0.0, 1000.0, &p->opposite));
    if (given) {
        HD_TRY(hd_json_to_double(p->style_fidelity, 0.0, 1.0, &fidelity));
        if (!null)
            return hd_json_fail(p->style_fidelity, HD_ERR_ARGUMENT,
                                "goes with \"delta_t_uncond\": null: a row that sees a reference "
                                "of its own has no part without");
    }
    p->uncond_sees = !null;
    p->fidelity = null ? (float)fidelity : 0.0f;
    return HD_OK;
}

static hd_status subject_check(void *params)
{
    self_subject *p = params;
    HD_TRY(hd_json_expect(p->references, HD_JSON_ARRAY));
    p->count = hd_json_count(p->references);
    if (p->count < 1 || p->count > SUBJECT_MOST_REFERENCES)
        return hd_json_fail(p->references, HD_ERR_ARGUMENT, "has %lld references, must be 1 to %d",
                            (long long)p->count, SUBJECT_MOST_REFERENCES);
    for (int64_t i = 0; i < p->count; i++)
        HD_TRY(read_reference(&p->reference[i], hd_json_at(p->references, i)));
    return read_uncond(p);
}

static hd_status subject_begin(const hd_begin_ctx *ctx)
{
    self_subject *p = ctx->params;
    for (int64_t i = 0; i < p->count; i++) {
        subject_reference *r = &p->reference[i];
        HD_TRY(reference_picture_open(&r->picture, ctx, r->branch, r->mask_path,
                                      hd_json_get(r->node, "mask")));
    }
    return HD_OK;
}

static void subject_clear(void *params)
{
    self_subject *p = params;
    for (int64_t i = 0; i < SUBJECT_MOST_REFERENCES; i++)
        free(p->reference[i].picture.mask);
    free(p->by_reference);
    free(p->by_text);
    free(p->uncond_rows);
}

static hd_status noisy(const hd_beside_ctx *ctx, const char *branch, double shift, uint64_t salt)
{
    const self_subject *p = ctx->params;
    hd_noise_level level = hd_sampler_level(ctx->sampler, ctx->step.index);
    if (shift != 0.0)
        HD_TRY(hd_sampler_level_at(ctx->sampler, (double)level.timestep + shift, &level));
    return reference_add_noise(ctx, branch, level, salt, p->ref_noise == SUBJECT_FRESH);
}

// The references whose pictures are given, at the noise of this step.
static hd_status subject_latent(const hd_beside_ctx *ctx)
{
    const self_subject *p = ctx->params;
    if (ctx->when != HD_LATENT_BEFORE_CALL) return HD_OK;
    for (int64_t i = 0; i < p->count; i++) {
        const subject_reference *r = &p->reference[i];
        if (!r->has_picture) continue;
        HD_TRY(noisy(ctx, r->branch, -(double)p->delta_t, (uint64_t)i));
        if (strcmp(r->branch, r->opposite_branch) != 0)
            HD_TRY(noisy(ctx, r->opposite_branch, p->opposite, (uint64_t)i));
    }
    return HD_OK;
}

/* --- inside a call --- */

// What is known of a site before step 0.
typedef struct subject_site {
    reference_columns columns[SUBJECT_MOST_REFERENCES];
    int64_t total;
} subject_site;

// During a call: where the references begin among the keys of a row (-1: it has none), and which
// rows run a second attention without them.
typedef struct subject_rows {
    int64_t start[HD_MAX_ROWS];
    bool alone[HD_MAX_ROWS];
} subject_rows;

typedef enum subject_sees { SEES_NOTHING, SEES_REFERENCE, SEES_OPPOSITE, SEES_PART } subject_sees;

static subject_sees sees(const self_subject *p, const hd_row *row)
{
    if (!reference_is_target(row->branch) || strcmp(row->role, "noref") == 0) return SEES_NOTHING;
    if (strcmp(row->role, "uncond") != 0) return SEES_REFERENCE;
    if (p->uncond_sees) return SEES_OPPOSITE;
    return p->fidelity == 1.0f ? SEES_NOTHING : SEES_PART;
}

static void release_site(void *made)
{
    subject_site *s = made;
    for (int64_t i = 0; i < SUBJECT_MOST_REFERENCES; i++)
        reference_columns_free(&s->columns[i]);
    free(s);
}

static hd_status make_site(hd_prepare_ctx *ctx, const hd_token_segment *grid, subject_site **out)
{
    const self_subject *p = ctx->params;
    subject_site *s = calloc(1, sizeof *s);
    if (!s) return hd_fail(HD_ERR_NOMEM, "self_subject: no memory for a site");
    for (int64_t i = 0; i < p->count; i++) {
        const subject_reference *r = &p->reference[i];
        const reference_picture *picture = &r->picture;
        const hd_token_segment its = reference_picture_grid(picture, &ctx->call->site, grid);
        reference_picture_keep(ctx, picture, r->branch, &its);
        reference_picture_keep(ctx, picture, r->opposite_branch, &its);
        hd_status status = reference_columns_make(&s->columns[i], &its, r->weight, picture->mask,
                                                  picture->height, picture->width, p->mask_resize);
        if (status != HD_OK) {
            release_site(s);
            return status;
        }
        s->total += s->columns[i].count;
    }
    *out = s;
    return HD_OK;
}

static hd_status subject_prepare(hd_prepare_ctx *ctx)
{
    const self_subject *p = ctx->params;
    const hd_site *site = &ctx->call->site;
    const hd_token_segment *grid = reference_grid(&ctx->call->k_layout);
    if (!grid || (site->kind != HD_SITE_SELF && site->kind != HD_SITE_JOINT)) {
        ctx->idle = true;
        return HD_OK;
    }
    if (site->network == HD_NETWORK_DIT && p->ref_pos != SUBJECT_SAME)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "the keys of this network carry their places already; \"ref_pos\" can only "
                       "be \"same\"");
    subject_site *made = NULL;
    HD_TRY(make_site(ctx, grid, &made));
    ctx->made = made;
    ctx->extra_keys = made->total;
    ctx->scratch_bytes = sizeof(subject_rows);
    const bool part = !p->uncond_sees && p->fidelity < 1.0f && p->fidelity > 0.0f;
    ctx->passes = part ? 1 : 0;
    ctx->pass[0].when = HD_PASS_BEFORE;
    return HD_OK;
}

// The attention of the rows that see a part of the references, without them.
static hd_status subject_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    const hd_rows *rows = &ctx->call->forward->rows;
    subject_rows *mine = ctx->scratch;
    (void)index;
    for (int64_t b = 0; b < rows->count; b++)
        mine->alone[b] = ctx->active[b] && sees(ctx->params, &rows->row[b]) == SEES_PART;
    pass->rows = mine->alone;
    pass->q = ctx->call->q, pass->k = ctx->call->k, pass->v = ctx->call->v;
    return HD_OK;
}

// At a step that is not guided by the text the opposite has no row; whoever else asked for an
// unconditioned row then sees the reference as the conditioned one does.
static int64_t source_row(const hd_hook_ctx *ctx, const hd_tokens *tokens,
                          const subject_reference *r, subject_sees what, int64_t picture,
                          hd_tensor *k, hd_tensor *v)
{
    const int64_t opposite =
        what == SEES_OPPOSITE ? reference_find(ctx, tokens, r->opposite_branch, picture, k, v) : -1;
    return opposite >= 0 ? opposite : reference_find(ctx, tokens, r->branch, picture, k, v);
}

static hd_status subject_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const self_subject *p = ctx->params;
    const subject_site *site = ctx->made;
    subject_rows *mine = ctx->scratch;
    const hd_rows *rows = &ctx->call->forward->rows;
    for (int64_t b = 0; b < rows->count; b++) {
        const subject_sees what = ctx->active[b] ? sees(p, &rows->row[b]) : SEES_NOTHING;
        mine->start[b] = what == SEES_NOTHING ? -1 : tokens->key_len[b];
        for (int64_t i = 0; what != SEES_NOTHING && i < p->count; i++) {
            const subject_reference *r = &p->reference[i];
            hd_tensor k, v;
            const int64_t source = source_row(ctx, tokens, r, what, rows->row[b].picture, &k, &v);
            if (source < 0)
                return hd_fail(HD_ERR_INTERNAL, "self_subject: no row of branch \"%s\"", r->branch);
            reference_append(tokens, b, &site->columns[i], k, v, source);
        }
    }
    return HD_OK;
}

static hd_status subject_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const self_subject *p = ctx->params;
    const subject_site *site = ctx->made;
    const subject_rows *mine = ctx->scratch;
    for (int64_t b = 0; b < logits->rows; b++) {
        int64_t at = mine->start[b];
        for (int64_t i = 0; at >= 0 && i < p->count; i++) {
            reference_bias(logits, b, at, &site->columns[i]);
            at += site->columns[i].count;
        }
    }
    return HD_OK;
}

static hd_status subject_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const self_subject *p = ctx->params;
    const subject_rows *mine = ctx->scratch;
    const bool part = !p->uncond_sees && p->fidelity < 1.0f && p->fidelity > 0.0f;
    for (int64_t b = 0; part && b < output->out.dim[0]; b++)
        if (mine->alone[b])
            hd_edit_mix(output->out, b, ctx->pass[0].out, b, output->out.dim[1], p->fidelity, NULL);
    return HD_OK;
}

const hd_processor_class hd_self_subject = {
    .name = "self_subject",
    .summary = "Draw the subject of a reference picture (self-subject attention of DreamTuner).",
    .params = subject_params,
    .params_size = sizeof(self_subject),
    .edits = HD_ADDS_COLUMN_BIAS,
    .check = subject_check,
    .clear = subject_clear,
    .branches = subject_ask,
    .begin = subject_begin,
    .latent = subject_latent,
    .guidance = subject_guidance_hook,
    .prepare = subject_prepare,
    .pass = subject_pass,
    .tokens = subject_tokens,
    .logits = subject_logits,
    .output = subject_output,
    .release = release_site,
};
