/* controls/perturbed_attention.c: guidance away from a prediction whose attention was spoilt: PAG,
 * SEG and, for chosen heads or a soft perturbation, SoftPAG.
 *
 * { "use": "perturbed_attention", "scale": 3, "sites": ["mid.** self"] }
 * { "use": "perturbed_attention", "kind": "blur_query", "sigma": "inf", "scale": 3 }
 * { "use": "perturbed_attention", "heads": ["mid.attn.0.3", "up.1.attn.0.5"], "u": 0.25 }
 *
 * Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv
 * 2403.17377; Hong, "Smoothed Energy Guidance", arXiv 2408.00760; Ahn et al., "Fine-Grained
 * Perturbation Guidance via Attention Head Selection" (HeadHunter, SoftPAG), arXiv 2506.10978.
 *
 * A row "perturbed" beside cond has the attention of some sites and heads spoilt: O becomes
 * (1 - u) O + u P, where P is what a worse map makes of the values. The guess gets
 * w (cond - perturbed) on top of classifier-free guidance, or without it. No map is made: P is the
 * own value, the mean value, or an extra pass with other queries or another scale. "branches" names
 * whose guesses ("main" if not given). Without "sites" it acts in the middle of a UNet, in block 13
 * of a transformer, or wherever "heads" says. Until the first of these sites the two rows are one.
 */
#include "controls/perturbed_attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/attention/edit.h"
#include "engine/samplers/sampler.h"

static const char *const pag_kinds[] = {"identity", "uniform",     "mean_query", "blur_query",
                                        "argmax",   "temperature", NULL};
static const char *const pag_joints[] = {"whole", "image", "image_text", NULL};
static const char *const pag_rules[] = {"linear", "quartic", NULL};

static const hd_param pag_params[] = {
    HD_PARAM_ENUM(perturbed_attention, kind, .names = pag_kinds,
                  .help =
                      "what the spoilt map is: each token sees itself alone, all alike, the map "
                      "of the mean query, of blurred queries, only the largest, or softer"),
    HD_PARAM_FLOAT(perturbed_attention, scale, .def = 3.0, .min = 0.0, .max = 100.0,
                   .help = "how far away from the spoilt prediction (5 without guidance)"),
    HD_PARAM_FLOAT(perturbed_attention, u, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "how much of the map is spoilt; 0.25 for chosen heads"),
    HD_PARAM_JSON(perturbed_attention, heads,
                  .help = "\"all\", or a list of site and head: \"mid.attn.0.3\"; \"7.12\" is head "
                          "12 of block.7"),
    HD_PARAM_FLOAT(perturbed_attention, adaptive, .def = 0.0, .min = 0.0, .max = 100.0,
                   .help = "how fast the scale falls with the timestep t"),
    HD_PARAM_ENUM(perturbed_attention, adaptive_rule, .names = pag_rules,
                  .help = "scale - adaptive (1000 - t), or scale (1 - adaptive^4 (1000 - t))"),
    HD_PARAM_ENUM(perturbed_attention, joint, .def_text = "image_text", .names = pag_joints,
                  .help = "joint attention: every token is spoilt, those of the picture, or those "
                          "but for the text that an identity goes on seeing"),
    HD_PARAM_JSON(perturbed_attention, sigma,
                  .help = "blur_query: of the Gaussian, in tokens, or \"inf\": the mean query"),
    HD_PARAM_FLOAT(perturbed_attention, tau, .def = 1.0, .min = 1e-3, .max = 1e6,
                   .help = "temperature: scores are divided by it"),
    HD_PARAM_BOOL(perturbed_attention, fork, .def = 1.0,
                  .help = "compute the row only where it differs (the result is the same)"),
    HD_PARAM_END,
};

/* --- options --- */

enum { PAG_WIDEST = 9999 }; // from there on a blur is the mean

static hd_status read_sigma(perturbed_attention *p)
{
    double sigma;
    const char *text;
    p->blur = INFINITY;
    if (!p->sigma) return HD_OK;
    if (hd_json_kind(p->sigma) == HD_JSON_STRING) {
        HD_TRY(hd_json_to_string(p->sigma, &text));
        if (strcmp(text, "inf") == 0) return HD_OK;
        return hd_json_fail(p->sigma, HD_ERR_ARGUMENT,
                            "is \"%s\", must be a number above 0 or \"inf\"", text);
    }
    HD_TRY(hd_json_to_double(p->sigma, 1e-3, INFINITY, &sigma));
    if (sigma <= PAG_WIDEST) p->blur = (float)sigma;
    return HD_OK;
}

// "mid.attn.0.3": head 3 of mid.attn.0; "7.12": head 12 of block.7.
static hd_status read_head(pag_head *out, const hd_json *node)
{
    const char *text;
    char path[HD_SITE_PATH_BYTES + 8];
    HD_TRY(hd_json_to_string(node, &text));
    const char *dot = strrchr(text, '.');
    const size_t digits = dot ? strspn(dot + 1, "0123456789") : 0;
    if (!dot || dot == text || digits == 0 || digits > 6 || dot[1 + digits] ||
        dot - text >= HD_SITE_PATH_BYTES)
        return hd_json_fail(
            node, HD_ERR_ARGUMENT,
            "is \"%.60s\", must be a site and a head: \"mid.attn.0.3\", or \"7.12\" "
            "for head 12 of block.7",
            text);
    const bool block = strspn(text, "0123456789") == (size_t)(dot - text);
    snprintf(path, sizeof path, "%s%.*s", block ? "block." : "", (int)(dot - text), text);
    out->head = strtoll(dot + 1, NULL, 10);
    hd_status status = hd_site_selector_parse(&out->site, path);
    if (status == HD_OK) return HD_OK;
    char why[512];
    snprintf(why, sizeof why, "%s", hd_message());
    return hd_json_fail(node, status, "%s", why);
}

static hd_status read_heads(perturbed_attention *p)
{
    const char *text = "";
    if (!p->heads) return HD_OK;
    if (hd_json_kind(p->heads) == HD_JSON_STRING) {
        HD_TRY(hd_json_to_string(p->heads, &text));
        if (strcmp(text, "all") == 0) return HD_OK;
    }
    if (hd_json_kind(p->heads) != HD_JSON_ARRAY)
        return hd_json_fail(p->heads, HD_ERR_ARGUMENT,
                            "must be \"all\" or a list of site and head: [\"mid.attn.0.3\"]");
    p->heads_given = true;
    const int64_t count = hd_json_count(p->heads);
    p->head = calloc((size_t)count + 1, sizeof *p->head);
    if (!p->head) return hd_fail(HD_ERR_NOMEM, "no memory for %lld heads", (long long)count);
    for (; p->head_count < count; p->head_count++)
        HD_TRY(read_head(&p->head[p->head_count], hd_json_at(p->heads, p->head_count)));
    return HD_OK;
}

static hd_status pag_check(void *params)
{
    perturbed_attention *p = params;
    HD_TRY(read_sigma(p));
    if (p->kind == PAG_BLUR_QUERY && isinf(p->blur)) p->kind = PAG_MEAN_QUERY;
    return read_heads(p);
}

static void pag_clear(void *params)
{
    perturbed_attention *p = params;
    free(p->head);
}

static bool changes_nothing(const perturbed_attention *p)
{
    return p->scale == 0.0f || p->u == 0.0f || (p->heads_given && p->head_count == 0);
}

/* --- rows and their guess --- */

float pag_scale_at(const perturbed_attention *p, double timestep)
{
    const double w = (double)p->scale, a = (double)p->adaptive, gone = 1000.0 - timestep;
    const double at = p->adaptive_rule == PAG_LINEAR ? w - a * gone : w - w * a * a * a * a * gone;
    return at > 0.0 ? (float)at : 0.0f;
}

void pag_add(float *guess, const float *cond, const float *perturbed, float w, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        guess[i] += w * (cond[i] - perturbed[i]);
}

static bool selects_branch(const hd_json *selectors, const hd_branch *branch, int number)
{
    hd_row row = {.role = "perturbed", .also = branch->also};
    memcpy(row.branch, branch->name, sizeof row.branch);
    if (!selectors) return number == 0;
    for (int64_t i = 0; i < hd_json_count(selectors); i++) {
        const char *selector;
        if (hd_json_to_string(hd_json_at(selectors, i), &selector) == HD_OK &&
            hd_row_matches(selector, &row))
            return true;
    }
    return false;
}

// Where the scale has fallen to 0 for good no row is needed any more.
static int64_t last_call(const perturbed_attention *p, const hd_branches_ctx *ctx)
{
    int64_t end = ctx->end_step;
    while (ctx->sampler && end > ctx->first_step &&
           pag_scale_at(p, (double)hd_sampler_level(ctx->sampler, end - 1).timestep) == 0.0f)
        end--;
    return end;
}

static hd_status pag_branches(hd_branches_ctx *ctx)
{
    perturbed_attention *p = ctx->params;
    const hd_json *selectors = hd_json_get(ctx->node, "branches");
    const int64_t end = last_call(p, ctx);
    if (changes_nothing(p) || end <= ctx->first_step) return HD_OK;
    for (int i = 0; i < ctx->branches->count; i++) {
        const hd_branch *b = &ctx->branches->item[i];
        if (!selects_branch(selectors, b, i)) continue;
        const hd_branch_ask ask = {.branch = b->name,
                                   .roles = HD_ROLE_BIT(HD_ROLE_PERTURBED),
                                   .first_step = ctx->first_step,
                                   .end_step = end,
                                   .no_fork = !p->fork};
        memcpy(p->branch[p->branches++], b->name, sizeof b->name);
        HD_TRY(hd_ask_branch(ctx, &ask));
    }
    if (p->branches > 0) return HD_OK;
    return hd_json_fail(selectors, HD_ERR_ARGUMENT,
                        "names no branch whose guess could be led; name branches (\"main\"), and "
                        "let processors that bring them stand before this one");
}

static hd_status pag_begin(const hd_begin_ctx *ctx)
{
    const perturbed_attention *p = ctx->params;
    for (int i = 0; i < p->branches; i++) {
        const int number = hd_branches_find(ctx->branches, p->branch[i]);
        const hd_branch *b = &ctx->branches->item[number];
        if (b->latent != number || b->not_sampled)
            return hd_fail(HD_ERR_ARGUMENT,
                           "branch \"%s\" has no guess of its own that could be led", b->name);
        if (!(b->roles & HD_ROLE_BIT(HD_ROLE_COND)))
            return hd_fail(HD_ERR_ARGUMENT,
                           "branch \"%s\" has no row \"cond\" that the perturbed one could be "
                           "compared with",
                           b->name);
    }
    return HD_OK;
}

static bool is_ours(const perturbed_attention *p, const char *branch)
{
    for (int i = 0; i < p->branches; i++)
        if (strcmp(p->branch[i], branch) == 0) return true;
    return false;
}

static hd_status pag_guidance(const hd_beside_ctx *ctx)
{
    const perturbed_attention *p = ctx->params;
    const hd_beside_branch *b = hd_beside(ctx, ctx->branch);
    const float *cond = b->prediction[HD_ROLE_COND], *worse = b->prediction[HD_ROLE_PERTURBED];
    const float w = pag_scale_at(p, ctx->step.timestep);
    if (is_ours(p, ctx->branch) && cond && worse && w > 0.0f)
        pag_add(b->guess, cond, worse, w, ctx->values);
    return HD_OK;
}

// A head that no site has is refused when all sites are known and nothing has run.
static hd_status pag_latent(const hd_beside_ctx *ctx)
{
    const perturbed_attention *p = ctx->params;
    if (ctx->when != HD_LATENT_START || changes_nothing(p)) return HD_OK;
    for (int64_t i = 0; i < p->head_count; i++)
        if (!p->head[i].met)
            return hd_json_fail(hd_json_at(p->heads, i), HD_ERR_ARGUMENT,
                                "is no head of the self or joint attention sites it acts at");
    return HD_OK;
}

static bool pag_acts_on(const void *params, const hd_row *row)
{
    const perturbed_attention *p = params;
    if (changes_nothing(p) || strcmp(row->role, hd_role_names[HD_ROLE_PERTURBED]) != 0)
        return false;
    return p->branches == 0 || is_ours(p, row->branch);
}

/* --- a site --- */

typedef struct pag_site {
    bool all;        // of its heads
    bool everything; // and every query
    int spans;
    pag_span span[HD_MAX_SEGMENTS]; // of queries that are spoilt; the key of that number is the own
    int texts;
    pag_span text[HD_MAX_PASSES]; // of keys that they go on seeing; a pass each
    size_t work;                  // bytes of scratch behind those of other queries or values
    bool head[];
} pag_site;

static bool default_site(const hd_site *site)
{
    return site->network == HD_NETWORK_DIT
               ? site->kind == HD_SITE_JOINT && hd_path_matches("block.13", site->path)
               : site->kind == HD_SITE_SELF && hd_path_matches("mid.**", site->path);
}

// Which heads of the site, and whether there are any.
static hd_status choose_heads(const perturbed_attention *p, pag_site *s, const hd_site *site,
                              int64_t heads, bool *any)
{
    int64_t chosen = 0;
    for (int64_t i = 0; i < p->head_count; i++) {
        pag_head *h = &p->head[i];
        if (!hd_site_matches(&h->site, site)) continue;
        if (h->head >= heads)
            return hd_json_fail(hd_json_at(p->heads, i), HD_ERR_ARGUMENT,
                                "is head %lld, but %s has %lld, from 0", (long long)h->head,
                                site->path, (long long)heads);
        h->met = s->head[h->head] = true;
    }
    for (int64_t h = 0; h < heads; h++) {
        s->head[h] = s->head[h] || !p->heads_given;
        chosen += s->head[h];
    }
    s->all = chosen == heads;
    *any = chosen > 0;
    return HD_OK;
}

static hd_status add_span(pag_span *list, int *count, int most, const hd_token_segment *segment)
{
    if (*count == most)
        return hd_fail(HD_ERR_UNSUPPORTED, "more than %d runs of text among its keys", most);
    list[(*count)++] = (pag_span){segment->start, segment->start + segment->count};
    return HD_OK;
}

static hd_status choose_tokens(const perturbed_attention *p, pag_site *s,
                               const hd_attention_call *call)
{
    const hd_token_layout *queries = &call->q_layout, *keys = &call->k_layout;
    bool grid = false;
    if (call->site.kind != HD_SITE_JOINT || p->joint == PAG_WHOLE) {
        s->span[s->spans++] = (pag_span){0, call->q.dim[1]};
        s->everything = true;
    }
    for (int i = 0; i < queries->segments; i++) {
        if (queries->segment[i].kind != HD_TOKENS_GRID) continue;
        grid = true;
        if (!s->everything)
            HD_TRY(add_span(s->span, &s->spans, HD_MAX_SEGMENTS, &queries->segment[i]));
    }
    if (s->spans == 0 || (p->kind == PAG_BLUR_QUERY && !grid))
        return hd_fail(HD_ERR_UNSUPPORTED, "its tokens have no grid");
    if (call->q.dim[1] > call->k.dim[1])
        return hd_fail(HD_ERR_SHAPE, "has %lld queries and %lld keys, not one of its own for each",
                       (long long)call->q.dim[1], (long long)call->k.dim[1]);
    if (s->everything || p->joint != PAG_IMAGE_TEXT || p->kind != PAG_IDENTITY) return HD_OK;
    for (int i = 0; i < keys->segments; i++)
        if (keys->segment[i].kind == HD_TOKENS_TEXT)
            HD_TRY(add_span(s->text, &s->texts, HD_MAX_PASSES, &keys->segment[i]));
    return HD_OK;
}

static void ask_passes(const perturbed_attention *p, pag_site *s, hd_prepare_ctx *ctx)
{
    const hd_attention_call *call = ctx->call;
    const hd_tensor q = call->q;
    const size_t one = (size_t)(q.dim[0] * q.dim[2]) * hd_dtype_size(q.dtype);
    ctx->passes = p->kind == PAG_IDENTITY ? s->texts : p->kind != PAG_UNIFORM;
    for (int i = 0; i < ctx->passes; i++)
        ctx->pass[i] = (hd_pass){.when = HD_PASS_AFTER};
    switch (p->kind) {
    case PAG_IDENTITY:
        for (int i = 0; i < s->texts; i++) {
            ctx->pass[i].key_len = s->text[i].end - s->text[i].start;
            ctx->pass[i].wants_lse = true;
        }
        break;
    case PAG_UNIFORM:
        s->work = one * (size_t)call->v.dim[3];
        break;
    case PAG_MEAN_QUERY:
        ctx->pass[0].query_len = 1;
        s->work = one * (size_t)q.dim[3];
        break;
    case PAG_BLUR_QUERY:
        s->work = one * (size_t)(q.dim[1] * q.dim[3]);
        ctx->scratch_bytes = (size_t)(q.dim[2] * pag_blur_room(q.dim[1], q.dim[3])) * sizeof(float);
        ctx->pass[0].like_call = true;
        break;
    default:
        ctx->pass[0].like_call = true;
    }
    s->work = (s->work + 63) & ~(size_t)63;
    ctx->scratch_bytes += s->work;
}

static hd_status pag_prepare(hd_prepare_ctx *ctx)
{
    const perturbed_attention *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const int64_t heads = call->q.dim[2];
    bool any = false;
    ctx->idle = call->site.kind == HD_SITE_CROSS ||
                (!ctx->sites_given && !p->heads_given && !default_site(&call->site));
    if (ctx->idle || changes_nothing(p)) return HD_OK;
    if (p->kind == PAG_BLUR_QUERY && call->site.network == HD_NETWORK_DIT)
        return hd_fail(HD_ERR_UNSUPPORTED, "queries are blurred before their places are rotated "
                                           "into them, which this network has done already; take "
                                           "kind \"mean_query\"");
    pag_site *s = calloc(1, sizeof *s + (size_t)heads * sizeof s->head[0]);
    if (!s) return hd_fail(HD_ERR_NOMEM, "no memory for a site");
    ctx->made = s;
    HD_TRY(choose_heads(p, s, &call->site, heads, &any));
    ctx->idle = !any;
    if (ctx->idle) return HD_OK;
    HD_TRY(choose_tokens(p, s, call));
    ask_passes(p, s, ctx);
    return HD_OK;
}

/* --- a call --- */

// The call with its tokens in their places, where another processor has merged them.
static const hd_attention_call *placed(const hd_hook_ctx *ctx)
{
    const hd_attention_call *c = ctx->call;
    const bool moved = c->k_layout.segment[0].kind != ctx->given->k_layout.segment[0].kind ||
                       c->q_layout.segments != ctx->given->q_layout.segments ||
                       c->k_layout.segment[0].frames != ctx->given->k_layout.segment[0].frames;
    return moved ? ctx->given : c;
}

static hd_tensor scratch_tokens(const hd_hook_ctx *ctx, hd_tensor like, int64_t tokens)
{
    return hd_tensor_of(ctx->scratch, like.dtype,
                        hd_shape4(like.dim[0], tokens, like.dim[2], like.dim[3]));
}

static hd_status pag_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    const perturbed_attention *p = ctx->params;
    const pag_site *s = ctx->made;
    const hd_attention_call *c = placed(ctx);
    const float most = 0x1p24f; // times a score: what is not the largest to rounding vanishes
    pass->q = c->q, pass->k = c->k, pass->v = c->v;
    if (pass->like_call && c == ctx->given) { // that is merged tokens' plan
        pass->like_call = false;
        pass->query_len = c->q.dim[1], pass->key_len = c->k.dim[1];
    }
    if (p->kind == PAG_ARGMAX) pass->scale *= most;
    if (p->kind == PAG_TEMPERATURE) pass->scale /= p->tau;
    if (p->kind == PAG_IDENTITY) {
        const pag_span text = s->text[index];
        pass->k = hd_tensor_slice(c->k, 1, text.start, text.end - text.start);
        pass->v = hd_tensor_slice(c->v, 1, text.start, text.end - text.start);
    }
    const bool mean = p->kind == PAG_MEAN_QUERY;
    if (!mean && p->kind != PAG_BLUR_QUERY) return HD_OK;
    pass->q = scratch_tokens(ctx, c->q, mean ? 1 : c->q.dim[1]);
    for (int64_t b = 0; b < c->q.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        if (mean)
            pag_mean_tokens(pass->q, c->q, b, s->span, s->spans);
        else
            HD_TRY(pag_blur_queries(ctx->ex, pass->q, c->q, &c->q_layout, b, p->blur,
                                    (float *)((char *)ctx->scratch + s->work)));
    }
    return HD_OK;
}

// One token for every token.
static hd_tensor for_all(hd_tensor t, int64_t tokens)
{
    t.dim[1] = tokens;
    t.stride[1] = 0;
    return t;
}

// What the spoilt map makes of the values of row b: [B, Lq, heads, Dv], by query.
static hd_tensor spoilt(const hd_hook_ctx *ctx, int64_t b)
{
    const perturbed_attention *p = ctx->params;
    const pag_site *s = ctx->made;
    const hd_attention_call *c = placed(ctx);
    if (p->kind == PAG_IDENTITY) return c->v;
    if (p->kind == PAG_MEAN_QUERY) return for_all(ctx->pass[0].out, c->q.dim[1]);
    if (p->kind != PAG_UNIFORM) return ctx->pass[0].out;
    hd_tensor mean = scratch_tokens(ctx, c->v, 1);
    pag_mean_tokens(mean, c->v, b, s->span, s->spans);
    return for_all(mean, c->q.dim[1]);
}

static const float *number(hd_tensor t, int64_t row, int64_t head, int64_t query)
{
    return (const float *)t.data + row * t.stride[0] + head * t.stride[1] + query * t.stride[2];
}

// A token of the picture sees itself and the text: what the passes over the text saw, and the own
// value, in one softmax.
static void mix_own_and_text(const hd_hook_ctx *ctx, hd_tensor out, int64_t b, int64_t h, int64_t i)
{
    const perturbed_attention *p = ctx->params;
    const pag_site *s = ctx->made;
    const hd_attention_call *c = placed(ctx);
    const int64_t kv = h / (c->q.dim[2] / c->k.dim[2]);
    const int64_t q = b * c->q.stride[0] + i * c->q.stride[1] + h * c->q.stride[2],
                  k = b * c->k.stride[0] + i * c->k.stride[1] + kv * c->k.stride[2],
                  v = b * c->v.stride[0] + i * c->v.stride[1] + kv * c->v.stride[2],
                  o = b * out.stride[0] + i * out.stride[1] + h * out.stride[2];
    float score[1 + HD_MAX_PASSES] = {0}, most, sum = 0;
    for (int64_t d = 0; d < c->q.dim[3]; d++)
        score[0] += hd_edit_get(c->q, q + d) * hd_edit_get(c->k, k + d);
    most = score[0] *= c->scale;
    for (int t = 0; t < s->texts; t++) {
        score[1 + t] = *number(ctx->pass[t].lse, b, h, i);
        most = fmaxf(most, score[1 + t]);
    }
    for (int t = 0; t <= s->texts; t++)
        sum += score[t] = expf(score[t] - most);
    for (int64_t d = 0; d < c->v.dim[3]; d++) {
        float x = score[0] * hd_edit_get(c->v, v + d);
        for (int t = 0; t < s->texts; t++) {
            const hd_tensor y = ctx->pass[t].out;
            x += score[1 + t] *
                 hd_edit_get(y, b * y.stride[0] + i * y.stride[1] + h * y.stride[2] + d);
        }
        const float was = p->u == 1.0f ? 0.0f : hd_edit_get(out, o + d);
        hd_edit_put(out, o + d, was + p->u * (x / sum - was));
    }
}

static void spoil(const hd_hook_ctx *ctx, hd_tensor out, hd_tensor to, int64_t b, int64_t h)
{
    const perturbed_attention *p = ctx->params;
    const pag_site *s = ctx->made;
    const int64_t group = out.dim[2] / to.dim[2];
    const hd_tensor from = hd_tensor_slice(to, 2, h / group, 1),
                    into = hd_tensor_slice(out, 2, h, 1);
    for (int i = 0; i < s->spans; i++) {
        const pag_span span = s->span[i];
        const int64_t tokens = span.end - span.start;
        if (s->texts == 0)
            hd_edit_mix(hd_tensor_slice(into, 1, span.start, tokens), b,
                        hd_tensor_slice(from, 1, span.start, tokens), b, tokens, p->u, NULL);
        for (int64_t t = span.start; t < span.end && s->texts > 0; t++)
            mix_own_and_text(ctx, out, b, h, t);
    }
}

static hd_status pag_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const pag_site *s = ctx->made;
    for (int64_t b = 0; b < output->out.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        const hd_tensor to = spoilt(ctx, b);
        for (int64_t h = 0; h < output->out.dim[2]; h++)
            if (s->head[h]) spoil(ctx, output->out, to, b, h);
    }
    return HD_OK;
}

static bool pag_replaces(const hd_hook_ctx *ctx, int64_t row)
{
    const perturbed_attention *p = ctx->params;
    const pag_site *s = ctx->made;
    (void)row;
    return p->u == 1.0f && s->all && s->everything;
}

const hd_processor_class hd_perturbed_attention = {
    .name = "perturbed_attention",
    .summary = "Guidance away from a prediction with spoilt attention (PAG, SEG, SoftPAG).",
    .params = pag_params,
    .params_size = sizeof(perturbed_attention),
    .check = pag_check,
    .clear = pag_clear,
    .branches = pag_branches,
    .begin = pag_begin,
    .latent = pag_latent,
    .guidance = pag_guidance,
    .acts_on = pag_acts_on,
    .prepare = pag_prepare,
    .pass = pag_pass,
    .output = pag_output,
    .replaces = pag_replaces,
    .release = free,
};
