/* pipelines/calibrate.c: runs, watched. */
#include "pipelines/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "engine/options/json_write.h"
#include "pipelines/calibrate_watch.h"
#include "pipelines/clock.h"
#include "pipelines/context.h"

/* What is asked, and who looks on. */
typedef struct calibrating {
    const hd_calibrate_options *options;
    const hd_json *root, *node; // of the preset; its "paro", NULL: none
    hd_calibrate_watch *watch;
} calibrating;

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

// The preset of one run: one picture, written nowhere, without "paro".
static hd_status write_run(char **json, const calibrating *c, const char *prompt,
                           int64_t prompt_bytes)
{
    static const char *const left_out[] = {"processors", "output",  "latents_out",
                                           "preview",    "capture", "batch"};
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

static hd_status run_once(calibrating *c, hd_context *context, const char *name,
                          const hd_callbacks *callbacks, const char *prompt, int64_t prompt_bytes)
{
    char *json;
    hd_result *result = NULL;
    HD_TRY(write_run(&json, c, prompt, prompt_bytes));
    hd_status status = hd_context_run_watched(context, json, name, callbacks,
                                              hd_calibrate_watch_see, c->watch, &result);
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
    while (*prompts < hd_calibrate_watch_prompts(c->watch) && (line = next_line(&text, &bytes))) {
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
    HD_TRY(find_paro(c));
    HD_TRY(hd_calibrate_watch_create(&c->watch, c->node, c->options->density));
    HD_TRY(hd_output_open(&output, c->options->plan)); // before hours of work, not behind them
    hd_output_discard(output);
    HD_TRY(run_all(c, context, name, callbacks, &out->prompts));
    HD_TRY(hd_calibrate_watch_finish(c->watch, &out->file, &out->report));
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
    hd_calibrate_watch_free(c.watch);
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
