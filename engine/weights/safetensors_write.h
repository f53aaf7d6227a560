/* engine/weights/safetensors_write.h: tensors into a .safetensors file that appears whole or not at
 * all. */
#ifndef HD_ENGINE_WEIGHTS_SAFETENSORS_WRITE_H
#define HD_ENGINE_WEIGHTS_SAFETENSORS_WRITE_H

#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_named_tensor {
    const char *name;
    hd_tensor tensor; // contiguous
} hd_named_tensor;

/* `metadata`: NULL, or texts as key, value, key, value, NULL. HD_ERR_IO as hd_output_open and
 * hd_output_write; HD_ERR_ARGUMENT for a name that is used twice or reserved. */
HD_CHECKED hd_status hd_safetensors_write(const char *path, int64_t count,
                                          const hd_named_tensor *tensors,
                                          const char *const *metadata);

HD_END_DECLS
#endif
