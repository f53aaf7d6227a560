/* benchmark/rows.c: reads and chooses the rows of a comparison. */
#include "benchmark/rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "benchmark/default_rows.h"
#include "engine/options/json_write.h"

typedef struct reader {
    hd_bench_rows *out;
    const hd_bench_shape *shape;
    const hd_processor_list *list;
    bool keep_sites;
} reader;

/* --- a row's name */

// "18x24x24", "antidiag", "0.9"
static void value_text(char *text, size_t bytes, const hd_json *node)
{
    size_t used = 0;
    const char *string;
    text[0] = 0;
    if (hd_json_kind(node) == HD_JSON_ARRAY) {
        for (int64_t i = 0; i < hd_json_count(node) && used + 1 < bytes; i++) {
            char one[40];
            hd_json_describe(hd_json_at(node, i), one, sizeof one);
            used += (size_t)snprintf(text + used, bytes - used, "%s%s", i ? "x" : "", one);
        }
    } else if (hd_json_kind(node) == HD_JSON_STRING && hd_json_to_string(node, &string) == HD_OK) {
        snprintf(text, bytes, "%s", string);
    } else {
        hd_json_describe(node, text, bytes);
    }
}

static bool engine_key(const char *key)
{
    static const char *const keys[] = {"name", "use", "sites", "steps", "branches"};
    for (size_t i = 0; i < HD_COUNT(keys); i++)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

// "gna window=18x24x24 stride=16x8x8" behind what `text` already holds.
static void describe_processor(char *text, size_t bytes, const hd_json *processor)
{
    const hd_json *use = hd_json_get(processor, "use"), *name = hd_json_get(processor, "name");
    size_t used = strlen(text);
    char value[80] = "?";
    if (name || use) value_text(value, sizeof value, name ? name : use);
    used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? " + " : "", value);
    for (int64_t i = 0; !name && i < hd_json_count(processor) && used < bytes; i++) {
        const hd_json *field = hd_json_at(processor, i);
        if (engine_key(hd_json_key(field))) continue;
        value_text(value, sizeof value, field);
        used += (size_t)snprintf(text + used, bytes - used, " %s=%s", hd_json_key(field), value);
    }
}

/* --- windows of a scaled grid */

static void write_ints(hd_json_writer *w, const char *key, const int64_t *values, int64_t count)
{
    hd_json_write_array(w, key);
    for (int64_t i = 0; i < count; i++)
        hd_json_write_int(w, NULL, values[i]);
    hd_json_write_end(w, ']');
}

// The grid's axes that a list of so many numbers is about: the last ones.
static bool write_scaled(hd_json_writer *w, const hd_json *field, const hd_bench_shape *s)
{
    double value[3];
    int64_t count, scaled[3];
    hd_status status = hd_json_to_doubles(field, 1, 1e6, 1, 3, value, &count);
    if (status != HD_OK) return false; // the processor says what is wrong with it
    const char *key = hd_json_key(field);
    const int first_axis = strcmp(key, "block1") == 0 ? 0 : 3 - (int)count;
    for (int64_t i = 0; i < count; i++) {
        const int a = first_axis + (int)i;
        scaled[i] = (int64_t)rint(value[i] * (double)s->grid[a] / (double)s->base[a]);
        if (scaled[i] < 1) scaled[i] = 1;
    }
    if (hd_json_kind(field) == HD_JSON_ARRAY)
        write_ints(w, key, scaled, count);
    else
        hd_json_write_int(w, key, scaled[0]);
    return true;
}

static bool is_use(const hd_json *processor, const char *name)
{
    const hd_json *use = hd_json_get(processor, "use");
    const char *text;
    return use && hd_json_kind(use) == HD_JSON_STRING && hd_json_to_string(use, &text) == HD_OK &&
           strcmp(text, name) == 0;
}

static void write_processor(hd_json_writer *w, const hd_json *processor, const reader *r)
{
    const hd_bench_shape *s = r->shape;
    const bool scaled = s && s->scale != 1;
    hd_json_write_object(w, NULL);
    for (int64_t i = 0; i < hd_json_count(processor); i++) {
        const hd_json *field = hd_json_at(processor, i);
        const char *key = hd_json_key(field);
        if (strcmp(key, "name") == 0 || strcmp(key, "steps") == 0 || strcmp(key, "branches") == 0)
            continue;
        if (strcmp(key, "sites") == 0 && !r->keep_sites) continue;
        const bool follows = (is_use(processor, "vmoba") && strncmp(key, "block", 5) == 0) ||
                             (is_use(processor, "swin_windows") && strcmp(key, "window") == 0);
        if (scaled && follows && write_scaled(w, field, s)) continue;
        hd_json_write_node(w, key, field);
    }
    if (scaled && is_use(processor, "gna") && !hd_json_get(processor, "base_size"))
        write_ints(w, "base_size", s->grid[0] > 1 || s->base[0] > 1 ? s->base : s->base + 1,
                   s->grid[0] > 1 || s->base[0] > 1 ? 3 : 2);
    hd_json_write_end(w, '}');
}

/* --- rows */

static hd_status add_row(hd_bench_rows *rows, const char *label, char *json)
{
    hd_bench_row *grown =
        json ? realloc(rows->row, (size_t)(rows->count + 1) * sizeof *grown) : NULL;
    if (!grown) {
        free(json);
        return hd_fail(HD_ERR_NOMEM, "bench: no memory for a row");
    }
    rows->row = grown;
    hd_bench_row *row = &rows->row[rows->count++];
    *row = (hd_bench_row){.label = strdup(label), .json = json};
    if (!row->label) return hd_fail(HD_ERR_NOMEM, "bench: no memory for a row");
    char name[200];
    snprintf(name, sizeof name, "row \"%.180s\"", label);
    return hd_json_parse(&row->doc, name, json, strlen(json));
}

// `node`: a processor, or an array of those that act together.
static hd_status add_chain(const reader *r, const hd_json *node)
{
    const bool together = hd_json_kind(node) == HD_JSON_ARRAY;
    char label[160] = "", *json = NULL;
    hd_json_writer w = {0};
    hd_json_write_array(&w, NULL);
    for (int64_t i = 0; i < (together ? hd_json_count(node) : 1); i++) {
        const hd_json *processor = together ? hd_json_at(node, i) : node;
        hd_status status = hd_json_expect(processor, HD_JSON_OBJECT);
        if (status != HD_OK) {
            hd_json_writer_free(&w);
            return status;
        }
        describe_processor(label, sizeof label, processor);
        write_processor(&w, processor, r);
    }
    hd_json_write_end(&w, ']');
    HD_TRY(hd_json_writer_take(&w, &json));
    return add_row(r->out, label[0] ? label : "nothing", json);
}

static hd_status add_all(const reader *r, const hd_json *root)
{
    const hd_json *list = root;
    if (hd_json_kind(root) == HD_JSON_OBJECT) {
        list = hd_json_get(root, "processors");
        if (!list && hd_json_get(root, "use")) return add_chain(r, root);
        if (!list)
            return hd_json_fail(root, HD_ERR_ARGUMENT, "has no \"processors\" and no \"use\"");
    }
    HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    for (int64_t i = 0; i < hd_json_count(list); i++)
        HD_TRY(add_chain(r, hd_json_at(list, i)));
    return HD_OK;
}

static bool known(const hd_processor_list *list, const char *use)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->item[i]->name, use) == 0) return true;
    return false;
}

// Rows of the shape's own list: all, or those of one accelerator.
static hd_status add_defaults(const reader *r, const char *only, int64_t *added)
{
    char *text = NULL;
    hd_json_doc *doc = NULL;
    HD_TRY(hd_bench_default_rows(&text, r->shape));
    hd_status status = hd_json_parse(&doc, "rows", text, strlen(text));
    free(text);
    HD_TRY(status);
    const hd_json *root = hd_json_root(doc);
    for (int64_t i = 0; i < hd_json_count(root) && status == HD_OK; i++) {
        const hd_json *row = hd_json_at(root, i);
        const char *use;
        status = hd_json_to_string(hd_json_get(row, "use"), &use);
        if (status != HD_OK || (only && strcmp(only, use) != 0) || !known(r->list, use)) continue;
        status = add_chain(r, row);
        *added += 1;
    }
    hd_json_free(doc);
    return status;
}

static hd_status unknown_name(const hd_processor_list *list, const char *name)
{
    const char *names[64];
    char all[600] = "";
    size_t count = 0, used = 0;
    for (; count < list->count && count < HD_COUNT(names); count++) {
        names[count] = list->item[count]->name;
        if (used < sizeof all)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", count ? ", " : "",
                                     names[count]);
    }
    const char *near = hd_nearest_name(name, names, count);
    return hd_fail(HD_ERR_ARGUMENT,
                   "--rows: \"%.80s\" is no accelerator%s%s%s; there are: %s; or give JSON", name,
                   near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "", all);
}

// "gna,proxy"
static hd_status add_names(const reader *r, const char *text)
{
    while (*text) {
        const size_t length = strcspn(text, ",");
        char name[80], json[120];
        snprintf(name, sizeof name, "%.*s", (int)(length < 79 ? length : 79), text);
        text += length + (text[length] == ',');
        if (!known(r->list, name)) {
            if (strcmp(name, "dense") == 0) continue; // is there already
            return unknown_name(r->list, name);
        }
        int64_t added = 0;
        HD_TRY(add_defaults(r, name, &added));
        if (added > 0 || strcmp(name, "dense") == 0) continue;
        hd_json_doc *doc = NULL; // not in the list: as it is by default
        snprintf(json, sizeof json, "{\"use\": \"%s\"}", name);
        HD_TRY(hd_json_parse(&doc, "rows", json, strlen(json)));
        hd_status status = add_chain(r, hd_json_root(doc));
        hd_json_free(doc);
        HD_TRY(status);
    }
    return HD_OK;
}

static hd_status read_rows(const reader *r, const char *text)
{
    char *dense = strdup("[]");
    int64_t added = 0;
    HD_TRY(add_row(r->out, "dense", dense));
    if (!text) return add_defaults(r, NULL, &added);
    const size_t length = strlen(text), blank = strspn(text, " \t\r\n");
    hd_json_doc *doc = NULL;
    if (text[blank] == '[' || text[blank] == '{')
        HD_TRY(hd_json_parse(&doc, "--rows", text, length));
    else if (length > 5 && strcmp(text + length - 5, ".json") == 0)
        HD_TRY(hd_json_read(&doc, text));
    else
        return add_names(r, text);
    hd_status status = add_all(r, hd_json_root(doc));
    hd_json_free(doc);
    return status;
}

hd_status hd_bench_rows_read(hd_bench_rows *out, const char *text, const hd_bench_shape *shape,
                             bool keep_sites, const hd_processor_list *list)
{
    *out = (hd_bench_rows){0};
    reader r = {.out = out, .shape = shape, .list = list, .keep_sites = keep_sites};
    hd_status status = read_rows(&r, text);
    if (status != HD_OK) hd_bench_rows_free(out);
    return status;
}

void hd_bench_rows_free(hd_bench_rows *rows)
{
    for (int64_t i = 0; i < rows->count; i++) {
        free(rows->row[i].label);
        free(rows->row[i].json);
        hd_json_free(rows->row[i].doc);
        if (rows->row[i].plan_fd) close(rows->row[i].plan_fd);
    }
    free(rows->row);
    *rows = (hd_bench_rows){0};
}
