/* pipelines/text_to_image.h: a run from a prompt, or from a prompt and a picture, to pictures.
 *
 * The order of random draws, the timesteps and the arithmetic are those of diffusers'
 * StableDiffusionPipeline and StableDiffusionImg2ImgPipeline, so that a seed means the same
 * picture. Each picture has a generator of its own, seeded with seed + i. */
#ifndef HD_PIPELINES_TEXT_TO_IMAGE_H
#define HD_PIPELINES_TEXT_TO_IMAGE_H

#include "engine/attention/processor.h"
#include "engine/attention/run.h"
#include "pipelines/model.h"
#include "pipelines/preset.h"
#include "pipelines/result.h"

HD_BEGIN_DECLS

typedef struct hd_run_request {
    const hd_preset *preset;
    const hd_json *root; // of the preset, for messages
    hd_model *model;
    const hd_processor_list *processors;
    hd_exec *ex; // threads and cancel; its arena is the run's to replace
    const hd_callbacks *callbacks;
    hd_result *result;        // receives pictures, stages and warnings
    hd_attention_watch watch; // looks on at every attention call; NULL: nobody
    void *watch_user;
    char **chain; // NULL: draw. Else only prepare, and describe who acts where (chain.h)
} hd_run_request;

/* On HD_ERR_CANCELLED the result keeps the pictures that were finished. */
HD_CHECKED hd_status hd_text_to_image(const hd_run_request *request);

HD_END_DECLS
#endif
