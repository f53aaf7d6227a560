/* engine/ops/conv_work.h: what the ways of convolving share. For engine/ops/conv*.c alone. */
#ifndef HD_ENGINE_OPS_CONV_WORK_H
#define HD_ENGINE_OPS_CONV_WORK_H

#include "engine/ops/conv.h"
#include "engine/ops/norm.h"
#include "engine/ops/panel.h"
#include "kernels/winograd.h"

HD_BEGIN_DECLS

#define CONV_BLOCK 64 // channels whose weights stay in the second-level cache

struct hd_conv {
    hd_conv_spec spec;
    int64_t in, out, kh, kw;
    hd_dtype compute;
    hd_dnn *dnn;
    hd_dnn *tiles;     // multiplies Winograd's planes; NULL where that is never the way
    int64_t tiles_out; // output channels that it takes at a time
    float *bias;       // [out], zeros where there is none
};

typedef enum conv_way {
    CONV_DIRECT,   // the input as it lies
    CONV_SHARED,   // the whole gathered image
    CONV_STACKS,   // a buffer per thread
    CONV_WINOGRAD, // tiles
} conv_way;

typedef struct conv_work {
    const hd_conv *conv;
    const hd_panel_kernels *kernels;
    hd_tensor y, x, residual;
    conv_way way;
    int64_t batch, up_h, up_w;  // of the input, after upsampling
    int64_t oh, ow, ph, pw;     // output; input with its padding, as far as it is read
    int64_t strip, strips;      // output rows of a strip, strips of an image
    int64_t stack, stacks;      // strips of an item, items of an image: CONV_STACKS
    hd_dnn_panel *whole, *rest; // rest: of the last, lower strip
    hd_scale_shift *normalise;  // with these, per image and channel:
    const float *scale, *shift;
    hd_activation act;
    const int32_t *column; // source column of each upsampled one
    const float *bias;     // [out], or [B, out]
    int64_t bias_stride;
    char *image;   // [B, ph, pw, in]: CONV_SHARED, CONV_DIRECT
    char *scratch; // per thread: sums, oneDNN's own, a strip's input
    size_t scratch_stride, sums_bytes, dnn_bytes, strip_bytes;
} conv_work;

/* Row `row` of the padded image, w->pw pixels in the compute type. */
void hd_conv_gather_row(const conv_work *w, int64_t image, int64_t row, char *to);

/* Whether tiles are the fastest way for one image of this size; decided before any panel. */
bool hd_conv_winograd_pays(const conv_work *w, const hd_exec *ex);
/* HD_OK without computing when recording. */
HD_CHECKED hd_status hd_conv_winograd_run(conv_work *w, const hd_exec *ex);
/* Makes conv->tiles where a convolution of these channels can go by tiles. */
HD_CHECKED hd_status hd_conv_winograd_create(hd_conv *conv);

HD_END_DECLS
#endif
