/* unet/blocks/mid_block.c: the bottom of a UNet (diffusers' UNetMidBlock2DCrossAttn and, without
 * attention, UNetMidBlock2D). */
#include <stdio.h>

#include "unet/blocks/unet_block.h"

hd_status hd_unet_mid_declare(hd_unet_block *block, hd_binder *b, const hd_unet2d_config *c)
{
    if (c->mid == HD_UNET_MID_NONE) return HD_OK;
    const hd_unet2d_level *level = &c->level[c->levels - 1];
    hd_resnet_spec resnet = hd_unet_resnet_spec(c, level->channels, level->channels);
    resnet.out_scale = (float)c->mid_scale;
    block->layers = 1;
    snprintf(block->path, sizeof block->path, "mid");
    hd_resnet_declare(&block->resnet[0], b, "mid_block.resnets.0", &resnet);
    if (c->mid == HD_UNET_MID_RESNET) return HD_OK;
    // only_cross_attention does not reach this block: it always looks at itself first.
    hd_transformer2d_spec transformer = {
        .channels = level->channels,
        .heads = level->heads,
        .text_channels = c->text_channels,
        .depth = c->mid_depth,
        .groups = (int)c->groups,
        .factor = (int64_t)1 << (c->levels - 1),
        .path = "mid.attn.0",
    };
    HD_TRY(
        hd_transformer2d_declare(&block->attention[0], b, "mid_block.attentions.0", &transformer));
    block->layers = 2;
    hd_resnet_declare(&block->resnet[1], b, "mid_block.resnets.1", &resnet);
    return HD_OK;
}

hd_status hd_unet_mid_run(hd_unet_pass *pass, const hd_unet_block *block,
                          const hd_unet_skips *skips, hd_unet_stream *stream)
{
    hd_tensor x = skips->skip[skips->count - 1].x;
    stream->x = x;
    for (int i = 0; i < block->layers; i++) {
        x = stream->x;
        hd_shape shape = hd_tensor_shape(x);
        shape.dim[0] = hd_unet_layer_rows(pass, block, i, x.dim[0]);
        stream->x = hd_tensor_of(stream->slot[stream->at], x.dtype, shape);
        HD_TRY(hd_unet_residual(pass, block, i, stream->x, x)); // in place behind the first
        HD_TRY(hd_unet_attend(pass, block, i, stream->x));
    }
    return HD_OK;
}
