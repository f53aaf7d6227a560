/* unet/blocks/down_block.c: a level on the way down (diffusers' CrossAttnDownBlock2D and
 * DownBlock2D). */
#include <stdio.h>

#include "unet/blocks/unet_block.h"

hd_status hd_unet_down_declare(hd_unet_block *block, hd_binder *b, const hd_unet2d_config *c,
                               int index)
{
    const hd_unet2d_level *level = &c->level[index];
    char name[96], path[HD_SITE_PATH_BYTES];
    block->layers = (int)level->layers;
    snprintf(block->path, sizeof block->path, "down.%d", index);
    for (int i = 0; i < block->layers; i++) {
        int64_t in = i == 0 && index > 0 ? c->level[index - 1].channels : level->channels;
        hd_resnet_spec resnet = hd_unet_resnet_spec(c, in, level->channels);
        snprintf(name, sizeof name, "down_blocks.%d.resnets.%d", index, i);
        hd_resnet_declare(&block->resnet[i], b, name, &resnet);
        if (!level->down_attention) continue;
        snprintf(path, sizeof path, "down.%d.attn.%d", index, i);
        hd_transformer2d_spec transformer = {
            .channels = level->channels,
            .heads = level->heads,
            .text_channels = c->text_channels,
            .depth = level->down_depth[i],
            .groups = (int)c->groups,
            .only_cross_attention = level->only_cross_attention,
            .factor = (int64_t)1 << index,
            .path = path,
        };
        snprintf(name, sizeof name, "down_blocks.%d.attentions.%d", index, i);
        HD_TRY(hd_transformer2d_declare(&block->attention[i], b, name, &transformer));
    }
    if (index == c->levels - 1) return HD_OK;
    // Without padding on every side there is one row and one column of zeros at the end.
    int before = (int)c->downsample_padding;
    hd_conv_spec half = {.stride = 2, before, before, 1, 1};
    snprintf(name, sizeof name, "down_blocks.%d.downsamplers.0.conv", index);
    hd_bind_conv(b, &block->resize, name, level->channels, level->channels, 3, half, true);
    return HD_OK;
}

hd_status hd_unet_down_run(hd_unet_pass *pass, const hd_unet_block *block, hd_unet_skips *skips)
{
    hd_tensor x = skips->skip[skips->count - 1].x;
    for (int i = 0; i < block->layers; i++) {
        int64_t rows = hd_unet_layer_rows(pass, block, i, x.dim[0]);
        hd_tensor y =
            hd_unet_skips_push(skips, pass->ex->arena, x.dtype,
                               hd_shape4(rows, x.dim[1], x.dim[2], block->resnet[i].spec.out));
        HD_TRY(hd_unet_residual(pass, block, i, y, x));
        HD_TRY(hd_unet_attend(pass, block, i, y));
        x = y;
    }
    if (!block->resize) return HD_OK;
    int64_t height, width;
    hd_conv_out_size(block->resize, x.dim[1], x.dim[2], &height, &width);
    hd_tensor y = hd_unet_skips_push(skips, pass->ex->arena, x.dtype,
                                     hd_shape4(x.dim[0], height, width, x.dim[3]));
    return hd_conv_run(pass->ex, block->resize, y, x, NULL);
}
