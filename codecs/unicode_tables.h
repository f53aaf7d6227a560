/* codecs/unicode_tables.h: the generated tables behind codecs/unicode.c; nobody else reads them. */
#ifndef HD_CODECS_UNICODE_TABLES_H
#define HD_CODECS_UNICODE_TABLES_H

#include <stddef.h>

#include "codecs/unicode.h"

typedef struct hd_unicode_range {
    uint32_t first, last;
    uint8_t value; // a class, or a combining class
} hd_unicode_range;

typedef struct hd_unicode_lower_run {
    uint32_t first, last, step; // first, first + step ... last
    int32_t delta;              // lower case - upper case
} hd_unicode_lower_run;

typedef struct hd_unicode_pair {
    uint32_t c, a, b; // c decomposes into a, b; b is 0 where one character replaces another
} hd_unicode_pair;

/* Ascending, except the joins: numbers of the pairs that compose, ascending by (a, b). */
extern const hd_unicode_range hd_unicode_classes[];
extern const size_t hd_unicode_classes_count;
extern const hd_unicode_lower_run hd_unicode_lowers[];
extern const size_t hd_unicode_lowers_count;
extern const hd_unicode_range hd_unicode_marks[];
extern const size_t hd_unicode_marks_count;
extern const hd_unicode_pair hd_unicode_pairs[];
extern const size_t hd_unicode_pairs_count;
extern const uint16_t hd_unicode_joins[];
extern const size_t hd_unicode_joins_count;

#endif
