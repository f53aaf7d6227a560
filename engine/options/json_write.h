/* engine/options/json_write.h: JSON text, written piece by piece into a buffer that grows.
 *
 * Commas and escapes are the writer's business. An error (no memory) is kept and returned by
 * hd_json_writer_take, so that writing reads as one line per field. */
#ifndef HD_ENGINE_OPTIONS_JSON_WRITE_H
#define HD_ENGINE_OPTIONS_JSON_WRITE_H

#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef struct hd_json_writer {
    char *text;
    size_t used, room;
    bool comma;   // the next value of this level needs one
    bool failed;  // no memory
} hd_json_writer; // starts as {0}

/* `key` is NULL inside an array and at the root. Strings must be UTF-8. */
void hd_json_write_object(hd_json_writer *w,
                          const char *key); // "{"; closed by hd_json_write_end(w, '}')
void hd_json_write_array(hd_json_writer *w,
                         const char *key); // "["; closed by hd_json_write_end(w, ']')
void hd_json_write_end(hd_json_writer *w, char bracket);
void hd_json_write_string(hd_json_writer *w, const char *key, const char *value); // NULL: null
void hd_json_write_int(hd_json_writer *w, const char *key, int64_t value);
void hd_json_write_u64(hd_json_writer *w, const char *key, uint64_t value);
/* The shortest text that reads back as the same float (not double): what people typed comes out as
 * they typed it. NaN and infinities: null. */
void hd_json_write_float(hd_json_writer *w, const char *key, float value);
void hd_json_write_double(hd_json_writer *w, const char *key,
                          double value); // likewise for a double
void hd_json_write_bool(hd_json_writer *w, const char *key, bool value);
void hd_json_write_node(hd_json_writer *w, const char *key,
                        const hd_json *node); // a copy of a tree

/* The text, which the caller frees with free(); the writer is as new. HD_ERR_NOMEM if anything
 * failed on the way. */
HD_CHECKED hd_status hd_json_writer_take(hd_json_writer *w, char **text);
void hd_json_writer_free(hd_json_writer *w); // instead of taking

HD_END_DECLS
#endif
