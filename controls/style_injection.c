/* controls/style_injection.c: the colours and strokes of one picture on the content of another.
 *
 * { "prompt": "", "guidance": 1, "sampler": "ddim", "steps": 50,
 *   "branches": { "content": { "init_image": "house.png" },
 *                 "style": { "init_image": "sketch.png" } },
 *   "processors": [ { "use": "style_injection", "gamma": 0.75, "logit_scale": 1.5 } ] }
 *
 * Chung et al., "Style Injection in Diffusion: A Training-free Approach for Adapting Large-scale
 * Diffusion Models for Style Transfer", arXiv 2312.09008. Content and style are taken back to noise
 * and run beside the target, each on its trajectory, so that nothing but latents is kept. The
 * target begins as the content's noise with the channel statistics of the style's, and in the fine
 * self-attention layers of the decoder asks with queries that are mostly the content's, sharpened,
 * and is answered by the style's keys and values.
 *
 * The authors' code begins with the latents of the last training timestep and leaves the first call
 * out ("start": "compat"); here every call sees a latent of its own level ("aligned"). Without
 * pictures, content and style are sampled from prompts of their own. */
#include "controls/style_injection.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/attention/edit.h"
#include "engine/samplers/sampler.h"

#define STYLE_MOST_TARGETS 8

typedef struct style_injection {
    // options
    float gamma, logit_scale;
    const hd_json *layers, *inject_steps;
    enum { STYLE_ALIGNED, STYLE_COMPAT } start;
    bool init_adain, attn_injection;
    float init_adain_strength;
    char *content_image, *style_image;
    int64_t inversion_steps;
    hd_pairing inversion_pairing;
    // made before step 0
    hd_site_selector *site;
    int64_t sites;
    double part[2];   // of the run
    int64_t calls[2]; // in which attention is injected
    char content[24], style[24];
    int64_t targets;
    char target[STYLE_MOST_TARGETS][24];
} style_injection;

static const char *const style_starts[] = {"aligned", "compat", NULL};
static const char *const style_pairings[] = {"next_level", "same_level", NULL}; // by hd_pairing

// The two finest resolutions of the decoder: up.2 and up.3 of Stable Diffusion 1.x.
static const char *const default_layers[] = {"up.*.attn.* self factor<=2"};

static const hd_param style_params[] = {
    HD_PARAM_FLOAT(style_injection, gamma, .def = 0.75, .min = 0.0, .max = 1.0,
                   .help = "share of the content's queries; 0.3: strong style"),
    HD_PARAM_FLOAT(style_injection, logit_scale, .def = 1.5, .min = 0.01, .max = 100.0,
                   .help = "the target's scores are multiplied by it; above 1 sharpens"),
    HD_PARAM_JSON(style_injection, layers,
                  .help = "layers that are injected (default [\"up.*.attn.* self factor<=2\"])"),
    HD_PARAM_ENUM(style_injection, start, .names = style_starts,
                  .help =
                      "every call sees a latent of its own level, or the authors' shifted start"),
    HD_PARAM_BOOL(style_injection, init_adain, .def = 1,
                  .help = "begin with the style's statistics in every channel"),
    HD_PARAM_FLOAT(style_injection, init_adain_strength, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "how far"),
    HD_PARAM_BOOL(style_injection, attn_injection, .def = 1, .help = "inject attention at all"),
    HD_PARAM_JSON(style_injection, inject_steps,
                  .help = "part of the run in which attention is injected (default [0, 1])"),
    HD_PARAM_STRING(style_injection, content_image,
                    .help = "the content, where branches.content gives none"),
    HD_PARAM_STRING(style_injection, style_image,
                    .help = "the style, where branches.style gives none"),
    HD_PARAM_INT(style_injection, inversion_steps, .def = 0, .min = 0, .max = 1000,
                 .help = "0: the run's"),
    HD_PARAM_ENUM(style_injection, inversion_pairing, .def_text = "same_level",
                  .names = style_pairings,
                  .help = "timestep the inversion tells: the latent's own, or the next level's"),
    HD_PARAM_END,
};

/* --- before step 0 --- */

static hd_status read_layer(style_injection *p, const hd_json *item, const char *text)
{
    hd_site_selector *s = &p->site[p->sites];
    if (hd_site_selector_parse(s, text) != HD_OK) {
        char why[512];
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(item, HD_ERR_ARGUMENT, "%s", why);
    }
    if (s->kind_given && s->kind != HD_SITE_SELF && s->kind != HD_SITE_JOINT)
        return hd_json_fail(item, HD_ERR_ARGUMENT,
                            "is \"%s\": a style is injected into self or joint attention", text);
    p->sites++;
    return HD_OK;
}

static hd_status read_layers(style_injection *p)
{
    const hd_json *list = p->layers;
    if (list) HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    const int64_t count = list ? hd_json_count(list) : (int64_t)HD_COUNT(default_layers);
    if (count == 0)
        return hd_json_fail(list, HD_ERR_ARGUMENT,
                            "is empty; \"attn_injection\": false leaves attention alone");
    p->site = calloc((size_t)count, sizeof *p->site);
    if (!p->site) return hd_fail(HD_ERR_NOMEM, "style_injection: no memory for its layers");
    for (int64_t i = 0; i < count; i++) {
        const char *text = list ? NULL : default_layers[i];
        if (list) HD_TRY(hd_json_to_string(hd_json_at(list, i), &text));
        HD_TRY(read_layer(p, list ? hd_json_at(list, i) : NULL, text));
    }
    return HD_OK;
}

static hd_status style_check(void *params)
{
    style_injection *p = params;
    const hd_json *range = p->inject_steps;
    p->part[1] = 1.0;
    HD_TRY(read_layers(p));
    if (!range) return HD_OK;
    HD_TRY(hd_json_expect(range, HD_JSON_ARRAY));
    if (hd_json_count(range) != 2)
        return hd_json_fail(range, HD_ERR_ARGUMENT,
                            "has %lld numbers, must be [from, to] as fractions of the run",
                            (long long)hd_json_count(range));
    for (int i = 0; i < 2; i++)
        HD_TRY(hd_json_to_double(hd_json_at(range, i), 0.0, 1.0, &p->part[i]));
    if (p->part[0] <= p->part[1]) return HD_OK;
    return hd_json_fail(range, HD_ERR_ARGUMENT, "is [%g, %g], must not go backwards", p->part[0],
                        p->part[1]);
}

static void style_clear(void *params)
{
    free(((style_injection *)params)->site);
}

// One of the two pictures: on its trajectory, or sampled where it has only a prompt.
static hd_status ask_picture(const style_injection *p, hd_branches_ctx *ctx, const char *name,
                             const char *image, const char *field, bool same_grid)
{
    const int number = hd_branches_find(ctx->branches, name);
    const hd_branch *given = number >= 0 ? &ctx->branches->item[number] : NULL;
    const bool picture = image || (given && (given->init_image || given->inversion.file));
    if (!picture && !given)
        return hd_fail(HD_ERR_ARGUMENT, "has no %s: give %s, or branches.%s a picture or a prompt",
                       name, field, name);
    hd_branch_ask ask = {.branch = name,
                         .prompt = given && given->prompt ? NULL : "",
                         .init_image = image,
                         .image_node = hd_json_get(ctx->node, field),
                         .same_grid = same_grid};
    if (picture) {
        ask.invert = ask.follow = true;
        ask.inversion = (hd_inversion){
            .steps = p->inversion_steps, .guidance = 1.0f, .pairing = p->inversion_pairing};
    }
    return hd_ask_branch(ctx, &ask);
}

static hd_status check_compat(const hd_branches_ctx *ctx)
{
    if (ctx->calls < 2 || ctx->first_step > 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "start \"compat\" leaves the first call out: it needs a second one, and "
                       "\"steps\" from 0");
    if (strcmp(hd_sampler_name(ctx->sampler), "ddim") != 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "start \"compat\" leaves a call out, which sampler %s would remember; use "
                       "ddim",
                       hd_sampler_name(ctx->sampler));
    return HD_OK;
}

static hd_status style_branches(hd_branches_ctx *ctx)
{
    style_injection *p = ctx->params;
    HD_TRY(ask_picture(p, ctx, "content", p->content_image, "content_image", true));
    HD_TRY(ask_picture(p, ctx, "style", p->style_image, "style_image", false));
    const hd_branches *all = ctx->branches;
    strcpy(p->content, all->item[hd_branches_find(all, "content")].name);
    strcpy(p->style, all->item[hd_branches_find(all, "style")].name);
    for (int i = 0; i < all->count; i++) {
        const char *name = all->item[i].name;
        if (strcmp(name, "main") != 0 && strncmp(name, "target.", 7) != 0) continue;
        if (strcmp(name, p->content) == 0 || strcmp(name, p->style) == 0) continue;
        if (p->targets == STYLE_MOST_TARGETS)
            return hd_fail(HD_ERR_ARGUMENT, "more than %d targets", STYLE_MOST_TARGETS);
        strcpy(p->target[p->targets++], name);
    }
    if (p->targets == 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "there is no branch to draw: main is the content or the style itself");
    // decimal fractions are a hair below whole numbers in binary
    for (int i = 0; i < 2; i++)
        p->calls[i] = (int64_t)(p->part[i] * (double)ctx->calls + 1e-6);
    if (p->start != STYLE_COMPAT) return HD_OK;
    ctx->state_bytes =
        2 * (size_t)(ctx->channels * ctx->height * ctx->width) * sizeof(float); // both, one up
    return check_compat(ctx);
}

static hd_status style_prepare(hd_prepare_ctx *ctx)
{
    const style_injection *p = ctx->params;
    const hd_site *site = &ctx->call->site;
    ctx->idle = true;
    for (int64_t i = 0; i < p->sites && ctx->idle; i++)
        ctx->idle = (site->kind != HD_SITE_SELF && site->kind != HD_SITE_JOINT) ||
                    !hd_site_matches(&p->site[i], site);
    return HD_OK;
}

/* --- the initial latent --- */

static void statistics(const float *x, int64_t count, double *mean, double *deviation)
{
    double sum = 0.0, square = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i];
    *mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++)
        square += ((double)x[i] - *mean) * ((double)x[i] - *mean);
    *deviation = count > 1 ? sqrt(square / (double)(count - 1)) : 0.0;
}

void style_adain(float *out, const float *content, const float *style, int64_t channels,
                 int64_t values, double strength)
{
    for (int64_t c = 0; c < channels; c++) {
        double mean, deviation, style_mean, style_deviation;
        const float *x = content + c * values;
        statistics(x, values, &mean, &deviation);
        statistics(style + c * values, values, &style_mean, &style_deviation);
        const double scale = style_deviation / fmax(deviation, 1e-6), shift = style_mean - mean;
        // as what is added: nothing where both are equal
        for (int64_t i = 0; i < values; i++)
            out[c * values + i] =
                (float)((double)x[i] + strength * ((scale - 1.0) * ((double)x[i] - mean) + shift));
    }
}

// The target's latent from the two others [values].
static void begin_target(const style_injection *p, const hd_beside_ctx *ctx, float *out,
                         const float *content, const float *style)
{
    if (p->init_adain)
        style_adain(out, content, style, ctx->channels, ctx->height * ctx->width,
                    (double)p->init_adain_strength);
    else if (out != content)
        memcpy(out, content, (size_t)ctx->values * sizeof *out);
}

static hd_status style_latent(const hd_beside_ctx *ctx)
{
    const style_injection *p = ctx->params;
    const bool late =
        p->start == STYLE_COMPAT && ctx->when == HD_LATENT_AFTER_STEP && ctx->step.index == 0;
    const float *content = hd_beside(ctx, p->content)->latent;
    const float *style = hd_beside(ctx, p->style)->latent;
    if (ctx->when != HD_LATENT_START && !late) return HD_OK;
    for (int64_t i = 0; i < p->targets; i++) {
        float *out = hd_beside(ctx, p->target[i])->latent;
        if (late)
            memcpy(out, ctx->state, (size_t)ctx->values * sizeof *out);
        else
            begin_target(p, ctx, out, content, style);
    }
    return HD_OK;
}

// One more step up than the run begins with, by the prediction of the first call: where the
// authors' inversion ends, at the last timestep of the training.
static hd_status go_up(const hd_beside_ctx *ctx, const char *branch, float *out)
{
    const hd_beside_branch *b = hd_beside(ctx, branch);
    const hd_noise_level from = hd_sampler_level(ctx->sampler, 0);
    const float gap = from.timestep - hd_sampler_level(ctx->sampler, 1).timestep;
    hd_noise_level to;
    HD_TRY(hd_sampler_level_at(ctx->sampler, (double)(from.timestep + gap), &to));
    hd_sampler_noise(ctx->sampler, from, out, b->prediction[HD_ROLE_COND], b->latent, ctx->values);
    for (int64_t i = 0; i < ctx->values; i++) {
        const float clean = (b->latent[i] - from.sigma * out[i]) / from.alpha;
        out[i] = to.alpha * clean + to.sigma * out[i];
    }
    return HD_OK;
}

// Looks at the first call's predictions of content and style; no term is added.
static hd_status style_guidance(const hd_beside_ctx *ctx)
{
    const style_injection *p = ctx->params;
    float *content = ctx->state, *style = content + ctx->values;
    if (p->start != STYLE_COMPAT || ctx->step.index > 0 || strcmp(ctx->branch, p->target[0]) != 0)
        return HD_OK;
    HD_TRY(go_up(ctx, p->content, content));
    HD_TRY(go_up(ctx, p->style, style));
    begin_target(p, ctx, content, content, style);
    return HD_OK;
}

/* --- inside a call --- */

static bool style_acts_on(const void *params, const hd_row *row)
{
    const style_injection *p = params;
    for (int64_t i = 0; i < p->targets; i++)
        if (strcmp(p->target[i], row->branch) == 0) return true;
    return false;
}

static bool injects(const hd_hook_ctx *ctx)
{
    const style_injection *p = ctx->params;
    const int64_t step = ctx->call->forward->step.index;
    return p->attn_injection && step >= p->calls[0] && step < p->calls[1] &&
           !(p->start == STYLE_COMPAT && step == 0);
}

// The picture's tokens of one row, as far as `share` says; words beside it stay its own.
static void take_grid(hd_tensor to, const hd_token_layout *layout, int64_t row, int64_t source,
                      float share)
{
    for (int i = 0; i < layout->segments; i++) {
        const hd_token_segment *s = &layout->segment[i];
        if (s->kind != HD_TOKENS_GRID) continue;
        const hd_tensor grid = hd_tensor_slice(to, 1, s->start, s->count);
        hd_edit_mix(grid, row, grid, source, s->count, share, NULL);
    }
}

static hd_status style_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const style_injection *p = ctx->params;
    const hd_rows *rows = &ctx->call->forward->rows;
    if (!injects(ctx)) return HD_OK;
    for (int64_t row = 0; row < rows->count; row++) {
        if (!ctx->active[row]) continue;
        const int64_t picture = rows->row[row].picture;
        const int64_t content = hd_rows_find(rows, p->content, "cond", picture);
        const int64_t style = hd_rows_find(rows, p->style, "cond", picture);
        if (content < 0 || style < 0) continue;
        take_grid(tokens->q, &ctx->call->q_layout, row, content, p->gamma);
        take_grid(tokens->k, &ctx->call->k_layout, row, style, 1.0f);
        take_grid(tokens->v, &ctx->call->k_layout, row, style, 1.0f);
    }
    return HD_OK;
}

static hd_status style_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const style_injection *p = ctx->params;
    if (!injects(ctx)) return HD_OK;
    return hd_logits_scale_rows(logits, &ctx->call->q_layout, HD_TOKENS_GRID, p->logit_scale);
}

const hd_processor_class hd_style_injection = {
    .name = "style_injection",
    .summary = "Colours and strokes of one picture on the content of another (StyleID).",
    .params = style_params,
    .params_size = sizeof(style_injection),
    .edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V,
    .check = style_check,
    .clear = style_clear,
    .branches = style_branches,
    .prepare = style_prepare,
    .tokens = style_tokens,
    .logits = style_logits,
    .latent = style_latent,
    .guidance = style_guidance,
    .acts_on = style_acts_on,
    .rows_alike = true, // rows of one branch take the same
};
