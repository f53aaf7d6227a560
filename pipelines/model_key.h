/* pipelines/model_key.h: what plans made for a network are keyed by. */
#ifndef HD_PIPELINES_MODEL_KEY_H
#define HD_PIPELINES_MODEL_KEY_H

#include "engine/options/json.h"
#include "engine/weights/weights.h"

HD_BEGIN_DECLS

/* Hash of a network's configuration (its fields in any order, without those that begin with "_",
 * which say who saved it) and of its tensors' names and shapes. Fine-tuned weights and other number
 * types keep the key. */
HD_CHECKED hd_status hd_model_key(uint64_t *key, const hd_json *config, const hd_weights *weights);

HD_END_DECLS
#endif
