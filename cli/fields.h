/* cli/fields.h: fields of JSON that the library wrote, for showing them: what is missing is shown
 * as nothing. */
#ifndef HD_CLI_FIELDS_H
#define HD_CLI_FIELDS_H

#include "engine/options/json.h"

HD_BEGIN_DECLS

/* The text under `key`, borrowed; "" when there is none. */
const char *hd_field_text(const hd_json *object, const char *key);
/* The number under `key`; 0 when there is none. */
int64_t hd_field_int(const hd_json *object, const char *key);

HD_END_DECLS
#endif
