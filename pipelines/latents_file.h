/* pipelines/latents_file.h: the last latents of a run, collected and written as one safetensors
 * tensor "latents" [batch, channels, height, width] f32, before division by the scaling factor. */
#ifndef HD_PIPELINES_LATENTS_FILE_H
#define HD_PIPELINES_LATENTS_FILE_H

#include "pipelines/start.h"

HD_BEGIN_DECLS

typedef struct hd_latents_file {
    float *values; // NULL: nobody wants them
    hd_shape shape;
} hd_latents_file;

HD_CHECKED hd_status hd_latents_file_begin(hd_latents_file *out, int64_t batch,
                                           const hd_picture_size *size);
HD_CHECKED hd_status hd_latents_file_write(const hd_latents_file *latents, const char *path);
void hd_latents_file_free(hd_latents_file *latents);

HD_END_DECLS
#endif
