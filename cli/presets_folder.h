/* cli/presets_folder.h: the presets that come with the program, by name.
 *
 * The folder: --presets-dir where a command has it, else $HEDDLE_PRESETS, else presets/ in the
 * current folder, else the one that was built or installed with the program. A preset in it is
 * called "edit/prompt-to-prompt", or "prompt-to-prompt" where no other has that name. */
#ifndef HD_CLI_PRESETS_FOLDER_H
#define HD_CLI_PRESETS_FOLDER_H

#include <limits.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_preset_name {
    char name[NAME_MAX * 2 + 2]; // "edit/prompt-to-prompt"
    char path[PATH_MAX];
} hd_preset_name;

typedef struct hd_preset_names {
    hd_preset_name *item; // sorted
    int count;
} hd_preset_names;

/* The presets of a folder (NULL: as above), those in folders of it. HD_ERR_ARGUMENT when there is
 * no folder. *out is freed with hd_preset_names_free, on failure too. */
HD_CHECKED hd_status hd_preset_names_list(hd_preset_names *out, const char *folder);
void hd_preset_names_free(hd_preset_names *names);
/* The one that is called so; HD_ERR_ARGUMENT with the nearest name when there is none, or when
 * several are. Borrowed. */
HD_CHECKED hd_status hd_preset_names_find(const hd_preset_names *names, const char *name,
                                          const hd_preset_name **out);

/* The JSON of a run from a file, else from the preset of that name. The caller frees *json with
 * hd_text_free. */
HD_CHECKED hd_status hd_presets_read(char **json, const char *word);

HD_END_DECLS
#endif
