/* codecs/blocks/vae_kl_internal.h: what codecs/vae_kl.c and its tiling share. */
#ifndef HD_CODECS_BLOCKS_VAE_KL_INTERNAL_H
#define HD_CODECS_BLOCKS_VAE_KL_INTERNAL_H

#include "codecs/blocks/vae_stack.h"

HD_BEGIN_DECLS

struct hd_vae_kl {
    hd_vae_kl_config config;
    hd_dtype compute;
    hd_vae_stack encoder, decoder;
    hd_linear *quant, *post_quant; // NULL: none
};

HD_CHECKED hd_status hd_vae_kl_decode_check(const hd_vae_kl *v, hd_tensor image, hd_tensor latent);
HD_CHECKED hd_status hd_vae_kl_encode_check(const hd_vae_kl *v, hd_tensor mean, hd_tensor logvar,
                                            hd_tensor image);

/* One picture, checked by the caller: image [1, H, W, C] from latent, moments [1, h, w, 2 C] from
 * image, all f32. */
HD_CHECKED hd_status hd_vae_kl_decode_one(const hd_exec *ex, const hd_vae_kl *v,
                                          const hd_forward *forward, hd_tensor image,
                                          hd_tensor latent);
HD_CHECKED hd_status hd_vae_kl_encode_one(const hd_exec *ex, const hd_vae_kl *v,
                                          const hd_forward *forward, hd_tensor moments,
                                          hd_tensor image);
void hd_vae_kl_split(const hd_exec *ex, hd_tensor mean, hd_tensor logvar, hd_tensor moments);

HD_END_DECLS
#endif
