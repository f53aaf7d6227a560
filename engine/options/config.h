/* engine/options/config.h: reads a model's config.json: typed values with defaults, lists with one
 * value per level, and refusal by key of what the network cannot do.
 *
 * A network lists every key it knows with what it does with it. A key outside the list is refused
 * unless its value is null or false or its name begins with "_": those change nothing. */
#ifndef HD_ENGINE_OPTIONS_CONFIG_H
#define HD_ENGINE_OPTIONS_CONFIG_H

#include "engine/ops/norm.h"
#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef enum hd_config_use {
    HD_CONFIG_READ,  // the network reads it
    HD_CONFIG_INERT, // any value: it does not change what the network computes
    HD_CONFIG_UNSET, // null or false only
} hd_config_use;

typedef struct hd_config_rule {
    const char *key;
    hd_config_use use;
    const char *why; // UNSET: what a value would mean, for the message
} hd_config_rule;

/* Every key of `root` against the rules (ended by a NULL key). HD_ERR_UNSUPPORTED names file, key,
 * value and what is supported. */
HD_CHECKED hd_status hd_config_check(const hd_json *root, const hd_config_rule *rules);

/* The node, or NULL when it is absent or null. */
const hd_json *hd_config_given(const hd_json *root, const char *key);

/* A value; `otherwise` when the key is absent (null is refused: it is not the default). */
HD_CHECKED hd_status hd_config_int(const hd_json *root, const char *key, int64_t min, int64_t max,
                                   int64_t otherwise, int64_t *out);
HD_CHECKED hd_status hd_config_double(const hd_json *root, const char *key, double min, double max,
                                      double otherwise, double *out);
HD_CHECKED hd_status hd_config_bool(const hd_json *root, const char *key, bool otherwise,
                                    bool *out);

/* One of `names` (NULL-ended) by its index; `node` may be an element of a list. */
HD_CHECKED hd_status hd_config_choice(const hd_json *node, const char *const *names, int *out);
/* "silu", "swish", "gelu" or "relu"; `otherwise` when the key is absent or null. */
HD_CHECKED hd_status hd_config_activation(const hd_json *root, const char *key,
                                          hd_activation otherwise, hd_activation *out);

/* A number for all levels or a list of `count` numbers. */
HD_CHECKED hd_status hd_config_int_per_level(const hd_json *root, const char *key, int64_t min,
                                             int64_t max, int64_t otherwise, int count,
                                             int64_t *out);
HD_CHECKED hd_status hd_config_bool_per_level(const hd_json *root, const char *key, bool otherwise,
                                              int count, bool *out);

/* The node as a message shows it ("\"fir\"", "3", "a list of 4") into text; returns text. */
char *hd_config_value_text(const hd_json *node, char *text, size_t bytes);

HD_END_DECLS
#endif
