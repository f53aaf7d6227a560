/* engine/blocks/resnet.h: the residual block of UNets and VAEs:
 * y = (shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))) + time)))) / out_scale.
 *
 * Norm and SiLU are applied while the convolutions gather their input, so the only full-size
 * temporary is the value between the two. Reference: diffusers' ResnetBlock2D. */
#ifndef HD_ENGINE_BLOCKS_RESNET_H
#define HD_ENGINE_BLOCKS_RESNET_H

#include "engine/ops/norm.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

typedef struct hd_resnet_spec {
    int64_t in, out;       // channels; in != out: x goes through a 1x1 convolution
    int64_t time_channels; // width of the time embedding; 0: takes none
    int groups;
    float eps;
    hd_activation act;
    bool scale_shift; // the time embedding scales and shifts after norm2 instead of being added
    float out_scale;
} hd_resnet_spec;

typedef struct hd_resnet {
    hd_resnet_spec spec;
    float *gamma1, *beta1, *gamma2, *beta2;
    hd_conv *conv1, *conv2;
    hd_linear *time, *shortcut; // NULL: none
} hd_resnet;

/* Declares its parameters under `prefix` ("down_blocks.0.resnets.1"). *r must be zeroed before and
 * is freed by hd_resnet_free, also after a load that failed. */
void hd_resnet_declare(hd_resnet *r, hd_binder *b, const char *prefix, const hd_resnet_spec *spec);
void hd_resnet_free(hd_resnet *r);

/* x [B, H, W, in], y [B, H, W, out], both of the compute type; y may be x when in == out.
 * time [B, time_channels] in the compute type, after its activation; none without time_channels. */
HD_CHECKED hd_status hd_resnet_run(const hd_exec *ex, const hd_resnet *r, hd_tensor y, hd_tensor x,
                                   hd_tensor time);

/* The same, with the result of conv2 handed to `tap` before the sum: [B, H, W, out] f32, which it
 * may change. A tap that changes nothing changes no bit of y. y is not x. */
typedef hd_status (*hd_resnet_tap)(void *arg, hd_tensor conv2);
HD_CHECKED hd_status hd_resnet_run_tapped(const hd_exec *ex, const hd_resnet *r, hd_tensor y,
                                          hd_tensor x, hd_tensor time, hd_resnet_tap tap,
                                          void *arg);

HD_END_DECLS
#endif
