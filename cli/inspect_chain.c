/* cli/inspect_chain.c: heddle inspect chain: the branches of a run, and site by site and step range
 * by step range which processors act and which kernel runs. Nothing is drawn. */
#include "cli/inspect_run.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/defaults.h"
#include "cli/fields.h"
#include "cli/job.h"
#include "cli/presets_folder.h"

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
        const char *start = hd_field_text(b, "start"), *latent = hd_field_text(b, "latent_of");
        printf("branch %-14s rows %s", hd_field_text(b, "name"),
               list_text(rows, sizeof rows, hd_json_get(b, "rows")));
        list_text(also, sizeof also, hd_json_get(b, "also"));
        if (also[0]) printf("; also %s", also);
        if (start[0]) printf("; begins as %s", start);
        if (latent[0]) printf("; shows the latent of %s", latent);
        if (hd_json_get(b, "inverted")) printf("; inverted");
        if (hd_json_get(b, "follows")) printf("; follows its inversion");
        if (hd_json_get(b, "guidance_by"))
            printf("; guess by processors[%" PRId64 "]", hd_field_int(b, "guidance_by"));
        fputc('\n', stdout);
    }
}

static void print_processors(const hd_json *processors)
{
    char features[256];
    for (int64_t i = 0; i < hd_json_count(processors); i++) {
        const hd_json *p = hd_json_at(processors, i);
        printf("processors[%" PRId64 "] %-20s steps [%" PRId64 ", %" PRId64 ")", i,
               hd_field_text(p, "use"), hd_field_int(p, "first_step"), hd_field_int(p, "end_step"));
        if (hd_field_text(p, "beside")[0])
            printf("; beside the call: %s", hd_field_text(p, "beside"));
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
                     hd_field_int(range, "first_step"), hd_field_int(range, "end_step"));
            if (r == 0)
                printf("%-28s %7" PRId64 " %5" PRId64, hd_field_text(site, "site"),
                       hd_field_int(site, "tokens"), hd_field_int(site, "heads"));
            else
                printf("%-28s %7s %5s", "", "", "");
            const char *names = hd_field_text(range, "processors");
            printf("  %-10s %-28s %s\n", steps, hd_field_text(range, "kernel"),
                   names[0] ? names : "-");
        }
    }
}

static hd_status print_chain(const char *json, const char *name)
{
    hd_json_doc *doc = NULL;
    HD_TRY(hd_json_parse(&doc, name, json, strlen(json)));
    const hd_json *root = hd_json_root(doc);
    const char *fork = hd_field_text(root, "fork");
    printf("%s: %" PRId64 " calls of %" PRId64 " rows, sampler %s\n", hd_field_text(root, "model"),
           hd_field_int(root, "calls"), hd_field_int(root, "rows"), hd_field_text(root, "sampler"));
    print_branches(hd_json_get(root, "branches"));
    print_processors(hd_json_get(root, "processors"));
    if (fork[0]) printf("rows that equal others run from %s on\n", fork);
    print_sites(hd_json_get(root, "sites"));
    hd_json_free(doc);
    return HD_OK;
}

static int chain_of(const hd_command *command, const hd_args *args)
{
    const char *path = NULL;
    char *preset = NULL, *json = NULL;
    hd_context *context = NULL;
    hd_job job = hd_job_begin(args);
    hd_callbacks callbacks = hd_job_callbacks(&job);
    hd_status status = hd_args_word(args, "a preset or a picture", &path);
    if (status == HD_OK) status = hd_presets_read(&preset, path);
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
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    return hd_command_done();
}

static int inspect_chain(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, chain_of);
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
