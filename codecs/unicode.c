/* codecs/unicode.c: UTF-8, and look-ups in the generated tables. The composition algorithm is
 * Unicode's (UAX 15): decompose, order the marks, compose; Hangul syllables by arithmetic. */
#include "codecs/unicode.h"

#include <stdbool.h>
#include <stdlib.h>

#include "codecs/unicode_tables.h"

int hd_utf8_decode(const char *text, size_t bytes, uint32_t *c)
{
    const unsigned char *s = (const unsigned char *)text;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (s[0] < 0x80) {
        *c = s[0];
        return 1;
    }
    int length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)length > bytes) return 0;
    uint32_t value = s[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        value = value << 6 | (s[i] & 0x3f);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
    *c = value;
    return length;
}

int hd_utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> length & 0xf0) | c);
    return length;
}

/* The value of the range that holds c, 0 if none does. */
static int unicode_in_ranges(const hd_unicode_range *range, size_t count, uint32_t c)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (range[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && range[low].first <= c ? range[low].value : 0;
}

hd_unicode_class hd_unicode_class_of(uint32_t c)
{
    return (hd_unicode_class)unicode_in_ranges(hd_unicode_classes, hd_unicode_classes_count, c);
}

int hd_unicode_lower(uint32_t c, uint32_t out[2])
{
    if (c == 0x130) { // I with a dot keeps the dot as a mark
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = c;
    size_t low = 0, high = hd_unicode_lowers_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (hd_unicode_lowers[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == hd_unicode_lowers_count) return 1;
    const hd_unicode_lower_run *run = &hd_unicode_lowers[low];
    if (c >= run->first && (c - run->first) % run->step == 0)
        out[0] = (uint32_t)((int32_t)c + run->delta);
    return 1;
}

enum {
    HANGUL_S = 0xac00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11a7,
    HANGUL_LS = 19,
    HANGUL_VS = 21,
    HANGUL_TS = 28,
};

/* c -> a, b; false if c does not decompose. */
static bool unicode_split(uint32_t c, uint32_t *a, uint32_t *b)
{
    if (c >= HANGUL_S && c < HANGUL_S + HANGUL_LS * HANGUL_VS * HANGUL_TS) {
        uint32_t s = c - HANGUL_S, t = s % HANGUL_TS;
        *a = t ? c - t : HANGUL_L + s / (HANGUL_VS * HANGUL_TS);
        *b = t ? HANGUL_T + t : HANGUL_V + s / HANGUL_TS % HANGUL_VS;
        return true;
    }
    size_t low = 0, high = hd_unicode_pairs_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (hd_unicode_pairs[middle].c < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == hd_unicode_pairs_count || hd_unicode_pairs[low].c != c) return false;
    *a = hd_unicode_pairs[low].a;
    *b = hd_unicode_pairs[low].b;
    return true;
}

/* The character that a followed by b composes to, 0 for none. */
static uint32_t unicode_join(uint32_t a, uint32_t b)
{
    if (a >= HANGUL_L && a < HANGUL_L + HANGUL_LS && b >= HANGUL_V && b < HANGUL_V + HANGUL_VS)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_VS + (b - HANGUL_V)) * HANGUL_TS;
    if (a >= HANGUL_S && a < HANGUL_S + HANGUL_LS * HANGUL_VS * HANGUL_TS &&
        (a - HANGUL_S) % HANGUL_TS == 0 && b > HANGUL_T && b < HANGUL_T + HANGUL_TS)
        return a + (b - HANGUL_T);
    size_t low = 0, high = hd_unicode_joins_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const hd_unicode_pair *p = &hd_unicode_pairs[hd_unicode_joins[middle]];
        if (p->a == a && p->b == b) return p->c;
        if (p->a < a || (p->a == a && p->b < b))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Appends the full decomposition of `in`; returns the new count. */
static int64_t unicode_decompose(hd_char *out, int64_t count, hd_char in)
{
    uint32_t tail[HD_UNICODE_NFC_ROOM], a, b; // the second halves, last first
    int tails = 0;
    while (unicode_split(in.c, &a, &b) && tails < HD_UNICODE_NFC_ROOM - 1) {
        if (b) tail[tails++] = b;
        in.c = a;
    }
    out[count++] = in;
    while (tails > 0) {
        in.c = tail[--tails];
        out[count++] = in;
    }
    return count;
}

static int unicode_by_mark(const void *left, const void *right)
{
    uint32_t a = ((const hd_char *)left)->mark, b = ((const hd_char *)right)->mark;
    return a < b ? -1 : a > b;
}

/* Sorts every run of marks by class; marks of one class keep their order. */
static void unicode_order(hd_char *text, int64_t count)
{
    for (int64_t i = 0; i < count;) {
        int64_t start = i;
        // The place in the run, in the low bits, makes the sort stable.
        for (; i < count; i++) {
            int class = unicode_in_ranges(hd_unicode_marks, hd_unicode_marks_count, text[i].c);
            text[i].mark = class ? (uint32_t) class << 24 | (uint32_t)(i - start) : 0;
            if (!class) break;
        }
        if (i - start > 1) qsort(text + start, (size_t)(i - start), sizeof *text, unicode_by_mark);
        if (i == start) i++;
    }
}

/* Joins each mark to the last starter unless one of its class or higher stands between. */
static int64_t unicode_compose(hd_char *text, int64_t count)
{
    int64_t n = 0, starter = -1;
    for (int64_t i = 0; i < count; i++) {
        hd_char next = text[i];
        bool open = starter >= 0 && (n == starter + 1 || text[n - 1].mark >> 24 < next.mark >> 24);
        uint32_t joined = open ? unicode_join(text[starter].c, next.c) : 0;
        if (joined) {
            text[starter].c = joined;
            if (next.start < text[starter].start) text[starter].start = next.start;
            if (next.end > text[starter].end) text[starter].end = next.end;
            continue;
        }
        if (!next.mark) starter = n;
        text[n++] = next;
    }
    return n;
}

int64_t hd_unicode_nfc(hd_char *out, const hd_char *in, int64_t count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++)
        n = unicode_decompose(out, n, in[i]);
    unicode_order(out, n);
    return unicode_compose(out, n);
}
