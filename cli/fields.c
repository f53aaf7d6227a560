/* cli/fields.c: see fields.h. */
#include "cli/fields.h"

const char *hd_field_text(const hd_json *object, const char *key)
{
    const hd_json *node = hd_json_get(object, key);
    const char *text = "";
    if (!node || hd_json_kind(node) != HD_JSON_STRING) return "";
    return hd_json_to_string(node, &text) == HD_OK ? text : "";
}

int64_t hd_field_int(const hd_json *object, const char *key)
{
    const hd_json *node = hd_json_get(object, key);
    int64_t value = 0;
    return node && hd_json_to_int(node, 0, INT64_MAX, &value) == HD_OK ? value : 0;
}
