/* engine/options/json_scan.c: one pass over the text with a stack of what is open. */
#include "engine/options/json_scan.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER_MOST = 63 }; // characters that cJSON reads of one

typedef struct scan {
    const char *name, *text, *end;
    const char *at;
    hd_json_values *values;
    int depth;
    bool in_object[HD_JSON_DEPTH_MOST];
} scan;

static hd_status scan_fail(const scan *s, const char *at, const char *format, ...) HD_PRINTF(3, 4);
static hd_status scan_fail(const scan *s, const char *at, const char *format, ...)
{
    long long line = 1, column = 1;
    for (const char *c = s->text; c < at; c++) {
        bool continues = ((unsigned char)*c & 0xc0) == 0x80;
        if (!continues) column++;
        if (*c == '\n') {
            line++;
            column = 1;
        }
    }
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return hd_fail(HD_ERR_FORMAT, "%s: line %lld, column %lld: %s", s->name, line, column, what);
}

static hd_status scan_expected(const scan *s, const char *expected)
{
    if (s->at == s->end) return scan_fail(s, s->at, "the text ends, expected %s", expected);
    unsigned char c = (unsigned char)*s->at;
    if (c == '/')
        return scan_fail(s, s->at, "found \"/\", expected %s; JSON has no comments", expected);
    if (c == '\'') return scan_fail(s, s->at, "found ', expected %s; a text takes \"", expected);
    if (c == '"') return scan_fail(s, s->at, "found a \", expected %s", expected);
    if (c > 0x20 && c < 0x7f) return scan_fail(s, s->at, "found \"%c\", expected %s", c, expected);
    return scan_fail(s, s->at, "found the byte 0x%02x, expected %s", c, expected);
}

static void scan_space(scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
        s->at++;
}

static bool scan_at(const scan *s, char c)
{
    return s->at < s->end && *s->at == c;
}

// The bytes of the UTF-8 sequence at `at`, 0 when it is none (too long a form, a surrogate, beyond
// U+10FFFF, cut).
static int utf8_length(const char *at, const char *end)
{
    const unsigned char *c = (const unsigned char *)at;
    int length = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (length == 0 || c[0] > 0xf4 || end - at < length) return 0;
    for (int i = 1; i < length; i++)
        if ((c[i] & 0xc0) != 0x80) return 0;
    if (length > 2) {
        bool overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
        bool surrogate = c[0] == 0xed && c[1] >= 0xa0;
        bool beyond = c[0] == 0xf4 && c[1] >= 0x90;
        if (overlong || surrogate || beyond) return 0;
    }
    return length;
}

// Four hexadecimal digits, or -1.
static int hex4(const char *at, const char *end)
{
    if (end - at < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

// At a backslash.
static hd_status scan_escape(scan *s)
{
    const char *start = s->at++;
    if (s->at == s->end) return scan_expected(s, "the rest of a text");
    if (*s->at != 'u') {
        if (!strchr("\"\\/bfnrt", *s->at) || !*s->at)
            return scan_fail(s, start, "an escape that JSON does not have; a backslash is \\\\");
        s->at++;
        return HD_OK;
    }
    int unit = hex4(++s->at, s->end);
    if (unit < 0) return scan_fail(s, start, "\\u takes four hexadecimal digits");
    if (unit == 0) return scan_fail(s, start, "\\u0000 in a text is not supported");
    s->at += 4;
    if (unit < 0xd800 || unit > 0xdfff) return HD_OK;
    int low =
        s->end - s->at >= 6 && s->at[0] == '\\' && s->at[1] == 'u' ? hex4(s->at + 2, s->end) : -1;
    if (unit >= 0xdc00 || low < 0xdc00 || low > 0xdfff)
        return scan_fail(s, start, "half of a surrogate pair");
    s->at += 6;
    return HD_OK;
}

// At the opening quote.
static hd_status scan_string(scan *s)
{
    s->at++;
    for (;;) {
        if (s->at == s->end) return scan_expected(s, "the closing \" of a text");
        unsigned char c = (unsigned char)*s->at;
        if (c == '"') break;
        if (c == '\\') {
            HD_TRY(scan_escape(s));
            continue;
        }
        if (c < 0x20)
            return scan_fail(s, s->at,
                             "the control character 0x%02x inside a text; write it as an escape "
                             "(\\n), or close the text with \"",
                             c);
        int length = utf8_length(s->at, s->end);
        if (length == 0) return scan_fail(s, s->at, "the byte 0x%02x is not UTF-8", c);
        s->at += length;
    }
    s->at++;
    return HD_OK;
}

static bool is_digit(const char *at, const char *end)
{
    return at < end && *at >= '0' && *at <= '9';
}

// Past the number that the grammar finds at `at`; NULL when there is none.
static const char *number_end(const char *at, const char *end)
{
    if (at < end && *at == '-') at++;
    if (!is_digit(at, end)) return NULL;
    if (*at++ != '0')
        while (is_digit(at, end))
            at++;
    if (at < end && *at == '.') {
        if (!is_digit(++at, end)) return NULL;
        while (is_digit(at, end))
            at++;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        if (!is_digit(at, end)) return NULL;
        while (is_digit(at, end))
            at++;
    }
    return at;
}

// The end of the run of characters that somebody meant as one word or number.
static const char *word_end(const char *at, const char *end)
{
    while (at < end &&
           (is_digit(at, end) || (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') ||
            strchr("+-._", *at)) &&
           *at)
        at++;
    return at;
}

static hd_status scan_number_or_word(scan *s)
{
    const char *start = s->at, *end = word_end(start, s->end);
    int length = (int)(end - start < 40 ? end - start : 40);
    size_t bytes = (size_t)(end - start);
    if (length == 0) return scan_expected(s, "a value");
    s->at = end;
    if ((bytes == 4 && (!memcmp(start, "true", 4) || !memcmp(start, "null", 4))) ||
        (bytes == 5 && !memcmp(start, "false", 5)))
        return HD_OK;
    if (number_end(start, s->end) == end) {
        if (bytes <= NUMBER_MOST) return HD_OK;
        return scan_fail(s, start, "a number of more than %d characters", NUMBER_MOST);
    }
    const char *letters = start + (*start == '-' || *start == '+');
    size_t left = (size_t)(end - letters);
    if ((left == 3 && !memcmp(letters, "NaN", 3)) || (left == 8 && !memcmp(letters, "Infinity", 8)))
        return scan_fail(s, start, "%.*s is no JSON number; numbers are finite", length, start);
    if (is_digit(start, end) || strchr("+-.", *start))
        return scan_fail(s, start, "%.*s is no JSON number", length, start);
    return scan_fail(s, start, "%.*s is no JSON value; a text takes \"", length, start);
}

static hd_status scan_record(scan *s)
{
    hd_json_values *v = s->values;
    if (v->count == HD_JSON_VALUES_MOST)
        return scan_fail(s, s->at, "more than %d values", HD_JSON_VALUES_MOST);
    if (v->count == v->room) {
        size_t room = v->room ? 2 * v->room : 64;
        size_t *more = realloc(v->offset, room * sizeof *more);
        if (!more) return hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", s->name);
        v->offset = more;
        v->room = room;
    }
    v->offset[v->count++] = (size_t)(s->at - s->text);
    return HD_OK;
}

// A key with its colon.
static hd_status scan_key(scan *s)
{
    scan_space(s);
    if (!scan_at(s, '"')) return scan_expected(s, "a key in \"");
    HD_TRY(scan_string(s));
    scan_space(s);
    if (!scan_at(s, ':')) return scan_expected(s, "the : after a key");
    s->at++;
    return HD_OK;
}

// At { or [. *opened: whether a value is to follow (the thing is not empty).
static hd_status scan_open(scan *s, bool *opened)
{
    bool object = *s->at == '{';
    if (s->depth == HD_JSON_DEPTH_MOST)
        return scan_fail(s, s->at, "nested deeper than %d", HD_JSON_DEPTH_MOST);
    s->in_object[s->depth++] = object;
    s->at++;
    scan_space(s);
    *opened = !scan_at(s, object ? '}' : ']');
    return *opened && object ? scan_key(s) : HD_OK;
}

// After a value: closes what ends here, up to a comma (and the next key), or to the end of the
// document.
static hd_status scan_close(scan *s)
{
    while (s->depth > 0) {
        bool object = s->in_object[s->depth - 1];
        scan_space(s);
        if (scan_at(s, object ? '}' : ']')) {
            s->at++;
            s->depth--;
            continue;
        }
        if (!scan_at(s, ',')) return scan_expected(s, object ? "a comma or }" : "a comma or ]");
        const char *comma = s->at++;
        scan_space(s);
        if (scan_at(s, object ? '}' : ']'))
            return scan_fail(s, comma, "a comma after the last entry");
        return object ? scan_key(s) : HD_OK;
    }
    return HD_OK;
}

hd_status hd_json_scan(hd_json_values *out, const char *name, const char *text, size_t bytes)
{
    scan s = {.name = name, .text = text, .end = text + bytes, .at = text, .values = out};
    *out = (hd_json_values){0};
    scan_space(&s);
    if (s.at == s.end) return hd_fail(HD_ERR_FORMAT, "%s: is empty, expected JSON", name);
    do {
        bool open = false;
        scan_space(&s);
        if (s.at == s.end) return scan_expected(&s, "a value");
        HD_TRY(scan_record(&s));
        if (*s.at == '{' || *s.at == '[')
            HD_TRY(scan_open(&s, &open));
        else if (*s.at == '"')
            HD_TRY(scan_string(&s));
        else
            HD_TRY(scan_number_or_word(&s));
        if (!open) HD_TRY(scan_close(&s));
    } while (s.depth > 0);
    scan_space(&s);
    return s.at == s.end ? HD_OK : scan_expected(&s, "the end of the text");
}

void hd_json_values_free(hd_json_values *values)
{
    free(values->offset);
    *values = (hd_json_values){0};
}
