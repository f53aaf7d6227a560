/* controls/prompt_to_prompt.c: edit a picture by editing its prompt.
 *
 * { "prompt": "a big blue fish on a red background",
 *   "branches": { "source": { "prompt": "a big red fish on a red background" } },
 *   "processors": [ { "use": "prompt_to_prompt", "cross_replace_steps": 0.8,
 *                     "self_replace_steps": 0.4, "weights": { "blue": 2 },
 *                     "local_blend": { "source": "fish", "target": "fish" } } ] }
 *
 * Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", arXiv 2208.01626.
 * The target (main, target.1 ...) begins with the source's noise and takes over, for a part of the
 * steps, which place of the picture looks at which word (cross attention) and at which other place
 * (self attention). All of it is linear in the probabilities, so no map is made: with the word map
 * M, weights c and step gates g, out = P_source (B v) + P_own (C v), B = M diag(a c g), C =
 * diag((1 - a g) c): the call itself runs with the source's q and k, a pass before it with the own
 * ones. Only the rows of targets that have the prompt are edited. A real picture comes back by DDIM
 * inversion whose trajectory the source follows (Ju et al., arXiv 2310.01506). */
#include "controls/prompt_to_prompt.h"

#include <stdlib.h>
#include <string.h>

#include "controls/all.h"

static const char *const p2p_modes[] = {"auto", "replace", "refine", "none", NULL};
static const char *const p2p_changed[] = {"inherit", "own", NULL};
static const char *const p2p_inversions[] = {"direct", "ddim", "npi", NULL};
static const char *const p2p_proxes[] = {"none", "hard", "soft", NULL};
static const char *const p2p_mask_ops[] = {"only", "and", "or", NULL};

static const hd_param p2p_params[] = {
    HD_PARAM_ENUM(prompt_to_prompt, mode, .names = p2p_modes,
                  .help = "how the prompts are aligned"),
    HD_PARAM_ENUM(prompt_to_prompt, changed_words, .names = p2p_changed,
                  .help = "auto: whether a swapped word inherits the place of the old one"),
    HD_PARAM_JSON(prompt_to_prompt, cross_replace_steps,
                  .help =
                      "part of the run in which words inherit: 0.8, [0, 0.8], or {\"default_\": "
                      "0.8, \"fish\": 0.4}"),
    HD_PARAM_JSON(prompt_to_prompt, self_replace_steps,
                  .help = "the same for shapes: 0.4 or [0, 0.4]"),
    HD_PARAM_INT(prompt_to_prompt, self_min_factor, .def = 4, .min = 1, .max = 64,
                 .help = "self attention at least so far below the latent"),
    HD_PARAM_JSON(prompt_to_prompt, weights, .help = "words made stronger or weaker: {\"red\": 2}"),
    HD_PARAM_JSON(prompt_to_prompt, weight_steps,
                  .help = "part of the run in which weights act (default: as cross_replace_steps)"),
    HD_PARAM_JSON(prompt_to_prompt, local_blend,
                  .help = "only the place of these words changes: {\"source\": \"fish\", "
                          "\"target\": \"fish\", \"th\": 0.3}"),
    HD_PARAM_STRING(prompt_to_prompt, source_prompt,
                    .help = "the source's prompt, where branches.source gives none"),
    HD_PARAM_STRING(prompt_to_prompt, source_image, .help = "a real picture to edit, likewise"),
    HD_PARAM_STRING(prompt_to_prompt, mask_image, .help = "only what is white in this PNG changes"),
    HD_PARAM_ENUM(prompt_to_prompt, mask_op, .names = p2p_mask_ops,
                  .help = "mask_image and local_blend together"),
    HD_PARAM_ENUM(prompt_to_prompt, inversion, .names = p2p_inversions,
                  .help = "of a real picture"),
    HD_PARAM_INT(prompt_to_prompt, inversion_steps, .def = 0, .min = 0, .max = 1000,
                 .help = "0: the run's"),
    HD_PARAM_INT(prompt_to_prompt, fixed_point, .def = 0, .min = 0, .max = 10,
                 .help = "repeats of each inversion step"),
    HD_PARAM_STRING(prompt_to_prompt, inversion_file, .help = "a saved inversion"),
    HD_PARAM_ENUM(prompt_to_prompt, prox, .names = p2p_proxes,
                  .help = "small differences of guidance are cut off (background stays)"),
    HD_PARAM_FLOAT(prompt_to_prompt, prox_quantile, .def = 0.7, .min = 0.0, .max = 1.0,
                   .help = "share of values that are small"),
    HD_PARAM_FLOAT(prompt_to_prompt, prox_recon_t, .def = 400, .min = 0, .max = 1000,
                   .help = "below this timestep the rest is drawn to the trajectory"),
    HD_PARAM_FLOAT(prompt_to_prompt, prox_recon_lr, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "how far"),
    HD_PARAM_BOOL(prompt_to_prompt, compat_tail,
                  .help = "replace as the authors' code, which shifts the words behind a change"),
    HD_PARAM_END,
};

/* --- before step 0 --- */

static hd_status p2p_ask_source(prompt_to_prompt *p, hd_branches_ctx *ctx)
{
    hd_branch_ask ask = {.branch = "source",
                         .prompt = p->source_prompt,
                         .init_image = p->source_image,
                         .image_node = hd_json_get(ctx->node, "source_image"),
                         .same_grid = true,
                         .inversion = {.steps = p->inversion_steps,
                                       .guidance = 1.0f,
                                       .fixed_point = p->fixed_point,
                                       .file = p->inversion_file}};
    int number = hd_branches_find(ctx->branches, "source");
    p->real_image = p->source_image || (number >= 0 && ctx->branches->item[number].init_image);
    if (p->real_image) {
        ask.invert = true;
        ask.follow = p->inversion == P2P_INVERSION_DIRECT;
        if (p->inversion == P2P_INVERSION_NPI) ask.negative = p->source_prompt;
    } else if (p->inversion_file) {
        return hd_fail(HD_ERR_ARGUMENT, "inversion_file is for a real picture: give source_image");
    }
    return hd_ask_branch(ctx, &ask);
}

static hd_status p2p_branches(hd_branches_ctx *ctx)
{
    prompt_to_prompt *p = ctx->params;
    HD_TRY(p2p_ask_source(p, ctx));
    const hd_branches *branches = ctx->branches;
    strcpy(p->source, branches->item[hd_branches_find(branches, "source")].name);
    for (int i = 0; i < branches->count; i++) {
        const char *name = branches->item[i].name;
        if (strcmp(name, "main") != 0 && strncmp(name, "target.", 7) != 0) continue;
        if (strcmp(name, p->source) == 0) continue;
        if (p->targets == P2P_MOST_TARGETS)
            return hd_fail(HD_ERR_ARGUMENT, "more than %d targets", P2P_MOST_TARGETS);
        strcpy(p->target[p->targets++].branch, name);
        // otherwise the source begins as main does
        hd_branch_ask start = {.branch = name, .start = p->real_image ? p->source : NULL};
        if (p->inversion == P2P_INVERSION_NPI && p->real_image)
            start.negative = branches->item[hd_branches_find(branches, "source")].prompt;
        HD_TRY(hd_ask_branch(ctx, &start));
        if (p->prox != P2P_PROX_NONE) HD_TRY(hd_ask_guidance(ctx, name));
    }
    if (p->targets == 0)
        return hd_fail(HD_ERR_ARGUMENT, "there is no branch to edit: main is the source itself");
    return HD_OK;
}

static hd_status p2p_begin(const hd_begin_ctx *ctx)
{
    prompt_to_prompt *p = ctx->params;
    HD_TRY(p2p_read_words(p, ctx));
    if (!p->mask_image) return HD_OK;
    p->mask = calloc((size_t)(ctx->height * ctx->width), sizeof *p->mask);
    if (!p->mask) return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for the mask");
    return hd_begin_mask(ctx, hd_json_get(ctx->node, "mask_image"), p->mask_image, p->mask);
}

static void p2p_clear(void *params)
{
    p2p_clear_words(params);
}

/* --- inside a call --- */

const p2p_target *p2p_target_of(const prompt_to_prompt *p, const hd_row *row)
{
    for (int64_t i = 0; i < p->targets; i++)
        if (strcmp(p->target[i].branch, row->branch) == 0) return &p->target[i];
    return NULL;
}

static bool within(p2p_range r, int64_t step)
{
    return step >= r.first && step < r.end;
}

static float column_weight(const prompt_to_prompt *p, const p2p_target *t, int64_t step, int64_t j)
{
    return within(p->weight_range_given ? p->weight_range : t->replace[j], step) ? t->weight[j]
                                                                                 : 1.0f;
}

p2p_edit p2p_edit_of(const prompt_to_prompt *p, const p2p_target *t, int64_t step)
{
    p2p_edit e = {.unchanged = true, .b = t->inherited, .c = t->own};
    for (int64_t j = 0; j < p->columns; j++) {
        const bool inherits = within(t->replace[j], step) && t->map.a[j] != 0.0f;
        const float weight = column_weight(p, t, step, j);
        e.unchanged = e.unchanged && !inherits && weight == 1.0f;
        if (!inherits && weight != 0.0f)
            t->own[e.c_terms++] = (hd_edit_term){(int32_t)j, (int32_t)j, weight};
    }
    for (int64_t k = 0; k < t->terms; k++) {
        const hd_edit_term *m = &t->term[k];
        const float share = m->share * column_weight(p, t, step, m->from);
        if (within(t->replace[m->from], step) && t->map.a[m->from] != 0.0f && share != 0.0f)
            t->inherited[e.b_terms++] = (hd_edit_term){m->to, m->from, share};
    }
    return e;
}

// The rows of the call that are edited, cond and those that are as cond: the number of the source
// row each inherits from, -1: not one of them.
static int64_t source_row_of(const hd_hook_ctx *ctx, int64_t row, const p2p_target **target)
{
    const prompt_to_prompt *p = ctx->params;
    const hd_rows *rows = &ctx->call->forward->rows;
    const hd_row *r = &rows->row[row];
    *target = ctx->active[row] && strcmp(r->role, "uncond") != 0 ? p2p_target_of(p, r) : NULL;
    return *target ? hd_rows_find(rows, p->source, "cond", r->picture) : -1;
}

static hd_tensor scratch_values(const hd_hook_ctx *ctx, int index)
{
    const hd_tensor v = ctx->call->v;
    hd_tensor t = hd_tensor_of(ctx->scratch, v.dtype, hd_tensor_shape(v));
    t.data = (char *)ctx->scratch + (size_t)index * (size_t)hd_tensor_bytes(t);
    return t;
}

// Self attention whose queries and keys are the source's for some steps.
static bool replaces_self(const prompt_to_prompt *p, const hd_site *site)
{
    return site->kind == HD_SITE_SELF && site->factor >= p->self_min_factor &&
           p->self_replace.first < p->self_replace.end;
}

static hd_status p2p_prepare(hd_prepare_ctx *ctx)
{
    const prompt_to_prompt *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    if (call->site.kind == HD_SITE_SELF || call->site.kind == HD_SITE_TEMPORAL) {
        ctx->idle = !replaces_self(p, &call->site);
        return HD_OK;
    }
    if (call->site.kind == HD_SITE_JOINT)
        return hd_fail(HD_ERR_UNSUPPORTED, "edits cross and self attention; give \"sites\" without "
                                           "joint ones");
    if (p->columns != call->k.dim[1])
        return hd_fail(HD_ERR_SHAPE, "the prompt has %lld tokens, the site's text %lld",
                       (long long)p->columns, (long long)call->k.dim[1]);
    const bool reads = p2p_blend_reads(p, &call->site);
    hd_tensor values = hd_tensor_of(NULL, call->v.dtype, hd_tensor_shape(call->v));
    // own values, own indicators, a row's new values
    ctx->scratch_bytes = 3 * (size_t)hd_tensor_bytes(values);
    ctx->passes = reads ? 2 : 1;
    ctx->pass[0].when = ctx->pass[1].when = HD_PASS_BEFORE;
    ctx->indicators = reads ? P2P_INDICATORS : 0;
    if (reads) ctx->state_bytes = (size_t)(call->q.dim[1] * P2P_INDICATORS) * sizeof(float);
    return HD_OK;
}

// The attention of the own queries: pass 0 over C v, pass 1 over C's words of the local blend.
static hd_status p2p_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    const prompt_to_prompt *p = ctx->params;
    hd_tensor v = scratch_values(ctx, index);
    memset(v.data, 0, (size_t)hd_tensor_bytes(v));
    for (int64_t row = 0; row < v.dim[0]; row++) {
        const p2p_target *t;
        if (source_row_of(ctx, row, &t) < 0) continue;
        const p2p_edit e = p2p_edit_of(p, t, ctx->call->forward->step.index);
        if (e.unchanged || e.b_terms == 0 || e.c_terms == 0) continue;
        if (index == 0) {
            hd_edit_recombine(v, row, ctx->call->v, row, e.c, e.c_terms);
            continue;
        }
        for (int64_t k = 0; k < e.c_terms; k++)
            for (int64_t h = 0; h < v.dim[2]; h++) {
                const int64_t j = e.c[k].to, at = (row * v.dim[1] + j) * v.dim[2] + h;
                hd_edit_put(v, at * v.dim[3], e.c[k].share * (float)t->blend[j]);
                hd_edit_put(v, at * v.dim[3] + 1, e.c[k].share * (float)t->subtract[j]);
            }
    }
    pass->q = ctx->call->q, pass->k = ctx->call->k, pass->v = v;
    return HD_OK;
}

static void edit_self(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const prompt_to_prompt *p = ctx->params;
    if (!within(p->self_replace, ctx->call->forward->step.index)) return;
    for (int64_t row = 0; row < tokens->q.dim[0]; row++) {
        const p2p_target *t;
        const int64_t source = source_row_of(ctx, row, &t);
        if (source < 0) continue;
        hd_edit_copy(tokens->q, row, tokens->q, source, tokens->q.dim[1]);
        hd_edit_copy(tokens->k, row, tokens->k, source, tokens->k.dim[1]);
    }
}

static hd_status p2p_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const prompt_to_prompt *p = ctx->params;
    if (ctx->call->site.kind != HD_SITE_CROSS) {
        edit_self(ctx, tokens);
        return HD_OK;
    }
    hd_tensor fresh = hd_tensor_slice(scratch_values(ctx, 2), 0, 0, 1);
    for (int64_t row = 0; row < tokens->q.dim[0]; row++) {
        const p2p_target *t;
        const int64_t source = source_row_of(ctx, row, &t);
        if (source < 0) continue;
        const p2p_edit e = p2p_edit_of(p, t, ctx->call->forward->step.index);
        if (e.unchanged) continue;
        const bool inherits = e.b_terms > 0;
        hd_edit_recombine(fresh, 0, tokens->v, row, inherits ? e.b : e.c,
                          inherits ? e.b_terms : e.c_terms);
        hd_edit_copy(tokens->v, row, fresh, 0, fresh.dim[1]);
        if (!inherits) continue;
        hd_edit_copy(tokens->q, row, tokens->q, source, tokens->q.dim[1]);
        hd_edit_copy(tokens->k, row, tokens->k, source, tokens->k.dim[1]);
    }
    return HD_OK;
}

// The words of the local blend, through the same edit as the values.
static hd_status p2p_probe(const hd_hook_ctx *ctx, hd_tensor indicator)
{
    const prompt_to_prompt *p = ctx->params;
    const hd_rows *rows = &ctx->call->forward->rows;
    for (int64_t row = 0; row < rows->count; row++) {
        float *to = (float *)indicator.data + row * indicator.stride[0];
        const p2p_target *t;
        if (strcmp(rows->row[row].role, "cond") != 0) continue;
        if (strcmp(rows->row[row].branch, p->source) == 0) {
            for (int64_t j = 0; j < p->columns; j++) {
                to[j * P2P_INDICATORS] = (float)p->source_blend[j];
                to[j * P2P_INDICATORS + 1] = (float)p->source_subtract[j];
            }
            continue;
        }
        if (source_row_of(ctx, row, &t) < 0) continue;
        const p2p_edit e = p2p_edit_of(p, t, ctx->call->forward->step.index);
        const bool inherits = !e.unchanged && e.b_terms > 0;
        const hd_edit_term *term = inherits ? e.b : e.c;
        for (int64_t k = 0; k < (inherits ? e.b_terms : e.c_terms); k++) {
            float *place = to + term[k].to * P2P_INDICATORS;
            place[0] += term[k].share * (float)t->blend[term[k].from];
            place[1] += term[k].share * (float)t->subtract[term[k].from];
        }
    }
    return HD_OK;
}

// Adds this call's word maps, summed over the heads, to what the row has seen so far.
static void keep_words(const hd_hook_ctx *ctx, int64_t row, hd_tensor probed, const hd_tensor *own)
{
    float *sum = ctx->state[row];
    if (!sum) return;
    for (int64_t h = 0; h < probed.dim[1]; h++)
        for (int64_t i = 0; i < probed.dim[2]; i++)
            for (int64_t c = 0; c < P2P_INDICATORS; c++) {
                const float *from = (const float *)probed.data + row * probed.stride[0] +
                                    h * probed.stride[1] + i * probed.stride[2];
                float value = from[c];
                if (own)
                    value += hd_edit_get(*own, row * own->stride[0] + i * own->stride[1] +
                                                   h * own->stride[2] + c);
                sum[i * P2P_INDICATORS + c] += value;
            }
}

static hd_status p2p_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const prompt_to_prompt *p = ctx->params;
    if (ctx->call->site.kind != HD_SITE_CROSS) return HD_OK;
    const hd_rows *rows = &ctx->call->forward->rows;
    const bool reads = p2p_blend_reads(p, &ctx->call->site);
    for (int64_t row = 0; row < rows->count; row++) {
        const p2p_target *t;
        const bool target = source_row_of(ctx, row, &t) >= 0;
        bool both = false;
        if (target) {
            const p2p_edit e = p2p_edit_of(p, t, ctx->call->forward->step.index);
            both = !e.unchanged && e.b_terms > 0 && e.c_terms > 0;
        }
        if (both) hd_edit_add(output->out, row, ctx->pass[0].out, row, output->out.dim[1], 1.0f);
        const bool source = strcmp(rows->row[row].branch, p->source) == 0 &&
                            strcmp(rows->row[row].role, "cond") == 0;
        if (reads && (target || source))
            keep_words(ctx, row, output->probed, both ? &ctx->pass[1].out : NULL);
    }
    return HD_OK;
}

const hd_processor_class hd_prompt_to_prompt = {
    .name = "prompt_to_prompt",
    .summary = "Edit a picture by editing its prompt, keeping its layout (Prompt-to-Prompt).",
    .params = p2p_params,
    .params_size = sizeof(prompt_to_prompt),
    .edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V,
    .clear = p2p_clear,
    .branches = p2p_branches,
    .begin = p2p_begin,
    .prepare = p2p_prepare,
    .sites = p2p_blend_sites,
    .pass = p2p_pass,
    .tokens = p2p_tokens,
    .probe = p2p_probe,
    .output = p2p_output,
    .latent = p2p_blend_latents,
    .guidance = p2p_guide,
    .rows_alike = true,
};
