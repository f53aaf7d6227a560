/* pipelines/model_folder.h: what lies in a model's folder, before any of it is loaded. */
#ifndef HD_PIPELINES_MODEL_FOLDER_H
#define HD_PIPELINES_MODEL_FOLDER_H

#include <limits.h>

#include "engine/options/json.h"

HD_BEGIN_DECLS

/* "folder/name" into text [PATH_MAX]; returns text. */
char *hd_folder_join(char text[PATH_MAX], const char *folder, const char *name);

/* Reads folder/model_index.json and checks that it is a plain Stable Diffusion pipeline of
 * components Heddle has. HD_ERR_FORMAT for a folder that is no model, HD_ERR_UNSUPPORTED for one of
 * another kind. */
HD_CHECKED hd_status hd_model_folder_check(const char *folder);

/* Changes when a file of a component is replaced, resized or touched. */
uint64_t hd_model_folder_stamp(const char *folder);

/* Hash of the configuration and tokenizer files, to start a model's hash with. */
HD_CHECKED hd_status hd_model_folder_hash(const char *folder, uint64_t *hash);

HD_END_DECLS
#endif
