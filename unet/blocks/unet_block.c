/* unet/blocks/unet_block.c: what the blocks of a UNet share. */
#include "unet/blocks/unet_block.h"

void hd_unet_block_free(hd_unet_block *block)
{
    for (int i = 0; i < HD_UNET_MAX_LAYERS; i++) {
        hd_resnet_free(&block->resnet[i]);
        hd_transformer2d_free(block->attention[i]);
    }
    hd_conv_free(block->resize);
    *block = (hd_unet_block){0};
}

hd_tensor hd_unet_skips_push(hd_unet_skips *skips, hd_arena *arena, hd_dtype dtype, hd_shape shape)
{
    hd_tensor x = hd_tensor_of(NULL, dtype, shape);
    if (skips->count == HD_UNET_MAX_SKIPS) return x; // no configuration that is read gets here
    skips->skip[skips->count].mark = hd_arena_mark(arena);
    x = hd_arena_tensor(arena, dtype, shape);
    skips->skip[skips->count++].x = x;
    return x;
}

hd_resnet_spec hd_unet_resnet_spec(const hd_unet2d_config *c, int64_t in, int64_t out)
{
    return (hd_resnet_spec){
        .in = in,
        .out = out,
        .time_channels = c->time_channels,
        .groups = (int)c->groups,
        .eps = (float)c->eps,
        .act = c->act,
        .scale_shift = c->scale_shift,
        .out_scale = 1.0f,
    };
}
