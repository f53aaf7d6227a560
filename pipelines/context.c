/* pipelines/context.c: the public API's contexts: threads, the model of the last run, and one run
 * at a time. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "controls/all.h"
#include "heddle.h"
#include "pipelines/clock.h"
#include "pipelines/context.h"
#include "pipelines/outputs.h"
#include "pipelines/text_to_image.h"
#include "sparse/all.h"

struct hd_context {
    int threads;
    hd_pool *pool;
    hd_model *model;
    // the processors a run may name: ours, and those the program has added
    const hd_processor_class **processor;
    size_t processors;
};

const char *hd_version(void)
{
    return HD_VERSION;
}

hd_status hd_context_add_processor(hd_context *context, const hd_processor_class *processor)
{
    for (size_t i = 0; i < context->processors; i++)
        if (strcmp(context->processor[i]->name, processor->name) == 0)
            return hd_fail(HD_ERR_ARGUMENT, "processor \"%s\" exists already", processor->name);
    const hd_processor_class **grown =
        realloc((void *)context->processor, (context->processors + 1) * sizeof *context->processor);
    if (!grown)
        return hd_fail(HD_ERR_NOMEM, "context: no memory for processor %s", processor->name);
    context->processor = grown;
    context->processor[context->processors++] = processor;
    return HD_OK;
}

static hd_status add_list(hd_context *context, const hd_processor_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        HD_TRY(hd_context_add_processor(context, list->item[i]));
    return HD_OK;
}

hd_status hd_context_create(hd_context **out, const hd_context_options *options)
{
    int threads = options ? options->threads : 0;
    if (threads < 0 || threads > 1024)
        return hd_fail(HD_ERR_ARGUMENT, "threads is %d, must be 0 to 1024", threads);
    hd_context *context = calloc(1, sizeof *context);
    if (!context) return hd_fail(HD_ERR_NOMEM, "context: no memory");
    context->threads = threads ? threads : hd_pool_default_threads();
    hd_status status = add_list(context, &hd_all_controls);
    if (status == HD_OK) status = add_list(context, &hd_all_accelerators);
    if (status != HD_OK) {
        hd_context_free(context);
        return status;
    }
    *out = context;
    return HD_OK;
}

void hd_context_free(hd_context *context)
{
    if (!context) return;
    hd_model_free(context->model);
    hd_pool_free(context->pool);
    free((void *)context->processor);
    free(context);
}

void hd_context_forget_model(hd_context *context)
{
    hd_model_free(context->model);
    context->model = NULL;
}

/* --- a run
 * -----------------------------------------------------------------------------------------------------------
 */

/* Everything a run needs beside the context. */
typedef struct run {
    hd_context *context;
    const hd_callbacks *callbacks;
    hd_json_doc *doc;
    hd_preset preset;
    hd_exec ex;
    hd_result *result;
    hd_attention_watch watch;
    void *watch_user;
    char **chain; // NULL: draw
    double load_begin;
} run;

static bool never(void *user)
{
    (void)user;
    return false;
}

static int load_progress(void *arg, int64_t done, int64_t all)
{
    const run *r = arg;
    if (r->callbacks && r->callbacks->progress) {
        hd_progress progress = {"load", (int)(done >> 20), (int)(all >> 20), 0,
                                hd_seconds() - r->load_begin};
        r->callbacks->progress(r->callbacks->user, &progress);
    }
    return r->ex.cancelled(r->ex.cancelled_arg);
}

static hd_status set_threads(run *r)
{
    hd_context *c = r->context;
    int threads = r->preset.threads ? (int)r->preset.threads : c->threads;
    if (!c->pool || hd_pool_threads(c->pool) != threads) {
        hd_pool_free(c->pool);
        c->pool = NULL;
        HD_TRY(hd_pool_create(&c->pool, threads));
    }
    r->ex.has = hd_cpu_features();
    r->ex.pool = c->pool;
    r->ex.cancelled = r->callbacks && r->callbacks->cancel ? r->callbacks->cancel : never;
    r->ex.cancelled_arg = r->callbacks ? r->callbacks->user : NULL;
    return HD_OK;
}

static void say(const run *r, const char *text)
{
    if (r->callbacks && r->callbacks->log) r->callbacks->log(r->callbacks->user, HD_LOG_INFO, text);
}

static hd_status get_model(run *r)
{
    hd_context *c = r->context;
    const hd_preset *p = &r->preset;
    hd_report *report = &r->result->report;
    r->load_begin = hd_seconds();
    report->model_kept = hd_model_current(c->model, p->model, p->precision);
    if (!report->model_kept) {
        // the old one goes first: two models at once may not fit
        hd_context_forget_model(c);
        HD_TRY(hd_model_open(&c->model, &r->ex, p->model, p->precision, load_progress, r));
    }
    hd_result_stage(r->result, "load", hd_seconds() - r->load_begin, 1);
    report->model = hd_result_keep(r->result, p->model);
    report->model_hash = hd_result_keep(r->result, c->model->hash);
    report->precision = hd_dtype_name(c->model->compute);
    report->precision_reason = hd_result_keep(r->result, c->model->reason);
    report->weights_bytes = (uint64_t)c->model->weights_bytes;
    char text[PATH_MAX + 256];
    snprintf(text, sizeof text, "%s %s, computing in %s (%s)",
             report->model_kept ? "kept" : "loaded", p->model, report->precision, c->model->reason);
    say(r, text);
    if (p->model_hash && strcmp(p->model_hash, c->model->hash) != 0) {
        snprintf(
            text, sizeof text,
            "%s is not the model this was made with (hash %s, then %s): the picture will differ",
            p->model, c->model->hash, p->model_hash);
        hd_result_warn(r->result, r->callbacks, text);
    }
    return HD_OK;
}

static uint64_t peak_resident(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu", &kib) == 1) break;
    if (f) fclose(f);
    return (uint64_t)kib << 10;
}

static hd_status do_run(run *r, const char *json, const char *name)
{
    hd_preset *p = &r->preset;
    HD_TRY(hd_json_parse(&r->doc, name, json, strlen(json)));
    const hd_json *root = hd_json_root(r->doc);
    HD_TRY(hd_preset_from_json(p, root));
    if (!p->seed_given) {
        // 32 bits, so that the number is one people can copy and PyTorch's generator uses all of it
        uint32_t seed;
        if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
            return hd_fail(HD_ERR_IO, "the system gave no random seed; give one (seed)");
        p->seed = seed;
    }
    if (p->seed > UINT64_MAX - (uint64_t)(p->batch - 1))
        return hd_json_fail(hd_json_get(root, "seed"), HD_ERR_ARGUMENT,
                            "is %" PRIu64 "; with a batch of %" PRId64
                            " the last picture's seed would pass 2^64 - 1",
                            p->seed, p->batch);
    if (!r->chain) HD_TRY(hd_outputs_check(p));
    HD_TRY(hd_result_create(&r->result, (int)p->batch));
    HD_TRY(set_threads(r));
    HD_TRY(get_model(r));
    hd_processor_list list = {r->context->processors, r->context->processor};
    hd_run_request request = {.preset = p,
                              .root = root,
                              .model = r->context->model,
                              .processors = &list,
                              .ex = &r->ex,
                              .callbacks = r->callbacks,
                              .result = r->result,
                              .watch = r->watch,
                              .watch_user = r->watch_user,
                              .chain = r->chain};
    return hd_text_to_image(&request);
}

hd_status hd_context_run_watched(hd_context *context, const char *preset_json, const char *name,
                                 const hd_callbacks *callbacks, hd_attention_watch watch,
                                 void *watch_user, hd_result **out)
{
    double begin = hd_seconds();
    run r = {.context = context, .callbacks = callbacks, .watch = watch, .watch_user = watch_user};
    *out = NULL;
    hd_status status = do_run(&r, preset_json, name ? name : "preset");
    if (r.result) {
        hd_report *report = &r.result->report;
        report->steps = (int)r.preset.steps;
        report->guidance = (double)r.preset.guidance;
        report->threads = hd_pool_threads(context->pool);
        report->seconds = hd_seconds() - begin;
        report->peak_bytes = peak_resident();
    }
    hd_preset_free(&r.preset);
    hd_json_free(r.doc);
    if (status == HD_OK || status == HD_ERR_CANCELLED)
        *out = r.result;
    else
        hd_result_free(r.result);
    return status;
}

hd_status hd_context_run(hd_context *context, const char *preset_json, const char *name,
                         const hd_callbacks *callbacks, hd_result **out)
{
    return hd_context_run_watched(context, preset_json, name, callbacks, NULL, NULL, out);
}

hd_status hd_context_chain(hd_context *context, const char *preset_json, const char *name,
                           const hd_callbacks *callbacks, char **json)
{
    run r = {.context = context, .callbacks = callbacks, .chain = json};
    *json = NULL;
    hd_status status = do_run(&r, preset_json, name ? name : "preset");
    hd_preset_free(&r.preset);
    hd_json_free(r.doc);
    hd_result_free(r.result);
    return status;
}

void hd_text_free(char *text)
{
    free(text);
}
