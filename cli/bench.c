/* cli/bench.c: heddle bench: dense attention against every accelerator, on one layer's shapes or in
 * a whole network. */
#include "cli/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "benchmark/inputs.h"
#include "cli/stop.h"
#include "controls/all.h"
#include "pipelines/clock.h"
#include "sparse/all.h"

static const hd_option bench_options[] = {
    {0, NULL, NULL, NULL, "bench attention: one layer"},
    {0, "shape", "NAME", NULL, "a network's layer by name (default sd15-512; list below)"},
    {0, "grid", "F,H,W", NULL, "or a grid of tokens: frames, height, width"},
    {0, "text", "N", NULL,
     "text tokens of a joint sequence beside the grid (default: the shape's)"},
    {0, "heads", "N", NULL,
     "attention heads (default: the shape's, else 8); --heads 1 is quickest"},
    {0, "head-dim", "N", NULL, "size of a head (default: the shape's, else 64)"},
    {0, "scale", "S", NULL,
     "multiplies every axis of the grid; windows and strides follow (gna's base_size)"},
    {0, "input", "WHAT", NULL,
     "random, structured, or a safetensors file with q, k, v [B, L, H, D] (default structured)"},
    {0, "gain", "X", NULL, "of the structured field: how sharp its attention is (default 10)"},
    {0, "block", "N", NULL,
     "number of the layer, where an accelerator differs by layer (default 0)"},
    {0, NULL, NULL, NULL, "bench model: one guided step of a network"},
    {'m', "model", "DIR", NULL, "model folder in diffusers' layout (default: the starter model)"},
    {'W', "width", "N", NULL, "pixels (default: the model's own)"},
    {'H', "height", "N", NULL, "pixels (default: the model's own)"},
    {'p', "prompt", "TEXT", NULL, "what is drawn (default: a big red fish on a blue background)"},
    {0, "steps", "N", NULL, "of --pictures (default 20)"},
    {0, "pictures", "N", NULL, "whole pictures of the same seeds: PSNR and SSIM to dense's"},
    {0, NULL, NULL, NULL, "Both:"},
    {0, "rows", "LIST", NULL,
     "accelerators: names joined by commas, or JSON (or a .json file): an array of processors, or "
     "a preset (default: all, with parameters that suit the shape)"},
    {0, "precision", "NAME", NULL, "auto, f32 or bf16"},
    {0, "threads", "N", NULL, "default: what affinity and cgroup quota offer"},
    {0, "repeat", "N", NULL, "timed calls of each row, after one that is not (default 5)"},
    {'s', "seed", "N", NULL, "of what is random (default 1)"},
    {0, "json", "FILE", NULL, "the figures as JSON"},
    {0, "csv", "FILE", NULL, "the figures as CSV"},
    {0, "plot", "FILE", NULL, "speed against error, as .png or .svg"},
    {'q', "quiet", NULL, NULL, "no table, nothing but errors"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

/* The same names, read and checked. */
static const hd_param bench_params[] = {
    HD_PARAM_STRING(hd_bench_options, shape),
    HD_PARAM_STRING(hd_bench_options, grid),
    HD_PARAM_STRING(hd_bench_options, input),
    HD_PARAM_INT(hd_bench_options, heads, .min = 0, .max = 1024),
    HD_PARAM_INT(hd_bench_options, head_dim, .min = 0, .max = 512),
    HD_PARAM_INT(hd_bench_options, text, .def = -1, .min = -1, .max = 65536),
    HD_PARAM_INT(hd_bench_options, block, .min = 0, .max = 1000),
    HD_PARAM_FLOAT(hd_bench_options, scale, .def = 1, .min = 0.01, .max = 16),
    HD_PARAM_FLOAT(hd_bench_options, gain, .def = HD_BENCH_GAIN, .min = 0, .max = 1000),
    HD_PARAM_STRING(hd_bench_options, model),
    HD_PARAM_STRING(hd_bench_options, prompt, .def_text = "a big red fish on a blue background"),
    HD_PARAM_INT(hd_bench_options, width, .min = 0, .max = 16384),
    HD_PARAM_INT(hd_bench_options, height, .min = 0, .max = 16384),
    HD_PARAM_INT(hd_bench_options, pictures, .min = 0, .max = 1000),
    HD_PARAM_INT(hd_bench_options, steps, .def = 20, .min = 1, .max = 1000),
    HD_PARAM_STRING(hd_bench_options, rows),
    HD_PARAM_STRING(hd_bench_options, json),
    HD_PARAM_STRING(hd_bench_options, csv),
    HD_PARAM_STRING(hd_bench_options, plot),
    HD_PARAM_ENUM(hd_bench_options, precision, .names = hd_precision_names, .def_text = "auto"),
    HD_PARAM_INT(hd_bench_options, threads, .min = 0, .max = 1024),
    HD_PARAM_INT(hd_bench_options, repeat, .def = 5, .min = 1, .max = 10000),
    HD_PARAM_U64(hd_bench_options, seed, .def = 1),
    HD_PARAM_END,
};

static const char *const of_attention[] = {"shape", "grid",  "text", "heads", "head-dim",
                                           "scale", "input", "gain", "block"};
static const char *const of_model[] = {"model", "width", "height", "prompt", "steps", "pictures"};

void hd_bench_job_progress(void *user, const char *label, int step, int count)
{
    hd_bench_job *j = user;
    const double now = hd_seconds();
    if (step == 0) j->row_begin = now;
    const hd_progress progress = {label, step, count, 0, now - j->row_begin};
    if (!hd_stop_asked()) hd_progress_bar_update(&j->bar, &progress);
}

static bool is_stopped(void *arg)
{
    (void)arg;
    return hd_stop_asked();
}

static bool among(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

// "head-dim" is the field head_dim.
static hd_status read_options(hd_bench_job *j, bool model)
{
    HD_TRY(hd_params_default(bench_params, &j->options));
    for (int i = 0; i < j->args->count; i++) {
        const hd_option *o = j->args->list[i].option;
        if (!o || !o->value) continue;
        char field[40], what[44];
        snprintf(what, sizeof what, "--%s", o->name);
        snprintf(field, sizeof field, "%s", o->name);
        for (char *c = field; *c; c++)
            if (*c == '-') *c = '_';
        if (model ? among(o->name, of_attention, HD_COUNT(of_attention))
                  : among(o->name, of_model, HD_COUNT(of_model)))
            return hd_fail(HD_ERR_ARGUMENT, "%s belongs to bench %s", what,
                           model ? "attention" : "model");
        HD_TRY(hd_params_set(bench_params, &j->options, field, j->args->list[i].value, what));
    }
    j->options.quiet = hd_args_has(j->args, "quiet");
    return j->options.plot ? hd_bench_plot_check(j->options.plot) : HD_OK;
}

// Controls may be measured, too.
static hd_status join_lists(hd_bench_job *j)
{
    const hd_processor_list *part[2] = {&hd_all_accelerators, &hd_all_controls};
    j->classes = calloc(part[0]->count + part[1]->count + 1, sizeof *j->classes);
    if (!j->classes) return hd_fail(HD_ERR_NOMEM, "bench: no memory");
    size_t count = 0;
    for (int p = 0; p < 2; p++)
        for (size_t i = 0; i < part[p]->count; i++)
            j->classes[count++] = part[p]->item[i];
    j->list = (hd_processor_list){count, j->classes};
    return HD_OK;
}

static hd_status prepare(hd_bench_job *j, bool model)
{
    HD_TRY(read_options(j, model));
    HD_TRY(join_lists(j));
    j->ex = (hd_exec){.has = hd_cpu_features(), .cancelled = is_stopped};
    const int64_t threads = j->options.threads;
    HD_TRY(hd_pool_create(&j->ex.pool, threads ? (int)threads : hd_pool_default_threads()));
    j->report.what = model ? "model" : "attention";
    j->report.effective_keys = (double)NAN;
    j->report.repeats = (int)j->options.repeat;
    j->bar = hd_progress_bar_begin(stderr, j->options.quiet);
    hd_stop_listen();
    return HD_OK;
}

// What there is of the figures, also of a comparison that was stopped.
static hd_status show(const hd_bench_job *j)
{
    const hd_bench_options *o = &j->options;
    if (j->report.count == 0) return HD_OK;
    if (!o->quiet) hd_bench_print_table(&j->report, stdout);
    if (o->json) HD_TRY(hd_bench_write_json(&j->report, o->json));
    if (o->csv) HD_TRY(hd_bench_write_csv(&j->report, o->csv));
    return o->plot ? hd_bench_write_plot(&j->report, o->plot) : HD_OK;
}

// The first row that was refused or failed decides how the program ends.
static hd_status worst_row(const hd_bench_report *report)
{
    for (int64_t i = 0; i < report->count; i++) {
        const hd_bench_result *r = &report->result[i];
        if (r->status == HD_OK) continue;
        if (strncmp(r->why, "row ", 4) == 0) return hd_fail(r->status, "%s", r->why);
        return hd_fail(r->status, "row \"%s\": %s", r->label, r->why);
    }
    return HD_OK;
}

static void clear(hd_bench_job *j)
{
    hd_bench_report_free(&j->report);
    hd_bench_rows_free(&j->rows);
    hd_params_free(bench_params, &j->options);
    hd_pool_free(j->ex.pool);
    free((void *)j->classes);
}

static int run_bench(const hd_command *command, const hd_args *args)
{
    hd_bench_job j = {.args = args};
    const char *word = NULL;
    hd_status status = hd_args_word(args, "attention or model", &word);
    const bool model = word && strcmp(word, "model") == 0;
    if (status == HD_OK && !model && strcmp(word, "attention") != 0)
        status = hd_fail(HD_ERR_ARGUMENT, "\"%.80s\" cannot be measured; attention or model", word);
    if (status == HD_OK) status = prepare(&j, model);
    if (status == HD_OK) status = model ? hd_bench_job_model(&j) : hd_bench_job_attention(&j);
    hd_progress_bar_clear(&j.bar);
    int code = HD_EXIT_OK;
    if (status == HD_OK || status == HD_ERR_CANCELLED) {
        const hd_status shown = show(&j);
        if (shown != HD_OK)
            status = shown;
        else if (status == HD_OK)
            status = worst_row(&j.report);
    }
    if (status != HD_OK) code = hd_command_fail(status, command, false);
    clear(&j);
    return code == HD_EXIT_OK ? hd_command_done() : code;
}

static int bench(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, run_bench);
}

static void list_shapes(FILE *to)
{
    hd_bench_shape shape;
    fprintf(to, "\nShapes:\n");
    for (size_t i = 0; hd_bench_shape_at(&shape, i); i++) {
        char text[120];
        hd_bench_shape_text(text, sizeof text, &shape);
        fprintf(to, "  %-58s %s\n", text, shape.about);
    }
}

const hd_command hd_command_bench = {
    .name = "bench",
    .usage = "attention|model [options]",
    .summary = "compares dense attention with the accelerators: time, FLOPs, error",
    .details = "Every row runs through the same call as a generation. ms: the whole call, planning "
               "included;\nratio: dense's time over it; ideal: all query-key pairs over those that "
               "are seen; mass: the\nshare of dense attention on the keys that are seen. "
               "docs/accelerators.md says how to read it.",
    .list = list_shapes,
    .options = bench_options,
    .run = bench,
};
