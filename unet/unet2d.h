/* unet/unet2d.h: the spatial UNet of Stable Diffusion 1.x and 2.x (diffusers'
 * UNet2DConditionModel): what its config.json says, its weights, one forward pass.
 *
 * Everything is channels last. Sizes come from the configuration; a latent may have any size, also
 * one that the network's factor does not divide. Attention sites are "down.B.attn.N", "mid.attn.0",
 * "up.B.attn.N", with ".D" behind them in transformers of several blocks; a transformer with
 * only_cross_attention has two cross attentions per block, numbered D = 2 * block and 2 * block
 * + 1. Reference: diffusers 0.42.1. */
#ifndef HD_UNET_UNET2D_H
#define HD_UNET_UNET2D_H

#include "engine/attention/attention.h"
#include "engine/options/config.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

#define HD_UNET_MAX_LEVELS 12
#define HD_UNET_MAX_LAYERS 16 // residual blocks of a level on its way up

typedef enum hd_unet2d_mid {
    HD_UNET_MID_NONE,
    HD_UNET_MID_RESNET,     // UNetMidBlock2D: one residual block
    HD_UNET_MID_CROSS_ATTN, // UNetMidBlock2DCrossAttn: residual block, transformer, residual block
} hd_unet2d_mid;

/* One resolution: its block on the way down and its block on the way up. */
typedef struct hd_unet2d_level {
    int64_t channels, heads;
    int64_t layers; // residual blocks on the way down; one more on the way up
    bool down_attention, up_attention;
    bool only_cross_attention;
    int64_t down_depth[HD_UNET_MAX_LAYERS], up_depth[HD_UNET_MAX_LAYERS]; // transformer blocks
} hd_unet2d_level;

typedef struct hd_unet2d_config {
    int64_t in_channels, out_channels;
    int64_t sample_height, sample_width; // latent size it was trained for; 0: not given
    int64_t text_channels;               // 0: no cross attention anywhere
    int levels;
    hd_unet2d_level level[HD_UNET_MAX_LEVELS]; // finest first
    hd_unet2d_mid mid;
    int64_t mid_depth;
    int64_t conv_in_kernel, conv_out_kernel;
    int64_t downsample_padding;
    int64_t groups;
    double eps, mid_scale, freq_shift;
    hd_activation act, time_act, time_post_act; // NONE where there is none
    int64_t time_channels;
    int64_t guidance_channels; // width of the guidance embedding of distilled models; 0: none
    bool flip_sin_to_cos, center_input, scale_shift;
} hd_unet2d_config;

/* From config.json. An unsupported value is refused by key; defaults are diffusers'. */
HD_CHECKED hd_status hd_unet2d_config_read(hd_unet2d_config *out, const hd_json *root);

typedef struct hd_unet2d hd_unet2d;

/* Binds and packs the weights in `compute` (HD_F32 or HD_BF16); progress as in hd_binder_load.
 * Keeps no reference to the weights. The caller owns *out. hd_unet2d_free(NULL) does nothing. */
HD_CHECKED hd_status hd_unet2d_create(hd_unet2d **out, const hd_exec *ex, const hd_unet2d_config *c,
                                      const hd_weights *weights, hd_dtype compute,
                                      int (*progress)(void *arg, int64_t done, int64_t all),
                                      void *progress_arg);
void hd_unet2d_free(hd_unet2d *unet);
const hd_unet2d_config *hd_unet2d_configuration(const hd_unet2d *unet);
hd_dtype hd_unet2d_compute(const hd_unet2d *unet);

/* Names and shapes alone, as hd_binder_check. */
HD_CHECKED hd_status hd_unet2d_check(const hd_unet2d_config *c, const char *what, int64_t count,
                                     const hd_weight_info *infos);
/* The largest distinct matrix shapes, as hd_binder_shapes: *count of `most` [in, out] pairs. */
HD_CHECKED hd_status hd_unet2d_shapes(const hd_unet2d_config *c, int most, int64_t (*in_out)[2],
                                      int *count);

/* What the network is given beside the latent. */
typedef struct hd_unet2d_inputs {
    const float *timestep; // [B]; not read on the dry pass
    hd_tensor text;        // [B, L, text_channels], f32 or compute type; may be none without
                           // cross attention. Constant during a run (see hd_attention_run_text_kv)
    const float *guidance; // [B] guidance scale of each row, for models with guidance_channels;
                           // NULL: not given
} hd_unet2d_inputs;

/* out [B, H, W, out_channels] f32 from latent [B, H, W, in_channels] f32. A row's bytes depend on
 * that row's inputs alone. forward may be NULL. Memory comes from ex->arena and is given back. */
HD_CHECKED hd_status hd_unet2d_forward(const hd_exec *ex, const hd_unet2d *unet,
                                       const hd_forward *forward, hd_tensor out, hd_tensor latent,
                                       const hd_unet2d_inputs *in);

HD_END_DECLS
#endif
