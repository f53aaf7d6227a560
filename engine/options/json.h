/* engine/options/json.h: JSON as a read-only tree whose every node knows where it is.
 *
 * Parsing is cJSON's. What we add: the file's name, the path of a node ("processors[1].tau"), the
 * line of a parse error, integers exact to 2^64 - 1, and refusal of duplicate keys. */
#ifndef HD_ENGINE_OPTIONS_JSON_H
#define HD_ENGINE_OPTIONS_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_json_doc hd_json_doc; // owns the tree
typedef struct hd_json hd_json;         // a node, borrowed from its document

typedef enum hd_json_type {
    HD_JSON_NULL,
    HD_JSON_BOOL,
    HD_JSON_NUMBER,
    HD_JSON_STRING,
    HD_JSON_ARRAY,
    HD_JSON_OBJECT,
} hd_json_type;

/* `name` is what messages call the text (a file name). Text that is not strict JSON is
 * HD_ERR_FORMAT with its line and column (json_scan.h says what is refused beyond the grammar). The
 * caller owns *out; hd_json_free(NULL) does nothing. */
HD_CHECKED hd_status hd_json_parse(hd_json_doc **out, const char *name, const char *text,
                                   size_t bytes);
/* A file, or a pipe; at most 64 MiB. */
HD_CHECKED hd_status hd_json_read(hd_json_doc **out, const char *path);
void hd_json_free(hd_json_doc *doc);
const hd_json *hd_json_root(const hd_json_doc *doc);
const char *hd_json_name(const hd_json *node); // the document's

hd_json_type hd_json_kind(const hd_json *node);
const char *
hd_json_key(const hd_json *node); // its key in its object; NULL in an array or at the root
const hd_json *hd_json_get(const hd_json *object,
                           const char *key); // NULL if absent, or if object is NULL or no object
int64_t hd_json_count(const hd_json *node);  // of an array or object; else 0
const hd_json *hd_json_at(const hd_json *node,
                          int64_t index); // of an array or object; NULL outside
/* Its path from the root ("processors[1].tau"; "" for the root) into text; returns text. */
char *hd_json_path(const hd_json *node, char *text, size_t bytes);

/* What messages call its value ("40", "\"fast\"", "an array") into text; returns text. */
char *hd_json_describe(const hd_json *node, char *text, size_t bytes);

/* Typed reads: HD_ERR_ARGUMENT with file, path, what was found and what is allowed. */
/* Whole numbers may be written 1000, 1000.0 or 1e3; without . and e they are exact. */
HD_CHECKED hd_status hd_json_to_int(const hd_json *node, int64_t min, int64_t max, int64_t *out);
HD_CHECKED hd_status hd_json_to_u64(const hd_json *node, uint64_t *out);
HD_CHECKED hd_status hd_json_to_double(const hd_json *node, double min, double max, double *out);
HD_CHECKED hd_status hd_json_to_bool(const hd_json *node, bool *out);
HD_CHECKED hd_status hd_json_to_string(const hd_json *node,
                                       const char **out); // borrowed from the document
/* A list of numbers (or truth values, as 0 and 1); a value alone is a list of one. Fails unless
 * there are least to most of them, each from min to max. */
HD_CHECKED hd_status hd_json_to_ints(const hd_json *node, int64_t min, int64_t max, int64_t least,
                                     int64_t most, int64_t *out, int64_t *count);
HD_CHECKED hd_status hd_json_to_doubles(const hd_json *node, double min, double max, int64_t least,
                                        int64_t most, double *out, int64_t *count);
HD_CHECKED hd_status hd_json_to_bools(const hd_json *node, int64_t least, int64_t most, bool *out,
                                      int64_t *count);
HD_CHECKED hd_status hd_json_expect(const hd_json *node, hd_json_type type);

/* Fails with "NAME: PATH <your text>". */
hd_status hd_json_fail(const hd_json *node, hd_status status, const char *format, ...)
    HD_PRINTF(3, 4);

/* The entry of names[0 .. count) nearest to `word` in spelling, or NULL when none is near: for "did
 * you mean". */
const char *hd_nearest_name(const char *word, const char *const *names, size_t count);

HD_END_DECLS
#endif
