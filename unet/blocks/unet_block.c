/* unet/blocks/unet_block.c: what the blocks of a UNet share. */
#include "unet/blocks/unet_block.h"

#include <stdio.h>
#include <string.h>

#include "engine/ops/elementwise.h"

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

static bool forks_at(const hd_unet_pass *pass, const hd_unet_block *block, int i)
{
    char path[HD_SITE_PATH_BYTES];
    if (!pass->fork || pass->forked || !block->attention[i]) return false;
    int n = snprintf(path, sizeof path, "%s.attn.%d", block->path, i);
    return strncmp(pass->fork->path, path, (size_t)n) == 0 &&
           (pass->fork->path[n] == 0 || pass->fork->path[n] == '.');
}

int64_t hd_unet_layer_rows(const hd_unet_pass *pass, const hd_unet_block *block, int i,
                           int64_t rows)
{
    return forks_at(pass, block, i) ? pass->after.forward->rows.count : rows;
}

// Spreads the first rows of y over all of its rows. A row never comes from behind itself, so that
// going backwards reads each before it is overwritten.
static void spread(const hd_unet_pass *pass, hd_tensor y)
{
    size_t bytes = (size_t)(hd_tensor_bytes(y) / y.dim[0]);
    char *data = y.data;
    for (int64_t r = y.dim[0] - 1; r >= 0 && !pass->ex->recording; r--)
        if (pass->fork->from[r] != r)
            memcpy(data + (size_t)r * bytes, data + (size_t)pass->fork->from[r] * bytes, bytes);
}

typedef struct tapped {
    const hd_unet_pass *pass;
    const char *path;
} tapped;

static hd_status show(void *arg, hd_tensor x)
{
    const tapped *t = arg;
    return hd_feature(t->pass->ex, t->pass->now.forward, t->path, x);
}

static hd_status layer_resnet(const hd_unet_pass *pass, const hd_unet_block *block, int i,
                              hd_tensor y, hd_tensor x)
{
    char conv2[40], out[40];
    snprintf(conv2, sizeof conv2, "%s.resnet.%d.conv2", block->path, i);
    snprintf(out, sizeof out, "%s.resnet.%d.out", block->path, i);
    tapped tap = {pass, conv2};
    bool wanted = hd_feature_wanted(pass->ex, pass->now.forward, conv2);
    HD_TRY(hd_resnet_run_tapped(pass->ex, &block->resnet[i], y, x, pass->now.time,
                                wanted ? show : NULL, &tap));
    if (!hd_feature_wanted(pass->ex, pass->now.forward, out)) return HD_OK;
    return hd_feature(pass->ex, pass->now.forward, out, y);
}

hd_status hd_unet_residual(hd_unet_pass *pass, const hd_unet_block *block, int i, hd_tensor y,
                           hd_tensor x)
{
    bool forks = forks_at(pass, block, i);
    HD_TRY(layer_resnet(pass, block, i, forks ? hd_tensor_slice(y, 0, 0, x.dim[0]) : y, x));
    if (forks) {
        spread(pass, y);
        pass->now = pass->after;
        pass->forked = true;
    }
    return HD_OK;
}

hd_status hd_unet_attend(const hd_unet_pass *pass, const hd_unet_block *block, int i, hd_tensor x)
{
    if (!block->attention[i]) return HD_OK;
    return hd_transformer2d_run(pass->ex, block->attention[i], pass->now.forward, x,
                                pass->now.text);
}

hd_status hd_unet_join(const hd_unet_pass *pass, hd_tensor y, hd_tensor x, hd_tensor skip)
{
    if (skip.dim[0] == x.dim[0]) return hd_concat_channels(pass->ex, y, x, skip);
    for (int64_t r = 0; r < x.dim[0]; r++)
        HD_TRY(hd_concat_channels(pass->ex, hd_tensor_slice(y, 0, r, 1),
                                  hd_tensor_slice(x, 0, r, 1),
                                  hd_tensor_slice(skip, 0, pass->fork->from[r], 1)));
    return HD_OK;
}
