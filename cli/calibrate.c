/* cli/calibrate.c: heddle calibrate: a preset's attention, measured, to a plan file for "paro". */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cli/defaults.h"
#include "cli/job.h"
#include "cli/presets_folder.h"
#include "cli/report.h"
#include "engine/options/json_write.h"
#include "pipelines/calibrate.h"

enum { PROMPTS_MOST_BYTES = 16 << 20 };

static const hd_option calibrate_options[] = {
    {0, NULL, NULL, NULL, "The plan:"},
    {'o', "output", "FILE", NULL, "plan file to write, replacing what is there"},
    {0, "density", "X", NULL,
     "share of the query-key pairs that is computed, 0 to 1 (default: that of the preset's "
     "\"paro\", "
     "else 0.3)"},
    {0, "prompts", "FILE", NULL,
     "a prompt per line, of which the first two are run (the preset's \"paro\" may say how many); "
     "default: the preset's own prompt"},
    {0, NULL, NULL, NULL, "The run, on top of the preset:"},
    {'m', "model", "DIR", "model",
     "model folder in diffusers' layout (default: the starter model)"},
    {'p', "prompt", "TEXT", "prompt", NULL},
    {'s', "seed", "N", "seed", NULL},
    {'W', "width", "N", "width", NULL},
    {'H', "height", "N", "height", NULL},
    {0, "steps", "N", "steps", NULL},
    {0, "sampler", "NAME", "sampler", NULL},
    {0, "guidance", "X", "guidance", NULL},
    {0, "precision", "NAME", "precision", NULL},
    {0, "threads", "N", "threads", NULL},
    {0, "set", "PATH=VALUE", NULL,
     "any field of the run, as in --set processors[0].density=0.5; may be given often"},
    {0, NULL, NULL, NULL, "What is said:"},
    {0, "json", NULL, NULL,
     "one JSON object on stdout: what was decided, site by site; errors too"},
    {'v', "verbose", NULL, NULL, "every site's density, mass and orders on stderr"},
    {'q', "quiet", NULL, NULL, "nothing but errors"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

/* --- what is said */

/* A site's figures over its heads and masks. */
typedef struct site_figures {
    double density, retained, retained_least;
    int64_t orders[HD_AXIS_ORDERS];
} site_figures;

static site_figures figures_of(const hd_plan_file *file, const hd_plan_file_site *s)
{
    site_figures f = {.retained_least = 1.0};
    const int64_t maps = file->masks * s->site.heads;
    for (int64_t i = 0; i < maps; i++) {
        f.density += (double)s->density[i] / (double)maps;
        f.retained += (double)s->retained[i] / (double)maps;
        if ((double)s->retained[i] < f.retained_least) f.retained_least = (double)s->retained[i];
    }
    for (int64_t h = 0; h < s->site.heads; h++)
        f.orders[s->order[h]]++;
    return f;
}

static void write_orders(hd_json_writer *w, const int64_t orders[HD_AXIS_ORDERS])
{
    hd_json_write_object(w, "orders");
    for (int i = 0; i < HD_AXIS_ORDERS; i++)
        if (orders[i] > 0) hd_json_write_int(w, hd_axis_orders[i], orders[i]);
    hd_json_write_end(w, '}');
}

static void write_site(hd_json_writer *w, const hd_plan_file *file, const hd_plan_file_site *s)
{
    char text[96];
    site_figures f = figures_of(file, s);
    hd_json_write_object(w, NULL);
    hd_json_write_string(w, "site", hd_site_text(text, sizeof text, &s->site));
    hd_json_write_array(w, "grid");
    for (int i = 0; i < 3; i++)
        hd_json_write_int(w, NULL, s->grid[i]);
    hd_json_write_end(w, ']');
    hd_json_write_int(w, "text", s->text);
    hd_json_write_int(w, "heads", s->site.heads);
    hd_json_write_double(w, "density", f.density);
    hd_json_write_double(w, "retained", f.retained);
    hd_json_write_double(w, "retained_least", f.retained_least);
    write_orders(w, f.orders);
    hd_json_write_end(w, '}');
}

static void print_json(const hd_calibrated *c, const char *path)
{
    hd_json_writer w = {0};
    char *text = NULL, key[17];
    snprintf(key, sizeof key, "%016" PRIx64, c->file->model);
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "plan", path);
    hd_json_write_string(&w, "model_key", key);
    hd_json_write_int(&w, "prompts", c->prompts);
    hd_json_write_int(&w, "steps", c->file->steps);
    hd_json_write_int(&w, "masks", c->file->masks);
    hd_json_write_int(&w, "tile", c->file->tile);
    hd_json_write_float(&w, "target", c->file->target);
    hd_json_write_double(&w, "density", c->report.density);
    hd_json_write_double(&w, "theta", c->report.theta);
    hd_json_write_double(&w, "retained", c->report.retained);
    hd_json_write_double(&w, "retained_least", c->report.retained_least);
    write_orders(&w, c->report.orders);
    hd_json_write_array(&w, "sites");
    for (int64_t i = 0; i < c->file->sites; i++)
        write_site(&w, c->file, &c->file->site[i]);
    hd_json_write_end(&w, ']');
    hd_json_write_double(&w, "seconds", c->seconds);
    hd_json_write_end(&w, '}');
    if (hd_json_writer_take(&w, &text) == HD_OK) printf("%s\n", text);
    free(text);
}

static void print_sites(const hd_plan_file *file)
{
    fprintf(stderr, "%-30s %-12s %5s %8s %9s %7s  %s\n", "site", "grid", "heads", "density",
            "retained", "least", "orders");
    for (int64_t i = 0; i < file->sites; i++) {
        const hd_plan_file_site *s = &file->site[i];
        site_figures f = figures_of(file, s);
        char text[96], grid[64];
        snprintf(grid, sizeof grid, "%" PRId64 "x%" PRId64 "x%" PRId64, s->grid[0], s->grid[1],
                 s->grid[2]);
        fprintf(stderr, "%-30s %-12s %5" PRId64 " %8.3f %9.4f %7.4f ",
                hd_site_text(text, sizeof text, &s->site), grid, s->site.heads, f.density,
                f.retained, f.retained_least);
        for (int o = 0; o < HD_AXIS_ORDERS; o++)
            if (f.orders[o] > 0) fprintf(stderr, " %s %" PRId64, hd_axis_orders[o], f.orders[o]);
        fputc('\n', stderr);
    }
}

static void print_summary(const hd_calibrated *c, const char *path)
{
    printf("%s  %" PRId64 " sites, %" PRId64 " heads, %" PRId64
           " masks; density %.3f, retained mass %.4f (least %.4f)\n",
           path, c->file->sites, c->report.heads, c->file->masks, c->report.density,
           c->report.retained, c->report.retained_least);
    if (c->report.density > 1.05 * (double)c->file->target)
        fprintf(stderr,
                "warning: density is %.3f, not %.3f: the tiles that are always computed (the last "
                "row and column) are that many at this size\n",
                c->report.density, (double)c->file->target);
}

/* --- the command */

static hd_status read_density(const hd_args *args, double *density)
{
    const char *text = hd_args_value(args, "density");
    char *end = NULL;
    *density = 0;
    if (!text) return HD_OK;
    *density = strtod(text, &end);
    if (end != text && !*end && *density > 0 && *density <= 1) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "--density is \"%.80s\", must be above 0 and at most 1", text);
}

static hd_status make(const hd_args *args, char **json, const char *name, hd_job *job,
                      hd_calibrated *out)
{
    hd_calibrate_options options = {.plan = hd_args_value(args, "output"),
                                    .prompts_name = hd_args_value(args, "prompts")};
    if (!options.plan)
        return hd_fail(HD_ERR_ARGUMENT, "--output is missing: -o my.hdplan, the file to write");
    HD_TRY(read_density(args, &options.density));
    HD_TRY(hd_job_apply(args, json, name));
    HD_TRY(hd_defaults_put(json, name));
    char *prompts = NULL;
    size_t bytes;
    if (options.prompts_name)
        HD_TRY(hd_file_read(&prompts, &bytes, options.prompts_name, PROMPTS_MOST_BYTES));
    options.prompts = prompts;
    hd_context *context = NULL;
    hd_callbacks callbacks = hd_job_callbacks(job);
    hd_status status = hd_context_create(&context, NULL);
    if (status == HD_OK) status = hd_calibrate(context, *json, name, &options, &callbacks, out);
    hd_progress_bar_clear(&job->bar);
    hd_context_free(context);
    free(prompts);
    return status;
}

static int report(const hd_command *command, const hd_args *args, hd_status status,
                  const hd_calibrated *c, const hd_job *job)
{
    const bool json = hd_args_has(args, "json");
    const char *path = hd_args_value(args, "output");
    if (status == HD_ERR_CANCELLED) {
        if (json)
            hd_report_json(status, NULL);
        else
            hd_report_stopped(NULL);
        return HD_EXIT_STOPPED;
    }
    if (status != HD_OK) return hd_command_fail(status, command, json);
    if (job->verbose) print_sites(c->file);
    if (json)
        print_json(c, path);
    else if (!job->quiet)
        print_summary(c, path);
    return hd_command_done();
}

static int calibrate_file(const hd_command *command, const hd_args *args)
{
    const char *path = NULL;
    char *preset = NULL;
    hd_job job = hd_job_begin(args);
    hd_calibrated calibrated = {0};
    hd_status status = hd_args_word(args, "a preset or a picture", &path);
    if (status == HD_OK) status = hd_presets_read(&preset, path);
    if (status == HD_OK) status = make(args, &preset, path, &job, &calibrated);
    int code = report(command, args, status, &calibrated, &job);
    hd_calibrated_free(&calibrated);
    hd_text_free(preset);
    return code;
}

static int calibrate(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, calibrate_file);
}

const hd_command hd_command_calibrate = {
    .name = "calibrate",
    .usage = "PRESET.json|PICTURE.png -o PLAN.hdplan [options]",
    .summary = "makes a plan file for \"paro\" from the attention of a run",
    .details = "The preset's own \"paro\", if it has one, says which sites and how (heddle help "
               "processors); its\nplan need not exist yet. A plan is for one model, size and text "
               "length. No picture is written.",
    .options = calibrate_options,
    .run = calibrate,
};
