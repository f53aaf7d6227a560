/* cli/job.c: from options and JSON to a finished run and what is said about it. */
#include "cli/job.h"

#include <stdlib.h>
#include <string.h>

#include "cli/defaults.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/settings.h"
#include "cli/stop.h"
#include "engine/samplers/sampler.h"

const hd_option hd_job_options[] = {
    {0, NULL, NULL, NULL, "The picture:"},
    {'p', "prompt", "TEXT", "prompt", NULL},
    {'n', "negative", "TEXT", "negative", NULL},
    {'m', "model", "DIR", "model",
     "model folder in diffusers' layout (default: the starter model)"},
    {'o', "output", "FILE", "output",
     "PNG to write, replacing what is there; a batch writes FILE-0.png, FILE-1.png ... (default: "
     "heddle-SEED.png, never replacing)"},
    {'s', "seed", "N", "seed",
     "0 to 18446744073709551615; picture i of a batch has seed N + i (default: random)"},
    {'b', "batch", "N", "batch", NULL},
    {'W', "width", "N", "width", NULL},
    {'H', "height", "N", "height", NULL},
    {0, NULL, NULL, NULL, "How it is drawn:"},
    {0, "steps", "N", "steps", NULL},
    {0, "sampler", "NAME", "sampler", NULL},
    {0, "guidance", "X", "guidance", NULL},
    {0, "guidance-rescale", "X", "guidance_rescale", NULL},
    {0, "clip-skip", "N", "clip_skip", NULL},
    {0, "rng", "NAME", "rng", NULL},
    {0, "precision", "NAME", "precision", NULL},
    {0, "threads", "N", "threads", NULL},
    {0, "vae-tiling", NULL, "vae_tiling", NULL},
    {0, "set", "PATH=VALUE", NULL,
     "any field of the run, as in --set processors[0].tau=0.8; may be given often"},
    {0, NULL, NULL, NULL, "From and to files:"},
    {'i', "init-image", "FILE", "init_image", NULL},
    {0, "strength", "X", "strength", NULL},
    {0, "fit", "NAME", "fit", NULL},
    {0, "latents-in", "FILE", "latents_in", NULL},
    {0, "latents-out", "FILE", "latents_out", NULL},
    {0, "capture", "FILE", "capture", NULL},
    {0, "capture-sites", "TEXT", "capture_sites", NULL},
    {0, "capture-steps", "TEXT", "capture_steps", NULL},
    {0, "sheet", "FILE", "sheet", NULL},
    {0, "maps", "FILE", "maps", NULL},
    {0, "masks", "FILE", "masks", NULL},
    {0, "map-values", "FILE", "map_values", NULL},
    {0, "save-inversion", "FILE", "save_inversion", NULL},
    {0, "preview", "FILE", "preview", NULL},
    {0, "preview-every", "N", "preview_every", NULL},
    {0, NULL, NULL, NULL, "What is said:"},
    {0, "json", NULL, NULL, "one JSON object on stdout: pictures, seeds, times; errors too"},
    {'v', "verbose", NULL, NULL, "times, memory and decisions on stderr"},
    {'q', "quiet", NULL, NULL, "nothing but errors"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

void hd_job_list_samplers(FILE *to)
{
    int column = fprintf(to, "\nSamplers:");
    for (size_t i = 0; hd_sampler_name_at(i); i++) {
        const char *name = hd_sampler_name_at(i);
        bool full = column + 1 + (int)strlen(name) > 90;
        column = full ? fprintf(to, "\n  %s", name) - 1 : column + fprintf(to, " %s", name);
    }
    fputc('\n', to);
}

static void on_progress(void *user, const hd_progress *progress)
{
    hd_job *j = user;
    if (!hd_stop_asked()) hd_progress_bar_update(&j->bar, progress);
}

static bool on_cancel(void *user)
{
    hd_job *j = user;
    if (hd_stop_asked()) hd_progress_bar_clear(&j->bar);
    return hd_stop_asked();
}

static void on_log(void *user, hd_log_level level, const char *text)
{
    hd_job *j = user;
    if (j->quiet || (level == HD_LOG_INFO && !j->verbose)) return;
    hd_progress_bar_clear(&j->bar);
    fprintf(stderr, "%s%s\n", level == HD_LOG_WARNING ? "warning: " : "", text);
}

hd_job hd_job_begin(const hd_args *args)
{
    hd_job j = {.quiet = hd_args_has(args, "quiet"), .verbose = hd_args_has(args, "verbose")};
    j.bar = hd_progress_bar_begin(stderr, j.quiet);
    return j;
}

hd_callbacks hd_job_callbacks(hd_job *j)
{
    hd_stop_listen();
    return (hd_callbacks){.user = j, .progress = on_progress, .cancel = on_cancel, .log = on_log};
}

hd_status hd_job_apply(const hd_args *args, char **json, const char *name)
{
    for (int i = 0; i < args->count; i++) {
        const hd_option *o = args->list[i].option;
        const char *text = args->list[i].value;
        hd_status status = HD_OK;
        if (o && o->field) {
            char what[80], *value = NULL;
            snprintf(what, sizeof what, "--%s", o->name);
            status = hd_setting_value(&value, o->field, text ? text : "true", what);
            if (status == HD_OK) status = hd_setting_put(json, name, o->field, value);
            free(value);
        } else if (o && strcmp(o->name, "set") == 0) {
            status = hd_setting_assign(json, name, text);
        }
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static hd_status draw(char *json, const char *name, hd_job *j, hd_result **out)
{
    hd_context *context = NULL;
    hd_callbacks callbacks = hd_job_callbacks(j);
    HD_TRY(hd_context_create(&context, NULL));
    hd_status status = hd_context_run(context, json, name, &callbacks, out);
    hd_progress_bar_clear(&j->bar);
    hd_context_free(context);
    return status;
}

static int report(const hd_command *command, hd_status status, const hd_result *result, bool json,
                  const hd_job *j)
{
    if (status != HD_OK && status != HD_ERR_CANCELLED)
        return hd_command_fail(status, command, json);
    if (json)
        hd_report_json(status, result);
    else if (status == HD_ERR_CANCELLED)
        hd_report_stopped(result);
    else if (!j->quiet)
        hd_report_pictures(result);
    if (j->verbose && status == HD_OK) hd_report_verbose(result);
    int said = hd_command_done();
    return status == HD_ERR_CANCELLED ? HD_EXIT_STOPPED : said;
}

int hd_job_run(const hd_command *command, const hd_args *args, char **json, const char *name)
{
    hd_status status = hd_job_apply(args, json, name);
    if (status == HD_OK) status = hd_defaults_put(json, name);
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    return hd_job_finish(command, args, *json, name);
}

int hd_job_finish(const hd_command *command, const hd_args *args, char *json, const char *name)
{
    const bool as_json = hd_args_has(args, "json");
    hd_job j = hd_job_begin(args);
    hd_result *result = NULL;
    hd_status status = draw(json, name, &j, &result);
    int code = report(command, status, result, as_json, &j);
    hd_result_free(result);
    return code;
}
