/* controls/plug_and_play.c: the layout of one picture, the looks of another prompt.
 *
 * { "prompt": "a white snowman", "guidance": 7.5,
 *   "branches": { "source": { "init_image": "man.png" } },
 *   "processors": [ { "use": "plug_and_play", "inversion_steps": 50, "fixed_point": 2 } ] }
 *
 * Tumanyan et al., "Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation",
 * arXiv 2211.12572. At the same step, the target's rows get from the source's row one feature of
 * the decoder before its sum with what goes around it (which part of an object is where), and the
 * queries and keys of the finer self-attention layers (which places belong together); values stay
 * their own. The source runs beside them: a real picture follows its inversion's trajectory, so
 * that nothing but latents is kept; without a picture it is sampled from its own prompt. The
 * negative prompt may be mixed into the unconditional prediction with a share that changes along
 * the run.
 *
 * The authors' first code counts inclusively: parts of (floor(b n) + 1) / n say the same, 0.82 and
 * 0.52 of 50 steps. Two of them with "branches" ["cond"] and ["uncond"] have strengths of their
 * own. The defaults name the layers of Stable Diffusion 1.x and 2.x. */
#include "controls/plug_and_play.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/attention/edit.h"
#include "engine/samplers/guidance.h"

/* --- before step 0 --- */

void pnp_calls(int64_t range[2], const double part[2], int64_t calls)
{
    // decimal fractions are a hair below whole numbers in binary
    for (int i = 0; i < 2; i++)
        range[i] = (int64_t)(part[i] * (double)calls + 1e-6);
}

static hd_status pnp_ask_source(plug_and_play *p, hd_branches_ctx *ctx, bool *own_start)
{
    const int number = hd_branches_find(ctx->branches, "source");
    const hd_branch *given = number >= 0 ? &ctx->branches->item[number] : NULL;
    const bool picture = p->source_image || p->inversion_file ||
                         (given && (given->init_image || given->inversion.file));
    if (!picture && !given && !p->source_prompt[0])
        return hd_fail(HD_ERR_ARGUMENT, "has nothing to take the structure of: give source_image, "
                                        "or branches.source a picture or a prompt");
    // an empty prompt is what is left where nobody gives one
    const bool silent = !p->source_prompt[0] && given && given->prompt;
    hd_branch_ask ask = {.branch = "source",
                         .prompt = silent ? NULL : p->source_prompt,
                         .init_image = p->source_image,
                         .image_node = hd_json_get(ctx->node, "source_image"),
                         .same_grid = true,
                         .inversion = {.steps = p->inversion_steps,
                                       .guidance = 1.0f,
                                       .fixed_point = p->fixed_point,
                                       .file = p->inversion_file}};
    if (picture) {
        ask.invert = true;
        ask.follow = p->inversion == PNP_INVERSION_DIRECT;
        ask.guidance = 1.0f; // it was inverted without
    }
    *own_start = picture || (number > 0 && given->seed_given);
    return hd_ask_branch(ctx, &ask);
}

// The target's latent under the negative prompt: a row of its own.
static hd_status pnp_ask_negative(plug_and_play *p, hd_branches_ctx *ctx, pnp_target *t)
{
    int number = 99; // far from those that somebody gives
    do
        snprintf(t->negative, sizeof t->negative, "view.%d", number--);
    while (hd_branches_find(ctx->branches, t->negative) >= 0);
    hd_branch_ask ask = {.branch = t->negative,
                         .roles = HD_ROLES_ASKED | HD_ROLE_BIT(HD_ROLE_COND),
                         .first_step = ctx->first_step,
                         .end_step = ctx->end_step,
                         .prompt = p->negative,
                         .latent_of = t->branch};
    HD_TRY(hd_ask_branch(ctx, &ask));
    return hd_ask_guidance(ctx, t->branch);
}

static hd_status pnp_branches(hd_branches_ctx *ctx)
{
    plug_and_play *p = ctx->params;
    bool own_start = false;
    HD_TRY(pnp_ask_source(p, ctx, &own_start));
    pnp_calls(p->feature_calls, p->feature_part, ctx->calls);
    pnp_calls(p->attn_calls, p->attn_part, ctx->calls);
    const hd_branches *all = ctx->branches;
    strcpy(p->source, all->item[hd_branches_find(all, "source")].name);
    const int count = all->count;
    for (int i = 0; i < count; i++) {
        const char *name = all->item[i].name;
        if (strcmp(name, "main") != 0 && strncmp(name, "target.", 7) != 0) continue;
        if (strcmp(name, p->source) == 0) continue;
        if (p->targets == PNP_MOST_TARGETS)
            return hd_fail(HD_ERR_ARGUMENT, "more than %d targets", PNP_MOST_TARGETS);
        pnp_target *t = &p->target[p->targets++];
        strcpy(t->branch, name);
        hd_branch_ask start = {.branch = name, .start = own_start ? p->source : NULL};
        HD_TRY(hd_ask_branch(ctx, &start));
        if (p->mixes_negative) HD_TRY(pnp_ask_negative(p, ctx, t));
    }
    if (p->targets == 0)
        return hd_fail(HD_ERR_ARGUMENT, "there is no branch to change: main is the source itself");
    for (int64_t i = 0; i < p->taps; i++)
        HD_TRY(hd_ask_feature(ctx, p->tap[i]));
    return HD_OK;
}

static hd_status pnp_begin(const hd_begin_ctx *ctx)
{
    plug_and_play *p = ctx->params;
    for (int64_t i = 0; i < p->targets && p->mixes_negative; i++) {
        const hd_branch *b =
            &ctx->branches->item[hd_branches_find(ctx->branches, p->target[i].branch)];
        if (!(b->roles & HD_ROLE_BIT(HD_ROLE_UNCOND)))
            return hd_fail(HD_ERR_ARGUMENT,
                           "negative_alpha and negative_schedule mix the unconditional prediction, "
                           "which branch \"%s\" does not have; give it a guidance above 1",
                           b->name);
    }
    if (!p->mask) return HD_OK;
    p->height = ctx->height;
    p->width = ctx->width;
    p->free_mask = calloc((size_t)(ctx->height * ctx->width), sizeof *p->free_mask);
    if (!p->free_mask) return hd_fail(HD_ERR_NOMEM, "plug_and_play: no memory for the mask");
    return hd_begin_mask(ctx, hd_json_get(ctx->node, "mask"), p->mask, p->free_mask);
}

/* --- rows and places --- */

static const pnp_target *pnp_target_of(const plug_and_play *p, const char *branch)
{
    for (int64_t i = 0; i < p->targets; i++)
        if (strcmp(p->target[i].branch, branch) == 0 || strcmp(p->target[i].negative, branch) == 0)
            return &p->target[i];
    return NULL;
}

static bool pnp_acts_on(const void *params, const hd_row *row)
{
    return pnp_target_of(params, row->branch) != NULL;
}

int64_t pnp_source_row(const plug_and_play *p, const hd_rows *rows, const bool *active, int64_t row)
{
    const hd_row *r = &rows->row[row];
    if (!active[row] || !pnp_target_of(p, r->branch)) return -1;
    return hd_rows_find(rows, p->source, "cond", r->picture);
}

// How much of pixel row or column `i` of the mask lies in place `at` of `places`.
static double covered(int64_t i, int64_t size, int64_t at, int64_t places)
{
    const double scale = (double)size / (double)places;
    const double from = fmax((double)i, (double)at * scale);
    const double to = fmin((double)(i + 1), (double)(at + 1) * scale);
    return fmax(to - from, 0.0);
}

float pnp_mask_at(const plug_and_play *p, int64_t rows, int64_t columns, int64_t y, int64_t x)
{
    const int64_t h = p->height, w = p->width;
    double sum = 0.0, area = 0.0;
    for (int64_t i = y * h / rows; i < h && i * rows < (y + 1) * h; i++)
        for (int64_t j = x * w / columns; j < w && j * columns < (x + 1) * w; j++) {
            const double part = covered(i, h, y, rows) * covered(j, w, x, columns);
            sum += part * (double)p->free_mask[i * w + j];
            area += part;
        }
    return (float)(sum / area);
}

/* --- inside a call --- */

static int64_t grid_tokens(const hd_token_layout *layout)
{
    int64_t count = 0;
    for (int i = 0; i < layout->segments; i++)
        if (layout->segment[i].kind == HD_TOKENS_GRID) count += layout->segment[i].count;
    return count;
}

static hd_status pnp_prepare(hd_prepare_ctx *ctx)
{
    const plug_and_play *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    ctx->idle = true;
    for (int64_t i = 0; i < p->sites && ctx->idle; i++)
        ctx->idle = call->site.kind == HD_SITE_CROSS || !hd_site_matches(&p->site[i], &call->site);
    if (!ctx->idle && p->qk_mode == PNP_APPEND) ctx->extra_keys = grid_tokens(&call->k_layout);
    return HD_OK;
}

// The tokens of the picture, of one row: text beside them belongs to another prompt.
static void replace_grid(const plug_and_play *p, hd_tensor to, const hd_token_layout *layout,
                         int64_t row, int64_t source, bool masked)
{
    for (int i = 0; i < layout->segments; i++) {
        const hd_token_segment *s = &layout->segment[i];
        if (s->kind != HD_TOKENS_GRID) continue;
        const hd_tensor grid = hd_tensor_slice(to, 1, s->start, s->count);
        if (!masked) {
            hd_edit_mix(grid, row, grid, source, s->count, p->strength_qk, NULL);
            continue;
        }
        const int64_t frame = s->height * s->width;
        for (int64_t t = 0; t < s->count; t++) {
            const int64_t y = t % frame / s->width, x = t % s->width;
            const float inside = pnp_mask_at(p, s->height, s->width, y, x);
            const hd_tensor place = hd_tensor_slice(grid, 1, t, 1);
            hd_edit_mix(place, row, place, source, 1, p->strength_qk * inside, NULL);
        }
    }
}

// The source's keys and values of the picture behind the row's own.
static void append_grid(const hd_hook_ctx *ctx, hd_tokens *tokens, int64_t row, int64_t source)
{
    const hd_token_layout *layout = &ctx->call->k_layout;
    for (int i = 0; i < layout->segments; i++) {
        const hd_token_segment *s = &layout->segment[i];
        if (s->kind != HD_TOKENS_GRID) continue;
        int64_t *length = &tokens->key_len[row];
        hd_edit_copy(hd_tensor_slice(tokens->k, 1, *length, s->count), row,
                     hd_tensor_slice(tokens->k, 1, s->start, s->count), source, s->count);
        hd_edit_copy(hd_tensor_slice(tokens->v, 1, *length, s->count), row,
                     hd_tensor_slice(tokens->v, 1, s->start, s->count), source, s->count);
        *length += s->count;
    }
}

static hd_status pnp_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const plug_and_play *p = ctx->params;
    const hd_forward *forward = ctx->call->forward;
    const int64_t step = forward->step.index;
    if (step < p->attn_calls[0] || step >= p->attn_calls[1] || p->strength_qk == 0.0f) return HD_OK;
    for (int64_t row = 0; row < tokens->q.dim[0]; row++) {
        const int64_t source = pnp_source_row(p, &forward->rows, ctx->active, row);
        if (source < 0) continue;
        if (p->qk_mode == PNP_APPEND) {
            append_grid(ctx, tokens, row, source);
            continue;
        }
        replace_grid(p, tokens->q, &ctx->call->q_layout, row, source, p->free_mask != NULL);
        replace_grid(p, tokens->k, &ctx->call->k_layout, row, source, p->mask_keys);
    }
    return HD_OK;
}

/* --- guidance --- */

double pnp_alpha(pnp_schedule schedule, double alpha, int64_t index, int64_t calls)
{
    const double part = calls > 1 ? (double)index / (double)(calls - 1) : 0.0;
    if (schedule == PNP_LINEAR) return alpha * (1.0 - part);
    if (schedule == PNP_EXP) return alpha * exp(-6.0 * part);
    return alpha;
}

void pnp_guide(float *out, const float *empty, const float *negative, const float *cond,
               double alpha, double scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)(alpha * (double)empty[i] + (1.0 - alpha) * (double)negative[i]);
    hd_guide(out, out, cond, scale, count);
}

static hd_status pnp_guidance(const hd_beside_ctx *ctx)
{
    const plug_and_play *p = ctx->params;
    const pnp_target *t = p->mixes_negative ? pnp_target_of(p, ctx->branch) : NULL;
    if (!t) return HD_OK;
    hd_beside_branch *b = hd_beside(ctx, t->branch);
    pnp_guide(b->guess, b->prediction[HD_ROLE_UNCOND],
              hd_beside(ctx, t->negative)->prediction[HD_ROLE_COND], b->prediction[HD_ROLE_COND],
              pnp_alpha(p->negative_schedule, (double)p->negative_alpha, ctx->step.index,
                        ctx->step.count),
              (double)b->guidance, ctx->values);
    return HD_OK;
}

const hd_processor_class hd_plug_and_play = {
    .name = "plug_and_play",
    .summary = "Keep the layout of a picture under another prompt (Plug-and-Play).",
    .params = pnp_params,
    .params_size = sizeof(plug_and_play),
    .edits = HD_EDITS_Q | HD_EDITS_K, // where values are appended, too, they have room of their own
    .check = pnp_check,
    .clear = pnp_clear,
    .branches = pnp_branches,
    .begin = pnp_begin,
    .prepare = pnp_prepare,
    .tokens = pnp_tokens,
    .guidance = pnp_guidance,
    .feature = pnp_feature,
    .acts_on = pnp_acts_on,
    .rows_alike = true, // rows of one branch take the same
};
