/* pipelines/preset.h: the fields of a run, as a preset, a picture or a command line gives them.
 * presets/schema.json says the same for editors; a test keeps the two equal. */
#ifndef HD_PIPELINES_PRESET_H
#define HD_PIPELINES_PRESET_H

#include "engine/options/param.h"

HD_BEGIN_DECLS

typedef enum hd_precision_option {
    HD_PRECISION_AUTO,
    HD_PRECISION_F32,
    HD_PRECISION_BF16,
} hd_precision_option;

/* How a picture of another shape becomes one of the run's size. */
typedef enum hd_fit {
    HD_FIT_STRETCH, // width and height each on their own
    HD_FIT_CROP,    // filled, what sticks out is cut off on both sides
    HD_FIT_PAD,     // all of it is there, its edge goes on on both sides
} hd_fit;

typedef struct hd_preset {
    char *model, *prompt, *negative, *output;
    uint64_t seed;
    bool seed_given;
    int64_t batch;
    int64_t width, height; // pixels; 0: the model's own
    int64_t steps;
    char *sampler; // NULL: the model's own
    float guidance, guidance_rescale;
    int64_t clip_skip;
    hd_precision_option precision;
    int rng; // 0 cpu, 1 cuda: hd_rng_kind
    char *init_image;
    hd_fit fit;
    bool fit_given;
    float strength;
    char *latents_in, *latents_out;
    char *capture, *capture_sites, *capture_steps;
    char *sheet, *save_inversion;
    char *maps, *masks, *map_values;
    char *preview;
    int64_t preview_every;
    int64_t threads; // 0: the context's
    bool vae_tiling;
    char *description;
    // what a picture remembers of its making, to warn when it is not the same any more
    char *version, *model_hash, *init_image_hash, *branch;
    // borrowed from the document; NULL when not given
    const hd_json *processors; // array
    const hd_json *branches;   // object: pipelines/branches.h
    const hd_json *inversion;  // of main, likewise
    const hd_json *embeddings; // pipelines/embeddings.h
} hd_preset;

extern const hd_param hd_preset_params[];
extern const char *const hd_precision_names[];
extern const char *const hd_fit_names[];

/* Reads and checks what can be checked without the model. `root` must outlive *out. Free with
 * hd_preset_free, on failure too. */
HD_CHECKED hd_status hd_preset_from_json(hd_preset *out, const hd_json *root);
void hd_preset_free(hd_preset *preset);

HD_END_DECLS
#endif
