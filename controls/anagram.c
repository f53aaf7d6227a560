/* controls/anagram.c: one picture that shows one thing as it is, and another turned, mirrored, cut
 * into pieces ...
 *
 * { "prompt": "a big red fish on a white background",
 *   "processors": [ { "use": "anagram", "views": [ {"view": "identity"},
 *       {"view": "rotate_180", "prompt": "a big red cat on a white background"} ] } ] }
 *
 * Geng et al., "Visual Anagrams", arXiv 2311.17919: at each step the latent is shown to the network
 * once per view with the view's prompt; the guided predictions are brought back and averaged. A
 * view moves places and changes signs, so that noise stays noise. View 0 is main itself, which
 * reads the run's prompt; view i is the branch view.i. Weights and variance of the average after Xu
 * et al., arXiv 2412.02693; views that filter the prediction instead ("low_pass" ...) are
 * Factorized Diffusion (arXiv 2404.11615) and go with "combine": "sum".
 *
 * A view of a latent is not quite that view of the picture: flips and turns do best, negation and
 * fine pieces worst. The networks' attention stays as it is; other processors go with it. */
#include "controls/anagram.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/samplers/guidance.h"
#include "engine/samplers/sampler.h"

typedef struct anagram {
    // options
    const hd_json *views, *balance_exponent;
    enum { ANAGRAM_MEAN, ANAGRAM_SUM, ANAGRAM_ALTERNATE } combine;
    enum { ANAGRAM_EQUAL, ANAGRAM_RESIDUAL, ANAGRAM_CLIP } balance;
    enum { ANAGRAM_AS_IS, ANAGRAM_FORMULA, ANAGRAM_MEASURED } rectify;
    enum { ANAGRAM_NO_OVERLAP, ANAGRAM_GRADIENT } overlap;
    bool rectify_given;
    // made before step 0
    int count;
    anagram_view view[ANAGRAM_MOST];
    double exponent[2];
} anagram;

static const char *const combines[] = {"mean", "sum", "alternate", NULL};
static const char *const balances[] = {"none", "residual", "clip", NULL};
static const char *const rectifies[] = {"none", "formula", "measured", NULL};
static const char *const overlaps[] = {"none", "gradient", NULL};

static const hd_param anagram_params[] = {
    HD_PARAM_JSON(anagram, views, .required = true,
                  .help = "[{\"view\": \"identity\"}, {\"view\": \"rotate_180\", \"prompt\": "
                          "TEXT}]; the first reads the run's prompt. Views: identity flip mirror "
                          "rotate_cw rotate_ccw rotate_180 negate skew patch_permute "
                          "pixel_permute jigsaw inner_circle square_hinge; with combine sum "
                          "low_pass high_pass band_pass motion_blur motion_rest half"),
    HD_PARAM_ENUM(anagram, combine, .names = combines,
                  .help = "predictions together; alternate: one view a step"),
    HD_PARAM_ENUM(anagram, balance, .names = balances,
                  .help = "residual: a prompt that still pulls counts more"),
    HD_PARAM_JSON(anagram, balance_exponent, .help = "[a, b] of similarity^(-a - b progress)"),
    HD_PARAM_ENUM(anagram, rectify, .def_text = "measured", .names = rectifies, .given_flag = true,
                  .given_offset = offsetof(anagram, rectify_given),
                  .help = "of the mean: its noise gets the variance of the views' own"),
    HD_PARAM_ENUM(anagram, overlap, .names = overlaps,
                  .help = "draw the prompts' places together; gradient is refused"),
    HD_PARAM_END,
};

/* --- options --- */

static const char *const view_fields[] = {"view",    "prompt", "skew", "sigma",
                                          "patches", "seed",   NULL};

static hd_status read_kind(anagram_view *v, const hd_json *node)
{
    const hd_json *name = hd_json_get(node, "view");
    const char *text;
    HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
    if (!name) return hd_json_fail(node, HD_ERR_ARGUMENT, "has no \"view\"");
    HD_TRY(hd_json_to_string(name, &text));
    for (int k = 0; k < ANAGRAM_KINDS; k++)
        if (strcmp(anagram_kinds[k], text) == 0) {
            v->kind = (anagram_kind)k;
            return HD_OK;
        }
    const char *near = hd_nearest_name(text, anagram_kinds, ANAGRAM_KINDS);
    return hd_json_fail(name, HD_ERR_ARGUMENT,
                        "is \"%s\", which is no view: a view is linear and keeps the norm, it "
                        "moves places and changes signs, or noise would not stay noise%s%s%s",
                        text, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static hd_status read_figures(anagram_view *v, const hd_json *node)
{
    double skew, sigma[2];
    int64_t count;
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        bool known = false;
        for (int k = 0; view_fields[k]; k++)
            known |= strcmp(view_fields[k], hd_json_key(hd_json_at(node, i))) == 0;
        if (!known)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "has no \"%s\". It has: view, prompt, skew, sigma, patches, seed",
                                hd_json_key(hd_json_at(node, i)));
    }
    const hd_json *field = hd_json_get(node, "skew");
    v->skew = 1.5f, v->sigma[0] = 2.0f, v->sigma[1] = 4.0f, v->patches = 8, v->seed = 4522;
    if (field) {
        HD_TRY(hd_json_to_double(field, -16, 16, &skew));
        v->skew = (float)skew;
    }
    if ((field = hd_json_get(node, "sigma")) != NULL) {
        HD_TRY(hd_json_to_doubles(field, 0.1, 32, 1, 2, sigma, &count));
        v->sigma[0] = (float)sigma[0];
        if (count == 2) v->sigma[1] = (float)sigma[1];
    }
    if ((field = hd_json_get(node, "patches")) != NULL)
        HD_TRY(hd_json_to_int(field, 2, 256, &v->patches));
    if ((field = hd_json_get(node, "seed")) != NULL) HD_TRY(hd_json_to_u64(field, &v->seed));
    return HD_OK;
}

static hd_status read_view(anagram *p, const hd_branches_ctx *ctx, const hd_json *node)
{
    anagram_view *v = &p->view[p->count];
    HD_TRY(read_kind(v, node));
    HD_TRY(read_figures(v, node));
    const hd_json *prompt = hd_json_get(node, "prompt");
    if (prompt && p->count == 0)
        return hd_json_fail(prompt, HD_ERR_ARGUMENT,
                            "is not read: the first view has the run's own prompt");
    if (prompt) HD_TRY(hd_json_to_string(prompt, &v->prompt));
    if (p->count == 0)
        snprintf(v->branch, sizeof v->branch, "main");
    else
        snprintf(v->branch, sizeof v->branch, "view.%d", p->count);
    p->count++;
    if (anagram_table(v, ctx->height, ctx->width) != HD_OK) {
        char why[400];
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(hd_json_get(node, "view"), HD_ERR_ARGUMENT, "%s", why);
    }
    return HD_OK;
}

// Filters of a set sum to the identity: seen on noise.
static hd_status check_filters(const anagram *p, const hd_branches_ctx *ctx)
{
    const int64_t places = ctx->height * ctx->width;
    float *room = malloc(5 * (size_t)places * sizeof *room);
    if (!room) return hd_fail(HD_ERR_NOMEM, "anagram: no memory for its filters");
    float *noise = room, *one = room + places, *sum = room + 2 * places;
    double worst = 0;
    uint32_t state = 12345;
    for (int64_t i = 0; i < places; i++) {
        state = state * 1664525u + 1013904223u;
        noise[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
        sum[i] = 0;
    }
    for (int v = 0; v < p->count; v++) {
        memcpy(one, noise, (size_t)places * sizeof *one);
        anagram_filter(&p->view[v], one, 1, ctx->height, ctx->width, room + 3 * places);
        for (int64_t i = 0; i < places; i++)
            sum[i] += one[i];
    }
    for (int64_t i = 0; i < places; i++)
        worst = fmax(worst, fabs((double)sum[i] - (double)noise[i]));
    free(room);
    if (worst < 1e-4) return HD_OK;
    return hd_json_fail(p->views, HD_ERR_ARGUMENT,
                        "do not sum to the whole: with \"combine\": \"sum\" the filters of all "
                        "views together leave a prediction as it is (low_pass and high_pass of one "
                        "sigma, motion_blur and motion_rest, half and half)");
}

static hd_status check_together(anagram *p, const hd_branches_ctx *ctx)
{
    bool filters = false;
    for (int i = 0; i < p->count; i++)
        filters |= anagram_filters(p->view[i].kind);
    if (filters && p->combine != ANAGRAM_SUM)
        return hd_json_fail(p->views, HD_ERR_ARGUMENT,
                            "has a filter, which goes with \"combine\": \"sum\" alone");
    if (p->combine == ANAGRAM_SUM) HD_TRY(check_filters(p, ctx));
    if (p->combine != ANAGRAM_MEAN && !p->rectify_given) p->rectify = ANAGRAM_AS_IS;
    if (p->combine != ANAGRAM_MEAN && (p->rectify != ANAGRAM_AS_IS || p->balance != ANAGRAM_EQUAL))
        return hd_fail(HD_ERR_ARGUMENT, "balance and rectify belong to \"combine\": \"mean\"");
    if (p->balance == ANAGRAM_CLIP)
        return hd_json_fail(hd_json_get(ctx->node, "balance"), HD_ERR_UNSUPPORTED,
                            "is \"clip\", which needs a CLIP that was trained on noisy pictures; "
                            "no model folder has one: take \"residual\"");
    if (p->balance == ANAGRAM_RESIDUAL && ctx->guidance <= 1)
        return hd_json_fail(hd_json_get(ctx->node, "balance"), HD_ERR_ARGUMENT,
                            "is \"residual\", which measures guidance, but guidance is %g",
                            (double)ctx->guidance);
    if (p->overlap == ANAGRAM_GRADIENT)
        return hd_json_fail(hd_json_get(ctx->node, "overlap"), HD_ERR_UNSUPPORTED,
                            "is \"gradient\": gradients through the network are not computed here");
    if (ctx->first_step != 0 || ctx->end_step != ctx->calls)
        return hd_fail(HD_ERR_ARGUMENT, "acts in the whole run: leave \"steps\" out");
    return HD_OK;
}

static hd_status anagram_branches(hd_branches_ctx *ctx)
{
    anagram *p = ctx->params;
    HD_TRY(hd_json_expect(p->views, HD_JSON_ARRAY));
    const int64_t views = hd_json_count(p->views);
    if (views < 1 || views > ANAGRAM_MOST)
        return hd_json_fail(p->views, HD_ERR_ARGUMENT, "holds %lld views, must be 1 to %d",
                            (long long)views, ANAGRAM_MOST);
    for (int64_t i = 0; i < views; i++)
        HD_TRY(read_view(p, ctx, hd_json_at(p->views, i)));
    p->exponent[0] = p->exponent[1] = 1;
    if (p->balance_exponent) {
        int64_t count;
        HD_TRY(hd_json_to_doubles(p->balance_exponent, 0, 100, 2, 2, p->exponent, &count));
    }
    HD_TRY(check_together(p, ctx));
    for (int i = 0; i < p->count; i++) {
        const anagram_view *v = &p->view[i];
        const hd_branch_ask ask = {.branch = v->branch,
                                   .prompt = v->prompt,
                                   .latent_of = i ? "main" : NULL,
                                   .view = {v->source, v->sign}};
        HD_TRY(hd_ask_branch(ctx, &ask));
    }
    // the predictions of all views, and what filters need
    const int64_t places = ctx->height * ctx->width;
    ctx->state_bytes =
        (size_t)((p->count + 1) * ctx->channels * places + 2 * places) * sizeof(float);
    return hd_ask_guidance(ctx, "main");
}

static void anagram_clear(void *params)
{
    anagram *p = params;
    for (int i = 0; i < p->count; i++) {
        free(p->view[i].source);
        free(p->view[i].sign);
        p->view[i].source = NULL;
        p->view[i].sign = NULL;
    }
}

/* --- a step --- */

// noise = a * prediction + b * latent at this step's level.
typedef struct noise_of {
    float a, b;
} noise_of;

static noise_of noise_here(const hd_beside_ctx *ctx)
{
    const hd_noise_level level = hd_sampler_level(ctx->sampler, ctx->step.index);
    const float one = 1, zero = 0;
    noise_of n;
    hd_sampler_noise(ctx->sampler, level, &n.a, &one, &zero, 1);
    hd_sampler_noise(ctx->sampler, level, &n.b, &zero, &one, 1);
    return n;
}

// The guided prediction of a view, brought back; how far guidance moved it into *pull.
static void guess_of(const hd_beside_ctx *ctx, const anagram_view *v, float *out, float *room,
                     double *pull)
{
    const hd_beside_branch *b = hd_beside(ctx, v->branch);
    const float *cond = b->prediction[HD_ROLE_COND], *uncond = b->prediction[HD_ROLE_UNCOND];
    const int64_t places = ctx->height * ctx->width;
    const float *guided = cond;
    *pull = 0;
    if (uncond) {
        hd_guide(room, uncond, cond, (double)b->guidance, ctx->values);
        guided = room;
        for (int64_t i = 0; i < ctx->values; i++)
            *pull += (double)(cond[i] - uncond[i]) * (double)(cond[i] - uncond[i]);
        *pull = sqrt(*pull);
    }
    anagram_undo(v, out, guided, ctx->channels, places);
    if (anagram_filters(v->kind))
        anagram_filter(v, out, ctx->channels, ctx->height, ctx->width, room);
}

static void weigh(const hd_beside_ctx *ctx, const double *pull, float *weight)
{
    const anagram *p = ctx->params;
    float similarity[ANAGRAM_MOST];
    double sum = 0;
    for (int i = 0; i < p->count; i++) {
        weight[i] = 1.0f / (float)p->count;
        sum += 1 / (pull[i] + 1e-12);
    }
    if (p->balance != ANAGRAM_RESIDUAL) return;
    for (int i = 0; i < p->count; i++)
        similarity[i] = (float)(1 / (pull[i] + 1e-12) / sum);
    anagram_balance(weight, similarity, p->count, p->exponent,
                    (double)ctx->step.index / (double)ctx->step.count);
}

static double factor_of(const hd_beside_ctx *ctx, noise_of n, float *noise, const float *weight,
                        const float *mean)
{
    const anagram *p = ctx->params;
    const float *latent = hd_beside(ctx, "main")->latent;
    double variance[ANAGRAM_MOST], product[ANAGRAM_MOST * ANAGRAM_MOST] = {0};
    float *first = noise; // predictions become noises in place
    for (int i = 0; i < p->count; i++)
        for (int64_t k = 0; k < ctx->values; k++)
            first[i * ctx->values + k] = n.a * first[i * ctx->values + k] + n.b * latent[k];
    for (int i = 0; i < p->count; i++) {
        variance[i] = anagram_variance(first + i * ctx->values, ctx->values);
        for (int j = i + 1; j < p->count && p->rectify == ANAGRAM_FORMULA; j++)
            product[i * p->count + j] =
                anagram_mean_product(first + i * ctx->values, first + j * ctx->values, ctx->values);
    }
    if (p->rectify == ANAGRAM_FORMULA) return anagram_rectify_formula(weight, product, p->count);
    float *sum = first; // no longer needed
    for (int64_t k = 0; k < ctx->values; k++)
        sum[k] = n.a * mean[k] + n.b * latent[k];
    return anagram_rectify_measured(variance, p->count, anagram_variance(sum, ctx->values));
}

// Scales the noise that the prediction stands for.
static void rectify(const hd_beside_ctx *ctx, noise_of n, double factor, float *guess)
{
    const float *latent = hd_beside(ctx, "main")->latent;
    const double back = (factor - 1) * (double)n.b / (double)n.a;
    if (factor == 1) return;
    for (int64_t k = 0; k < ctx->values; k++)
        guess[k] = (float)(factor * (double)guess[k] + back * (double)latent[k]);
}

static hd_status anagram_guide(const hd_beside_ctx *ctx)
{
    const anagram *p = ctx->params;
    float *guess = hd_beside(ctx, "main")->guess, *views = ctx->state;
    float *room = views + p->count * ctx->values, weight[ANAGRAM_MOST];
    double pull[ANAGRAM_MOST];
    for (int i = 0; i < p->count; i++)
        guess_of(ctx, &p->view[i], views + i * ctx->values, room, &pull[i]);
    if (p->combine == ANAGRAM_ALTERNATE) {
        memcpy(guess, views + ctx->step.index % p->count * ctx->values,
               (size_t)ctx->values * sizeof *guess);
        return HD_OK;
    }
    weigh(ctx, pull, weight);
    for (int64_t k = 0; k < ctx->values; k++) {
        float sum = 0;
        for (int i = 0; i < p->count; i++)
            sum += (p->combine == ANAGRAM_SUM ? 1.0f : weight[i]) * views[i * ctx->values + k];
        guess[k] = sum;
    }
    if (p->rectify == ANAGRAM_AS_IS) return HD_OK;
    const noise_of n = noise_here(ctx);
    // almost nothing of the noise depends on the prediction: nothing to be scaled by it
    if (fabsf(n.a) < 0.2f) return HD_OK;
    rectify(ctx, n, factor_of(ctx, n, views, weight, guess), guess);
    return HD_OK;
}

const hd_processor_class hd_anagram = {
    .name = "anagram",
    .summary = "One picture, several views, a prompt for each (visual anagrams).",
    .params = anagram_params,
    .params_size = sizeof(anagram),
    .clear = anagram_clear,
    .branches = anagram_branches,
    .guidance = anagram_guide,
};
