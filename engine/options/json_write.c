/* engine/options/json_write.c: a buffer, commas and escapes. */
#include "engine/options/json_write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(hd_json_writer *w, const char *text, size_t bytes)
{
    if (w->failed) return;
    if (w->used + bytes + 1 > w->room) {
        size_t room = (w->room ? w->room * 2 : 512) + bytes;
        char *grown = realloc(w->text, room);
        if (!grown) {
            w->failed = true;
            return;
        }
        w->text = grown;
        w->room = room;
    }
    memcpy(w->text + w->used, text, bytes);
    w->used += bytes;
    w->text[w->used] = 0;
}

static void put_string(hd_json_writer *w, const char *s)
{
    put(w, "\"", 1);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        char escape[8];
        if (c == '"' || c == '\\') {
            escape[0] = '\\', escape[1] = (char)c;
            put(w, escape, 2);
        } else if (c == '\n') {
            put(w, "\\n", 2);
        } else if (c < 0x20 || c == 0x7f) {
            put(w, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        } else {
            put(w, s, 1);
        }
    }
    put(w, "\"", 1);
}

static void begin(hd_json_writer *w, const char *key)
{
    if (w->comma) put(w, ", ", 2);
    w->comma = true;
    if (!key) return;
    put_string(w, key);
    put(w, ": ", 2);
}

void hd_json_write_object(hd_json_writer *w, const char *key)
{
    begin(w, key);
    put(w, "{", 1);
    w->comma = false;
}

void hd_json_write_array(hd_json_writer *w, const char *key)
{
    begin(w, key);
    put(w, "[", 1);
    w->comma = false;
}

void hd_json_write_end(hd_json_writer *w, char bracket)
{
    put(w, &bracket, 1);
    w->comma = true;
}

void hd_json_write_string(hd_json_writer *w, const char *key, const char *value)
{
    begin(w, key);
    if (value)
        put_string(w, value);
    else
        put(w, "null", 4);
}

void hd_json_write_int(hd_json_writer *w, const char *key, int64_t value)
{
    char text[32];
    begin(w, key);
    put(w, text, (size_t)snprintf(text, sizeof text, "%" PRId64, value));
}

void hd_json_write_u64(hd_json_writer *w, const char *key, uint64_t value)
{
    char text[32];
    begin(w, key);
    put(w, text, (size_t)snprintf(text, sizeof text, "%" PRIu64, value));
}

void hd_json_write_float(hd_json_writer *w, const char *key, float value)
{
    char text[40] = "null";
    for (int digits = 1; isfinite(value) && digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    begin(w, key);
    put(w, text, strlen(text));
}

void hd_json_write_double(hd_json_writer *w, const char *key, double value)
{
    char text[40] = "null";
    for (int digits = 1; isfinite(value) && digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    begin(w, key);
    put(w, text, strlen(text));
}

void hd_json_write_bool(hd_json_writer *w, const char *key, bool value)
{
    begin(w, key);
    put(w, value ? "true" : "false", value ? 4 : 5);
}

static void write_number(hd_json_writer *w, const char *key, const hd_json *node)
{
    uint64_t whole;
    int64_t negative;
    double value;
    // a number is one of three: exact and not negative, exact and negative, or a double
    if (hd_json_to_u64(node, &whole) == HD_OK)
        hd_json_write_u64(w, key, whole);
    else if (hd_json_to_int(node, INT64_MIN, -1, &negative) == HD_OK)
        hd_json_write_int(w, key, negative);
    else if (hd_json_to_double(node, -HUGE_VAL, HUGE_VAL, &value) == HD_OK)
        hd_json_write_double(w, key, value);
    else
        w->failed = true;
}

// Recursion is bounded: the reader refuses deep nesting.
void hd_json_write_node(hd_json_writer *w, const char *key, const hd_json *node)
{
    const char *string = NULL;
    bool truth = false;
    switch (hd_json_kind(node)) {
    case HD_JSON_NULL:
        hd_json_write_string(w, key, NULL);
        break;
    case HD_JSON_BOOL:
        if (hd_json_to_bool(node, &truth) == HD_OK) hd_json_write_bool(w, key, truth);
        break;
    case HD_JSON_NUMBER:
        write_number(w, key, node);
        break;
    case HD_JSON_STRING:
        if (hd_json_to_string(node, &string) == HD_OK) hd_json_write_string(w, key, string);
        break;
    case HD_JSON_ARRAY:
        hd_json_write_array(w, key);
        for (int64_t i = 0; i < hd_json_count(node); i++)
            hd_json_write_node(w, NULL, hd_json_at(node, i));
        hd_json_write_end(w, ']');
        break;
    case HD_JSON_OBJECT:
        hd_json_write_object(w, key);
        for (int64_t i = 0; i < hd_json_count(node); i++)
            hd_json_write_node(w, hd_json_key(hd_json_at(node, i)), hd_json_at(node, i));
        hd_json_write_end(w, '}');
        break;
    }
}

hd_status hd_json_writer_take(hd_json_writer *w, char **text)
{
    if (w->failed || !w->text) {
        hd_json_writer_free(w);
        return hd_fail(HD_ERR_NOMEM, "JSON: no memory to write it");
    }
    *text = w->text;
    *w = (hd_json_writer){0};
    return HD_OK;
}

void hd_json_writer_free(hd_json_writer *w)
{
    free(w->text);
    *w = (hd_json_writer){0};
}
