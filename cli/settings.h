/* cli/settings.h: changes values in the JSON of a run: what options of the command line do.
 *
 * A path names a place: "steps", "processors[0].tau", "processors[0].steps[1]". */
#ifndef HD_CLI_SETTINGS_H
#define HD_CLI_SETTINGS_H

#include "engine/options/json.h"

HD_BEGIN_DECLS

/* Puts the JSON `value` at `path` of the object *json, which is replaced (the old text is freed).
 * What is missing on the way is made; a list grows by one at its end. Numbers elsewhere stay exact.
 * name: what *json is called in messages. HD_ERR_FORMAT when *json is damaged, HD_ERR_ARGUMENT when
 * the path does not fit it. On failure *json is untouched. */
HD_CHECKED hd_status hd_setting_put(char **json, const char *name, const char *path,
                                    const char *value);

/* The same from the text that --set was given, "path=value". The value of one of a run's own fields
 * is written as for its option; elsewhere it is JSON, and what is no JSON is a text. */
HD_CHECKED hd_status hd_setting_assign(char **json, const char *name, const char *assignment);

/* The value of one of a run's own fields as an option gives it ("25", "a red fish"), checked and as
 * JSON. `what` names the option in messages. The caller frees *value. */
HD_CHECKED hd_status hd_setting_value(char **value, const char *field, const char *text,
                                      const char *what);

HD_END_DECLS
#endif
