/* unet/blocks/transformer2d.h: attention over the pixels of a feature map, then over the text, then
 * a gated feed-forward, between two projections (diffusers' Transformer2DModel).
 *
 * A block is either the usual one (self attention, cross attention) or, with only_cross_attention,
 * two cross attentions. */
#ifndef HD_UNET_BLOCKS_TRANSFORMER2D_H
#define HD_UNET_BLOCKS_TRANSFORMER2D_H

#include "engine/attention/attention.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

typedef struct hd_transformer2d_spec {
    int64_t channels, heads, text_channels;
    int64_t depth; // blocks
    int groups;
    bool only_cross_attention;
    int64_t factor;   // below the latent
    const char *path; // of its attention sites, without the depth
} hd_transformer2d_spec;

typedef struct hd_transformer2d hd_transformer2d;

/* Declares its parameters under `prefix` ("down_blocks.0.attentions.1"). The caller owns *out, also
 * when the load fails. hd_transformer2d_free(NULL) does nothing. */
HD_CHECKED hd_status hd_transformer2d_declare(hd_transformer2d **out, hd_binder *b,
                                              const char *prefix,
                                              const hd_transformer2d_spec *spec);
void hd_transformer2d_free(hd_transformer2d *t);

/* x [B, H, W, channels] in the compute type is replaced; text [B, L, text_channels] likewise. */
HD_CHECKED hd_status hd_transformer2d_run(const hd_exec *ex, const hd_transformer2d *t,
                                          const hd_forward *forward, hd_tensor x, hd_tensor text);

HD_END_DECLS
#endif
