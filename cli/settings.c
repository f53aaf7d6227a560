/* cli/settings.c: writes a JSON text again with one value changed. */
#include "cli/settings.h"

#include <stdlib.h>
#include <string.h>

#include "engine/options/json_write.h"
#include "pipelines/preset.h"

#define DEPTH_MOST 16

// One component of a path: a key, or an index into a list.
typedef struct place {
    char key[64];
    int64_t index; // -1: it is a key
} place;

typedef struct edit {
    const char *path; // for messages
    place place[DEPTH_MOST];
    int depth;
    const hd_json *value;
} edit;

static hd_status bad_path(const char *path)
{
    return hd_fail(HD_ERR_ARGUMENT,
                   "\"%.100s\" is no path; it is written as in steps or processors[0].tau", path);
}

// "[12]" at *text; moves behind it.
static bool read_index(const char **text, place *out)
{
    char *end;
    if ((*text)[1] < '0' || (*text)[1] > '9') return false;
    out->index = strtoll(*text + 1, &end, 10);
    if (*end != ']' || out->index > 100000) return false;
    *text = end + 1;
    return true;
}

static bool read_key(const char **text, place *out)
{
    size_t length = strcspn(*text, ".[]=");
    if (length == 0 || length >= sizeof out->key) return false;
    memcpy(out->key, *text, length);
    out->key[length] = 0;
    out->index = -1;
    *text += length;
    return true;
}

static hd_status read_path(edit *e, const char *path)
{
    const char *rest = path;
    e->path = path;
    for (e->depth = 0; *rest; e->depth++) {
        if (e->depth == DEPTH_MOST) return bad_path(path);
        place *p = &e->place[e->depth];
        if (*rest == '[' && e->depth > 0) {
            if (!read_index(&rest, p)) return bad_path(path);
            continue;
        }
        if (e->depth > 0 && *rest++ != '.') return bad_path(path);
        if (!read_key(&rest, p)) return bad_path(path);
    }
    return e->depth ? HD_OK : bad_path(path);
}

static hd_status write_place(hd_json_writer *w, const char *key, const hd_json *node, const edit *e,
                             int level);

static hd_status write_object(hd_json_writer *w, const char *key, const hd_json *node,
                              const edit *e, int level)
{
    const char *wanted = e->place[level].key;
    int64_t count = node ? hd_json_count(node) : 0;
    hd_json_write_object(w, key);
    for (int64_t i = 0; i < count; i++) {
        const hd_json *child = hd_json_at(node, i);
        if (strcmp(hd_json_key(child), wanted) == 0)
            HD_TRY(write_place(w, wanted, child, e, level + 1));
        else
            hd_json_write_node(w, hd_json_key(child), child);
    }
    if (!hd_json_get(node, wanted)) HD_TRY(write_place(w, wanted, NULL, e, level + 1));
    hd_json_write_end(w, '}');
    return HD_OK;
}

static hd_status write_array(hd_json_writer *w, const char *key, const hd_json *node, const edit *e,
                             int level)
{
    int64_t count = node ? hd_json_count(node) : 0, wanted = e->place[level].index;
    if (wanted > count)
        return hd_fail(HD_ERR_ARGUMENT, "%s: the list has %lld entries; the next one is [%lld]",
                       e->path, (long long)count, (long long)count);
    hd_json_write_array(w, key);
    for (int64_t i = 0; i < count; i++)
        if (i == wanted)
            HD_TRY(write_place(w, NULL, hd_json_at(node, i), e, level + 1));
        else
            hd_json_write_node(w, NULL, hd_json_at(node, i));
    if (wanted == count) HD_TRY(write_place(w, NULL, NULL, e, level + 1));
    hd_json_write_end(w, ']');
    return HD_OK;
}

// `node` with the edit's places from `level` on changed; node is NULL when there was none.
static hd_status write_place(hd_json_writer *w, const char *key, const hd_json *node, const edit *e,
                             int level)
{
    if (level == e->depth) {
        hd_json_write_node(w, key, e->value);
        return HD_OK;
    }
    bool list = e->place[level].index >= 0;
    if (node && hd_json_kind(node) != (list ? HD_JSON_ARRAY : HD_JSON_OBJECT)) {
        char place_text[200];
        return hd_fail(HD_ERR_ARGUMENT, "%s: %s is not %s", e->path,
                       level ? hd_json_path(node, place_text, sizeof place_text) : "the run",
                       list ? "a list" : "an object");
    }
    return list ? write_array(w, key, node, e, level) : write_object(w, key, node, e, level);
}

hd_status hd_setting_put(char **json, const char *name, const char *path, const char *value)
{
    edit e = {0};
    hd_json_doc *doc = NULL, *value_doc = NULL;
    hd_json_writer w = {0};
    char *text = NULL;
    HD_TRY(read_path(&e, path));
    hd_status status = hd_json_parse(&doc, name, *json, strlen(*json));
    if (status == HD_OK) status = hd_json_parse(&value_doc, path, value, strlen(value));
    if (status == HD_OK) {
        e.value = hd_json_root(value_doc);
        status = write_place(&w, NULL, hd_json_root(doc), &e, 0);
    }
    if (status == HD_OK)
        status = hd_json_writer_take(&w, &text);
    else
        hd_json_writer_free(&w);
    hd_json_free(doc);
    hd_json_free(value_doc);
    if (status != HD_OK) return status;
    free(*json);
    *json = text;
    return HD_OK;
}

// The value of row `p` in the struct.
static void write_field(hd_json_writer *w, const hd_param *p, const void *from)
{
    const void *field = (const char *)from + p->offset;
    switch (p->type) {
    case HD_PARAM_TYPE_FLOAT:
        hd_json_write_float(w, NULL, *(const float *)field);
        break;
    case HD_PARAM_TYPE_INT:
        hd_json_write_int(w, NULL, *(const int64_t *)field);
        break;
    case HD_PARAM_TYPE_BOOL:
        hd_json_write_bool(w, NULL, *(const bool *)field);
        break;
    case HD_PARAM_TYPE_U64:
        hd_json_write_u64(w, NULL, *(const uint64_t *)field);
        break;
    case HD_PARAM_TYPE_STRING:
        hd_json_write_string(w, NULL, *(char *const *)field);
        break;
    case HD_PARAM_TYPE_ENUM:
        hd_json_write_string(w, NULL, p->names[*(const int *)field]);
        break;
    case HD_PARAM_TYPE_JSON: // no command-line field is one
    case HD_PARAM_TYPE_END:
        break;
    }
}

// A terminal hands over any bytes; JSON is UTF-8.
static hd_status check_utf8(const char *value, const char *what)
{
    hd_json_doc *doc = NULL;
    hd_status status = hd_json_parse(&doc, what, value, strlen(value));
    hd_json_free(doc);
    if (status != HD_ERR_FORMAT) return status;
    return hd_fail(HD_ERR_ARGUMENT, "%s is no UTF-8 text; the terminal's encoding must be UTF-8",
                   what);
}

hd_status hd_setting_value(char **value, const char *field, const char *text, const char *what)
{
    hd_preset scratch = {0};
    hd_json_writer w = {0};
    hd_status status = hd_params_default(hd_preset_params, &scratch);
    if (status == HD_OK) status = hd_params_set(hd_preset_params, &scratch, field, text, what);
    char *text_json = NULL;
    if (status == HD_OK) {
        write_field(&w, hd_params_find(hd_preset_params, field), &scratch);
        status = hd_json_writer_take(&w, &text_json);
    }
    hd_preset_free(&scratch);
    if (status == HD_OK) status = check_utf8(text_json, what);
    if (status == HD_OK)
        *value = text_json;
    else
        free(text_json);
    return status;
}

// JSON as it is; what is none, as a text.
static hd_status free_value(char **value, const char *text)
{
    hd_json_doc *doc = NULL;
    hd_json_writer w = {0};
    hd_status status = hd_json_parse(&doc, "--set", text, strlen(text));
    if (status == HD_OK)
        hd_json_write_node(&w, NULL, hd_json_root(doc));
    else if (status == HD_ERR_FORMAT)
        hd_json_write_string(&w, NULL, text);
    else
        return status;
    hd_json_free(doc);
    return hd_json_writer_take(&w, value);
}

hd_status hd_setting_assign(char **json, const char *name, const char *assignment)
{
    char path[256], what[300], *value = NULL;
    size_t length = strcspn(assignment, "=");
    if (!assignment[length] || length == 0 || length >= sizeof path)
        return hd_fail(HD_ERR_ARGUMENT, "--set is \"%.80s\", must be a path, =, and a value",
                       assignment);
    snprintf(path, sizeof path, "%.*s", (int)length, assignment);
    snprintf(what, sizeof what, "--set %s", path);
    bool own = hd_params_find(hd_preset_params, path) != NULL;
    HD_TRY(own ? hd_setting_value(&value, path, assignment + length + 1, what)
               : free_value(&value, assignment + length + 1));
    hd_status status = hd_setting_put(json, name, path, value);
    free(value);
    return status;
}
