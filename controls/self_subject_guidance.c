/* controls/self_subject_guidance.c: the rows of self-subject attention and how their predictions
 * are combined.
 *
 * Hua et al., arXiv 2312.13691, equations 4 to 7: with E(c, r) the prediction for text c and
 * reference r, by the reference w_r E(c, r) - (w_r - 1) E(c, none), by the text
 * w_c E(c, r) - (w_c - 1) E(uc, r'); the paper draws one of the two at each step. A step asks only
 * for the rows it needs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/self_subject.h"

// A number of [0, 1) that depends on the seed and the step alone.
static double drawn(uint64_t seed, int64_t step)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (uint64_t)(step + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

void subject_rules(const self_subject *p, int64_t step, bool *by_reference, bool *by_text)
{
    const double share = (double)p->p_reference;
    *by_reference = share > 0, *by_text = share < 1;
    if (p->guidance_mode == SUBJECT_INTERLEAVE) {
        *by_reference = drawn(p->guidance_seed, step) <= share && share > 0;
        *by_text = !*by_reference;
    }
    if (p->guidance_mode == SUBJECT_SCHEDULE && share < 1) {
        const int64_t every = (int64_t)fmax(1.0, round(1.0 / (1.0 - share)));
        *by_text = (step + 1) % every == 0;
        *by_reference = !*by_text;
    }
}

void subject_guide(const self_subject *p, bool by_reference, bool by_text, const float *cond,
                   const float *noref, const float *uncond, float *guess, int64_t values)
{
    const float to_reference = p->guidance_reference, to_text = p->guidance_text;
    const float share = !by_text ? 1.0f : !by_reference ? 0.0f : p->p_reference;
    for (int64_t i = 0; i < values; i++) {
        const float c = cond[i];
        const float r = noref ? to_reference * c - (to_reference - 1.0f) * noref[i] : c;
        const float t = uncond ? to_text * c - (to_text - 1.0f) * uncond[i] : c;
        guess[i] = share == 1.0f ? r : share == 0.0f ? t : share * r + (1.0f - share) * t;
    }
}

static hd_status take_steps(self_subject *p, const hd_branches_ctx *ctx)
{
    const size_t calls = (size_t)ctx->calls;
    p->by_reference = calloc(calls, sizeof(bool));
    p->by_text = calloc(calls, sizeof(bool));
    p->uncond_rows = calloc(calls, sizeof(bool));
    if (!p->by_reference || !p->by_text || !p->uncond_rows)
        return hd_fail(HD_ERR_NOMEM, "self_subject: no memory for %lld steps",
                       (long long)ctx->calls);
    for (int64_t i = 0; i < ctx->calls; i++) {
        const bool acts = i >= ctx->first_step && i < ctx->end_step;
        if (acts) subject_rules(p, i - ctx->first_step, &p->by_reference[i], &p->by_text[i]);
        // a scale of 1 needs nothing to be guided away from
        p->uncond_rows[i] = acts ? p->by_text[i] && p->guidance_text != 1.0f : ctx->guidance > 1.0f;
    }
    return HD_OK;
}

// Its own rows of a branch that is drawn: cond always, the others at the steps that need them.
static hd_status ask_target(const self_subject *p, hd_branches_ctx *ctx, const char *branch)
{
    hd_branch_ask ask = {.branch = branch, .roles = HD_ROLES_ASKED | HD_ROLE_BIT(HD_ROLE_COND)};
    HD_TRY(hd_ask_branch(ctx, &ask));
    ask.roles = HD_ROLE_BIT(HD_ROLE_UNCOND), ask.at = p->uncond_rows;
    HD_TRY(hd_ask_branch(ctx, &ask));
    ask = (hd_branch_ask){.branch = branch,
                          .roles = HD_ROLE_BIT(HD_ROLE_NOREF),
                          .first_step = ctx->first_step,
                          .end_step = ctx->end_step,
                          .at = p->by_reference};
    if (p->p_reference > 0 && p->guidance_reference != 1.0f) HD_TRY(hd_ask_branch(ctx, &ask));
    return hd_ask_guidance(ctx, branch);
}

// The reference itself: a picture that is noised, or a branch of the preset that is sampled.
static hd_status ask_reference(const self_subject *p, hd_branches_ctx *ctx, subject_reference *r,
                               int64_t number)
{
    snprintf(r->branch, sizeof r->branch, "reference.%d", (int)number);
    const int found = hd_branches_find(ctx->branches, r->branch);
    const hd_branch *given = found < 0 ? NULL : &ctx->branches->item[found];
    if (!r->image && !given)
        return hd_json_fail(r->node, HD_ERR_ARGUMENT,
                            "has no \"image\", and \"branches\" has no \"%s\" to draw instead",
                            r->branch);
    r->has_picture = (r->image || given->init_image) && !(given && given->invert);
    memcpy(r->opposite_branch, r->branch, sizeof r->branch);
    if (!r->has_picture) {
        if (p->delta_t == 0 && (!p->uncond_sees || p->opposite == 0.0)) return HD_OK;
        return hd_json_fail(ctx->node, HD_ERR_ARGUMENT,
                            "(self_subject) the reference of branch \"%s\" is sampled beside, "
                            "always at the step's own noise: \"delta_t\" and \"delta_t_uncond\" "
                            "must be 0",
                            r->branch);
    }
    hd_branch_ask ask = {.branch = r->branch,
                         .roles = HD_ROLES_ASKED | HD_ROLE_BIT(HD_ROLE_COND),
                         .first_step = ctx->first_step,
                         .end_step = ctx->end_step,
                         .prompt = r->caption,
                         .init_image = r->image,
                         .not_sampled = true,
                         .keep_size = r->keep_size};
    HD_TRY(hd_ask_branch(ctx, &ask));
    if (!p->uncond_sees || (p->delta_t == 0 && p->opposite == 0.0)) return HD_OK;
    const bool guided = p->guidance_mode == SUBJECT_NONE
                            ? ctx->guidance > 1.0f
                            : p->p_reference < 1.0f && p->guidance_text != 1.0f;
    if (!guided) return HD_OK;
    snprintf(r->opposite_branch, sizeof r->opposite_branch, "reference.%d",
             (int)(p->count + number));
    given = &ctx->branches->item[hd_branches_find(ctx->branches, r->branch)];
    ask.branch = r->opposite_branch;
    ask.prompt = given->prompt, ask.init_image = given->init_image;
    ask.width = given->width, ask.height = given->height, ask.keep_size = given->keep_size;
    ask.at = p->guidance_mode == SUBJECT_NONE ? NULL : p->by_text;
    return hd_ask_branch(ctx, &ask);
}

hd_status subject_ask(hd_branches_ctx *ctx)
{
    self_subject *p = ctx->params;
    HD_TRY(take_steps(p, ctx));
    for (int64_t i = 0; i < p->count; i++)
        HD_TRY(ask_reference(p, ctx, &p->reference[i], i));
    const hd_branches *branches = ctx->branches;
    for (int i = 0; i < branches->count && p->guidance_mode != SUBJECT_NONE; i++)
        if (reference_is_target(branches->item[i].name))
            HD_TRY(ask_target(p, ctx, branches->item[i].name));
    return HD_OK;
}

hd_status subject_guidance_hook(const hd_beside_ctx *ctx)
{
    const self_subject *p = ctx->params;
    if (p->guidance_mode == SUBJECT_NONE) return HD_OK;
    const hd_beside_branch *b = hd_beside(ctx, ctx->branch);
    subject_guide(p, p->by_reference[ctx->step.index], p->by_text[ctx->step.index],
                  b->prediction[HD_ROLE_COND], b->prediction[HD_ROLE_NOREF],
                  b->prediction[HD_ROLE_UNCOND], b->guess, ctx->values);
    return HD_OK;
}
