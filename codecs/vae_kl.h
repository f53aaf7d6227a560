/* codecs/vae_kl.h: the variational autoencoder of latent diffusion models (diffusers'
 * AutoencoderKL): pictures to latents and back.
 *
 * Pictures are [B, H, W, 3] f32 in -1 .. 1, latents [B, H / factor, W / factor, latent_channels]
 * f32 as the autoencoder sees them: the caller divides by scaling_factor and adds shift_factor
 * before decode, and does the opposite after encode. Pictures of a batch are worked on one by one,
 * so that memory does not grow with the batch. Tiling bounds it for large pictures; its result
 * differs a little from the whole picture's, and is diffusers' tiled result.
 * Reference: diffusers 0.42.1. */
#ifndef HD_CODECS_VAE_KL_H
#define HD_CODECS_VAE_KL_H

#include "engine/attention/attention.h"
#include "engine/options/config.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

#define HD_VAE_MAX_LEVELS 8

typedef struct hd_vae_kl_config {
    int64_t in_channels, out_channels, latent_channels;
    int levels;
    int64_t channels[HD_VAE_MAX_LEVELS]; // finest first
    int64_t layers;                      // residual blocks per level of the encoder
    int64_t groups;
    hd_activation act;
    bool mid_attention, quant_conv, post_quant_conv;
    int64_t sample_size; // picture size it was trained for, and the tile size in pixels
    double scaling_factor, shift_factor;
} hd_vae_kl_config;

/* From config.json. An unsupported value is refused by key; defaults are diffusers'. */
HD_CHECKED hd_status hd_vae_kl_config_read(hd_vae_kl_config *out, const hd_json *root);
/* Pixels per latent along an axis. */
int64_t hd_vae_kl_factor(const hd_vae_kl_config *c);

typedef struct hd_vae_kl hd_vae_kl;

/* Renames what old files call query, key, value and proj_attn, then binds and packs in `compute`.
 * Keeps no reference to the weights. The caller owns *out. hd_vae_kl_free(NULL) does nothing. */
HD_CHECKED hd_status hd_vae_kl_create(hd_vae_kl **out, const hd_exec *ex, const hd_vae_kl_config *c,
                                      hd_weights *weights, hd_dtype compute,
                                      int (*progress)(void *arg, int64_t done, int64_t all),
                                      void *progress_arg);
void hd_vae_kl_free(hd_vae_kl *vae);
const hd_vae_kl_config *hd_vae_kl_configuration(const hd_vae_kl *vae);
hd_dtype hd_vae_kl_compute(const hd_vae_kl *vae);

/* The new name of an old file's tensor, or false: as hd_weights_rename asks. */
bool hd_vae_kl_rename(const char *name, char *out, size_t bytes);
/* Names and shapes alone, as hd_binder_check. */
HD_CHECKED hd_status hd_vae_kl_check(const hd_vae_kl_config *c, const char *what, int64_t count,
                                     const hd_weight_info *infos);

/* image [B, factor h, factor w, out_channels] from latent [B, h, w, latent_channels]. forward may
 * be NULL. */
HD_CHECKED hd_status hd_vae_kl_decode(const hd_exec *ex, const hd_vae_kl *vae,
                                      const hd_forward *forward, hd_tensor image, hd_tensor latent);
/* mean and logvar (clamped to -30 .. 20) [B, h, w, latent_channels] from image: a sample is mean +
 * exp(logvar / 2) * noise. The picture's sides must be multiples of factor. */
HD_CHECKED hd_status hd_vae_kl_encode(const hd_exec *ex, const hd_vae_kl *vae,
                                      const hd_forward *forward, hd_tensor mean, hd_tensor logvar,
                                      hd_tensor image);

/* The same in overlapping, blended tiles of tile_px x tile_px pixels (a quarter overlaps), a
 * multiple of 4 factor; 0: sample_size. A picture that fits in one tile is not cut. */
HD_CHECKED hd_status hd_vae_kl_decode_tiled(const hd_exec *ex, const hd_vae_kl *vae,
                                            const hd_forward *forward, hd_tensor image,
                                            hd_tensor latent, int64_t tile_px);
HD_CHECKED hd_status hd_vae_kl_encode_tiled(const hd_exec *ex, const hd_vae_kl *vae,
                                            const hd_forward *forward, hd_tensor mean,
                                            hd_tensor logvar, hd_tensor image, int64_t tile_px);

HD_END_DECLS
#endif
