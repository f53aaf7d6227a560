/* codecs/blocks/vae_stack.h: half an autoencoder: a chain of residual blocks, an attention and
 * changes of resolution between two convolutions.
 *
 * At full resolution one value is hundreds of megabytes, so that the chain never holds more than a
 * block's input, its hidden value and its output: the stream lives in two slots, and a block that
 * keeps the channel count works in place. */
#ifndef HD_CODECS_BLOCKS_VAE_STACK_H
#define HD_CODECS_BLOCKS_VAE_STACK_H

#include "codecs/blocks/vae_attention.h"
#include "codecs/vae_kl.h"
#include "engine/blocks/resnet.h"

HD_BEGIN_DECLS

typedef enum hd_vae_stage_kind {
    HD_VAE_RESNET,
    HD_VAE_ATTENTION,
    HD_VAE_DOWN, // convolution with stride 2
    HD_VAE_UP,   // nearest upsampling by 2 and a convolution
} hd_vae_stage_kind;

typedef struct hd_vae_stage {
    hd_vae_stage_kind kind;
    int64_t channels; // of its result
    hd_resnet resnet;
    hd_vae_attention attention;
    hd_conv *resize;
} hd_vae_stage;

typedef struct hd_vae_stack {
    hd_conv *conv_in, *conv_out;
    float *gamma, *beta;
    int groups;
    int64_t first; // channels behind conv_in
    int count;
    hd_vae_stage *stage; // [count]
} hd_vae_stack;

/* Declare "encoder.*" or "decoder.*". *s must be zeroed before and is freed by hd_vae_stack_free,
 * also after a load that failed. */
HD_CHECKED hd_status hd_vae_encoder_declare(hd_vae_stack *s, hd_binder *b,
                                            const hd_vae_kl_config *c);
HD_CHECKED hd_status hd_vae_decoder_declare(hd_vae_stack *s, hd_binder *b,
                                            const hd_vae_kl_config *c);
void hd_vae_stack_free(hd_vae_stack *s);

/* y [1, OH, OW, out] f32 or compute type from x [1, H, W, in] f32 or compute type. */
HD_CHECKED hd_status hd_vae_stack_run(const hd_exec *ex, const hd_vae_stack *s,
                                      const hd_forward *forward, hd_tensor y, hd_tensor x);

HD_END_DECLS
#endif
