/* controls/perturbed_attention.h: what the files of perturbed-attention guidance share. For
 * controls/perturbed_attention*.c and their tests alone. */
#ifndef HD_CONTROLS_PERTURBED_ATTENTION_H
#define HD_CONTROLS_PERTURBED_ATTENTION_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

typedef enum pag_kind {
    PAG_IDENTITY,
    PAG_UNIFORM,
    PAG_MEAN_QUERY,
    PAG_BLUR_QUERY,
    PAG_ARGMAX,
    PAG_TEMPERATURE,
} pag_kind;

/* Of joint attention: what is perturbed. */
typedef enum pag_joint {
    PAG_WHOLE,      // every token sees itself
    PAG_IMAGE,      // tokens of the picture do; text is left alone
    PAG_IMAGE_TEXT, // likewise, and they go on seeing the text
} pag_joint;

typedef enum pag_rule { PAG_LINEAR, PAG_QUARTIC } pag_rule;

/* A head, or one of each site that the selector names. */
typedef struct pag_head {
    hd_site_selector site;
    int64_t head;
    bool met;
} pag_head;

typedef struct perturbed_attention {
    // options
    pag_kind kind;
    float scale, u, adaptive, tau;
    pag_rule adaptive_rule;
    pag_joint joint;
    const hd_json *heads, *sigma;
    bool fork;
    // made of them
    float blur;       // of the queries' grid, in tokens; INFINITY: their mean
    bool heads_given; // else all
    int64_t head_count;
    pag_head *head;
    int branches; // that have a perturbed row of ours; 0: not asked yet
    char branch[HD_MAX_BRANCHES][24];
} perturbed_attention;

/* w_t: the scale at a timestep, which falls from 1000 to 0. */
float pag_scale_at(const perturbed_attention *p, double timestep);
/* guess += w (cond - perturbed), all [count]. */
void pag_add(float *guess, const float *cond, const float *perturbed, float w, int64_t count);

/* The weights of a Gaussian on an axis of `tokens` tokens into weight [pag_taps]; they sum to 1. */
int64_t pag_taps(float sigma, int64_t tokens);
void pag_weights(float sigma, int64_t taps, float *weight);
/* x [height, width, channels] blurred along both axes, reflected at the borders; `spare` has room
 * for as much and for the weights of an axis. */
void pag_blur(float *x, float *spare, int64_t height, int64_t width, int64_t channels, float sigma);

/* A run of the tokens of a call. */
typedef struct pag_span {
    int64_t start, end;
} pag_span;

/* Row `row` of to [B, 1, H, D]: the mean of the tokens of `from` in the spans. */
void pag_mean_tokens(hd_tensor to, hd_tensor from, int64_t row, const pag_span *span, int spans);

/* Values that a head needs to be blurred. */
static inline int64_t pag_blur_room(int64_t tokens, int64_t channels)
{
    return tokens * (2 * channels + 1) + 1;
}
/* Row `row` of to [B, L, H, D]: q with its grids blurred. work: [H, pag_blur_room]. */
HD_CHECKED hd_status pag_blur_queries(const hd_exec *ex, hd_tensor to, hd_tensor q,
                                      const hd_token_layout *layout, int64_t row, float sigma,
                                      float *work);

HD_END_DECLS
#endif
