/* cli/presets.c: heddle presets: the presets that come with the program, with what they do and the
 * parameters of their processors. */
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/fields.h"
#include "cli/presets_folder.h"
#include "cli/processors.h"
#include "engine/options/json_write.h"
#include "include/heddle.h"

static const hd_option presets_options[] = {
    {0, "presets-dir", "DIR", NULL,
     "where they are (default: $HEDDLE_PRESETS, else presets/ in the current folder, else those "
     "that came with the program)"},
    {0, "json", NULL, NULL, "everything as one JSON object on stdout; errors too"},
    {'h', "help", NULL, NULL, "this text"},
    {0},
};

enum { COLUMNS = 96 };

// Words wrapped at COLUMNS, `indent` spaces before each line.
static void print_wrapped(const char *text, int indent)
{
    int column = printf("%*s", indent, "");
    for (const char *at = text; *at;) {
        const int bytes = (int)strcspn(at, " ");
        if (column > indent && column + 1 + bytes > COLUMNS)
            column = printf("\n%*s", indent, "") - 1;
        else if (column > indent)
            column += printf(" ");
        column += printf("%.*s", bytes, at);
        at += bytes + strspn(at + bytes, " ");
    }
    fputc('\n', stdout);
}

// "prompt_to_prompt cross_replace_steps 0.8, self_min_factor 2" of a processor.
static hd_status print_processor(const hd_json *processor, int indent)
{
    char line[4096];
    size_t used = (size_t)snprintf(line, sizeof line, "%s", hd_field_text(processor, "use"));
    const char *gap = ":";
    for (int64_t i = 0; i < hd_json_count(processor) && used < sizeof line; i++) {
        const hd_json *field = hd_json_at(processor, i);
        if (strcmp(hd_json_key(field), "use") == 0) continue;
        hd_json_writer w = {0};
        char *value = NULL;
        hd_json_write_node(&w, NULL, field);
        HD_TRY(hd_json_writer_take(&w, &value));
        used += (size_t)snprintf(line + used, sizeof line - used, "%s %s %s", gap,
                                 hd_json_key(field), value);
        free(value);
        gap = ",";
    }
    print_wrapped(line, indent);
    return HD_OK;
}

static hd_status print_preset(const hd_preset_name *one, const hd_json *root)
{
    printf("%s\n", one->name);
    if (hd_field_text(root, "description")[0]) print_wrapped(hd_field_text(root, "description"), 4);
    const hd_json *list = hd_json_get(root, "processors");
    for (int64_t i = 0; list && i < hd_json_count(list); i++)
        HD_TRY(print_processor(hd_json_at(list, i), 6));
    fputc('\n', stdout);
    return HD_OK;
}

static bool used_before(const hd_json *list, int64_t index)
{
    for (int64_t i = 0; i < index; i++)
        if (strcmp(hd_field_text(hd_json_at(list, i), "use"),
                   hd_field_text(hd_json_at(list, index), "use")) == 0)
            return true;
    return false;
}

// All that its processors can be told.
static hd_status print_details(const hd_preset_name *one, const hd_json *root)
{
    printf("%s\n", one->path);
    HD_TRY(print_preset(one, root));
    const hd_json *list = hd_json_get(root, "processors");
    for (int64_t i = 0; list && i < hd_json_count(list); i++)
        if (!used_before(list, i))
            hd_processor_print(hd_field_text(hd_json_at(list, i), "use"), stdout);
    return HD_OK;
}

static void write_preset(hd_json_writer *w, const hd_preset_name *one, const hd_json *root)
{
    hd_json_write_object(w, NULL);
    hd_json_write_string(w, "name", one->name);
    hd_json_write_string(w, "path", one->path);
    hd_json_write_node(w, "preset", root);
    hd_json_write_end(w, '}');
}

// Each of those that are wanted: as JSON, or printed in full or in short.
static hd_status show(const hd_preset_name *item, int count, hd_json_writer *w, bool details)
{
    hd_status status = HD_OK;
    for (int i = 0; i < count && status == HD_OK; i++) {
        char *json = NULL;
        hd_json_doc *doc = NULL;
        status = hd_preset_read(item[i].path, &json);
        if (status == HD_OK) status = hd_json_parse(&doc, item[i].path, json, strlen(json));
        if (status == HD_OK && w)
            write_preset(w, &item[i], hd_json_root(doc));
        else if (status == HD_OK)
            status = details ? print_details(&item[i], hd_json_root(doc))
                             : print_preset(&item[i], hd_json_root(doc));
        hd_json_free(doc);
        hd_text_free(json);
    }
    return status;
}

static hd_status show_as_json(const hd_preset_name *item, int count)
{
    hd_json_writer w = {0};
    char *text = NULL;
    hd_json_write_object(&w, NULL);
    hd_json_write_array(&w, "presets");
    hd_status status = show(item, count, &w, false);
    hd_json_write_end(&w, ']');
    hd_json_write_end(&w, '}');
    if (status != HD_OK) {
        hd_json_writer_free(&w);
        return status;
    }
    HD_TRY(hd_json_writer_take(&w, &text));
    printf("%s\n", text);
    free(text);
    return HD_OK;
}

static hd_status list_presets(const hd_args *args, const hd_preset_names *names)
{
    const hd_preset_name *item = names->item;
    const char *word = NULL;
    int count = names->count;
    for (int i = 0; i < args->count; i++)
        if (!args->list[i].option) HD_TRY(hd_args_word(args, "a preset's name", &word));
    if (word) {
        HD_TRY(hd_preset_names_find(names, word, &item));
        count = 1;
    }
    return hd_args_has(args, "json") ? show_as_json(item, count)
                                     : show(item, count, NULL, word != NULL);
}

static int presets_of(const hd_command *command, const hd_args *args)
{
    hd_preset_names names;
    hd_status status = hd_preset_names_list(&names, hd_args_value(args, "presets-dir"));
    if (status == HD_OK) status = list_presets(args, &names);
    hd_preset_names_free(&names);
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    return hd_command_done();
}

static int presets(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, presets_of);
}

const hd_command hd_command_presets = {
    .name = "presets",
    .usage = "[NAME] [options]",
    .summary = "lists the presets that are there, with what they do",
    .details = "With a NAME: all that its processors can be told. heddle run NAME draws one.",
    .options = presets_options,
    .run = presets,
};
