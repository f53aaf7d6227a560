/* pipelines/model.h: a Stable Diffusion model as diffusers lays it out: one folder with a
 * model_index.json and a folder per component. Loaded once, used by any number of runs. */
#ifndef HD_PIPELINES_MODEL_H
#define HD_PIPELINES_MODEL_H

#include "codecs/text_clip.h"
#include "codecs/tokenizer_clip.h"
#include "codecs/vae_kl.h"
#include "pipelines/preset.h"
#include "unet/unet2d.h"

HD_BEGIN_DECLS

#define HD_MODEL_HASH_BYTES 17

typedef struct hd_model {
    char *path;
    uint64_t stamp;                 // of its files' sizes and times: has anything changed on disk?
    char hash[HD_MODEL_HASH_BYTES]; // of configurations, tokenizer and weights
    uint64_t key;                   // of the denoiser's configuration and shapes: model_key.h
    hd_tokenizer *tokenizer;
    hd_text_clip *text;
    hd_unet2d *unet;
    hd_vae_kl *vae;
    hd_json_doc *scheduler; // scheduler_config.json; NULL when the folder has none
    hd_precision_option asked;
    hd_dtype compute;
    char reason[160];      // why `compute`: "asked for", "auto: ..."
    int64_t weights_bytes; // packed
} hd_model;

/* Called with "load" and bytes done and in all; nonzero return cancels. */
typedef int (*hd_model_progress)(void *arg, int64_t done, int64_t all);

/* The caller owns *out. hd_model_free(NULL) does nothing. Refuses by name what is not a folder of
 * this layout, a pipeline class that is not plain Stable Diffusion, and components of classes
 * Heddle does not have. */
HD_CHECKED hd_status hd_model_open(hd_model **out, const hd_exec *ex, const char *path,
                                   hd_precision_option precision, hd_model_progress progress,
                                   void *progress_arg);
void hd_model_free(hd_model *model);

/* Is `model` what opening `path` with this precision would give again? */
bool hd_model_current(const hd_model *model, const char *path, hd_precision_option precision);

HD_END_DECLS
#endif
