/* controls/masked_reference.c: a reference is looked at inside of boxes, or one picture of a series
 * by all of them.
 *
 * { "use": "masked_reference", "mode": "kv", "image": "cat.png", "caption": "a cat",
 *   "boxes": [8, 16, 40, 56], "lambda_mask": 0.75 }
 *
 * "kv": the training-free form of masked reference attention (Wei et al., "DreamVideo-2", arXiv
 * 2410.13830, section 4.1): keys and values of the branch reference.0 (a picture at the step's
 * noise, or a branch of the preset) stand behind those of each row that draws; a query sees them
 * with weight ref_weight * (M + lambda (1 - M)), where M is 1 inside its frame's box, a key with
 * the weight of ref_mask. Mask of the queries and mask of the keys multiply. What the paper trains,
 * an attention with weights of its own ("adapter"), needs weights nobody has published: refused.
 *
 * "ref_frame": Ref-KV (Cao et al., "MVInpainter", arXiv 2408.08000, section 3.2): each picture of a
 * series sees the keys of the frames in ref_frames. Frames are branches drawn beside each other:
 * main is frame 0, target.N frame N; each role sees its own. A frame that would see only itself
 * again is left as it is: keys that are all doubled change nothing. */
#include "controls/masked_reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"

static const char *const masked_modes[] = {"kv", "ref_frame", "adapter", NULL};
static const char *const masked_resizes[] = {"nearest", "area", NULL};
static const char *const masked_noises[] = {"same_step", "clean", NULL};

static const hd_param masked_params[] = {
    HD_PARAM_ENUM(masked_reference, mode, .names = masked_modes,
                  .help =
                      "kv: a reference seen inside the boxes; ref_frame: one frame seen by all; "
                      "adapter: needs weights that are not published"),
    HD_PARAM_STRING(masked_reference, image,
                    .help = "kv: PNG of the reference; without it the "
                            "branch reference.0 of the preset"),
    HD_PARAM_STRING(masked_reference, caption, .help = "kv: its own prompt (the run's)"),
    HD_PARAM_STRING(masked_reference, ref_mask,
                    .help = "PNG that is white where the reference is looked at"),
    HD_PARAM_JSON(masked_reference, boxes,
                  .help = "kv: [left, top, right, bottom] in pixels; a list of them, one a frame; "
                          "or key frames {\"frame\": 0, \"box\": [...]}"),
    HD_PARAM_FLOAT(masked_reference, lambda_mask, .def = 0.75, .min = 0.0, .max = 1.0,
                   .help = "what the reference weighs outside the boxes"),
    HD_PARAM_ENUM(masked_reference, mask_resize, .names = masked_resizes,
                  .help = "of the boxes to the size of a site"),
    HD_PARAM_INT(masked_reference, frame_group, .def = 4, .min = 1, .max = 64,
                 .help = "frames of a video that a frame of its latent stands for"),
    HD_PARAM_ENUM(masked_reference, ref_noise, .names = masked_noises,
                  .help = "kv: of the picture: the step's, or none"),
    HD_PARAM_JSON(masked_reference, ref_frames,
                  .help = "ref_frame: the frames that are seen, by number ([0])"),
    HD_PARAM_FLOAT(masked_reference, ref_weight, .def = 1.0, .min = 0.0, .max = 1000.0,
                   .help = "what the keys that are seen weigh"),
    HD_PARAM_END,
};

/* --- before step 0 --- */

static hd_status read_frames(masked_reference *p)
{
    p->frame_count = 1;
    if (!p->ref_frames) return HD_OK;
    HD_TRY(hd_json_to_ints(p->ref_frames, 0, HD_MAX_BRANCHES - 1, 1, MASKED_MOST_FRAMES, p->frame,
                           &p->frame_count));
    for (int64_t i = 0; i < p->frame_count; i++)
        for (int64_t j = 0; j < i; j++)
            if (p->frame[i] == p->frame[j])
                return hd_json_fail(p->ref_frames, HD_ERR_ARGUMENT, "names frame %lld twice",
                                    (long long)p->frame[i]);
    return HD_OK;
}

static hd_status masked_check(void *params)
{
    masked_reference *p = params;
    if (p->mode == MASKED_ADAPTER)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "mode \"adapter\" needs an attention with trained weights, which are not "
                       "published; \"kv\" does without");
    if (p->boxes && p->mode != MASKED_KV)
        return hd_json_fail(p->boxes, HD_ERR_ARGUMENT, "goes with mode \"kv\" only");
    if (p->ref_frames && p->mode != MASKED_REF_FRAME)
        return hd_json_fail(p->ref_frames, HD_ERR_ARGUMENT, "goes with mode \"ref_frame\" only");
    if ((p->image || p->caption) && p->mode != MASKED_KV)
        return hd_fail(HD_ERR_ARGUMENT,
                       "\"%s\" goes with mode \"kv\" only: frames are branches of "
                       "the preset",
                       p->image ? "image" : "caption");
    HD_TRY(read_frames(p));
    return masked_read_boxes(p);
}

static void frame_name(char name[24], int64_t frame)
{
    if (frame == 0)
        strcpy(name, "main");
    else
        snprintf(name, 24, "target.%d", (int)frame);
}

static hd_status ask_frames(const masked_reference *p, const hd_branches_ctx *ctx)
{
    bool other = false;
    for (int i = 0; i < ctx->branches->count; i++)
        other |= reference_is_target(ctx->branches->item[i].name) && i > 0;
    if (!other)
        return hd_fail(HD_ERR_ARGUMENT, "mode \"ref_frame\" is for a series of pictures: main is "
                                        "frame 0; give \"branches\" a \"target.1\" and so on");
    for (int64_t i = 0; i < p->frame_count; i++) {
        char name[24];
        frame_name(name, p->frame[i]);
        if (hd_branches_find(ctx->branches, name) >= 0) continue;
        return hd_json_fail(p->ref_frames, HD_ERR_ARGUMENT,
                            "names frame %lld, but there is no branch \"%s\"",
                            (long long)p->frame[i], name);
    }
    return HD_OK;
}

static hd_status masked_branches(hd_branches_ctx *ctx)
{
    masked_reference *p = ctx->params;
    if (p->mode == MASKED_REF_FRAME) return ask_frames(p, ctx);
    const int found = hd_branches_find(ctx->branches, "reference.0");
    const hd_branch *given = found < 0 ? NULL : &ctx->branches->item[found];
    if (!p->image && !given)
        return hd_fail(HD_ERR_ARGUMENT, "has no \"image\", and \"branches\" has no \"reference.0\" "
                                        "to draw instead");
    p->has_picture = (p->image || given->init_image) && !(given && given->invert);
    if (!p->has_picture && p->ref_noise == MASKED_CLEAN)
        return hd_fail(HD_ERR_ARGUMENT, "\"ref_noise\": \"clean\" is for a picture: the branch "
                                        "reference.0 is sampled beside");
    hd_branch_ask ask = {.branch = "reference.0",
                         .first_step = ctx->first_step,
                         .end_step = ctx->end_step,
                         .prompt = p->caption,
                         .init_image = p->image};
    if (p->has_picture) {
        ask.roles = HD_ROLES_ASKED | HD_ROLE_BIT(HD_ROLE_COND);
        ask.not_sampled = true;
    }
    return hd_ask_branch(ctx, &ask);
}

static hd_status masked_begin(const hd_begin_ctx *ctx)
{
    masked_reference *p = ctx->params;
    p->height = ctx->height, p->width = ctx->width, p->factor = ctx->factor;
    HD_TRY(masked_check_boxes(p));
    const char *branch = p->mode == MASKED_KV ? "reference.0" : "main";
    return reference_picture_open(&p->picture, ctx, branch, p->ref_mask,
                                  hd_json_get(ctx->node, "ref_mask"));
}

static void masked_clear(void *params)
{
    free(((masked_reference *)params)->picture.mask);
}

static hd_status masked_latent(const hd_beside_ctx *ctx)
{
    const masked_reference *p = ctx->params;
    if (ctx->when != HD_LATENT_BEFORE_CALL || !p->has_picture) return HD_OK;
    hd_noise_level level = hd_sampler_level(ctx->sampler, ctx->step.index);
    if (p->ref_noise == MASKED_CLEAN) level = (hd_noise_level){0.0f, 1.0f, 0.0f, 1.0f};
    return reference_add_noise(ctx, "reference.0", level, 0, false);
}

/* --- inside a call --- */

// What is known of a site before step 0.
typedef struct masked_site {
    reference_columns columns;
    int64_t labels;  // different weights of the queries
    float bias[256]; // ln of each
    uint8_t *label;  // [queries]
} masked_site;

// Where in a row the keys that are seen begin; -1: it sees none.
typedef struct masked_rows {
    int64_t start[HD_MAX_ROWS];
} masked_rows;

static void release_site(void *made)
{
    masked_site *s = made;
    reference_columns_free(&s->columns);
    free(s->label);
    free(s);
}

// Queries that see the reference alike have one label.
static hd_status label_queries(const masked_reference *p, masked_site *s,
                               const hd_token_segment *grid, int64_t queries)
{
    float *inside = malloc((size_t)grid->count * sizeof *inside);
    s->label = calloc((size_t)queries, 1);
    hd_status status = s->label && inside
                           ? masked_inside(p, inside, grid->frames, grid->height, grid->width)
                           : hd_fail(HD_ERR_NOMEM, "masked_reference: no memory for a site");
    for (int64_t i = 0; i < grid->count && status == HD_OK; i++) {
        const float bias = logf(masked_weight(p->lambda_mask, inside[i]));
        int64_t n = 0;
        while (n < s->labels && s->bias[n] != bias)
            n++;
        if (n == (int64_t)HD_COUNT(s->bias))
            status = hd_fail(HD_ERR_UNSUPPORTED,
                             "the boxes cut this site's places into more than %d kinds; "
                             "\"mask_resize\": \"nearest\" has two",
                             (int)HD_COUNT(s->bias));
        else if (n == s->labels)
            s->bias[s->labels++] = bias;
        s->label[grid->start + i] = (uint8_t)n;
    }
    free(inside);
    return status;
}

static hd_status masked_prepare(hd_prepare_ctx *ctx)
{
    const masked_reference *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const hd_token_segment *keys = reference_grid(&call->k_layout),
                           *queries = reference_grid(&call->q_layout);
    ctx->query_labels = 1, ctx->key_labels = 2;
    ctx->idle = call->site.kind != HD_SITE_SELF || !keys || !queries;
    if (ctx->idle) return HD_OK;
    masked_site *s = calloc(1, sizeof *s);
    if (!s) return hd_fail(HD_ERR_NOMEM, "masked_reference: no memory for a site");
    const reference_picture *picture = &p->picture;
    const hd_token_segment its = reference_picture_grid(picture, &call->site, keys);
    reference_picture_keep(ctx, picture, "reference.0", &its);
    hd_status status = reference_columns_make(&s->columns, &its, p->ref_weight, picture->mask,
                                              picture->height, picture->width, REFERENCE_AREA);
    if (status == HD_OK && p->box_count > 0) status = label_queries(p, s, queries, call->q.dim[1]);
    if (status != HD_OK) {
        release_site(s);
        return status;
    }
    ctx->made = s;
    ctx->query_labels = s->labels ? s->labels : 1;
    ctx->extra_keys = s->columns.count * (p->mode == MASKED_KV ? 1 : p->frame_count);
    ctx->scratch_bytes = sizeof(masked_rows);
    return HD_OK;
}

// The frames whose keys a row of frame `own` sees. All of the one picture's own would only be
// doubled.
static bool sees_itself_only(const masked_reference *p, const char *own)
{
    char name[24];
    frame_name(name, p->frame[0]);
    return p->frame_count == 1 && !p->picture.mask && strcmp(name, own) == 0;
}

static hd_status masked_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const masked_reference *p = ctx->params;
    const masked_site *site = ctx->made;
    masked_rows *mine = ctx->scratch;
    const hd_rows *rows = &ctx->call->forward->rows;
    for (int64_t b = 0; b < rows->count; b++) {
        const hd_row *row = &rows->row[b];
        mine->start[b] = -1;
        if (!ctx->active[b] || !reference_is_target(row->branch) || strcmp(row->role, "noref") == 0)
            continue;
        const int64_t first = tokens->key_len[b];
        if (p->mode == MASKED_KV) {
            hd_tensor k, v;
            const int64_t source = reference_find(ctx, tokens, "reference.0", row->picture, &k, &v);
            if (source < 0)
                return hd_fail(HD_ERR_INTERNAL, "masked_reference: the reference has no row");
            reference_append(tokens, b, &site->columns, k, v, source);
        }
        for (int64_t i = 0; p->mode == MASKED_REF_FRAME && i < p->frame_count; i++) {
            char name[24];
            frame_name(name, p->frame[i]);
            const bool worse = strcmp(row->role, "perturbed") == 0; // as cond, of all frames
            const int64_t source =
                hd_rows_find(rows, name, worse ? "cond" : row->role, row->picture);
            // a frame that has no such row (it is not guided) has nothing to show to it
            if (source < 0 || sees_itself_only(p, row->branch)) continue;
            reference_append(tokens, b, &site->columns, tokens->k, tokens->v, source);
        }
        if (tokens->key_len[b] > first) mine->start[b] = first;
    }
    return HD_OK;
}

static void label_row(const masked_site *site, const hd_sdpa_segments_edit *s, int64_t row,
                      int64_t queries, int64_t keys, int64_t start, int64_t seen)
{
    memcpy(s->query_label + row * queries, site->label, (size_t)queries);
    memset(s->key_label + row * keys + start, 1, (size_t)seen);
    for (int64_t n = 0; n < site->labels; n++)
        s->bias[(row * s->query_labels + n) * s->key_labels + 1] = site->bias[n];
}

static hd_status masked_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const masked_reference *p = ctx->params;
    const masked_site *site = ctx->made;
    const masked_rows *mine = ctx->scratch;
    for (int64_t b = 0; b < logits->rows; b++) {
        if (mine->start[b] < 0) continue;
        const int64_t frames = p->mode == MASKED_KV ? 1 : p->frame_count;
        for (int64_t i = 0; i < frames; i++)
            reference_bias(logits, b, mine->start[b] + i * site->columns.count, &site->columns);
        if (site->label)
            label_row(site, logits->segments, b, logits->queries, logits->keys, mine->start[b],
                      site->columns.count);
    }
    return HD_OK;
}

const hd_processor_class hd_masked_reference = {
    .name = "masked_reference",
    .summary = "Look at a reference inside of boxes, or at one picture of a series (Ref-KV).",
    .params = masked_params,
    .params_size = sizeof(masked_reference),
    .edits = HD_ADDS_COLUMN_BIAS | HD_ADDS_SEGMENTS,
    .check = masked_check,
    .clear = masked_clear,
    .branches = masked_branches,
    .begin = masked_begin,
    .latent = masked_latent,
    .prepare = masked_prepare,
    .tokens = masked_tokens,
    .logits = masked_logits,
    .release = release_site,
};
