/* codecs/unicode.h: UTF-8, letters, lower case and canonical composition for tokenizers.
 *
 * A tokenizer must give the ids its model was trained with, whatever Unicode version the system's
 * libraries have. So the tables are ours (codecs/unicode_tables.c) and equal those of the reference
 * tokenizer on every code point: its letters are of a newer Unicode than its composition. */
#ifndef HD_CODECS_UNICODE_H
#define HD_CODECS_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef enum hd_unicode_class {
    HD_UNICODE_OTHER = 0,
    HD_UNICODE_SPACE,
    HD_UNICODE_LETTER, // \p{L}
    HD_UNICODE_NUMBER, // \p{N}
} hd_unicode_class;

/* A code point, and the bytes start .. end - 1 of the text that it comes from. */
typedef struct hd_char {
    uint32_t c;
    int32_t start, end;
    uint32_t mark; // its combining class: hd_unicode_nfc's own
} hd_char;

/* The code point at text[0 .. bytes): returns its length, 0 if that is not UTF-8 (overlong forms,
 * surrogates and what lies beyond U+10FFFF are not). bytes >= 1. */
int hd_utf8_decode(const char *text, size_t bytes, uint32_t *c);
int hd_utf8_encode(uint32_t c, char out[4]); // returns the length

hd_unicode_class hd_unicode_class_of(uint32_t c);
/* One code point becomes one or two; no context, so a final sigma is like any other. */
int hd_unicode_lower(uint32_t c, uint32_t out[2]);

#define HD_UNICODE_NFC_ROOM 4 // a code point decomposes into this many at most
/* Canonical composition of `count` characters into `out`, which has room for
 * HD_UNICODE_NFC_ROOM * count; count < 2^22. A character made of several spans them all. Returns
 * how many. */
int64_t hd_unicode_nfc(hd_char *out, const hd_char *in, int64_t count);

HD_END_DECLS
#endif
