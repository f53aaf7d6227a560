/* engine/options/param.c: rows of an option table: read, checked, described.
 *
 * A value is checked in one place, whether it comes from JSON or from a command line: the check
 * writes what is wrong ("is 40, must be 0.05 to 20 (default 1)"), and the caller puts the place in
 * front. */
#include "engine/options/param.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// What is wrong with a value; empty when nothing is.
typedef struct complaint {
    char text[600];
} complaint;

static void *field_of(const hd_param *p, void *into)
{
    return (char *)into + p->offset;
}

static bool ranged(const hd_param *p)
{
    return p->min != 0 || p->max != 0;
}

static size_t row_count(const hd_param *table)
{
    size_t count = 0;
    while (table[count].type != HD_PARAM_TYPE_END)
        count++;
    return count;
}

static size_t name_count(const char *const *names)
{
    size_t count = 0;
    while (names && names[count])
        count++;
    return count;
}

const hd_param *hd_params_find(const hd_param *table, const char *name)
{
    for (; table->type != HD_PARAM_TYPE_END; table++)
        if (strcmp(table->name, name) == 0) return table;
    return NULL;
}

// Adds "a, b, c" to text.
static void append_names(char *text, size_t bytes, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(text);
        snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", names[i]);
    }
}

// "0.05 to 20", "at least 1"; "" for any.
static void range_text(char *text, size_t bytes, const hd_param *p)
{
    text[0] = 0;
    if (p->type == HD_PARAM_TYPE_ENUM)
        append_names(text, bytes, p->names, name_count(p->names));
    else if (!ranged(p))
        return;
    else if (isinf(p->max))
        snprintf(text, bytes, "at least %.10g", p->min);
    else if (isinf(p->min))
        snprintf(text, bytes, "at most %.10g", p->max);
    else
        snprintf(text, bytes, "%.10g to %.10g", p->min, p->max);
}

// "1", "true", "video"; "" for none.
static void default_text(char *text, size_t bytes, const hd_param *p)
{
    const char *word = p->def_text;
    text[0] = 0;
    if (p->required) return;
    if (p->type == HD_PARAM_TYPE_BOOL) word = p->def != 0 ? "true" : "false";
    if (p->type == HD_PARAM_TYPE_ENUM && !word) word = p->names[0];
    if (word)
        snprintf(text, bytes, "%s", word);
    else if (p->type != HD_PARAM_TYPE_STRING && p->type != HD_PARAM_TYPE_JSON)
        snprintf(text, bytes, "%.10g", p->def);
}

static void complain(complaint *c, const hd_param *p, const char *is, bool right_type)
{
    static const char *const kinds[] = {
        [HD_PARAM_TYPE_FLOAT] = "a number",
        [HD_PARAM_TYPE_INT] = "a whole number",
        [HD_PARAM_TYPE_BOOL] = "true or false",
        [HD_PARAM_TYPE_U64] = "a whole number from 0 to "
                              "18446744073709551615",
        [HD_PARAM_TYPE_STRING] = "a text",
        [HD_PARAM_TYPE_ENUM] = "one of",
        [HD_PARAM_TYPE_JSON] = "JSON",
    };
    char range[300], def[100];
    range_text(range, sizeof range, p);
    default_text(def, sizeof def, p);
    const char *kind = right_type && range[0] ? "" : kinds[p->type];
    bool joined = kind[0] && range[0];
    snprintf(c->text, sizeof c->text, "is %s, must be %s%s%s%s%s%s", is, kind,
             joined && p->type != HD_PARAM_TYPE_ENUM ? "," : "", joined ? " " : "", range,
             def[0] ? " (default " : "", def);
    if (def[0]) strncat(c->text, ")", sizeof c->text - strlen(c->text) - 1);
}

static void complain_of_node(complaint *c, const hd_param *p, const hd_json *node, bool right_type)
{
    char is[160];
    complain(c, p, hd_json_describe(node, is, sizeof is), right_type);
}

static void set_float(const hd_param *p, void *field, const hd_json *node, complaint *c)
{
    double value = 0, most = p->max == 0 && p->min == 0 ? (double)FLT_MAX : p->max;
    double least = ranged(p) ? p->min : -(double)FLT_MAX;
    if (hd_json_to_double(node, -(double)INFINITY, (double)INFINITY, &value) != HD_OK)
        complain_of_node(c, p, node, hd_json_kind(node) == HD_JSON_NUMBER);
    else if (value < least || value > most || fabs(value) > (double)FLT_MAX)
        complain_of_node(c, p, node, true);
    else
        *(float *)field = (float)value;
}

static void set_int(const hd_param *p, void *field, const hd_json *node, complaint *c)
{
    int64_t value;
    if (hd_json_to_int(node, INT64_MIN, INT64_MAX, &value) != HD_OK)
        complain_of_node(c, p, node, false);
    else if (ranged(p) && ((double)value < p->min || (double)value > p->max))
        complain_of_node(c, p, node, true);
    else
        *(int64_t *)field = value;
}

static void set_u64(const hd_param *p, void *field, const hd_json *node, complaint *c)
{
    if (hd_json_to_u64(node, field) != HD_OK) complain_of_node(c, p, node, false);
}

static void set_enum(const hd_param *p, void *field, const char *word, complaint *c)
{
    size_t count = name_count(p->names);
    for (size_t i = 0; i < count; i++)
        if (strcmp(p->names[i], word) == 0) {
            *(int *)field = (int)i;
            return;
        }
    char is[200];
    const char *near = hd_nearest_name(word, p->names, count);
    snprintf(is, sizeof is, "\"%.80s\"", word);
    complain(c, p, is, false);
    size_t used = strlen(c->text);
    if (near) snprintf(c->text + used, sizeof c->text - used, "; did you mean \"%s\"?", near);
}

static hd_status set_string(void *field, const char *text, const char *where)
{
    char *copy = strdup(text);
    if (!copy) return hd_fail(HD_ERR_NOMEM, "%s: no memory for a text", where);
    free(*(char **)field);
    *(char **)field = copy;
    return HD_OK;
}

static void mark_given(const hd_param *p, void *into)
{
    if (p->given_flag) *(bool *)((char *)into + p->given_offset) = true;
}

static hd_status set_from_json(const hd_param *p, void *into, const hd_json *node)
{
    void *field = field_of(p, into);
    const char *text = NULL;
    complaint c = {""};
    switch (p->type) {
    case HD_PARAM_TYPE_FLOAT:
        set_float(p, field, node, &c);
        break;
    case HD_PARAM_TYPE_INT:
        set_int(p, field, node, &c);
        break;
    case HD_PARAM_TYPE_U64:
        set_u64(p, field, node, &c);
        break;
    case HD_PARAM_TYPE_BOOL:
        if (hd_json_to_bool(node, field) != HD_OK) complain_of_node(&c, p, node, false);
        break;
    case HD_PARAM_TYPE_ENUM:
    case HD_PARAM_TYPE_STRING:
        if (hd_json_to_string(node, &text) != HD_OK)
            complain_of_node(&c, p, node, false);
        else if (p->type == HD_PARAM_TYPE_ENUM)
            set_enum(p, field, text, &c);
        else
            HD_TRY(set_string(field, text, hd_json_name(node)));
        break;
    case HD_PARAM_TYPE_JSON:
        *(const hd_json **)field = node;
        break;
    case HD_PARAM_TYPE_END:
        break;
    }
    if (c.text[0]) return hd_json_fail(node, HD_ERR_ARGUMENT, "%s", c.text);
    mark_given(p, into);
    return HD_OK;
}

hd_status hd_params_default(const hd_param *table, void *into)
{
    for (const hd_param *p = table; p->type != HD_PARAM_TYPE_END; p++) {
        void *field = field_of(p, into);
        complaint c = {""};
        switch (p->type) {
        case HD_PARAM_TYPE_FLOAT:
            *(float *)field = (float)p->def;
            break;
        case HD_PARAM_TYPE_INT:
            *(int64_t *)field = (int64_t)p->def;
            break;
        case HD_PARAM_TYPE_U64:
            *(uint64_t *)field = (uint64_t)p->def;
            break;
        case HD_PARAM_TYPE_BOOL:
            *(bool *)field = p->def != 0;
            break;
        case HD_PARAM_TYPE_ENUM:
            set_enum(p, field, p->def_text ? p->def_text : p->names[0], &c);
            HD_ENSURE(!c.text[0]); // the default is one of the names
            break;
        case HD_PARAM_TYPE_STRING:
            free(*(char **)field);
            *(char **)field = NULL;
            if (p->def_text) HD_TRY(set_string(field, p->def_text, p->name));
            break;
        case HD_PARAM_TYPE_JSON:
            *(const hd_json **)field = NULL;
            break;
        case HD_PARAM_TYPE_END:
            break;
        }
        if (p->given_flag) *(bool *)((char *)into + p->given_offset) = false;
    }
    return HD_OK;
}

// "; did you mean "tau"? It has: tau, rows". What belongs to somebody else is meant sometimes, and
// listed by them.
static void hint_text(char *text, size_t bytes, const hd_param *table, const char *const *also,
                      const char *word)
{
    enum { NAMES_MOST = 128 };
    const char *names[NAMES_MOST] = {0};
    size_t count = 0, rows = row_count(table), others = name_count(also);
    while (count < rows && count < NAMES_MOST) {
        names[count] = table[count].name;
        count++;
    }
    size_t own = count;
    for (size_t i = 0; i < others && count < NAMES_MOST; i++)
        names[count++] = also[i];
    const char *near = hd_nearest_name(word, names, count);
    text[0] = 0;
    if (near) snprintf(text, bytes, "; did you mean \"%s\"?", near);
    if (own == 0) own = count;
    size_t used = strlen(text);
    snprintf(text + used, bytes - used, "%s It has: ", near ? "" : ".");
    append_names(text, bytes, names, own);
}

static hd_status refuse_key(const hd_param *table, const hd_json *object, const char *const *also,
                            const char *key)
{
    char hint[1000], use[100] = "";
    const hd_json *name = hd_json_get(object, "use");
    if (name && hd_json_kind(name) == HD_JSON_STRING) {
        const char *word;
        HD_TRY(hd_json_to_string(name, &word));
        snprintf(use, sizeof use, "(%.80s) ", word);
    }
    hint_text(hint, sizeof hint, table, also, key);
    return hd_json_fail(object, HD_ERR_ARGUMENT, "%shas no \"%.80s\"%s", use, key, hint);
}

static bool among(const char *const *names, const char *word)
{
    for (size_t i = 0; names && names[i]; i++)
        if (strcmp(names[i], word) == 0) return true;
    return false;
}

hd_status hd_params_read(const hd_param *table, void *into, const hd_json *object,
                         const char *const *also)
{
    HD_TRY(hd_json_expect(object, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(object); i++) {
        const char *key = hd_json_key(hd_json_at(object, i));
        if (!hd_params_find(table, key) && !among(also, key))
            return refuse_key(table, object, also, key);
    }
    return hd_params_read_known(table, into, object);
}

hd_status hd_params_read_known(const hd_param *table, void *into, const hd_json *object)
{
    HD_TRY(hd_json_expect(object, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(object); i++) {
        const hd_json *node = hd_json_at(object, i);
        const hd_param *p = hd_params_find(table, hd_json_key(node));
        if (p) HD_TRY(set_from_json(p, into, node));
    }
    for (const hd_param *p = table; p->type != HD_PARAM_TYPE_END; p++)
        if (p->required && !hd_json_get(object, p->name))
            return hd_json_fail(object, HD_ERR_ARGUMENT, "lacks \"%s\"%s%s", p->name,
                                p->help ? ": " : "", p->help ? p->help : "");
    return HD_OK;
}

static void set_switch(const hd_param *p, void *field, const char *text, complaint *c)
{
    static const char *const words[] = {"false", "true", "off", "on", "no", "yes", "0", "1"};
    for (size_t i = 0; i < HD_COUNT(words); i++)
        if (strcasecmp(words[i], text) == 0) {
            *(bool *)field = i % 2;
            return;
        }
    char is[100];
    snprintf(is, sizeof is, "\"%.80s\"", text);
    complain(c, p, is, false);
}

// A number on a command line is written as in JSON, .5 and +5 allowed.
static hd_status set_number(const hd_param *p, void *field, const char *text, complaint *c)
{
    char number[80];
    const char *digits = text + (text[0] == '+');
    snprintf(number, sizeof number, "%s%s", digits[0] == '.' ? "0" : "", digits);
    hd_json_doc *doc = NULL;
    hd_status status = strlen(digits) < sizeof number - 1
                           ? hd_json_parse(&doc, "a number", number, strlen(number))
                           : HD_ERR_FORMAT;
    if (status != HD_OK && status != HD_ERR_FORMAT) return status;
    if (!doc || hd_json_kind(hd_json_root(doc)) != HD_JSON_NUMBER) {
        char is[100];
        snprintf(is, sizeof is, "\"%.80s\"", text);
        complain(c, p, is, false);
    } else if (p->type == HD_PARAM_TYPE_FLOAT) {
        set_float(p, field, hd_json_root(doc), c);
    } else if (p->type == HD_PARAM_TYPE_INT) {
        set_int(p, field, hd_json_root(doc), c);
    } else {
        set_u64(p, field, hd_json_root(doc), c);
    }
    hd_json_free(doc);
    return HD_OK;
}

hd_status hd_params_set(const hd_param *table, void *into, const char *name, const char *text,
                        const char *what)
{
    const hd_param *p = hd_params_find(table, name);
    if (!p) {
        char hint[1000];
        hint_text(hint, sizeof hint, table, NULL, name);
        return hd_fail(HD_ERR_ARGUMENT, "%s: there is no \"%.80s\"%s", what, name, hint);
    }
    void *field = field_of(p, into);
    complaint c = {""};
    if (p->type == HD_PARAM_TYPE_STRING)
        HD_TRY(set_string(field, text, what));
    else if (p->type == HD_PARAM_TYPE_ENUM)
        set_enum(p, field, text, &c);
    else if (p->type == HD_PARAM_TYPE_BOOL)
        set_switch(p, field, text, &c);
    else if (p->type == HD_PARAM_TYPE_JSON)
        return hd_fail(HD_ERR_ARGUMENT, "%s: is written as JSON, in a preset", what);
    else
        HD_TRY(set_number(p, field, text, &c));
    if (c.text[0]) return hd_fail(HD_ERR_ARGUMENT, "%s %s", what, c.text);
    mark_given(p, into);
    return HD_OK;
}

void hd_params_free(const hd_param *table, void *into)
{
    for (const hd_param *p = table; p->type != HD_PARAM_TYPE_END; p++) {
        if (p->type != HD_PARAM_TYPE_STRING) continue;
        char **field = field_of(p, into);
        free(*field);
        *field = NULL;
    }
}

char *hd_param_limits(char *text, size_t bytes, const hd_param *row)
{
    char range[300], def[100];
    range_text(range, sizeof range, row);
    default_text(def, sizeof def, row);
    const char *state = row->required ? "required" : def[0] ? "default " : "";
    snprintf(text, bytes, "%s%s%s%s", range, range[0] && state[0] ? ", " : "", state, def);
    return text;
}

void hd_params_print(const hd_param *table, FILE *to)
{
    static const char *const types[] = {
        [HD_PARAM_TYPE_FLOAT] = "float",   [HD_PARAM_TYPE_INT] = "int",
        [HD_PARAM_TYPE_BOOL] = "bool",     [HD_PARAM_TYPE_U64] = "uint64",
        [HD_PARAM_TYPE_STRING] = "string", [HD_PARAM_TYPE_ENUM] = "one of",
        [HD_PARAM_TYPE_JSON] = "JSON",
    };
    int widest = 0;
    for (const hd_param *p = table; p->type != HD_PARAM_TYPE_END; p++)
        if ((int)strlen(p->name) > widest) widest = (int)strlen(p->name);
    for (const hd_param *p = table; p->type != HD_PARAM_TYPE_END; p++) {
        char limits[440];
        fprintf(to, "%-*s  %-6s  %-28s  %s\n", widest, p->name, types[p->type],
                hd_param_limits(limits, sizeof limits, p), p->help ? p->help : "");
    }
}
