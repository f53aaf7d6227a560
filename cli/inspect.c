/* cli/inspect.c: heddle inspect: what a model's files hold, as a table or as JSON. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/fields.h"
#include "cli/inspect_run.h"
#include "engine/options/json.h"

static const hd_option inspect_options[] = {
    {0, NULL, NULL, NULL, "Options:"},
    {'t', "tensors", NULL, NULL, "every tensor: name, type, shape, bytes"},
    {0, "json", NULL, NULL, "everything as one JSON object on stdout; errors too"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

// "859.5 M", "1.7 GiB" with the units of the base.
static char *amount_text(char *text, size_t bytes, int64_t amount, double base,
                         const char *const units[4])
{
    double value = (double)amount;
    int unit = 0;
    while (unit < 3 && value >= base) {
        value /= base;
        unit++;
    }
    snprintf(text, bytes, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

static char *bytes_text(char *text, size_t bytes, int64_t amount)
{
    static const char *const units[4] = {"B", "KiB", "MiB", "GiB"};
    return amount_text(text, bytes, amount, 1024, units);
}

static char *count_text(char *text, size_t bytes, int64_t amount)
{
    static const char *const units[4] = {"", "K", "M", "G"};
    return amount_text(text, bytes, amount, 1000, units);
}

// "f16, i64": the types of a component's tensors, in the order they occur.
static char *types_text(char *text, size_t bytes, const hd_json *tensors)
{
    text[0] = 0;
    for (int64_t i = 0; tensors && i < hd_json_count(tensors); i++) {
        const char *type = hd_field_text(hd_json_at(tensors, i), "type");
        size_t used = strlen(text);
        if (!strstr(text, type))
            snprintf(text + used, bytes - used, "%s%s", used ? ", " : "", type);
    }
    return text;
}

static void print_row(const hd_json *component, const char *name)
{
    char parameters[40], size[40], types[120];
    printf("%-14s %-24s %7" PRId64 " %11s %11s  %s\n", name, hd_field_text(component, "class"),
           hd_field_int(component, "tensor_count"),
           count_text(parameters, sizeof parameters, hd_field_int(component, "parameters")),
           bytes_text(size, sizeof size, hd_field_int(component, "bytes")),
           types_text(types, sizeof types, hd_json_get(component, "tensors")));
    const char *problem = hd_field_text(component, "problem");
    if (problem[0]) printf("%-14s cannot be run: %s\n", "", problem);
}

// "[320, 4, 3, 3]"
static char *shape_text(char *text, size_t bytes, const hd_json *shape)
{
    size_t used = (size_t)snprintf(text, bytes, "[");
    for (int64_t d = 0; d < hd_json_count(shape) && used < bytes; d++) {
        int64_t size = 0;
        if (hd_json_to_int(hd_json_at(shape, d), 0, INT64_MAX, &size) != HD_OK) break;
        used += (size_t)snprintf(text + used, bytes - used, "%s%" PRId64, d ? ", " : "", size);
    }
    if (used < bytes) snprintf(text + used, bytes - used, "]");
    return text;
}

static void print_tensors(const hd_json *component, const char *title)
{
    const hd_json *tensors = hd_json_get(component, "tensors");
    printf("\n%s\n", title);
    for (int64_t i = 0; tensors && i < hd_json_count(tensors); i++) {
        const hd_json *t = hd_json_at(tensors, i), *shape = hd_json_get(t, "shape");
        char dims[160];
        printf("  %-72s %-5s %-24s %12" PRId64 "  %s\n", hd_field_text(t, "name"),
               hd_field_text(t, "type"), shape_text(dims, sizeof dims, shape),
               hd_field_int(t, "bytes"), hd_field_text(t, "file"));
    }
}

static void print_model(const hd_json *root, bool tensors)
{
    const hd_json *components = hd_json_get(root, "components");
    const hd_json *scheduler = hd_json_get(root, "scheduler");
    int64_t count = components ? hd_json_count(components) : 0;
    printf("%s: %s\n\n", hd_field_text(root, "path"), hd_field_text(root, "kind"));
    printf("%-14s %-24s %7s %11s %11s  %s\n", "part", "class", "tensors", "parameters", "size",
           "types");
    if (!components) print_row(root, "-");
    for (int64_t i = 0; i < count; i++)
        print_row(hd_json_at(components, i), hd_field_text(hd_json_at(components, i), "name"));
    if (scheduler)
        printf("%-14s %-24s predicts %s\n", "scheduler", hd_field_text(scheduler, "_class_name"),
               hd_field_text(scheduler, "prediction_type")[0]
                   ? hd_field_text(scheduler, "prediction_type")
                   : "epsilon");
    if (tensors && !components) print_tensors(root, hd_field_text(root, "path"));
    for (int64_t i = 0; tensors && i < count; i++)
        print_tensors(hd_json_at(components, i), hd_field_text(hd_json_at(components, i), "name"));
}

static int inspect_path(const hd_command *command, const hd_args *args)
{
    const char *path = NULL;
    char *json = NULL;
    hd_json_doc *doc = NULL;
    hd_status status = hd_args_word(args, "a model folder or a safetensors file", &path);
    if (status == HD_OK) status = hd_model_inspect(path, &json);
    if (status == HD_OK && hd_args_has(args, "json"))
        printf("%s\n", json);
    else if (status == HD_OK && (status = hd_json_parse(&doc, path, json, strlen(json))) == HD_OK)
        print_model(hd_json_root(doc), hd_args_has(args, "tensors"));
    hd_json_free(doc);
    hd_text_free(json);
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    return hd_command_done();
}

static int inspect(const hd_command *command, int argc, char **argv)
{
    if (argc > 0 && strcmp(argv[0], "chain") == 0)
        return hd_command_inspect_chain.run(&hd_command_inspect_chain, argc - 1, argv + 1);
    if (argc > 0 && strcmp(argv[0], "attention") == 0)
        return hd_command_inspect_attention.run(&hd_command_inspect_attention, argc - 1, argv + 1);
    return hd_command_parsed(command, argc, argv, inspect_path);
}

const hd_command hd_command_inspect = {
    .name = "inspect",
    .usage = "MODEL [options] | chain PRESET [options] | attention PRESET [options]",
    .summary = "says what a model's files hold, who acts where in a run, or where words are read",
    .details =
        "MODEL is a folder in diffusers' layout, one component's folder, or a safetensors "
        "file (./chain for\none of that name). heddle inspect chain --help and heddle inspect "
        "attention --help list their options.",
    .options = inspect_options,
    .run = inspect,
};
