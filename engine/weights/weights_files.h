/* engine/weights/weights_files.h: which files hold the weights of a component, by the names that
 * the public layouts give them. */
#ifndef HD_ENGINE_WEIGHTS_WEIGHTS_FILES_H
#define HD_ENGINE_WEIGHTS_WEIGHTS_FILES_H

#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef struct hd_weights_files {
    char **path; // of each file
    int64_t count;
    hd_json_doc *index;        // of shards; NULL when there is none
    const hd_json *weight_map; // in it: tensor -> file name; NULL without an index
} hd_weights_files;

/* `path` and `stem` as in hd_weights_open. *out is to be freed after a failure, too. */
HD_CHECKED hd_status hd_weights_files_find(hd_weights_files *out, const char *path,
                                           const char *stem);
void hd_weights_files_free(hd_weights_files *files);

HD_END_DECLS
#endif
