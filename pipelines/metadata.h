/* pipelines/metadata.h: what a picture says about its making: JSON that repeats it, and a line for
 * people. */
#ifndef HD_PIPELINES_METADATA_H
#define HD_PIPELINES_METADATA_H

#include "pipelines/preset.h"

HD_BEGIN_DECLS

/* What the run made of the preset's defaults. */
typedef struct hd_resolved {
    uint64_t seed; // of this picture
    int64_t width, height;
    const char *sampler;   // its name, also where the preset leaves it to the model
    const char *precision; // "f32" or "bf16"
    const char *model_hash;
    const char *init_image_hash; // NULL: none
    const char *branch;          // "main"
} hd_resolved;

/* The fields of a run of this one picture, where to write left out. The caller frees *json with
 * free. */
HD_CHECKED hd_status hd_metadata_json(char **json, const hd_preset *preset,
                                      const hd_resolved *made);
/* "prompt\nNegative prompt: ...\nSteps: 25, Sampler: ddim, ...", as AUTOMATIC1111 writes it. The
 * caller frees *text. */
HD_CHECKED hd_status hd_metadata_line(char **text, const hd_preset *preset,
                                      const hd_resolved *made);

HD_END_DECLS
#endif
