/* controls/plug_and_play.h: what the files of Plug-and-Play share: its options and what was made of
 * them before step 0. For controls/plug_and_play*.c alone. */
#ifndef HD_CONTROLS_PLUG_AND_PLAY_H
#define HD_CONTROLS_PLUG_AND_PLAY_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

#define PNP_MOST_TARGETS 8

typedef enum pnp_inversion {
    PNP_INVERSION_DIRECT, // the source follows its trajectory (Ju et al., arXiv 2310.01506)
    PNP_INVERSION_DDIM,   // the source is sampled again from the end of it
} pnp_inversion;

typedef enum pnp_schedule { PNP_CONST, PNP_LINEAR, PNP_EXP } pnp_schedule;
typedef enum pnp_qk_mode { PNP_REPLACE, PNP_APPEND } pnp_qk_mode;

// A branch that takes its structure from the source.
typedef struct pnp_target {
    char branch[24];
    char negative[24]; // the branch that shows its latent under the negative prompt; "": none
} pnp_target;

typedef struct plug_and_play {
    // options
    const hd_json *feature_sites, *attn_sites, *feature_steps, *attn_steps;
    float strength_feature, strength_qk;
    pnp_qk_mode qk_mode;
    bool feature_adain;
    char *source_prompt, *source_image;
    pnp_inversion inversion;
    int64_t inversion_steps, fixed_point;
    char *inversion_file;
    char *negative;
    float negative_alpha;
    pnp_schedule negative_schedule;
    char *mask;
    bool mask_keys;
    // made before step 0
    hd_site_selector *site;
    int64_t sites;
    char (*tap)[HD_SITE_PATH_BYTES];
    int64_t taps;
    double feature_part[2], attn_part[2]; // of the run
    int64_t feature_calls[2], attn_calls[2];
    char source[24];
    int64_t targets;
    pnp_target target[PNP_MOST_TARGETS];
    bool mixes_negative;
    float *free_mask; // [height, width] of the latent, or NULL
    int64_t height, width;
} plug_and_play;

/* Calls [first, end) of the parts [from, to] of a run. */
void pnp_calls(int64_t range[2], const double part[2], int64_t calls);
/* How much of the unconditional prediction is the empty prompt's at call `index`. */
double pnp_alpha(pnp_schedule schedule, double alpha, int64_t index, int64_t calls);
/* out = base + scale (cond - base), base = alpha empty + (1 - alpha) negative, all [count]. */
void pnp_guide(float *out, const float *empty, const float *negative, const float *cond,
               double alpha, double scale, int64_t count);
/* Mean of mask [height, width] over place (y, x) of a grid [rows, columns]. */
float pnp_mask_at(const plug_and_play *p, int64_t rows, int64_t columns, int64_t y, int64_t x);
/* The number of the source row whose structure this row takes; -1: it takes none. */
int64_t pnp_source_row(const plug_and_play *p, const hd_rows *rows, const bool *active,
                       int64_t row);

/* plug_and_play_options.c: what the preset says, checked. */
extern const hd_param pnp_params[];
HD_CHECKED hd_status pnp_check(void *params);
void pnp_clear(void *params);

/* plug_and_play_feature.c: a residual block's feature x [B, H, W, C] from the source's row. */
HD_CHECKED hd_status pnp_feature(const hd_feature_ctx *ctx, hd_tensor x);

HD_END_DECLS
#endif
