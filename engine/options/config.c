/* engine/options/config.c: see config.h. */
#include "engine/options/config.h"

#include <stdio.h>
#include <string.h>

char *hd_config_value_text(const hd_json *node, char *text, size_t bytes)
{
    const char *string = "";
    double number = 0;
    bool yes = false;
    switch (hd_json_kind(node)) {
    case HD_JSON_STRING:
        if (hd_json_to_string(node, &string) == HD_OK) snprintf(text, bytes, "\"%s\"", string);
        break;
    case HD_JSON_NUMBER:
        if (hd_json_to_double(node, -1e300, 1e300, &number) == HD_OK)
            snprintf(text, bytes, "%.10g", number);
        break;
    case HD_JSON_BOOL:
        if (hd_json_to_bool(node, &yes) == HD_OK) snprintf(text, bytes, yes ? "true" : "false");
        break;
    case HD_JSON_NULL:
        snprintf(text, bytes, "null");
        break;
    case HD_JSON_ARRAY:
        snprintf(text, bytes, "a list of %lld", (long long)hd_json_count(node));
        break;
    case HD_JSON_OBJECT:
        snprintf(text, bytes, "an object");
        break;
    }
    return text;
}

static bool config_unset(const hd_json *node)
{
    bool yes = true;
    if (hd_json_kind(node) == HD_JSON_NULL) return true;
    return hd_json_kind(node) == HD_JSON_BOOL && hd_json_to_bool(node, &yes) == HD_OK && !yes;
}

static const hd_config_rule *config_rule(const hd_config_rule *rules, const char *key)
{
    for (; rules->key; rules++)
        if (strcmp(rules->key, key) == 0) return rules;
    return NULL;
}

static hd_status config_refuse_unknown(const hd_json *node, const hd_config_rule *rules)
{
    char value[128];
    const char *names[128];
    size_t count = 0;
    for (; rules->key && count < HD_COUNT(names); rules++)
        names[count++] = rules->key;
    const char *near = hd_nearest_name(hd_json_key(node), names, count);
    return hd_json_fail(node, HD_ERR_UNSUPPORTED,
                        "is %s, and no network here knows this key; only null and false are "
                        "supported%s%s%s",
                        hd_config_value_text(node, value, sizeof value),
                        near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

hd_status hd_config_check(const hd_json *root, const hd_config_rule *rules)
{
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(root); i++) {
        const hd_json *node = hd_json_at(root, i);
        const char *key = hd_json_key(node);
        if (key[0] == '_' || config_unset(node)) continue;
        const hd_config_rule *rule = config_rule(rules, key);
        if (!rule) return config_refuse_unknown(node, rules);
        char value[128];
        if (rule->use == HD_CONFIG_UNSET)
            return hd_json_fail(node, HD_ERR_UNSUPPORTED, "is %s (%s); supported: null",
                                hd_config_value_text(node, value, sizeof value), rule->why);
    }
    return HD_OK;
}

const hd_json *hd_config_given(const hd_json *root, const char *key)
{
    const hd_json *node = hd_json_get(root, key);
    return node && hd_json_kind(node) != HD_JSON_NULL ? node : NULL;
}

hd_status hd_config_int(const hd_json *root, const char *key, int64_t min, int64_t max,
                        int64_t otherwise, int64_t *out)
{
    const hd_json *node = hd_json_get(root, key);
    *out = otherwise;
    return node ? hd_json_to_int(node, min, max, out) : HD_OK;
}

hd_status hd_config_double(const hd_json *root, const char *key, double min, double max,
                           double otherwise, double *out)
{
    const hd_json *node = hd_json_get(root, key);
    *out = otherwise;
    return node ? hd_json_to_double(node, min, max, out) : HD_OK;
}

hd_status hd_config_bool(const hd_json *root, const char *key, bool otherwise, bool *out)
{
    const hd_json *node = hd_json_get(root, key);
    *out = otherwise;
    return node ? hd_json_to_bool(node, out) : HD_OK;
}

hd_status hd_config_choice(const hd_json *node, const char *const *names, int *out)
{
    const char *text = NULL;
    char list[512] = "";
    HD_TRY(hd_json_to_string(node, &text));
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = i;
            return HD_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    return hd_json_fail(node, HD_ERR_UNSUPPORTED, "is \"%s\"; supported: %s", text, list);
}

hd_status hd_config_activation(const hd_json *root, const char *key, hd_activation otherwise,
                               hd_activation *out)
{
    static const char *const names[] = {"silu", "swish", "gelu", "relu", NULL};
    static const hd_activation acts[] = {HD_ACT_SILU, HD_ACT_SILU, HD_ACT_GELU, HD_ACT_RELU};
    const hd_json *node = hd_config_given(root, key);
    int index = 0;
    *out = otherwise;
    if (!node) return HD_OK;
    HD_TRY(hd_config_choice(node, names, &index));
    *out = acts[index];
    return HD_OK;
}

static hd_status config_expect_count(const hd_json *node, int count)
{
    if (hd_json_count(node) == count) return HD_OK;
    return hd_json_fail(node, HD_ERR_ARGUMENT,
                        "is a list of %lld, must have one value for each of the %d blocks",
                        (long long)hd_json_count(node), count);
}

hd_status hd_config_int_per_level(const hd_json *root, const char *key, int64_t min, int64_t max,
                                  int64_t otherwise, int count, int64_t *out)
{
    const hd_json *node = hd_json_get(root, key);
    int64_t one = otherwise;
    if (node && hd_json_kind(node) == HD_JSON_ARRAY) {
        HD_TRY(config_expect_count(node, count));
        for (int i = 0; i < count; i++)
            HD_TRY(hd_json_to_int(hd_json_at(node, i), min, max, &out[i]));
        return HD_OK;
    }
    if (node) HD_TRY(hd_json_to_int(node, min, max, &one));
    for (int i = 0; i < count; i++)
        out[i] = one;
    return HD_OK;
}

hd_status hd_config_bool_per_level(const hd_json *root, const char *key, bool otherwise, int count,
                                   bool *out)
{
    const hd_json *node = hd_json_get(root, key);
    bool one = otherwise;
    if (node && hd_json_kind(node) == HD_JSON_ARRAY) {
        HD_TRY(config_expect_count(node, count));
        for (int i = 0; i < count; i++)
            HD_TRY(hd_json_to_bool(hd_json_at(node, i), &out[i]));
        return HD_OK;
    }
    if (node) HD_TRY(hd_json_to_bool(node, &one));
    for (int i = 0; i < count; i++)
        out[i] = one;
    return HD_OK;
}
