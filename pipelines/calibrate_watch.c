/* pipelines/calibrate_watch.c: which calls are measured, and how, as a preset's "paro" says. */
#include "pipelines/calibrate_watch.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"
#include "sparse/paro.h"

enum { MOST_SITES = 64 };

struct hd_calibrate_watch {
    const hd_json *node; // NULL: none
    hd_paro_options paro;
    hd_site_selector site[MOST_SITES];
    int64_t sites;
    double steps[2];             // fractions of the run
    hd_calibration *calibration; // from the first call that is selected
};

static hd_status read_sites(hd_calibrate_watch *c)
{
    static const char *const usual[] = {"self", "joint"};
    const hd_json *sites = hd_json_get(c->node, "sites"); // NULL for none
    if (!sites) {
        for (size_t i = 0; i < HD_COUNT(usual); i++)
            HD_TRY(hd_site_selector_parse(&c->site[c->sites++], usual[i]));
        return HD_OK;
    }
    HD_TRY(hd_json_expect(sites, HD_JSON_ARRAY));
    if (hd_json_count(sites) > MOST_SITES)
        return hd_json_fail(sites, HD_ERR_UNSUPPORTED, "has %" PRId64 " selectors, at most %d",
                            hd_json_count(sites), MOST_SITES);
    for (; c->sites < hd_json_count(sites); c->sites++) {
        const char *text;
        char why[512];
        const hd_json *node = hd_json_at(sites, c->sites);
        HD_TRY(hd_json_to_string(node, &text));
        hd_status status = hd_site_selector_parse(&c->site[c->sites], text);
        if (status == HD_OK) continue;
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(node, status, "%s", why);
    }
    return HD_OK;
}

static hd_status read_fields(hd_calibrate_watch *c)
{
    static const char *const engine_fields[] = {"use", "sites", "steps",   "branches", "rest",
                                                "qk",  "pv",    "on_edit", NULL};
    const hd_json *steps = hd_json_get(c->node, "steps");
    int64_t count;
    if (!c->node) return HD_OK;
    HD_TRY(hd_params_read(hd_paro_fields, &c->paro, c->node, engine_fields));
    return steps ? hd_json_to_doubles(steps, 0.0, 1.0, 2, 2, c->steps, &count) : HD_OK;
}

static hd_status read_paro(hd_calibrate_watch *c, double density)
{
    c->steps[1] = 1.0;
    HD_TRY(hd_params_default(hd_paro_fields, &c->paro));
    HD_TRY(read_sites(c));
    HD_TRY(read_fields(c));
    if (density > 0) c->paro.density = (float)density;
    if (c->paro.align_text_first)
        return hd_json_fail(hd_json_get(c->node, "align_text_first"), HD_ERR_UNSUPPORTED,
                            "is true, which is for imported masks; plans made here have the text "
                            "as their dense tail");
    hd_status status = hd_paro_check(&c->paro);
    if (status == HD_OK || !c->node) return status;
    char why[512];
    snprintf(why, sizeof why, "%s", hd_message());
    return hd_json_fail(c->node, status, "%s", why);
}

hd_status hd_calibrate_watch_create(hd_calibrate_watch **out, const hd_json *paro, double density)
{
    hd_calibrate_watch *c = calloc(1, sizeof *c);
    if (!c) return hd_fail(HD_ERR_NOMEM, "calibrate: no memory");
    c->node = paro;
    hd_status status = read_paro(c, density);
    if (status != HD_OK) {
        hd_calibrate_watch_free(c);
        return status;
    }
    *out = c;
    return HD_OK;
}

void hd_calibrate_watch_free(hd_calibrate_watch *c)
{
    if (!c) return;
    hd_calibration_free(c->calibration);
    hd_params_free(hd_paro_fields, &c->paro);
    free(c);
}

int64_t hd_calibrate_watch_prompts(const hd_calibrate_watch *c)
{
    return c->paro.prompts;
}

static hd_status begin(hd_calibrate_watch *c, const hd_forward *forward)
{
    const hd_paro_options *p = &c->paro;
    hd_calibration_options options = {.model = forward->model_key,
                                      .tile = p->tile,
                                      .eps_rel = p->eps_rel,
                                      .sigma = p->sigma,
                                      .alpha = p->alpha,
                                      .density = p->density,
                                      .density_min = p->density_min,
                                      .force_last = p->force_last,
                                      .steps = forward->step.count};
    uint16_t *table = calloc((size_t)options.steps, sizeof *table);
    if (!table)
        return hd_fail(HD_ERR_NOMEM, "calibrate: no memory for %" PRId64 " steps", options.steps);
    hd_status status = hd_paro_buckets(p, options.steps, table, &options.masks);
    options.mask_of_step = table;
    if (status == HD_OK) status = hd_calibration_create(&c->calibration, &options);
    free(table);
    return status;
}

static bool selected(const hd_calibrate_watch *c, const hd_site *site)
{
    for (int64_t i = 0; i < c->sites; i++)
        if (hd_site_matches(&c->site[i], site)) return true;
    return false;
}

// Whether the preset's "steps" has this one, as the engine counts them.
static bool step_selected(const hd_calibrate_watch *c, const hd_step *step)
{
    double count = (double)step->count, index = (double)step->index;
    return floor(c->steps[0] * count + 1e-6) <= index && index < floor(c->steps[1] * count + 1e-6);
}

static hd_status measure(const hd_calibrate_watch *c, const hd_attention_seen *seen,
                         hd_calibration_site *site, void *scratch)
{
    hd_attention_call call = *seen->call;
    const hd_forward *forward = call.forward;
    call.key_len = seen->key_len;
    for (int64_t b = 0; b < forward->rows.count; b++)
        if (hd_row_matches("cond", &forward->rows.row[b]))
            HD_TRY(hd_calibration_observe(c->calibration, site, seen->ex, &call, b,
                                          forward->step.index, scratch));
    return HD_OK;
}

hd_status hd_calibrate_watch_see(void *user, const hd_attention_seen *seen)
{
    hd_calibrate_watch *c = user;
    const hd_attention_call *call = seen->call;
    hd_calibration_site *site;
    char where[96], why[512];
    if (!selected(c, &call->site)) return HD_OK;
    if (!seen->ex->recording && !step_selected(c, &call->forward->step)) return HD_OK;
    if (!c->calibration) HD_TRY(begin(c, call->forward));
    hd_status status = hd_calibration_meet(c->calibration, call, &site);
    if (status != HD_OK) {
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_fail(status, "calibrate: cannot measure %s: %s",
                       hd_site_text(where, sizeof where, &call->site), why);
    }
    size_t mark = hd_arena_mark(seen->ex->arena);
    void *scratch = hd_arena_bytes(seen->ex->arena, hd_calibration_scratch(site));
    if (!scratch) return hd_fail(HD_ERR_NOMEM, "calibrate: the arena is full");
    if (!seen->ex->recording) status = measure(c, seen, site, scratch);
    hd_arena_rewind(seen->ex->arena, mark);
    return status;
}

hd_status hd_calibrate_watch_finish(const hd_calibrate_watch *c, hd_plan_file **out,
                                    hd_calibration_report *report)
{
    if (!c->calibration)
        return hd_fail(HD_ERR_ARGUMENT,
                       "calibrate: \"sites\" matches no attention of this model; leave it out to "
                       "mean every self and joint attention");
    return hd_calibration_finish(c->calibration, out, report);
}
