/* cli/inspect_attention.c: heddle inspect attention: draws a run's picture and, over it, where each
 * word of its prompt was read. The processor attention_masks is added where the preset has none. */
#include <stdlib.h>
#include <string.h>

#include "cli/defaults.h"
#include "cli/inspect_run.h"
#include "cli/job.h"
#include "cli/presets_folder.h"
#include "cli/settings.h"
#include "engine/options/json_write.h"

static const hd_option attention_options[] = {
    {0, NULL, NULL, NULL, "What is written:"},
    {'o', "output", "FILE", "maps", "PNG of the heat maps over the picture, with their words"},
    {0, "masks", "FILE", "masks", NULL},
    {0, "map-values", "FILE", "map_values", NULL},
    {0, "picture", "FILE", "output", "the picture itself"},
    {0, NULL, NULL, NULL, "What is looked at (where the preset has no attention_masks):"},
    {0, "words", "TEXT", NULL, "words of the prompt, as in \"fish, cat#2\" (default: all)"},
    {0, "recipe", "NAME", NULL, "daam, p2p, diffumask or attencraft (default: daam)"},
    {0, "branch", "NAME", NULL, "whose words and picture (default: main)"},
    {0, NULL, NULL, NULL, "The run, on top of the preset:"},
    {'m', "model", "DIR", "model",
     "model folder in diffusers' layout (default: the starter model)"},
    {'p', "prompt", "TEXT", "prompt", NULL},
    {'s', "seed", "N", "seed", NULL},
    {'b', "batch", "N", "batch", NULL},
    {'W', "width", "N", "width", NULL},
    {'H', "height", "N", "height", NULL},
    {0, "steps", "N", "steps", NULL},
    {0, "guidance", "X", "guidance", NULL},
    {0, "precision", "NAME", "precision", NULL},
    {0, "threads", "N", "threads", NULL},
    {0, "set", "PATH=VALUE", NULL,
     "any field of the run, as in --set processors[0].threshold=0.5; may be given often"},
    {0, NULL, NULL, NULL, "What is said:"},
    {0, "json", NULL, NULL, "one JSON object on stdout: files, seeds, times; errors too"},
    {'v', "verbose", NULL, NULL, "times, memory and decisions on stderr"},
    {'q', "quiet", NULL, NULL, "nothing but errors"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

// "fish, cat#2" as a list.
static void write_words(hd_json_writer *w, const char *text)
{
    char word[128];
    hd_json_write_array(w, "words");
    while (*text) {
        while (*text == ' ' || *text == ',')
            text++;
        size_t bytes = strcspn(text, ",");
        snprintf(word, sizeof word, "%.*s", (int)bytes, text);
        text += bytes;
        if (word[0]) hd_json_write_string(w, NULL, word);
    }
    hd_json_write_end(w, ']');
}

static hd_status processor_text(const hd_args *args, char **text)
{
    const char *words = hd_args_value(args, "words"), *recipe = hd_args_value(args, "recipe"),
               *branch = hd_args_value(args, "branch");
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "use", "attention_masks");
    if (recipe) hd_json_write_string(&w, "recipe", recipe);
    if (branch) hd_json_write_string(&w, "branch", branch);
    if (words) write_words(&w, words);
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, text);
}

// How many processors the run has, and whether one of them shows maps already.
static hd_status count_processors(const char *json, const char *name, int64_t *count, bool *shows)
{
    hd_json_doc *doc = NULL;
    HD_TRY(hd_json_parse(&doc, name, json, strlen(json)));
    const hd_json *list = hd_json_get(hd_json_root(doc), "processors");
    *count = list ? hd_json_count(list) : 0;
    *shows = false;
    for (int64_t i = 0; i < *count; i++) {
        const hd_json *use = hd_json_get(hd_json_at(list, i), "use");
        const char *text;
        if (use && hd_json_kind(use) == HD_JSON_STRING && hd_json_to_string(use, &text) == HD_OK)
            *shows = *shows || strcmp(text, "attention_masks") == 0;
    }
    hd_json_free(doc);
    return HD_OK;
}

static hd_status add_processor(const hd_args *args, char **json, const char *name)
{
    int64_t count;
    bool shows;
    char path[48], *text = NULL;
    const bool asked =
        hd_args_has(args, "words") || hd_args_has(args, "recipe") || hd_args_has(args, "branch");
    HD_TRY(count_processors(*json, name, &count, &shows));
    if (shows && !asked) return HD_OK;
    snprintf(path, sizeof path, "processors[%lld]", (long long)count);
    hd_status status = processor_text(args, &text);
    if (status == HD_OK) status = hd_setting_put(json, name, path, text);
    free(text);
    return status;
}

static hd_status prepare(const hd_args *args, char **json, const char **path)
{
    HD_TRY(hd_args_word(args, "a preset or a picture", path));
    if (!hd_args_has(args, "output") && !hd_args_has(args, "masks") &&
        !hd_args_has(args, "map-values"))
        return hd_fail(HD_ERR_ARGUMENT, "--output is missing: -o maps.png, the file to draw");
    HD_TRY(hd_presets_read(json, *path));
    HD_TRY(add_processor(args, json, *path)); // before --set, which may reach into it
    HD_TRY(hd_job_apply(args, json, *path));
    return hd_defaults_put_sources(json, *path);
}

static int attention_of(const hd_command *command, const hd_args *args)
{
    const char *path = NULL;
    char *json = NULL;
    hd_status status = prepare(args, &json, &path);
    int code = status == HD_OK ? hd_job_finish(command, args, json, path)
                               : hd_command_fail(status, command, hd_args_has(args, "json"));
    hd_text_free(json);
    return code;
}

static int inspect_attention(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, attention_of);
}

const hd_command hd_command_inspect_attention = {
    .name = "inspect attention",
    .usage = "PRESET.json|PICTURE.png|NAME -o maps.png [options]",
    .summary = "draws heat maps: where each word of the prompt was read",
    .details =
        "The picture is drawn as ever and keeps its bytes; beside each word stands the highest "
        "value of\nits map. All maps are on one scale unless the processor says otherwise.",
    .options = attention_options,
    .run = inspect_attention,
};
