/* unet/blocks/up_block.c: a level on the way up (diffusers' CrossAttnUpBlock2D and UpBlock2D). */
#include <stdio.h>

#include "engine/ops/elementwise.h"
#include "unet/blocks/unet_block.h"

hd_status hd_unet_up_declare(hd_unet_block *block, hd_binder *b, const hd_unet2d_config *c,
                             int index)
{
    int at = c->levels - 1 - index; // from the finest
    const hd_unet2d_level *level = &c->level[at];
    char name[96], path[HD_SITE_PATH_BYTES];
    int64_t below = c->level[index == 0 ? at : at + 1].channels;
    int64_t above = c->level[at == 0 ? 0 : at - 1].channels;
    block->layers = (int)level->layers + 1;
    snprintf(block->path, sizeof block->path, "up.%d", index);
    for (int i = 0; i < block->layers; i++) {
        int64_t skip = i == block->layers - 1 ? above : level->channels;
        int64_t in = (i == 0 ? below : level->channels) + skip;
        hd_resnet_spec resnet = hd_unet_resnet_spec(c, in, level->channels);
        snprintf(name, sizeof name, "up_blocks.%d.resnets.%d", index, i);
        hd_resnet_declare(&block->resnet[i], b, name, &resnet);
        if (!level->up_attention) continue;
        snprintf(path, sizeof path, "up.%d.attn.%d", index, i);
        hd_transformer2d_spec transformer = {
            .channels = level->channels,
            .heads = level->heads,
            .text_channels = c->text_channels,
            .depth = level->up_depth[i],
            .groups = (int)c->groups,
            .only_cross_attention = level->only_cross_attention,
            .factor = (int64_t)1 << at,
            .path = path,
        };
        snprintf(name, sizeof name, "up_blocks.%d.attentions.%d", index, i);
        HD_TRY(hd_transformer2d_declare(&block->attention[i], b, name, &transformer));
    }
    if (at == 0) return HD_OK;
    const hd_conv_spec same = {.stride = 1, 1, 1, 1, 1};
    snprintf(name, sizeof name, "up_blocks.%d.upsamplers.0.conv", index);
    hd_bind_conv(b, &block->resize, name, level->channels, level->channels, 3, same, true);
    return HD_OK;
}

static hd_status up_layer(hd_unet_pass *pass, const hd_unet_block *block, int index,
                          hd_unet_skips *skips, hd_unet_stream *stream)
{
    hd_arena *arena = pass->ex->arena;
    HD_ENSURE(skips->count > 0);
    int top = --skips->count;
    hd_tensor x = stream->x, skip = skips->skip[top].x;
    hd_tensor joined = hd_arena_tensor(
        arena, x.dtype, hd_shape4(x.dim[0], x.dim[1], x.dim[2], x.dim[3] + skip.dim[3]));
    HD_TRY(hd_unet_join(pass, joined, x, skip));
    // The stream's value is in `joined` now, so that the result may take its place.
    int64_t rows = hd_unet_layer_rows(pass, block, index, x.dim[0]);
    hd_tensor y = hd_tensor_of(stream->slot[stream->at], x.dtype,
                               hd_shape4(rows, x.dim[1], x.dim[2], block->resnet[index].spec.out));
    HD_TRY(hd_unet_residual(pass, block, index, y, joined));
    hd_arena_rewind(arena, skips->skip[top].mark);
    HD_TRY(hd_unet_attend(pass, block, index, y));
    stream->x = y;
    return HD_OK;
}

hd_status hd_unet_up_run(hd_unet_pass *pass, const hd_unet_block *block, hd_unet_skips *skips,
                         hd_unet_stream *stream, int64_t height, int64_t width)
{
    for (int i = 0; i < block->layers; i++)
        HD_TRY(up_layer(pass, block, i, skips, stream));
    if (!block->resize) return HD_OK;
    hd_tensor x = stream->x;
    hd_conv_extra extra = {.upsample_h = height, .upsample_w = width};
    stream->at = !stream->at;
    stream->x = hd_tensor_of(stream->slot[stream->at], x.dtype,
                             hd_shape4(x.dim[0], height, width, x.dim[3]));
    return hd_conv_run(pass->ex, block->resize, stream->x, x, &extra);
}
