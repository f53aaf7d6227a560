/* pipelines/inversion_file.h: trajectories of inverted pictures in a safetensors file: per branch a
 * tensor of its name [calls + 1, channels, height, width] f32, the latent before each call of the
 * network and then the picture's own; in the metadata "model_hash" and "timesteps". */
#ifndef HD_PIPELINES_INVERSION_FILE_H
#define HD_PIPELINES_INVERSION_FILE_H

#include "base/tensor.h"
#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef struct hd_inversion_use {
    const char *model_hash;
    const char *sampler;
    const float *timesteps; // [calls] of the run
    int64_t calls;
    hd_shape shape; // of a trajectory
} hd_inversion_use;

/* Reads branch `name` (or the only one there is) into trajectory. HD_ERR_ARGUMENT when the file was
 * made with another model or other timesteps, both named; `node` is the field that names the file.
 */
HD_CHECKED hd_status hd_inversion_file_read(float *trajectory, const char *path, const char *name,
                                            const hd_inversion_use *use, const hd_json *node);

/* Of `count` branches; trajectory[i] NULL: left out. */
HD_CHECKED hd_status hd_inversion_file_write(const char *path, int count, const char *const *name,
                                             const float *const *trajectory,
                                             const hd_inversion_use *use);

HD_END_DECLS
#endif
