/* codecs/text_clip.h: the text encoder of CLIP (transformers' CLIPTextModel and
 * CLIPTextModelWithProjection): token ids to one vector per token, and to one for the whole text.
 *
 * Any width, depth, length and head count; sizes come from config.json. Activations between
 * operators are in the compute type, the residual stream and what comes out are f32. */
#ifndef HD_CODECS_TEXT_CLIP_H
#define HD_CODECS_TEXT_CLIP_H

#include "engine/attention/attention.h"
#include "engine/options/config.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

typedef struct hd_text_clip_config {
    int64_t vocabulary, channels, hidden; // hidden: width inside a block's two linear layers
    int64_t layers, heads;
    int64_t length;     // tokens it has positions for
    int64_t projection; // width of the pooled vector after text_projection; 0: it has none
    int64_t eos;        // the token whose vector is the pooled one; 2: the highest id of the row
    hd_activation act;
    double eps;
} hd_text_clip_config;

/* From config.json. An unsupported value is refused by key; defaults are transformers'. */
HD_CHECKED hd_status hd_text_clip_config_read(hd_text_clip_config *out, const hd_json *root);

typedef struct hd_text_clip hd_text_clip;

/* Binds and packs in `compute`; names may begin with "text_model." or not. Keeps no reference to
 * the weights. The caller owns *out. hd_text_clip_free(NULL) does nothing. */
HD_CHECKED hd_status hd_text_clip_create(hd_text_clip **out, const hd_exec *ex,
                                         const hd_text_clip_config *c, const hd_weights *weights,
                                         hd_dtype compute,
                                         int (*progress)(void *arg, int64_t done, int64_t all),
                                         void *progress_arg);
void hd_text_clip_free(hd_text_clip *text);
const hd_text_clip_config *hd_text_clip_configuration(const hd_text_clip *text);
hd_dtype hd_text_clip_compute(const hd_text_clip *text);

/* Names and shapes alone, as hd_binder_check. */
HD_CHECKED hd_status hd_text_clip_check(const hd_text_clip_config *c, const char *what,
                                        int64_t count, const hd_weight_info *infos);

typedef struct hd_text_clip_inputs {
    const int64_t *ids; // [rows, tokens]
    int64_t rows, tokens;
    int64_t clip_skip;    // 0 .. layers: so many last layers are left out before the final norm
    const float *learned; // [learned_count, channels]: what ids from the vocabulary's end on mean
    int64_t learned_count;
} hd_text_clip_inputs;

/* hidden [rows, tokens, channels] f32. pooled: none, or [rows, channels] f32 ([rows, projection]
 * where there is one), which clip_skip does not change. forward may be NULL. Sites are
 * text:block.N self. */
HD_CHECKED hd_status hd_text_clip_forward(const hd_exec *ex, const hd_text_clip *text,
                                          const hd_forward *forward, hd_tensor hidden,
                                          hd_tensor pooled, const hd_text_clip_inputs *in);

HD_END_DECLS
#endif
