/* engine/options/json_scan.h: is this text JSON, to the letter (RFC 8259), and where do its values
 * begin?
 *
 * Stricter than the parser that builds the tree, and it knows lines: what passes here fails there
 * for want of memory alone. Refused beyond the grammar: nesting deeper than 200, more than four
 * million values, a number of more than 63 characters, "\u0000". */
#ifndef HD_ENGINE_OPTIONS_JSON_SCAN_H
#define HD_ENGINE_OPTIONS_JSON_SCAN_H

#include <stddef.h>

#include "base/status.h"

HD_BEGIN_DECLS

enum { HD_JSON_DEPTH_MOST = 200, HD_JSON_VALUES_MOST = 4 << 20 };

/* Offsets into the text of all its values (not keys), in document order. Freed by
 * hd_json_values_free. */
typedef struct hd_json_values {
    size_t *offset;
    size_t count, room;
} hd_json_values;

/* HD_ERR_FORMAT: "NAME: line 3, column 7: ...". *out is to be freed after a failure, too. */
HD_CHECKED hd_status hd_json_scan(hd_json_values *out, const char *name, const char *text,
                                  size_t bytes);
void hd_json_values_free(hd_json_values *values);

HD_END_DECLS
#endif
