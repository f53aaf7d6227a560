/* controls/localized_subjects.c: several subjects, each in its place: the words of a subject are
 * seen inside its region, and learned words come into the prompt when the layout stands.
 *
 * { "use": "localized_subjects", "subjects": [
 *     { "words": "<cat> cat", "plain": "cat", "region": [0, 0.2, 0.5, 1] },
 *     { "words": "dog", "region": "dog-mask.png" } ], "alpha": 0.7, "outside": 0.01 }
 *
 * Delayed subjects: FastComposer (Xiao et al., arXiv 2305.10431), whose inference has no masks: for
 * the first (1 - alpha) of the calls the cond row reads the prompt with the plain words. Regions
 * (boxes, PNGs, or read from the attention as AttenCraft does, arXiv 2405.17965) add
 * ln max(outside, region) to the scores of the subject's columns: training-free, ours. Columns of
 * other words, begin, end and padding stay as they are. "reference": n ties the keys that the n-th
 * appending processor before this one puts behind the picture's own to the same region.
 *
 * Without "sites" regions act at cross attention 2 and 4 times below the latent and at joint
 * attention. Needs segments of the scores, so a second class with segments is refused; regions with
 * more than 200 different values at a site are rounded. */
#include "controls/localized_subjects.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "controls/reference.h"
#include "engine/attention/edit.h"

static const char *const localized_hows[] = {"given", "off", "boxes", "masks", "probe", NULL};
static const char *const localized_eos[] = {"off", "same_as_first", NULL};

static const hd_param localized_params[] = {
    HD_PARAM_JSON(localized, subjects, .required = true,
                  .help = "list of {words, plain, region, reference}: words of the prompt; what it "
                          "says instead in the first steps; [left, top, right, bottom] from 0 to 1 "
                          "or a PNG; number of its appended keys"),
    HD_PARAM_FLOAT(localized, alpha, .def = 0.7, .min = 0.0, .max = 1.0,
                   .help = "share of the run, at its end, that reads the words and not the plain "
                           "ones"),
    HD_PARAM_BOOL(localized, compat_inclusive,
                  .help = "the published pipeline's count of those steps, one more"),
    HD_PARAM_ENUM(localized, localize, .names = localized_hows,
                  .help = "regions: those given, of one kind, or read from the attention"),
    HD_PARAM_FLOAT(localized, outside, .def = 0.01, .min = 0.0, .max = 1.0,
                   .help = "weight of a subject's words outside its region; 0: none"),
    HD_PARAM_FLOAT(localized, gain_inside, .def = 1.0, .min = 1.0, .max = 1000.0,
                   .help = "their weight inside"),
    HD_PARAM_JSON(localized, localize_steps,
                  .help = "part of the run in which regions act: [0, 0.8] when not given"),
    HD_PARAM_JSON(localized, probe,
                  .help = "how regions are read: {\"step\": 0.25, \"cross_factor\": 4, "
                          "\"self_factor\": 2, \"power\": 4, \"margin\": 0.1}"),
    HD_PARAM_ENUM(localized, mask_eos, .names = localized_eos,
                  .help =
                      "end and padding, which also speak of subjects: as the first one's words"),
    HD_PARAM_BOOL(localized, bidirectional,
                  .help =
                      "joint attention: a subject's words do not see outside its region either"),
    HD_PARAM_END,
};

/* --- before step 0 --- */

int64_t localized_plain_calls(double alpha, int64_t calls, bool inclusive)
{
    const double until = (1.0 - alpha) * (double)calls;
    const int64_t plain = inclusive ? (int64_t)floor(until) + 1 : (int64_t)llround(until);
    return plain < calls ? plain : calls;
}

static hd_status localized_branches(hd_branches_ctx *ctx)
{
    localized *p = ctx->params;
    HD_TRY(localized_read_options(p, ctx));
    if (p->localize == LOCALIZED_PROBE) ctx->state_bytes = localized_state_bytes(p);
    if (!p->plain_prompt) return HD_OK;
    const hd_text text = {.prompt = p->plain_prompt};
    return hd_ask_text(ctx, &text, &p->plain_text);
}

static hd_status localized_begin(const hd_begin_ctx *ctx)
{
    localized *p = ctx->params;
    HD_TRY(localized_read_words(p, ctx));
    return localized_read_regions(p, ctx);
}

static void localized_clear(void *params)
{
    localized *p = params;
    for (int64_t i = 0; i < LOCALIZED_MOST_SUBJECTS; i++)
        free(p->subject[i].map);
    free(p->group[0]);
    free(p->group[1]);
    free(p->plain_prompt);
    memset(p->subject, 0, sizeof p->subject);
    p->group[0] = p->group[1] = NULL;
    p->plain_prompt = NULL;
}

/* --- regions at a site --- */

// The labels of the places of one site; value and label lie behind it.
typedef struct site_regions {
    int64_t places, labels;
    float *value;   // [LOCALIZED_MOST_LABELS, subjects]
    uint8_t *label; // [places]
    float *resized; // [subjects, places]
} site_regions;

static size_t regions_bytes(const localized *p, int64_t places)
{
    const size_t floats = (size_t)(p->count * (LOCALIZED_MOST_LABELS + places));
    return sizeof(site_regions) + floats * sizeof(float) + (size_t)places;
}

static site_regions *regions_in(void *memory, const localized *p, int64_t places)
{
    site_regions *r = memory;
    r->places = places;
    r->value = (float *)(r + 1);
    r->resized = r->value + p->count * LOCALIZED_MOST_LABELS;
    r->label = (uint8_t *)(r->resized + p->count * places);
    return r;
}

static int64_t try_labels(uint8_t *label, float *value, int64_t most, const float *maps,
                          int64_t count, int64_t places, float levels)
{
    int64_t labels = 0;
    for (int64_t t = 0; t < places; t++) {
        float here[LOCALIZED_MOST_SUBJECTS];
        for (int64_t i = 0; i < count; i++) {
            const float v = maps[i * places + t];
            here[i] = levels > 0 ? roundf(v * levels) / levels : v;
        }
        int64_t found = 0;
        while (found < labels &&
               memcmp(value + found * count, here, (size_t)count * sizeof *here) != 0)
            found++;
        if (found == most) return -1;
        if (found == labels) memcpy(value + labels++ * count, here, (size_t)count * sizeof *here);
        label[t] = (uint8_t)found;
    }
    return labels;
}

int64_t localized_label(uint8_t *label, float *value, int64_t most, const float *maps,
                        int64_t count, int64_t places)
{
    int64_t labels = try_labels(label, value, most, maps, count, places, 0.0f);
    for (int levels = 255; labels < 0; levels /= 2)
        labels = try_labels(label, value, most, maps, count, places, (float)levels);
    return labels;
}

static void label_site(site_regions *r, const localized *p, const hd_token_segment *grid,
                       const float *const *map, int64_t height, int64_t width)
{
    const int64_t places = grid->height * grid->width;
    for (int64_t i = 0; i < p->count; i++)
        reference_resize_mask(r->resized + i * places, grid->height, grid->width, map[i], height,
                              width, REFERENCE_AREA);
    r->labels =
        localized_label(r->label, r->value, LOCALIZED_MOST_LABELS, r->resized, p->count, places);
}

float localized_bias(const localized *p, float value)
{
    const float inside = value * logf(p->gain_inside);
    return logf(value > p->outside ? value : p->outside) + inside;
}

static bool has_reference(const localized *p, const hd_token_layout *keys)
{
    int64_t appended = 0;
    bool any = false;
    for (int s = 0; s < keys->segments; s++) {
        if (keys->segment[s].kind != HD_TOKENS_REFERENCE) continue;
        for (int64_t i = 0; i < p->count; i++)
            any |= p->subject[i].reference == appended;
        appended++;
    }
    return any;
}

static bool localizes(const localized *p, const hd_prepare_ctx *ctx)
{
    const hd_site *site = &ctx->call->site;
    if (p->localize == LOCALIZED_OFF || p->first == p->end) return false;
    if (site->kind == HD_SITE_SELF) return has_reference(p, &ctx->call->k_layout);
    if (site->kind == HD_SITE_TEMPORAL) return false;
    return ctx->sites_given || site->kind == HD_SITE_JOINT || site->factor == 2 ||
           site->factor == 4;
}

static hd_status prepare_regions(const localized *p, hd_prepare_ctx *ctx)
{
    const hd_token_segment *grid = reference_grid(&ctx->call->q_layout);
    if (!grid)
        return hd_fail(HD_ERR_UNSUPPORTED, "its queries are no picture that regions could lie in");
    const int64_t places = grid->height * grid->width;
    int64_t labels = LOCALIZED_MOST_LABELS;
    if (p->localize == LOCALIZED_PROBE) {
        ctx->scratch_bytes = regions_bytes(p, places);
    } else {
        const float *map[LOCALIZED_MOST_SUBJECTS];
        for (int64_t i = 0; i < p->count; i++)
            map[i] = p->subject[i].map;
        ctx->made = calloc(1, regions_bytes(p, places));
        if (!ctx->made) return hd_fail(HD_ERR_NOMEM, "localized_subjects: no memory for regions");
        site_regions *r = regions_in(ctx->made, p, places);
        label_site(r, p, grid, map, p->height, p->width);
        labels = r->labels;
    }
    const bool both = p->bidirectional && ctx->call->site.kind == HD_SITE_JOINT;
    ctx->query_labels = p->count + 1 + labels;
    ctx->key_labels = p->count + 1 + (both ? labels : 0);
    return HD_OK;
}

static hd_status localized_prepare(hd_prepare_ctx *ctx)
{
    const localized *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const bool here = localizes(p, ctx), reads = localized_reads(p, &call->site, -1);
    const bool text = call->site.kind == HD_SITE_CROSS || call->site.kind == HD_SITE_JOINT;
    ctx->idle = !here && !reads && !text;
    ctx->query_labels = ctx->key_labels = 1;
    if (ctx->idle) return HD_OK;
    ctx->indicators = reads ? p->count : 0;
    if (text && p->plain_calls > 0 && !ctx->texts)
        return hd_fail(HD_ERR_UNSUPPORTED, "the network keeps no keys of its text here, so that "
                                           "\"plain\" words cannot take the words' place");
    return here ? prepare_regions(p, ctx) : HD_OK;
}

/* --- inside a call --- */

// Rows that read the prompt of main.
static bool is_subject_row(const hd_hook_ctx *ctx, int64_t row)
{
    const hd_row *r = &ctx->call->forward->rows.row[row];
    return ctx->active[row] && strcmp(r->branch, "main") == 0 &&
           strcmp(r->role, hd_role_names[HD_ROLE_UNCOND]) != 0;
}

static hd_status localized_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const localized *p = ctx->params;
    if (ctx->call->site.kind != HD_SITE_CROSS || ctx->call->forward->step.index >= p->plain_calls)
        return HD_OK;
    for (int64_t row = 0; row < tokens->k.dim[0]; row++) {
        hd_tensor k, v;
        if (!is_subject_row(ctx, row)) continue;
        hd_hook_text(ctx, p->plain_text, &k, &v);
        hd_edit_copy(tokens->k, row, k, 0, k.dim[1]);
        hd_edit_copy(tokens->v, row, v, 0, v.dim[1]);
    }
    return HD_OK;
}

// Labels of queries or keys: 0 others, i + 1 subject i's words or reference, then the places.
static void put_labels(const localized *p, uint8_t *to, const hd_token_layout *layout,
                       const site_regions *places, const uint8_t *group)
{
    int64_t appended = 0;
    for (int s = 0; s < layout->segments; s++) {
        const hd_token_segment *is = &layout->segment[s];
        for (int64_t t = 0; t < is->count && is->kind == HD_TOKENS_GRID && places; t++)
            to[is->start + t] = (uint8_t)(p->count + 1 + places->label[t % places->places]);
        for (int64_t t = 0; t < is->count && is->kind == HD_TOKENS_TEXT && group; t++)
            to[is->start + t] = t < p->columns ? group[t] : 0;
        if (is->kind != HD_TOKENS_REFERENCE) continue;
        for (int64_t i = 0; i < p->count; i++)
            if (p->subject[i].reference == appended)
                memset(to + is->start, (int)(i + 1), (size_t)is->count);
        appended++;
    }
}

static void localize_row(const hd_hook_ctx *ctx, hd_logits *logits, int64_t row,
                         const site_regions *r)
{
    const localized *p = ctx->params;
    const hd_sdpa_segments_edit *s = logits->segments;
    const bool joint = ctx->call->site.kind == HD_SITE_JOINT, both = joint && p->bidirectional;
    const uint8_t *group = p->group[ctx->call->forward->step.index < p->plain_calls];
    put_labels(p, s->query_label + row * logits->queries, &ctx->call->q_layout, r,
               both ? group : NULL);
    put_labels(p, s->key_label + row * logits->keys, &ctx->call->k_layout, both ? r : NULL, group);
    float *bias = s->bias + row * s->query_labels * s->key_labels;
    for (int64_t l = 0; l < r->labels; l++)
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t place = p->count + 1 + l;
            bias[place * s->key_labels + i + 1] = localized_bias(p, r->value[l * p->count + i]);
            if (both)
                bias[(i + 1) * s->key_labels + place] =
                    localized_bias(p, r->value[l * p->count + i]);
        }
}

// The regions at this call's site; NULL: they are not known yet.
static const site_regions *regions_of(const hd_hook_ctx *ctx, int64_t row)
{
    const localized *p = ctx->params;
    const float *map[LOCALIZED_MOST_SUBJECTS];
    int64_t h, w;
    if (p->localize != LOCALIZED_PROBE) return ctx->made;
    const float *maps = localized_regions(p, ctx->picture_state[row]);
    if (!maps) return NULL;
    localized_region_size(p, &h, &w);
    for (int64_t i = 0; i < p->count; i++)
        map[i] = maps + i * h * w;
    const hd_token_segment *grid = reference_grid(&ctx->call->q_layout);
    site_regions *r = regions_in(ctx->scratch, p, grid->height * grid->width);
    label_site(r, p, grid, map, h, w);
    return r;
}

static hd_status localized_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const localized *p = ctx->params;
    const int64_t step = ctx->call->forward->step.index;
    if (step < p->first || step >= p->end || (!ctx->made && !ctx->scratch)) return HD_OK;
    for (int64_t row = 0; row < logits->rows; row++) {
        if (!is_subject_row(ctx, row)) continue;
        const site_regions *r = regions_of(ctx, row);
        if (r) localize_row(ctx, logits, row, r);
    }
    return HD_OK;
}

const hd_processor_class hd_localized_subjects = {
    .name = "localized_subjects",
    .summary = "Several subjects, each in its place; learned words when the layout stands.",
    .params = localized_params,
    .params_size = sizeof(localized),
    .edits = HD_EDITS_K | HD_EDITS_V | HD_ADDS_SEGMENTS,
    .clear = localized_clear,
    .branches = localized_branches,
    .begin = localized_begin,
    .prepare = localized_prepare,
    .release = free,
    .tokens = localized_tokens,
    .logits = localized_logits,
    .probe = localized_probe_hook,
    .output = localized_output,
    .latent = localized_latent,
    .rows_alike = true,
};
