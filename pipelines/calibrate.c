/* pipelines/calibrate.c: runs, watched. */
#include "pipelines/calibrate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "engine/arena.h"
#include "engine/options/json_write.h"
#include "pipelines/clock.h"
#include "pipelines/context.h"
#include "sparse/paro.h"

enum { MOST_SITES = 64 };

/* What is asked, and what the runs have shown so far. */
typedef struct calibrating {
    const hd_calibrate_options *options;
    const hd_json *root, *node; // of the preset; its "paro", NULL: none
    hd_paro_options paro;
    hd_site_selector site[MOST_SITES];
    int64_t sites;
    double steps[2];             // fractions of the run
    hd_calibration *calibration; // from the first call of the first dry pass on
} calibrating;

/* --- the preset */

static hd_status find_paro(calibrating *c)
{
    const hd_json *list = hd_json_get(c->root, "processors");
    if (!list) return HD_OK;
    HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    for (int64_t i = 0; i < hd_json_count(list); i++) {
        const hd_json *node = hd_json_at(list, i), *use = hd_json_get(node, "use");
        const char *name = "";
        if (use && hd_json_kind(use) == HD_JSON_STRING) HD_TRY(hd_json_to_string(use, &name));
        if (strcmp(name, "paro") != 0) continue;
        if (c->node)
            return hd_json_fail(node, HD_ERR_UNSUPPORTED,
                                "is a second \"paro\"; calibrate them one by one");
        c->node = node;
    }
    return HD_OK;
}

static hd_status read_sites(calibrating *c)
{
    const hd_json *sites = hd_json_get(c->node, "sites");
    static const char *const usual[] = {"self", "joint"};
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

static hd_status read_paro(calibrating *c)
{
    static const char *const engine_fields[] = {"use", "sites", "steps",   "branches", "rest",
                                                "qk",  "pv",    "on_edit", NULL};
    c->steps[1] = 1.0;
    HD_TRY(hd_params_default(hd_paro_fields, &c->paro));
    HD_TRY(find_paro(c));
    HD_TRY(read_sites(c));
    if (c->node) {
        int64_t count = 2;
        const hd_json *steps = hd_json_get(c->node, "steps");
        HD_TRY(hd_params_read(hd_paro_fields, &c->paro, c->node, engine_fields));
        if (steps) HD_TRY(hd_json_to_doubles(steps, 0.0, 1.0, 2, 2, c->steps, &count));
    }
    if (c->options->density > 0) c->paro.density = (float)c->options->density;
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

// The preset of one run: one picture, written nowhere, without "paro".
static hd_status write_run(char **json, const calibrating *c, const char *prompt,
                           int64_t prompt_bytes)
{
    static const char *const left_out[] = {"processors", "output", "latents_out", "preview",
                                           "batch"};
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    for (int64_t i = 0; i < hd_json_count(c->root); i++) {
        const hd_json *field = hd_json_at(c->root, i);
        bool skip = prompt && strcmp(hd_json_key(field), "prompt") == 0;
        for (size_t j = 0; j < HD_COUNT(left_out); j++)
            skip = skip || strcmp(hd_json_key(field), left_out[j]) == 0;
        if (!skip) hd_json_write_node(&w, hd_json_key(field), field);
    }
    char *text = prompt ? strndup(prompt, (size_t)prompt_bytes) : NULL;
    if (prompt && !text) w.failed = true;
    if (text) hd_json_write_string(&w, "prompt", text);
    free(text);
    hd_json_write_array(&w, "processors");
    const hd_json *list = hd_json_get(c->root, "processors");
    for (int64_t i = 0; list && i < hd_json_count(list); i++)
        if (hd_json_at(list, i) != c->node) hd_json_write_node(&w, NULL, hd_json_at(list, i));
    hd_json_write_end(&w, ']');
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, json);
}

/* --- watching */

static hd_status begin(calibrating *c, const hd_forward *forward)
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

static bool selected(const calibrating *c, const hd_site *site)
{
    for (int64_t i = 0; i < c->sites; i++)
        if (hd_site_matches(&c->site[i], site)) return true;
    return false;
}

// Whether the preset's "steps" has this one, as the engine counts them.
static bool step_selected(const calibrating *c, const hd_step *step)
{
    double count = (double)step->count, index = (double)step->index;
    return floor(c->steps[0] * count + 1e-6) <= index && index < floor(c->steps[1] * count + 1e-6);
}

static hd_status measure(const calibrating *c, const hd_attention_seen *seen,
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

static hd_status watch(void *user, const hd_attention_seen *seen)
{
    calibrating *c = user;
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

/* --- the whole */

static hd_status run_once(calibrating *c, hd_context *context, const char *name,
                          const hd_callbacks *callbacks, const char *prompt, int64_t prompt_bytes)
{
    char *json;
    hd_result *result = NULL;
    HD_TRY(write_run(&json, c, prompt, prompt_bytes));
    hd_status status = hd_context_run_watched(context, json, name, callbacks, watch, c, &result);
    hd_result_free(result);
    free(json);
    return status;
}

// The next line that is not empty, without its end; NULL: there is none.
static const char *next_line(const char **at, int64_t *bytes)
{
    while (**at) {
        const char *line = *at;
        *bytes = (int64_t)strcspn(line, "\r\n");
        *at = line + *bytes + strspn(line + *bytes, "\r\n");
        if (*bytes > 0) return line;
    }
    return NULL;
}

static hd_status run_all(calibrating *c, hd_context *context, const char *name,
                         const hd_callbacks *callbacks, int64_t *prompts)
{
    const char *text = c->options->prompts;
    if (!text) {
        *prompts = 1;
        return run_once(c, context, name, callbacks, NULL, 0);
    }
    const char *line;
    int64_t bytes;
    while (*prompts < c->paro.prompts && (line = next_line(&text, &bytes))) {
        HD_TRY(run_once(c, context, name, callbacks, line, bytes));
        ++*prompts;
    }
    if (*prompts > 0) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "%s: has no prompt; it must have one per line",
                   c->options->prompts_name);
}

static hd_status calibrate(calibrating *c, hd_context *context, const char *name,
                           const hd_callbacks *callbacks, hd_calibrated *out)
{
    hd_output *output;
    HD_TRY(read_paro(c));
    HD_TRY(hd_output_open(&output, c->options->plan)); // before hours of work, not behind them
    hd_output_discard(output);
    HD_TRY(run_all(c, context, name, callbacks, &out->prompts));
    if (!c->calibration)
        return hd_fail(HD_ERR_ARGUMENT,
                       "calibrate: \"sites\" matches no attention of this model; leave it out to "
                       "mean every self and joint attention");
    HD_TRY(hd_calibration_finish(c->calibration, &out->file, &out->report));
    return hd_plan_file_write(out->file, c->options->plan);
}

hd_status hd_calibrate(hd_context *context, const char *preset_json, const char *name,
                       const hd_calibrate_options *options, const hd_callbacks *callbacks,
                       hd_calibrated *out)
{
    double start = hd_seconds();
    calibrating c = {.options = options};
    hd_json_doc *doc;
    *out = (hd_calibrated){0};
    HD_TRY(hd_json_parse(&doc, name, preset_json, strlen(preset_json)));
    c.root = hd_json_root(doc);
    hd_status status = hd_json_expect(c.root, HD_JSON_OBJECT);
    if (status == HD_OK) status = calibrate(&c, context, name, callbacks, out);
    hd_calibration_free(c.calibration);
    hd_params_free(hd_paro_fields, &c.paro);
    hd_json_free(doc);
    out->seconds = hd_seconds() - start;
    if (status != HD_OK) hd_calibrated_free(out);
    return status;
}

void hd_calibrated_free(hd_calibrated *calibrated)
{
    hd_plan_file_free(calibrated->file);
    calibrated->file = NULL;
}
