/* engine/attention/beside_run.c: see beside_run.h. */
#include "engine/attention/beside_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/run_internal.h"

struct hd_beside_run {
    hd_attention_run *run;
    int64_t pictures;
};

hd_status hd_beside_run_create(hd_beside_run **out, hd_attention_run *run)
{
    hd_beside_run *b = calloc(1, sizeof *b);
    if (!b) return hd_fail(HD_ERR_NOMEM, "processors: no memory for the run");
    b->run = run;
    *out = b;
    return HD_OK;
}

void hd_beside_run_free(hd_beside_run *b)
{
    free(b); // the states are the attention run's
}

hd_status hd_run_place(const run_processor *p, hd_status status)
{
    if (status == HD_OK || status == HD_ERR_CANCELLED) return status;
    char why[1024];
    const char *file = hd_json_name(p->node);
    snprintf(why, sizeof why, "%s", hd_message());
    if (strncmp(why, file, strlen(file)) == 0 && why[strlen(file)] == ':') return status;
    return hd_json_fail(p->node, status, "(%s) %s", p->class->name, why);
}

hd_status hd_beside_run_ask(hd_beside_run *b, hd_branches_ctx *ctx)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        run_processor *p = &b->run->processor[i];
        if (!p->class->branches) continue;
        ctx->params = p->params;
        ctx->node = p->node;
        ctx->first_step = p->first_step;
        ctx->end_step = p->end_step;
        ctx->processor = (int)i;
        ctx->state_bytes = 0;
        HD_TRY(hd_run_place(p, p->class->branches(ctx)));
        p->picture_bytes = ctx->state_bytes;
    }
    return HD_OK;
}

hd_status hd_beside_run_room(hd_beside_run *b, int64_t pictures)
{
    b->pictures = pictures;
    for (int64_t i = 0; i < b->run->processors; i++) {
        run_processor *p = &b->run->processor[i];
        if (p->picture_bytes == 0) continue;
        p->picture_bytes = (p->picture_bytes + 63) & ~(size_t)63;
        p->picture_state = calloc((size_t)pictures, p->picture_bytes);
        if (!p->picture_state)
            return hd_fail(HD_ERR_NOMEM, "processors: no memory for the state of %s (%zu bytes)",
                           p->class->name, p->picture_bytes);
    }
    return HD_OK;
}

hd_status hd_beside_run_begin(hd_beside_run *b, hd_begin_ctx *ctx)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        run_processor *p = &b->run->processor[i];
        if (!p->class->begin) continue;
        ctx->params = p->params;
        ctx->state_bytes = &p->picture_bytes;
        ctx->node = p->node;
        ctx->first_step = p->first_step;
        ctx->end_step = p->end_step;
        HD_TRY(hd_run_place(p, p->class->begin(ctx)));
    }
    return HD_OK;
}

void hd_beside_run_restart(hd_beside_run *b)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        if (p->picture_state) memset(p->picture_state, 0, p->picture_bytes * (size_t)b->pictures);
    }
}

static bool acts(const run_processor *p, int64_t step)
{
    return step >= p->first_step && step < p->end_step;
}

bool hd_beside_run_wants_x0(const hd_beside_run *b, int64_t step)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        if (p->class->x0 && acts(p, step)) return true;
    }
    return false;
}

typedef hd_status (*beside_hook)(const hd_beside_ctx *ctx);

static void point(const hd_beside_run *b, hd_beside_ctx *ctx, int64_t i)
{
    const run_processor *p = &b->run->processor[i];
    ctx->params = p->params;
    ctx->run = b->run;
    ctx->processor = (int)i;
    ctx->state = hd_run_picture_state(p, ctx->picture);
}

static hd_status call(const hd_beside_run *b, hd_beside_ctx *ctx, int64_t i, beside_hook hook)
{
    point(b, ctx, i);
    return hd_run_place(&b->run->processor[i], hook(ctx));
}

hd_status hd_beside_run_latent(hd_beside_run *b, hd_beside_ctx *ctx)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        bool now = ctx->when == HD_LATENT_START || acts(p, ctx->step.index);
        if (p->class->latent && now) HD_TRY(call(b, ctx, i, p->class->latent));
    }
    return HD_OK;
}

hd_status hd_beside_run_x0(hd_beside_run *b, hd_beside_ctx *ctx)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        if (p->class->x0 && acts(p, ctx->step.index)) HD_TRY(call(b, ctx, i, p->class->x0));
    }
    return HD_OK;
}

hd_status hd_beside_run_guess(hd_beside_run *b, hd_beside_ctx *ctx, int number, bool *made)
{
    const hd_branch *branch = &ctx->branches->item[number];
    *made = false;
    if (branch->guidance_by < 0) return HD_OK;
    const run_processor *p = &b->run->processor[branch->guidance_by];
    if (!p->class->guidance || !acts(p, ctx->step.index)) return HD_OK;
    *made = true;
    ctx->branch = branch->name;
    return call(b, ctx, branch->guidance_by, p->class->guidance);
}

static bool owns_any(const hd_branches *branches, int64_t processor)
{
    for (int i = 0; i < branches->count; i++)
        if (branches->item[i].guidance_by == processor) return true;
    return false;
}

hd_status hd_beside_run_add(hd_beside_run *b, hd_beside_ctx *ctx, int number)
{
    ctx->branch = ctx->branches->item[number].name;
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        if (!p->class->guidance || !acts(p, ctx->step.index) || owns_any(ctx->branches, i))
            continue;
        HD_TRY(call(b, ctx, i, p->class->guidance));
    }
    return HD_OK;
}

bool hd_beside_run_shows(const hd_beside_run *b)
{
    for (int64_t i = 0; i < b->run->processors; i++)
        if (b->run->processor[i].class->show) return true;
    return false;
}

hd_status hd_beside_run_show(hd_beside_run *b, hd_beside_ctx *ctx, hd_shown_list *list)
{
    for (int64_t i = 0; i < b->run->processors; i++) {
        const run_processor *p = &b->run->processor[i];
        if (!p->class->show) continue;
        point(b, ctx, i);
        const hd_show_ctx show = {ctx, list};
        HD_TRY(hd_run_place(p, p->class->show(&show)));
    }
    return HD_OK;
}

static bool tells_apart(const run_processor *p, const hd_rows *rows, const int64_t *twin)
{
    bool active[HD_MAX_ROWS];
    hd_forward forward = {.rows = *rows, .step = {.index = p->first_step}};
    if (!hd_run_active(p, &forward, active)) return false;
    for (int64_t b = 0; b < rows->count; b++) {
        if (twin[b] == b) continue;
        if (active[b] != active[twin[b]] || (active[b] && !p->class->rows_alike)) return true;
    }
    return false;
}

// The first site that tells them apart; the number of sites: none does.
static int64_t first_site(const hd_attention_run *run, const hd_rows *rows, const int64_t *twin)
{
    for (int64_t s = 0; s < run->site_count; s++)
        for (int64_t l = 0; l < run->site[s]->links; l++)
            if (tells_apart(run->site[s]->link[l].processor, rows, twin)) return s;
    return run->site_count;
}

static bool tap_tells_apart(const hd_attention_run *run, const hd_features *f, const char *tap,
                            const hd_rows *rows, const int64_t *twin)
{
    const char *path;
    int asked;
    for (int64_t w = 0; (path = hd_features_asked(f, w, &asked)); w++) {
        const run_processor *p = &run->processor[asked];
        if (p->class->feature && hd_path_matches(path, tap) && tells_apart(p, rows, twin))
            return true;
    }
    return false;
}

const char *hd_beside_run_fork(const hd_beside_run *b, const hd_features *features,
                               const hd_rows *rows, const int64_t *twin)
{
    const hd_attention_run *run = b->run;
    int64_t first = first_site(run, rows, twin), before;
    const char *tap;
    for (int64_t t = 0; (before = hd_features_tap(features, t, &tap)) >= 0; t++)
        if (before <= first && tap_tells_apart(run, features, tap, rows, twin)) {
            first = before - 1; // rows part before a site's transformer, nowhere else
            break;
        }
    return first >= 0 && first < run->site_count ? run->site[first]->site.path : NULL;
}

bool hd_beside_run_describe(const hd_beside_run *b, int64_t processor, const char **name,
                            int64_t *first, int64_t *end, char *text, size_t bytes)
{
    if (processor < 0 || processor >= b->run->processors) return false;
    const run_processor *p = &b->run->processor[processor];
    const struct {
        const char *name;
        bool has;
    } hooks[] = {{"branches", p->class->branches != NULL},
                 {"latent", p->class->latent != NULL},
                 {"x0", p->class->x0 != NULL},
                 {"guidance", p->class->guidance != NULL},
                 {"feature", p->class->feature != NULL},
                 {"show", p->class->show != NULL}};
    *name = p->class->name;
    *first = p->first_step;
    *end = p->end_step;
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < HD_COUNT(hooks); i++)
        if (hooks[i].has && used < bytes)
            used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? ", " : "",
                                     hooks[i].name);
    return true;
}
