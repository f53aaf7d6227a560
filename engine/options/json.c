/* engine/options/json.c: cJSON's tree under nodes that know their parent, their children by number
 * and by name, and the exact value of an integer.
 *
 * The text is checked first (json_scan.c), which also notes where each value begins; the tree is
 * then walked in the same order, and a number's digits are read again at their place, because cJSON
 * keeps a double. The children of a node lie side by side in one array. */
#include "engine/options/json.h"

#include <cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "engine/options/json_scan.h"

enum { FILE_MOST = 64 << 20 };

struct hd_json {
    const cJSON *item;
    const hd_json_doc *doc;
    const hd_json *parent;
    uint32_t first, count; // its children in doc->node
    uint64_t magnitude;    // of an integer
    bool integer, negative;
};

struct hd_json_doc {
    char *name;
    cJSON *tree;
    hd_json *node;          // [0] is the root
    const hd_json **sorted; // at the places of an object's children: those children by key
    uint32_t used;
};

// The integer literal at `digits`; other numbers, and those beyond 64 bits, stay doubles.
static void read_integer(hd_json *node, const char *digits, const char *end)
{
    node->negative = *digits == '-';
    uint64_t value = 0;
    for (digits += node->negative; digits < end && *digits >= '0' && *digits <= '9'; digits++)
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*digits - '0'), &value))
            return;
    node->integer = digits == end || !strchr(".eE", *digits) || !*digits;
    node->magnitude = value;
}

static int compare_keys(const void *a, const void *b)
{
    const hd_json *const *x = a, *const *y = b;
    return strcmp((*x)->item->string, (*y)->item->string);
}

static hd_status sort_keys(hd_json_doc *doc, const hd_json *object)
{
    const hd_json **sorted = doc->sorted + object->first;
    for (uint32_t i = 0; i < object->count; i++)
        sorted[i] = &doc->node[object->first + i];
    if (object->count > 1) qsort(sorted, object->count, sizeof *sorted, compare_keys);
    for (uint32_t i = 1; i < object->count; i++)
        if (compare_keys(&sorted[i - 1], &sorted[i]) == 0)
            return hd_json_fail(object, HD_ERR_FORMAT, "has \"%s\" twice", sorted[i]->item->string);
    return HD_OK;
}

typedef struct adopting {
    hd_json_doc *doc;
    const char *text, *end;
    const size_t *offset; // of the next value
} adopting;

// Fills node and all below it; as deep as the document is nested.
static hd_status adopt(adopting *a, hd_json *node, const hd_json *parent, const cJSON *item)
{
    hd_json_doc *doc = a->doc;
    const char *at = a->text + *a->offset++;
    node->item = item;
    node->doc = doc;
    node->parent = parent;
    if (cJSON_IsNumber(item)) read_integer(node, at, a->end);
    if (!cJSON_IsArray(item) && !cJSON_IsObject(item)) return HD_OK;
    node->first = doc->used;
    for (const cJSON *child = item->child; child; child = child->next)
        node->count++;
    doc->used += node->count;
    hd_json *into = &doc->node[node->first];
    for (const cJSON *child = item->child; child; child = child->next)
        HD_TRY(adopt(a, into++, node, child));
    return cJSON_IsObject(item) ? sort_keys(doc, node) : HD_OK;
}

static hd_status build(hd_json_doc *doc, const hd_json_values *values, const char *text,
                       size_t bytes)
{
    doc->tree = cJSON_ParseWithLength(text, bytes);
    doc->node = calloc(values->count, sizeof *doc->node);
    doc->sorted = calloc(values->count, sizeof *doc->sorted);
    if (!doc->tree || !doc->node || !doc->sorted)
        return hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", doc->name);
    adopting a = {doc, text, text + bytes, values->offset};
    doc->used = 1;
    HD_TRY(adopt(&a, doc->node, NULL, doc->tree));
    HD_ENSURE(doc->used == values->count);
    return HD_OK;
}

hd_status hd_json_parse(hd_json_doc **out, const char *name, const char *text, size_t bytes)
{
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { // some editors' mark of UTF-8
        text += 3;
        bytes -= 3;
    }
    hd_json_doc *doc = calloc(1, sizeof *doc);
    hd_json_values values = {0};
    if (doc) doc->name = strdup(name);
    hd_status status = doc && doc->name ? hd_json_scan(&values, name, text, bytes)
                                        : hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", name);
    if (status == HD_OK) status = build(doc, &values, text, bytes);
    hd_json_values_free(&values);
    if (status != HD_OK) {
        hd_json_free(doc);
        return status;
    }
    *out = doc;
    return HD_OK;
}

hd_status hd_json_read(hd_json_doc **out, const char *path)
{
    char *text;
    size_t bytes;
    HD_TRY(hd_file_read(&text, &bytes, path, FILE_MOST));
    hd_status status = hd_json_parse(out, path, text, bytes);
    free(text);
    return status;
}

void hd_json_free(hd_json_doc *doc)
{
    if (!doc) return;
    cJSON_Delete(doc->tree);
    free(doc->sorted);
    free(doc->node);
    free(doc->name);
    free(doc);
}

const hd_json *hd_json_root(const hd_json_doc *doc)
{
    return doc->node;
}

const char *hd_json_name(const hd_json *node)
{
    return node->doc->name;
}

hd_json_type hd_json_kind(const hd_json *node)
{
    switch (node->item->type & 0xff) {
    case cJSON_False:
    case cJSON_True:
        return HD_JSON_BOOL;
    case cJSON_Number:
        return HD_JSON_NUMBER;
    case cJSON_String:
        return HD_JSON_STRING;
    case cJSON_Array:
        return HD_JSON_ARRAY;
    case cJSON_Object:
        return HD_JSON_OBJECT;
    default:
        return HD_JSON_NULL;
    }
}

const char *hd_json_key(const hd_json *node)
{
    bool keyed = node->parent && hd_json_kind(node->parent) == HD_JSON_OBJECT;
    return keyed ? node->item->string : NULL;
}

const hd_json *hd_json_get(const hd_json *object, const char *key)
{
    if (!object || hd_json_kind(object) != HD_JSON_OBJECT) return NULL;
    const hd_json *const *sorted = object->doc->sorted + object->first;
    size_t low = 0, high = object->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(sorted[middle]->item->string, key);
        if (order == 0) return sorted[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

int64_t hd_json_count(const hd_json *node)
{
    return node->count;
}

const hd_json *hd_json_at(const hd_json *node, int64_t index)
{
    if (index < 0 || index >= node->count) return NULL;
    return &node->doc->node[node->first + (size_t)index];
}

static bool plain_key(const char *key)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    return key[0] && key[strspn(key, plain)] == 0;
}

char *hd_json_path(const hd_json *node, char *text, size_t bytes)
{
    if (bytes == 0) return text;
    text[0] = 0;
    if (!node->parent) return text;
    hd_json_path(node->parent, text, bytes);
    size_t used = strlen(text);
    const char *key = hd_json_key(node);
    if (!key)
        snprintf(text + used, bytes - used, "[%u]",
                 (unsigned)(node - &node->doc->node[node->parent->first]));
    else if (plain_key(key))
        snprintf(text + used, bytes - used, "%s%s", used ? "." : "", key);
    else
        snprintf(text + used, bytes - used, "[\"%s\"]", key);
    return text;
}

// At most `most` bytes of `string`, cut between characters.
static int cut_length(const char *string, int most)
{
    size_t length = strlen(string);
    if (length <= (size_t)most) return (int)length;
    while (most > 0 && ((unsigned char)string[most] & 0xc0) == 0x80)
        most--;
    return most;
}

char *hd_json_describe(const hd_json *node, char *text, size_t bytes)
{
    const char *string = node->item->valuestring;
    double value = node->item->valuedouble;
    switch (hd_json_kind(node)) {
    case HD_JSON_NULL:
        snprintf(text, bytes, "null");
        break;
    case HD_JSON_BOOL:
        snprintf(text, bytes, "%s", cJSON_IsTrue(node->item) ? "true" : "false");
        break;
    case HD_JSON_NUMBER:
        if (node->integer)
            snprintf(text, bytes, "%s%llu", node->negative ? "-" : "",
                     (unsigned long long)node->magnitude);
        else // as short as it can be without saying another number
            for (int digits = 6; digits <= 17; digits++) {
                char digit_text[40];
                snprintf(digit_text, sizeof digit_text, "%.*g", digits, value);
                snprintf(text, bytes, "%s", digit_text);
                if (strtod(digit_text, NULL) == value) break;
            }
        break;
    case HD_JSON_STRING: {
        int length = cut_length(string, 40);
        snprintf(text, bytes, "\"%.*s%s\"", length, string, string[length] ? "..." : "");
        break;
    }
    case HD_JSON_ARRAY:
        snprintf(text, bytes, "an array");
        break;
    case HD_JSON_OBJECT:
        snprintf(text, bytes, "an object");
        break;
    }
    return text;
}

hd_status hd_json_fail(const hd_json *node, hd_status status, const char *format, ...)
{
    char what[1200], path[500];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    hd_json_path(node, path, sizeof path);
    return hd_fail(status, "%s: %s %s", hd_json_name(node), path[0] ? path : "the top level", what);
}

// "is <what it is>, must be <what>"
static hd_status fail_must(const hd_json *node, const char *what)
{
    char is[160];
    return hd_json_fail(node, HD_ERR_ARGUMENT, "is %s, must be %s",
                        hd_json_describe(node, is, sizeof is), what);
}

// A number that is whole though it is written with . or e: exact, since it fits a double's digits.
static bool whole_double(const hd_json *node)
{
    double value = node->item->valuedouble;
    return hd_json_kind(node) == HD_JSON_NUMBER && !node->integer && fabs(value) <= 0x1p53 &&
           value == floor(value);
}

static bool to_int(const hd_json *node, int64_t *out)
{
    if (whole_double(node)) {
        *out = (int64_t)node->item->valuedouble;
        return true;
    }
    if (!node->integer || node->magnitude > (uint64_t)INT64_MAX + node->negative) return false;
    *out = node->negative ? (int64_t)(0 - node->magnitude) : (int64_t)node->magnitude;
    return true;
}

hd_status hd_json_to_int(const hd_json *node, int64_t min, int64_t max, int64_t *out)
{
    int64_t value;
    if (!to_int(node, &value) || value < min || value > max) {
        char must[100] = "a whole number";
        if (min != INT64_MIN && max != INT64_MAX)
            snprintf(must, sizeof must, "a whole number from %lld to %lld", (long long)min,
                     (long long)max);
        else if (min != INT64_MIN)
            snprintf(must, sizeof must, "a whole number, at least %lld", (long long)min);
        else if (max != INT64_MAX)
            snprintf(must, sizeof must, "a whole number, at most %lld", (long long)max);
        return fail_must(node, must);
    }
    *out = value;
    return HD_OK;
}

hd_status hd_json_to_u64(const hd_json *node, uint64_t *out)
{
    int64_t value;
    if (node->integer && (!node->negative || node->magnitude == 0))
        *out = node->magnitude;
    else if (whole_double(node) && to_int(node, &value) && value >= 0)
        *out = (uint64_t)value;
    else
        return fail_must(node, "a whole number from 0 to 18446744073709551615");
    return HD_OK;
}

hd_status hd_json_to_double(const hd_json *node, double min, double max, double *out)
{
    double value = node->item->valuedouble;
    bool number = hd_json_kind(node) == HD_JSON_NUMBER && isfinite(value);
    if (!number || value < min || value > max) {
        char must[100] = "a finite number";
        const char *a = number ? "" : "a number, ";
        if (isfinite(min) && isfinite(max))
            snprintf(must, sizeof must, "%s%g to %g", a, min, max);
        else if (isfinite(min))
            snprintf(must, sizeof must, "%sat least %g", a, min);
        else if (isfinite(max))
            snprintf(must, sizeof must, "%sat most %g", a, max);
        return fail_must(node, must);
    }
    *out = value;
    return HD_OK;
}

hd_status hd_json_to_bool(const hd_json *node, bool *out)
{
    if (hd_json_kind(node) != HD_JSON_BOOL) return fail_must(node, "true or false");
    *out = cJSON_IsTrue(node->item);
    return HD_OK;
}

hd_status hd_json_to_string(const hd_json *node, const char **out)
{
    if (hd_json_kind(node) != HD_JSON_STRING) return fail_must(node, "a text");
    *out = node->item->valuestring;
    return HD_OK;
}

hd_status hd_json_expect(const hd_json *node, hd_json_type type)
{
    static const char *const names[] = {"null",   "true or false", "a number",
                                        "a text", "an array",      "an object"};
    return hd_json_kind(node) == type ? HD_OK : fail_must(node, names[type]);
}

static hd_status list_count(const hd_json *node, int64_t least, int64_t most, int64_t *count)
{
    *count = hd_json_kind(node) == HD_JSON_ARRAY ? hd_json_count(node) : 1;
    if (*count >= least && *count <= most) return HD_OK;
    if (least == most)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "has %lld entries, must have %lld",
                            (long long)*count, (long long)least);
    return hd_json_fail(node, HD_ERR_ARGUMENT, "has %lld entries, must have %lld to %lld",
                        (long long)*count, (long long)least, (long long)most);
}

static const hd_json *list_entry(const hd_json *node, int64_t i)
{
    return hd_json_kind(node) == HD_JSON_ARRAY ? hd_json_at(node, i) : node;
}

hd_status hd_json_to_ints(const hd_json *node, int64_t min, int64_t max, int64_t least,
                          int64_t most, int64_t *out, int64_t *count)
{
    HD_TRY(list_count(node, least, most, count));
    for (int64_t i = 0; i < *count; i++)
        HD_TRY(hd_json_to_int(list_entry(node, i), min, max, &out[i]));
    return HD_OK;
}

hd_status hd_json_to_doubles(const hd_json *node, double min, double max, int64_t least,
                             int64_t most, double *out, int64_t *count)
{
    HD_TRY(list_count(node, least, most, count));
    for (int64_t i = 0; i < *count; i++)
        HD_TRY(hd_json_to_double(list_entry(node, i), min, max, &out[i]));
    return HD_OK;
}

hd_status hd_json_to_bools(const hd_json *node, int64_t least, int64_t most, bool *out,
                           int64_t *count)
{
    HD_TRY(list_count(node, least, most, count));
    for (int64_t i = 0; i < *count; i++)
        HD_TRY(hd_json_to_bool(list_entry(node, i), &out[i]));
    return HD_OK;
}
