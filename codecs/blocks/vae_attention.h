/* codecs/blocks/vae_attention.h: the one-headed self attention in the middle of an autoencoder:
 * x + out(attention(norm(x))). Reference: diffusers' Attention as AutoencoderKL uses it. */
#ifndef HD_CODECS_BLOCKS_VAE_ATTENTION_H
#define HD_CODECS_BLOCKS_VAE_ATTENTION_H

#include "engine/attention/attention.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

typedef struct hd_vae_attention {
    int64_t channels, factor;
    int groups;
    float *gamma, *beta;
    hd_linear *qkv, *out;
} hd_vae_attention;

/* Declares its parameters under `prefix`. *a must be zeroed before; factor: below the picture. */
void hd_vae_attention_declare(hd_vae_attention *a, hd_binder *b, const char *prefix,
                              int64_t channels, int groups, int64_t factor);
void hd_vae_attention_free(hd_vae_attention *a);
/* x [B, H, W, channels] in the compute type is replaced. */
HD_CHECKED hd_status hd_vae_attention_run(const hd_exec *ex, const hd_vae_attention *a,
                                          const hd_forward *forward, hd_tensor x);

HD_END_DECLS
#endif
