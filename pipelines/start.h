/* pipelines/start.h: what a run starts from: noise, given latents, or a picture; and, decided with
 * it, the size. */
#ifndef HD_PIPELINES_START_H
#define HD_PIPELINES_START_H

#include "codecs/image.h"
#include "pipelines/model.h"

HD_BEGIN_DECLS

typedef struct hd_picture_size {
    int64_t width, height; // pixels
    int64_t latent_width, latent_height, channels;
    int64_t latent_values; // of one picture
} hd_picture_size;

typedef struct hd_start {
    bool picture_given;
    hd_image picture;            // at the run's size
    int file_width, file_height; // of the file
    char picture_hash[17];       // of the file
    float *mean,
        *deviation; // [channels, latent_height, latent_width]: its latent's distribution, scaled
    float *latents; // [latents_rows, channels, latent_height, latent_width], unit variance; NULL:
                    // noise
    int64_t latents_rows;
} hd_start;

/* Reads the picture or the latents the preset names and decides the size: what the preset says,
 * else the picture's (rounded down to the autoencoder's factor), else the latents', else the
 * model's. `root` is for messages. Free with hd_start_free, on failure too. */
HD_CHECKED hd_status hd_start_open(hd_start *out, const hd_preset *preset, const hd_json *root,
                                   const hd_model *model, hd_picture_size *size);
/* A picture and its size: width and height, where they are 0 the picture's (rounded down to the
 * autoencoder's factor). `node` has the fields, for messages. */
HD_CHECKED hd_status hd_start_open_sized(hd_start *out, const char *path, hd_fit fit,
                                         const hd_json *node, const hd_model *model, int64_t width,
                                         int64_t height, hd_picture_size *size);
/* The picture of a branch, whose size is the run's. HD_OK and no picture when path is NULL. */
HD_CHECKED hd_status hd_start_open_picture(hd_start *out, const char *path, hd_fit fit,
                                           const hd_picture_size *size);
/* A picture of the run's size as mask [latent_height, latent_width]: mean brightness 0 .. 1 of the
 * pixels over each place. `node` is for messages. */
HD_CHECKED hd_status hd_start_mask(float *mask, const hd_json *node, const char *path,
                                   const hd_picture_size *size);
/* The picture through the encoder. Works on the dry pass. */
HD_CHECKED hd_status hd_start_encode(hd_start *start, const hd_exec *ex, const hd_vae_kl *vae,
                                     const hd_picture_size *size, bool tiling);
/* latent = mean + deviation * noise, [values]. */
void hd_start_sample(const hd_start *start, const hd_picture_size *size, float *latent,
                     const float *noise);
void hd_start_free(hd_start *start);

HD_END_DECLS
#endif
