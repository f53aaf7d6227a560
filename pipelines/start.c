/* pipelines/start.c: sizes, and the picture or latents a run begins with. */
#include "pipelines/start.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/file.h"
#include "codecs/image_ops.h"
#include "codecs/png.h"
#include "engine/arena.h"
#include "engine/ops/elementwise.h"

#define PICTURE_MOST_BYTES ((size_t)512 << 20)

static hd_status check_side(const hd_json *root, const char *key, int64_t px, int64_t factor)
{
    if (px > 0 && px % factor == 0) return HD_OK;
    const hd_json *node = hd_json_get(root, key);
    int64_t below = px / factor * factor, above = below + factor;
    if (below == 0)
        return hd_json_fail(node ? node : root, HD_ERR_ARGUMENT,
                            "%s is %" PRId64 ", must be a multiple of %" PRId64
                            " (the autoencoder's factor): %" PRId64,
                            key, px, factor, above);
    return hd_json_fail(node ? node : root, HD_ERR_ARGUMENT,
                        "is %" PRId64 ", must be a multiple of %" PRId64
                        " (the autoencoder's factor): %" PRId64 " or %" PRId64,
                        px, factor, below, above);
}

static hd_status set_size(hd_picture_size *size, const hd_json *root, const hd_model *model,
                          int64_t width, int64_t height)
{
    const hd_vae_kl_config *vae = hd_vae_kl_configuration(model->vae);
    int64_t factor = hd_vae_kl_factor(vae);
    HD_TRY(check_side(root, "width", width, factor));
    HD_TRY(check_side(root, "height", height, factor));
    *size = (hd_picture_size){.width = width,
                              .height = height,
                              .latent_width = width / factor,
                              .latent_height = height / factor,
                              .channels = vae->latent_channels};
    size->latent_values = size->channels * size->latent_width * size->latent_height;
    return HD_OK;
}

static hd_status read_picture(hd_start *s, hd_png *png, const char *path)
{
    char *data;
    size_t bytes;
    HD_TRY(hd_file_read(&data, &bytes, path, PICTURE_MOST_BYTES));
    snprintf(s->picture_hash, sizeof s->picture_hash, "%016" PRIx64,
             (uint64_t)XXH64(data, bytes, 0));
    hd_status status = hd_png_decode(png, data, bytes, path);
    free(data);
    if (status != HD_OK) return status;
    s->file_width = png->image.width;
    s->file_height = png->image.height;
    return status;
}

// The middle of `in`, or all of it with its edge going on: out is as large as it says.
static void centre(hd_image *out, const hd_image *in)
{
    int left = (in->width - out->width) / 2, top = (in->height - out->height) / 2;
    for (int y = 0; y < out->height; y++)
        for (int x = 0; x < out->width; x++) {
            int from_y = y + top < 0 ? 0 : y + top >= in->height ? in->height - 1 : y + top;
            int from_x = x + left < 0 ? 0 : x + left >= in->width ? in->width - 1 : x + left;
            memcpy(out->rgb + 3 * ((size_t)y * (size_t)out->width + (size_t)x),
                   in->rgb + 3 * ((size_t)from_y * (size_t)in->width + (size_t)from_x), 3);
        }
}

// One side of a picture that keeps its shape: at least 1, and never short of the run's by rounding.
static int scaled_side(int side, double scale, int wanted, hd_fit fit)
{
    int px = (int)lround((double)side * scale);
    if (fit == HD_FIT_CROP && px < wanted) px = wanted;
    if (fit == HD_FIT_PAD && px > wanted) px = wanted;
    return px < 1 ? 1 : px;
}

static hd_status fit_picture(hd_image *out, const hd_image *in, hd_fit fit, int width, int height)
{
    if (fit == HD_FIT_STRETCH) return hd_image_resize(out, in, width, height);
    double across = (double)width / in->width, down = (double)height / in->height;
    double scale = fit == HD_FIT_CROP ? fmax(across, down) : fmin(across, down);
    hd_image whole;
    HD_TRY(hd_image_resize(&whole, in, scaled_side(in->width, scale, width, fit),
                           scaled_side(in->height, scale, height, fit)));
    hd_status status = hd_image_create(out, width, height, "init_image");
    if (status == HD_OK) centre(out, &whole);
    hd_image_free(&whole);
    return status;
}

hd_status hd_start_open_sized(hd_start *s, const char *path, hd_fit fit, const hd_json *node,
                              const hd_model *model, int64_t width, int64_t height,
                              hd_picture_size *size)
{
    hd_png png;
    memset(s, 0, sizeof *s);
    HD_TRY(read_picture(s, &png, path));
    int64_t factor = hd_vae_kl_factor(hd_vae_kl_configuration(model->vae));
    if (width == 0) width = png.image.width / factor * factor;
    if (height == 0) height = png.image.height / factor * factor;
    hd_status status = set_size(size, node, model, width, height);
    if (status == HD_OK)
        status = fit_picture(&s->picture, &png.image, fit, (int)width, (int)height);
    hd_png_free(&png);
    s->picture_given = status == HD_OK;
    return status;
}

hd_status hd_start_open_picture(hd_start *out, const char *path, hd_fit fit,
                                const hd_picture_size *size)
{
    hd_png png;
    memset(out, 0, sizeof *out);
    if (!path) return HD_OK;
    HD_TRY(read_picture(out, &png, path));
    hd_status status =
        fit_picture(&out->picture, &png.image, fit, (int)size->width, (int)size->height);
    hd_png_free(&png);
    out->picture_given = status == HD_OK;
    return status;
}

hd_status hd_start_mask(float *mask, const hd_json *node, const char *path,
                        const hd_picture_size *z)
{
    hd_png png;
    HD_TRY(hd_png_read(&png, path));
    const hd_image *image = &png.image;
    if (image->width != z->width || image->height != z->height) {
        hd_status status = hd_json_fail(
            node, HD_ERR_ARGUMENT,
            "%s is %d x %d, a mask must be as large as the picture: %" PRId64 " x %" PRId64, path,
            image->width, image->height, z->width, z->height);
        hd_png_free(&png);
        return status;
    }
    int64_t factor = z->width / z->latent_width;
    for (int64_t y = 0; y < z->latent_height; y++)
        for (int64_t x = 0; x < z->latent_width; x++) {
            int64_t sum = 0;
            for (int64_t i = 0; i < factor * factor; i++) {
                int64_t row = y * factor + i / factor, column = x * factor + i % factor;
                const uint8_t *pixel = image->rgb + 3 * (row * z->width + column);
                sum += (int64_t)pixel[0] + pixel[1] + pixel[2];
            }
            mask[y * z->latent_width + x] =
                (float)((double)sum / (765.0 * (double)(factor * factor)));
        }
    hd_png_free(&png);
    return HD_OK;
}

static hd_status open_latents(hd_start *s, const hd_preset *p, const hd_json *root,
                              const hd_model *model, hd_picture_size *size)
{
    hd_weights *file;
    HD_TRY(hd_weights_open(&file, p->latents_in, ""));
    const hd_vae_kl_config *vae = hd_vae_kl_configuration(model->vae);
    int64_t index = hd_weights_find(file, "latents"), factor = hd_vae_kl_factor(vae);
    hd_status status = HD_OK;
    hd_weight_info info = {0};
    if (index < 0)
        status = hd_fail(HD_ERR_FORMAT, "%s: has no tensor \"latents\"", p->latents_in);
    else
        info = hd_weights_info(file, index);
    const int64_t *d = info.shape.dim;
    if (status == HD_OK &&
        (info.shape.rank != 4 || (d[0] != 1 && d[0] != p->batch) || d[1] != vae->latent_channels ||
         (p->height && d[2] * factor != p->height) || (p->width && d[3] * factor != p->width))) {
        char found[160];
        status = hd_fail(HD_ERR_SHAPE,
                         "%s: latents is %s, expected [1 or %" PRId64 ", %" PRId64
                         ", height / %" PRId64 ", width / %" PRId64 "] of this run's size",
                         p->latents_in, hd_shape_text(found, sizeof found, info.shape), p->batch,
                         vae->latent_channels, factor, factor);
    }
    if (status == HD_OK) status = set_size(size, root, model, d[3] * factor, d[2] * factor);
    int64_t count = hd_shape_count(info.shape);
    void *raw = NULL;
    if (status == HD_OK) {
        raw = malloc((size_t)info.bytes + 1);
        s->latents = malloc((size_t)count * sizeof(float) + 1);
        s->latents_rows = d[0];
        if (!raw || !s->latents)
            status = hd_fail(HD_ERR_NOMEM, "%s: no memory for the latents", p->latents_in);
    }
    if (status == HD_OK) status = hd_weights_read(file, index, raw);
    if (status == HD_OK)
        status =
            hd_note(hd_convert_to_f32(s->latents, raw, info.dtype, count), "in %s", p->latents_in);
    free(raw);
    hd_weights_free(file);
    return status;
}

hd_status hd_start_open(hd_start *out, const hd_preset *p, const hd_json *root,
                        const hd_model *model, hd_picture_size *size)
{
    memset(out, 0, sizeof *out);
    if (p->init_image)
        return hd_start_open_sized(out, p->init_image, p->fit, root, model, p->width, p->height,
                                   size);
    if (p->latents_in) return open_latents(out, p, root, model, size);
    const hd_unet2d_config *unet = hd_unet2d_configuration(model->unet);
    const hd_vae_kl_config *vae = hd_vae_kl_configuration(model->vae);
    int64_t factor = hd_vae_kl_factor(vae);
    int64_t width = unet->sample_width ? unet->sample_width * factor : vae->sample_size;
    int64_t height = unet->sample_height ? unet->sample_height * factor : vae->sample_size;
    return set_size(size, root, model, p->width ? p->width : width, p->height ? p->height : height);
}

hd_status hd_start_encode(hd_start *s, const hd_exec *ex, const hd_vae_kl *vae,
                          const hd_picture_size *z, bool tiling)
{
    size_t mark = hd_arena_mark(ex->arena), bytes = (size_t)z->latent_values * sizeof(float);
    hd_shape last = hd_shape4(1, z->latent_height, z->latent_width, z->channels);
    hd_tensor mean = hd_arena_tensor(ex->arena, HD_F32, last),
              logvar = hd_arena_tensor(ex->arena, HD_F32, last);
    hd_tensor image = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(1, z->height, z->width, 3));
    if (!image.data || !mean.data || !logvar.data)
        return hd_fail(HD_ERR_NOMEM, "encode: the arena is full");
    if (!ex->recording) hd_image_to_f32(image.data, &s->picture);
    hd_status status = tiling ? hd_vae_kl_encode_tiled(ex, vae, NULL, mean, logvar, image, 0)
                              : hd_vae_kl_encode(ex, vae, NULL, mean, logvar, image);
    if (!s->mean) s->mean = malloc(bytes);
    if (!s->deviation) s->deviation = malloc(bytes);
    if (status == HD_OK && (!s->mean || !s->deviation))
        status = hd_fail(HD_ERR_NOMEM, "encode: no memory for the latent");
    if (status == HD_OK && !ex->recording) {
        const hd_vae_kl_config *c = hd_vae_kl_configuration(vae);
        int64_t plane = z->latent_height * z->latent_width;
        const float *m = mean.data, *v = logvar.data;
        for (int64_t ch = 0; ch < z->channels; ch++)
            for (int64_t i = 0; i < plane; i++) {
                s->mean[ch * plane + i] =
                    (float)((m[i * z->channels + ch] - (float)c->shift_factor) *
                            (float)c->scaling_factor);
                s->deviation[ch * plane + i] =
                    expf(0.5f * v[i * z->channels + ch]) * (float)c->scaling_factor;
            }
    }
    hd_arena_rewind(ex->arena, mark);
    return status;
}

void hd_start_sample(const hd_start *s, const hd_picture_size *size, float *latent,
                     const float *noise)
{
    for (int64_t i = 0; i < size->latent_values; i++)
        latent[i] = s->mean[i] + s->deviation[i] * noise[i];
}

void hd_start_free(hd_start *s)
{
    hd_image_free(&s->picture);
    free(s->mean);
    free(s->deviation);
    free(s->latents);
}
