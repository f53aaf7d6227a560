/* unet/blocks/unet_block.h: what the levels of a UNet are made of: residual blocks, each followed
 * by a transformer or not, and a convolution to the next resolution.
 *
 * The way down keeps each intermediate result: they lie on the arena one after the other and are
 * popped on the way up in the opposite order. The stream of the way up lives in two slots below
 * them, made once at their largest size, because the skips above come and go. */
#ifndef HD_UNET_BLOCKS_UNET_BLOCK_H
#define HD_UNET_BLOCKS_UNET_BLOCK_H

#include "engine/arena.h"
#include "engine/attention/features.h"
#include "engine/blocks/resnet.h"
#include "unet/blocks/transformer2d.h"
#include "unet/unet2d.h"

HD_BEGIN_DECLS

typedef struct hd_unet_block {
    char path[16]; // "down.1": of its sites and taps
    int layers;
    hd_resnet resnet[HD_UNET_MAX_LAYERS];
    hd_transformer2d *attention[HD_UNET_MAX_LAYERS]; // NULL: none
    hd_conv *resize; // to the next resolution; NULL on the last level of a direction
} hd_unet_block;

void hd_unet_block_free(hd_unet_block *block);

/* The rows of a pass and what belongs to them. */
typedef struct hd_unet_rows {
    const hd_forward *forward;
    hd_tensor time; // [B, time_channels] in the compute type, after its activation
    hd_tensor text; // [B, L, text_channels] in the compute type; or none
} hd_unet_rows;

/* The same for every block of a forward pass, but for the rows when it forks. */
typedef struct hd_unet_pass {
    const hd_exec *ex;
    hd_unet_rows now;
    const hd_fork *fork; // NULL: none
    bool forked;         // it has been passed: `now` is `after`
    hd_unet_rows after;  // all rows
} hd_unet_pass;

#define HD_UNET_MAX_SKIPS (1 + HD_UNET_MAX_LEVELS * (HD_UNET_MAX_LAYERS + 1))

typedef struct hd_unet_skips {
    int count;
    struct {
        hd_tensor x;
        size_t mark; // of the arena before x
    } skip[HD_UNET_MAX_SKIPS];
} hd_unet_skips;

/* A new skip on the arena, to be filled by the caller. */
hd_tensor hd_unet_skips_push(hd_unet_skips *skips, hd_arena *arena, hd_dtype dtype, hd_shape shape);

typedef struct hd_unet_stream {
    hd_tensor x; // the current value: in slot `at`, or the last skip before the first block
    void *slot[2];
    int at;
} hd_unet_stream;

/* Rows of the value that layer `i` of the block leaves when it is given `rows`: more where the pass
 * forks. */
int64_t hd_unet_layer_rows(const hd_unet_pass *pass, const hd_unet_block *block, int i,
                           int64_t rows);
/* The residual block of layer `i`, and behind it all rows if the pass forks before its transformer.
 * y has hd_unet_layer_rows rows; it may be x where hd_resnet_run allows it. */
HD_CHECKED hd_status hd_unet_residual(hd_unet_pass *pass, const hd_unet_block *block, int i,
                                      hd_tensor y, hd_tensor x);
/* The transformer of layer `i`, if it has one. */
HD_CHECKED hd_status hd_unet_attend(const hd_unet_pass *pass, const hd_unet_block *block, int i,
                                    hd_tensor x);
/* y [B, H, W, Ca + Cb] from x and a skip, which may have been made before the pass forked. */
HD_CHECKED hd_status hd_unet_join(const hd_unet_pass *pass, hd_tensor y, hd_tensor x,
                                  hd_tensor skip);

/* A level on the way down, `index` from the finest. */
HD_CHECKED hd_status hd_unet_down_declare(hd_unet_block *block, hd_binder *b,
                                          const hd_unet2d_config *c, int index);
HD_CHECKED hd_status hd_unet_down_run(hd_unet_pass *pass, const hd_unet_block *block,
                                      hd_unet_skips *skips);

HD_CHECKED hd_status hd_unet_mid_declare(hd_unet_block *block, hd_binder *b,
                                         const hd_unet2d_config *c);
/* From the last skip into slot 0 of the stream. */
HD_CHECKED hd_status hd_unet_mid_run(hd_unet_pass *pass, const hd_unet_block *block,
                                     const hd_unet_skips *skips, hd_unet_stream *stream);

/* A level on the way up, `index` from the coarsest; takes its skips off the stack and upsamples to
 * height x width if it has a next level. */
HD_CHECKED hd_status hd_unet_up_declare(hd_unet_block *block, hd_binder *b,
                                        const hd_unet2d_config *c, int index);
HD_CHECKED hd_status hd_unet_up_run(hd_unet_pass *pass, const hd_unet_block *block,
                                    hd_unet_skips *skips, hd_unet_stream *stream, int64_t height,
                                    int64_t width);

/* What a residual block of this network is, but for its channels. */
hd_resnet_spec hd_unet_resnet_spec(const hd_unet2d_config *c, int64_t in, int64_t out);

HD_END_DECLS
#endif
