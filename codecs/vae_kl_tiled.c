/* codecs/vae_kl_tiled.c: the autoencoder over overlapping tiles whose seams are blended, so that
 * memory does not grow with the picture. Equal to diffusers' tiled_decode and tiled encode.
 *
 * Tiles are worked on row by row. A tile is blended with the bottom of the (blended) tile above it
 * and with the right edge of the (blended) tile to its left, and all but its overlap is written
 * out: only those edges are kept. */
#include <string.h>

#include "codecs/blocks/vae_kl_internal.h"
#include "engine/arena.h"

typedef struct tiling {
    const hd_exec *ex;
    const hd_vae_kl *vae;
    const hd_forward *forward;
    bool decode;
    hd_tensor from, to; // one picture's input and result
    int64_t tile_in, tile_out;
    int64_t step_in, step_out; // three quarters of them
    int64_t overlap;           // of the result
    float *below;              // [columns][overlap, tile_out, C]: the bottom of the row above
    float *right;              // [tile_out, overlap, C]: the right edge of the tile to the left
    int64_t above_height, left_width; // of the tiles those belong to
} tiling;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// tile[i] = a[i] (1 - w) + tile[i] w, with the weights as diffusers rounds them.
static void tile_mix(float *tile, const float *a, int64_t count, int64_t at, int64_t extent)
{
    double share = (double)at / (double)extent;
    float wa = (float)(1.0 - share), wb = (float)share;
    for (int64_t i = 0; i < count; i++)
        tile[i] = a[i] * wa + tile[i] * wb;
}

static void tile_blend_above(const tiling *t, hd_tensor tile, const float *below)
{
    int64_t height = tile.dim[1], line = tile.dim[2] * tile.dim[3];
    int64_t kept = least(t->overlap, t->above_height);
    int64_t extent = least(height, kept);
    for (int64_t y = 0; y < extent; y++)
        tile_mix((float *)tile.data + y * line, below + (kept - extent + y) * line, line, y,
                 extent);
}

static void tile_blend_left(const tiling *t, hd_tensor tile)
{
    int64_t height = tile.dim[1], width = tile.dim[2], channels = tile.dim[3];
    int64_t kept = least(t->overlap, t->left_width);
    int64_t extent = least(width, kept);
    for (int64_t y = 0; y < height; y++) {
        float *line = (float *)tile.data + y * width * channels;
        const float *edge = t->right + (y * kept + kept - extent) * channels;
        for (int64_t x = 0; x < extent; x++)
            tile_mix(line + x * channels, edge + x * channels, channels, x, extent);
    }
}

static void tile_keep_edges(tiling *t, hd_tensor tile, float *below)
{
    int64_t height = tile.dim[1], width = tile.dim[2], channels = tile.dim[3];
    const float *data = tile.data;
    int64_t rows = least(t->overlap, height), columns = least(t->overlap, width);
    memcpy(below, data + (height - rows) * width * channels,
           (size_t)(rows * width * channels) * sizeof *below);
    for (int64_t y = 0; y < height; y++)
        memcpy(t->right + y * columns * channels, data + ((y + 1) * width - columns) * channels,
               (size_t)(columns * channels) * sizeof *below);
    t->left_width = width;
}

static void tile_write(const tiling *t, hd_tensor tile, int64_t row, int64_t column)
{
    int64_t width = tile.dim[2], channels = tile.dim[3];
    int64_t y0 = row * t->step_out, x0 = column * t->step_out;
    int64_t rows = least(t->step_out, tile.dim[1]), columns = least(t->step_out, width);
    for (int64_t y = 0; y < rows; y++)
        memcpy((float *)t->to.data + ((y0 + y) * t->to.dim[2] + x0) * channels,
               (const float *)tile.data + y * width * channels,
               (size_t)(columns * channels) * sizeof(float));
}

static void tile_read(const tiling *t, hd_tensor piece, int64_t row, int64_t column)
{
    int64_t width = piece.dim[2], channels = piece.dim[3];
    int64_t y0 = row * t->step_in, x0 = column * t->step_in;
    for (int64_t y = 0; y < piece.dim[1]; y++)
        memcpy((float *)piece.data + y * width * channels,
               (const float *)t->from.data + ((y0 + y) * t->from.dim[2] + x0) * channels,
               (size_t)(width * channels) * sizeof(float));
}

static hd_status tile_run(tiling *t, int64_t row, int64_t column)
{
    hd_arena *arena = t->ex->arena;
    size_t mark = hd_arena_mark(arena);
    int64_t height = least(t->tile_in, t->from.dim[1] - row * t->step_in);
    int64_t width = least(t->tile_in, t->from.dim[2] - column * t->step_in);
    hd_tensor piece = hd_arena_tensor(arena, HD_F32, hd_shape4(1, height, width, t->from.dim[3]));
    hd_tensor tile = hd_arena_tensor(arena, HD_F32,
                                     hd_shape4(1, height * t->tile_out / t->tile_in,
                                               width * t->tile_out / t->tile_in, t->to.dim[3]));
    HD_TRY(hd_expect_rank("autoencoder tile", piece, 4));
    HD_TRY(hd_expect_rank("autoencoder tile", tile, 4));
    if (!t->ex->recording) tile_read(t, piece, row, column);
    HD_TRY(t->decode ? hd_vae_kl_decode_one(t->ex, t->vae, t->forward, tile, piece)
                     : hd_vae_kl_encode_one(t->ex, t->vae, t->forward, tile, piece));
    if (!t->ex->recording) {
        float *below = t->below + column * t->overlap * t->tile_out * tile.dim[3];
        if (row > 0) tile_blend_above(t, tile, below);
        if (column > 0) tile_blend_left(t, tile);
        tile_keep_edges(t, tile, below);
        tile_write(t, tile, row, column);
    }
    hd_arena_rewind(arena, mark);
    return HD_OK;
}

static hd_status tiling_run(tiling *t)
{
    int64_t channels = t->to.dim[3];
    int64_t rows = (t->from.dim[1] + t->step_in - 1) / t->step_in;
    int64_t columns = (t->from.dim[2] + t->step_in - 1) / t->step_in;
    t->overlap = t->tile_out - t->step_out;
    size_t edge = (size_t)(t->overlap * t->tile_out * channels) * sizeof(float);
    t->below = hd_arena_bytes(t->ex->arena, edge * (size_t)columns);
    t->right = hd_arena_bytes(t->ex->arena, edge);
    if (!t->below || !t->right)
        return hd_fail(HD_ERR_NOMEM, "autoencoder: no memory for the edges of %lld tiles",
                       (long long)columns);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t column = 0; column < columns; column++)
            HD_TRY(tile_run(t, row, column));
        t->above_height = least(t->tile_out, t->to.dim[1] - row * t->step_out);
    }
    return HD_OK;
}

static hd_status tile_size(const hd_vae_kl *v, int64_t *tile_px)
{
    int64_t unit = 4 * hd_vae_kl_factor(&v->config);
    bool own = *tile_px == 0;
    if (own) *tile_px = v->config.sample_size;
    if (*tile_px >= unit && *tile_px % unit == 0) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT,
                   "autoencoder: tiles of %lld pixels%s, must be a multiple of %lld, so that a "
                   "quarter of a tile is whole latents",
                   (long long)*tile_px, own ? " (sample_size of config.json)" : "",
                   (long long)unit);
}

hd_status hd_vae_kl_decode_tiled(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                                 hd_tensor image, hd_tensor latent, int64_t tile_px)
{
    HD_TRY(hd_vae_kl_decode_check(v, image, latent));
    HD_TRY(tile_size(v, &tile_px));
    int64_t tile = tile_px / hd_vae_kl_factor(&v->config);
    if (latent.dim[1] <= tile && latent.dim[2] <= tile)
        return hd_vae_kl_decode(ex, v, forward, image, latent);
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = HD_OK;
    for (int64_t i = 0; status == HD_OK && i < latent.dim[0]; i++) {
        tiling t = {.ex = ex, .vae = v, .forward = forward, .decode = true};
        t.from = hd_tensor_slice(latent, 0, i, 1);
        t.to = hd_tensor_slice(image, 0, i, 1);
        t.tile_in = tile;
        t.step_in = tile / 4 * 3;
        t.tile_out = tile_px;
        t.step_out = tile_px / 4 * 3;
        status = tiling_run(&t);
        hd_arena_rewind(ex->arena, mark);
    }
    return hd_note(status, "while decoding a picture in tiles");
}

static hd_status tiled_encode_row(tiling *t, hd_tensor mean, hd_tensor logvar)
{
    hd_shape shape = hd_tensor_shape(mean);
    shape.dim[3] *= 2;
    t->to = hd_arena_tensor(t->ex->arena, HD_F32, shape);
    HD_TRY(hd_expect_rank("autoencoder moments", t->to, 4));
    HD_TRY(tiling_run(t));
    hd_vae_kl_split(t->ex, mean, logvar, t->to);
    return HD_OK;
}

hd_status hd_vae_kl_encode_tiled(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                                 hd_tensor mean, hd_tensor logvar, hd_tensor image, int64_t tile_px)
{
    HD_TRY(hd_vae_kl_encode_check(v, mean, logvar, image));
    HD_TRY(tile_size(v, &tile_px));
    if (image.dim[1] <= tile_px && image.dim[2] <= tile_px)
        return hd_vae_kl_encode(ex, v, forward, mean, logvar, image);
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = HD_OK;
    for (int64_t i = 0; status == HD_OK && i < image.dim[0]; i++) {
        tiling t = {.ex = ex, .vae = v, .forward = forward};
        t.from = hd_tensor_slice(image, 0, i, 1);
        t.tile_in = tile_px;
        t.step_in = tile_px / 4 * 3;
        t.tile_out = tile_px / hd_vae_kl_factor(&v->config);
        t.step_out = t.tile_out / 4 * 3;
        status =
            tiled_encode_row(&t, hd_tensor_slice(mean, 0, i, 1), hd_tensor_slice(logvar, 0, i, 1));
        hd_arena_rewind(ex->arena, mark);
    }
    return hd_note(status, "while encoding a picture in tiles");
}
