/* engine/options/param.h: typed option tables: one row per field of a struct, with default, range
 * and help.
 *
 * The same table fills the struct from JSON, refuses what is unknown or out of range (with file,
 * path and a spelling hint) and prints itself as documentation. A row names a field; a macro for
 * floats does not compile on an int. */
#ifndef HD_ENGINE_OPTIONS_PARAM_H
#define HD_ENGINE_OPTIONS_PARAM_H

#include <stdio.h>

#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef enum hd_param_type {
    HD_PARAM_TYPE_END = 0,
    HD_PARAM_TYPE_FLOAT,  // float
    HD_PARAM_TYPE_INT,    // int64_t
    HD_PARAM_TYPE_BOOL,   // bool
    HD_PARAM_TYPE_U64,    // uint64_t: a seed
    HD_PARAM_TYPE_STRING, // char *, owned by the struct; NULL when not given and no default
    HD_PARAM_TYPE_ENUM,   // an enum (int): the index into a NULL-ended list of names
    HD_PARAM_TYPE_JSON, // const hd_json *: the node itself, for the class to read (lists, tables);
                        // NULL when not given; borrowed
} hd_param_type;

typedef struct hd_param {
    hd_param_type type;
    const char *name;
    size_t offset;
    double def, min, max;     // numbers; min == max == 0: any (then whatever the type holds);
                              // -INFINITY, INFINITY: no bound on that side
    const char *def_text;     // strings and enums
    const char *const *names; // enums, NULL-ended
    const char *help;
    bool required;
    bool given_flag; // true: `given_offset` is a bool of the struct set when the field was given
    size_t given_offset;
} hd_param;

/* &((type *)0)->field has the right pointer type or the build stops. */
#define HD_PARAM_CHECKED_(type_, field_, ctype_)                                                   \
    (offsetof(type_, field_) + 0 * sizeof(*(1 ? &((type_ *)0)->field_ : (ctype_ *)0)))

#define HD_PARAM_FLOAT(type_, field_, ...)                                                         \
    {                                                                                              \
        .type = HD_PARAM_TYPE_FLOAT, .name = #field_,                                              \
        .offset = HD_PARAM_CHECKED_(type_, field_, float), __VA_ARGS__                             \
    }
#define HD_PARAM_INT(type_, field_, ...)                                                           \
    {                                                                                              \
        .type = HD_PARAM_TYPE_INT, .name = #field_,                                                \
        .offset = HD_PARAM_CHECKED_(type_, field_, int64_t), __VA_ARGS__                           \
    }
#define HD_PARAM_BOOL(type_, field_, ...)                                                          \
    {                                                                                              \
        .type = HD_PARAM_TYPE_BOOL, .name = #field_,                                               \
        .offset = HD_PARAM_CHECKED_(type_, field_, bool), __VA_ARGS__                              \
    }
#define HD_PARAM_U64(type_, field_, ...)                                                           \
    {                                                                                              \
        .type = HD_PARAM_TYPE_U64, .name = #field_,                                                \
        .offset = HD_PARAM_CHECKED_(type_, field_, uint64_t), __VA_ARGS__                          \
    }
#define HD_PARAM_STRING(type_, field_, ...)                                                        \
    {                                                                                              \
        .type = HD_PARAM_TYPE_STRING, .name = #field_,                                             \
        .offset = HD_PARAM_CHECKED_(type_, field_, char *), __VA_ARGS__                            \
    }
/* any enum type: its size must be that of int */
#define HD_PARAM_ENUM(type_, field_, ...)                                                          \
    {                                                                                              \
        .type = HD_PARAM_TYPE_ENUM, .name = #field_, .offset = offsetof(type_, field_),            \
        __VA_ARGS__                                                                                \
    }
#define HD_PARAM_JSON(type_, field_, ...)                                                          \
    {                                                                                              \
        .type = HD_PARAM_TYPE_JSON, .name = #field_,                                               \
        .offset = HD_PARAM_CHECKED_(type_, field_, const hd_json *), __VA_ARGS__                   \
    }
#define HD_PARAM_END                                                                               \
    {                                                                                              \
        .type = HD_PARAM_TYPE_END                                                                  \
    }

/* Sets every field to its default. `into` is the struct, all of its STRING fields must be NULL or
 * owned. */
HD_CHECKED hd_status hd_params_default(const hd_param *table, void *into);
/* Fields of `object` into the struct (defaults must be there already). Keys in `also` (NULL-ended,
 * may be NULL) belong to somebody else and are skipped; any other unknown key is refused with a
 * hint. What the object calls itself ("use") is part of that message. After a failure some fields
 * may be set; hd_params_free is needed as ever. */
HD_CHECKED hd_status hd_params_read(const hd_param *table, void *into, const hd_json *object,
                                    const char *const *also);
/* The same, but only the table's own fields are looked at: whatever else there is belongs to
 * others.
 */
HD_CHECKED hd_status hd_params_read_known(const hd_param *table, void *into, const hd_json *object);
/* One field from text, as on a command line: `what` names the option in the message ("--steps").
 * Switches take true, false, on, off, yes, no, 1, 0. */
HD_CHECKED hd_status hd_params_set(const hd_param *table, void *into, const char *name,
                                   const char *text, const char *what);
void hd_params_free(const hd_param *table, void *into); // the strings
/* The row of that name, or NULL. */
const hd_param *hd_params_find(const hd_param *table, const char *name);
/* "0.05 to 20, default 1" into text; "" when there is nothing to say. Returns text. */
char *hd_param_limits(char *text, size_t bytes, const hd_param *row);
/* "tau   float  0.05 to 20, default 1   score divisor", a line per field. */
void hd_params_print(const hd_param *table, FILE *to);

HD_END_DECLS
#endif
