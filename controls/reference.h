/* controls/reference.h: what methods share that let a picture look at another one: the reference's
 * latent at the noise of a step, which of its keys are seen at a site and how much they weigh, and
 * the keys themselves behind those of a row. */
#ifndef HD_CONTROLS_REFERENCE_H
#define HD_CONTROLS_REFERENCE_H

#include "engine/attention/processor.h"
#include "engine/samplers/sampler.h"

HD_BEGIN_DECLS

typedef enum reference_resize {
    REFERENCE_AREA,     // mean of what lies over each place
    REFERENCE_BILINEAR, // between the middles of the places, edges go on
    REFERENCE_NEAREST,  // the place at its upper left
} reference_resize;

/* out [h, w] from mask [height, width]. */
void reference_resize_mask(float *out, int64_t h, int64_t w, const float *mask, int64_t height,
                           int64_t width, reference_resize how);

/* The latent of a reference, whether it is aside (engine/attention/kept.h), and its mask. */
typedef struct reference_picture {
    int64_t height, width;
    bool aside;
    float *mask; // [height, width], owned; NULL: all of it
} reference_picture;

/* In `begin`; `path` NULL: no mask; `node` is for messages. The caller frees the mask. */
HD_CHECKED hd_status reference_picture_open(reference_picture *out, const hd_begin_ctx *ctx,
                                            const char *branch, const char *path,
                                            const hd_json *node);
/* Its grid at a site whose own grid is `grid`. */
hd_token_segment reference_picture_grid(const reference_picture *r, const hd_site *site,
                                        const hd_token_segment *grid);
/* In `prepare`: if it is aside, its keys are kept here. */
void reference_picture_keep(hd_prepare_ctx *ctx, const reference_picture *r, const char *branch,
                            const hd_token_segment *grid);
/* In a tokens hook: where the keys and values of that branch are: a row of the call, or what was
 * kept. -1: nowhere in this call. */
int64_t reference_find(const hd_hook_ctx *ctx, const hd_tokens *tokens, const char *branch,
                       int64_t picture, hd_tensor *k, hd_tensor *v);

/* The keys of a reference that are seen at a site: those that weigh anything. */
typedef struct reference_columns {
    int64_t count;
    int32_t *column; // [count] among the reference's keys, ascending
    float *bias;     // [count] ln of the weight
    bool weighs;     // is any weight other than 1?
} reference_columns;

/* Of the tokens of `grid` each weighs `weight` times the mask [height, width] there (NULL: 1), all
 * frames alike. Free with reference_columns_free, on failure too. */
HD_CHECKED hd_status reference_columns_make(reference_columns *out, const hd_token_segment *grid,
                                            float weight, const float *mask, int64_t height,
                                            int64_t width, reference_resize how);
void reference_columns_free(reference_columns *c);

/* The grid of a layout; NULL: it has none. */
const hd_token_segment *reference_grid(const hd_token_layout *layout);

/* The seen keys and values of row `source` of k and v behind those of row `row`, whose number
 * grows. */
void reference_append(hd_tokens *tokens, int64_t row, const reference_columns *c, hd_tensor k,
                      hd_tensor v, int64_t source);
/* Their weights in the scores of that row, where the first of them is key `start`. */
void reference_bias(const hd_logits *logits, int64_t row, int64_t start,
                    const reference_columns *c);

/* Is this a branch that is drawn: main, target.N? */
bool reference_is_target(const char *branch);

/* The latent of `branch` becomes its picture at this level of noise, and its rows are told the
 * level's timestep. The noise depends on the picture's seed and on `salt`; fresh: on the step too.
 */
HD_CHECKED hd_status reference_add_noise(const hd_beside_ctx *ctx, const char *branch,
                                         hd_noise_level level, uint64_t salt, bool fresh);

HD_END_DECLS
#endif
