/* cli/inspect_chain.c: heddle inspect chain: the branches of a run, and site by site and step range
 * by step range which processors act and which kernel runs. Nothing is drawn. */
#include "cli/inspect_chain.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/defaults.h"
#include "cli/job.h"

static const hd_option chain_options[] = {
    {0, NULL, NULL, NULL, "The run, on top of the preset:"},
    {'m', "model", "DIR", "model",
     "model folder in diffusers' layout (default: the starter model)"},
    {'p', "prompt", "TEXT", "prompt", NULL},
    {'W', "width", "N", "width", NULL},
    {'H', "height", "N", "height", NULL},
    {'b', "batch", "N", "batch", NULL},
    {0, "steps", "N", "steps", NULL},
    {0, "sampler", "NAME", "sampler", NULL},
    {0, "guidance", "X", "guidance", NULL},
    {0, "precision", "NAME", "precision", NULL},
    {0, "set", "PATH=VALUE", NULL,
     "any field of the run, as in --set processors[0].tau=0.8; may be given often"},
    {0, NULL, NULL, NULL, "What is said:"},
    {0, "json", NULL, NULL, "everything as one JSON object on stdout; errors too"},
    {'v', "verbose", NULL, NULL, "decisions on stderr"},
    {'q', "quiet", NULL, NULL, "no progress, no warnings"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

static const char *text_of(const hd_json *object, const char *key)
{
    const hd_json *node = hd_json_get(object, key);
    const char *text = "";
    if (!node || hd_json_kind(node) != HD_JSON_STRING) return "";
    return hd_json_to_string(node, &text) == HD_OK ? text : "";
}

static int64_t number_of(const hd_json *object, const char *key)
{
    const hd_json *node = hd_json_get(object, key);
    int64_t value = 0;
    return node && hd_json_to_int(node, 0, INT64_MAX, &value) == HD_OK ? value : 0;
}

// "uncond, cond" of a list of texts.
static char *list_text(char *text, size_t bytes, const hd_json *list)
{
    size_t used = 0;
    text[0] = 0;
    for (int64_t i = 0; list && i < hd_json_count(list) && used < bytes; i++) {
        const char *item = "";
        if (hd_json_to_string(hd_json_at(list, i), &item) != HD_OK) break;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", item);
    }
    return text;
}

static void print_branches(const hd_json *branches)
{
    char rows[96], also[256];
    for (int64_t i = 0; i < hd_json_count(branches); i++) {
        const hd_json *b = hd_json_at(branches, i);
        const char *start = text_of(b, "start"), *latent = text_of(b, "latent_of");
        printf("branch %-14s rows %s", text_of(b, "name"),
               list_text(rows, sizeof rows, hd_json_get(b, "rows")));
        list_text(also, sizeof also, hd_json_get(b, "also"));
        if (also[0]) printf("; also %s", also);
        if (start[0]) printf("; begins as %s", start);
        if (latent[0]) printf("; shows the latent of %s", latent);
        if (hd_json_get(b, "inverted")) printf("; inverted");
        if (hd_json_get(b, "follows")) printf("; follows its inversion");
        if (hd_json_get(b, "guidance_by"))
            printf("; guess by processors[%" PRId64 "]", number_of(b, "guidance_by"));
        fputc('\n', stdout);
    }
}

static void print_processors(const hd_json *processors)
{
    char features[256];
    for (int64_t i = 0; i < hd_json_count(processors); i++) {
        const hd_json *p = hd_json_at(processors, i);
        printf("processors[%" PRId64 "] %-20s steps [%" PRId64 ", %" PRId64 ")", i,
               text_of(p, "use"), number_of(p, "first_step"), number_of(p, "end_step"));
        if (text_of(p, "beside")[0]) printf("; beside the call: %s", text_of(p, "beside"));
        list_text(features, sizeof features, hd_json_get(p, "features"));
        if (features[0]) printf(" at %s", features);
        fputc('\n', stdout);
    }
}

static void print_sites(const hd_json *sites)
{
    printf("\n%-28s %7s %5s  %-10s %-28s %s\n", "site", "tokens", "heads", "steps", "kernel",
           "processors");
    for (int64_t i = 0; i < hd_json_count(sites); i++) {
        const hd_json *site = hd_json_at(sites, i), *ranges = hd_json_get(site, "ranges");
        for (int64_t r = 0; ranges && r < hd_json_count(ranges); r++) {
            const hd_json *range = hd_json_at(ranges, r);
            char steps[48];
            snprintf(steps, sizeof steps, "[%" PRId64 ", %" PRId64 ")",
                     number_of(range, "first_step"), number_of(range, "end_step"));
            if (r == 0)
                printf("%-28s %7" PRId64 " %5" PRId64, text_of(site, "site"),
                       number_of(site, "tokens"), number_of(site, "heads"));
            else
                printf("%-28s %7s %5s", "", "", "");
            const char *names = text_of(range, "processors");
            printf("  %-10s %-28s %s\n", steps, text_of(range, "kernel"), names[0] ? names : "-");
        }
    }
}

static hd_status print_chain(const char *json, const char *name)
{
    hd_json_doc *doc = NULL;
    HD_TRY(hd_json_parse(&doc, name, json, strlen(json)));
    const hd_json *root = hd_json_root(doc);
    const char *fork = text_of(root, "fork");
    printf("%s: %" PRId64 " calls of %" PRId64 " rows, sampler %s\n", text_of(root, "model"),
           number_of(root, "calls"), number_of(root, "rows"), text_of(root, "sampler"));
    print_branches(hd_json_get(root, "branches"));
    print_processors(hd_json_get(root, "processors"));
    if (fork[0]) printf("rows that equal others run from %s on\n", fork);
    print_sites(hd_json_get(root, "sites"));
    hd_json_free(doc);
    return HD_OK;
}

static hd_status chain_of(const hd_args *args, const char *path)
{
    char *preset = NULL, *json = NULL;
    hd_context *context = NULL;
    hd_job job = hd_job_begin(args);
    hd_callbacks callbacks = hd_job_callbacks(&job);
    hd_status status = hd_preset_read(path, &preset);
    if (status == HD_OK) status = hd_job_apply(args, &preset, path);
    if (status == HD_OK) status = hd_defaults_put(&preset, path);
    if (status == HD_OK) status = hd_context_create(&context, NULL);
    if (status == HD_OK) status = hd_context_chain(context, preset, path, &callbacks, &json);
    hd_progress_bar_clear(&job.bar);
    if (status == HD_OK && hd_args_has(args, "json"))
        printf("%s\n", json);
    else if (status == HD_OK)
        status = print_chain(json, path);
    hd_context_free(context);
    hd_text_free(json);
    hd_text_free(preset);
    return status;
}

static int inspect_chain(const hd_command *command, int argc, char **argv)
{
    hd_args args = {0};
    hd_status status = hd_args_parse(&args, command->options, argc, argv);
    if (status != HD_OK) return hd_command_fail(status, command, hd_command_wants_json(argc, argv));
    int code = HD_EXIT_OK;
    const char *path = NULL;
    if (hd_args_has(&args, "help")) {
        hd_command_help(command, stdout);
    } else {
        status = hd_args_word(&args, "a preset or a picture", &path);
        if (status == HD_OK) status = chain_of(&args, path);
        if (status != HD_OK) code = hd_command_fail(status, command, hd_args_has(&args, "json"));
    }
    hd_args_free(&args);
    return code == HD_EXIT_OK ? hd_command_done() : code;
}

const hd_command hd_command_inspect_chain = {
    .name = "inspect chain",
    .usage = "PRESET.json|PICTURE.png [options]",
    .summary = "says which processors act where in a run, and which kernel runs",
    .details = "The run is prepared as for drawing, and refused for the same reasons; nothing is "
               "drawn or\nwritten.",
    .options = chain_options,
    .run = inspect_chain,
};
