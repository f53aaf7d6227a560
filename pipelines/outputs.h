/* pipelines/outputs.h: latents to pictures, pictures to files and into the result. */
#ifndef HD_PIPELINES_OUTPUTS_H
#define HD_PIPELINES_OUTPUTS_H

#include "pipelines/metadata.h"
#include "pipelines/result.h"
#include "pipelines/start.h"

HD_BEGIN_DECLS

/* latent [channels, latent_height, latent_width] as the sampler left it (still scaled). On the dry
 * pass image is NULL. The caller frees *image with hd_image_free. */
HD_CHECKED hd_status hd_decode_picture(const hd_exec *ex, const hd_vae_kl *vae,
                                       const hd_picture_size *size, bool tiling,
                                       const float *latent, hd_image *image);

/* Gives a branch's picture `index` its metadata, writes it if the preset names an output, and adds
 * it to the result, which owns its pixels from then on. Takes *image whether it succeeds or not. */
HD_CHECKED hd_status hd_finish_picture(hd_result *result, const hd_preset *preset,
                                       const hd_resolved *made, int64_t index, hd_image *image);
/* Writes picture `index` in the making where the preset says. */
HD_CHECKED hd_status hd_write_preview(const hd_preset *preset, int64_t index,
                                      const hd_image *image);

/* The pictures [count] side by side with their names below, where the preset's "sheet" says. All of
 * one size. */
HD_CHECKED hd_status hd_write_sheet(const hd_preset *preset, const hd_resolved *made, int64_t index,
                                    const hd_image *images, const char *const *names, int count);

/* Tries whether the files that the preset names can be written, before anything is computed: what
 * lies there stays. */
HD_CHECKED hd_status hd_outputs_check(const hd_preset *preset);

/* "fish.png" for a single picture, "fish-3.png" for picture 3 of a batch. The caller frees it;
 * NULL: no memory. */
char *hd_output_name(const char *path, int64_t index, int64_t batch);
/* The same for a branch: "fish-source.png"; "main" is left out. */
char *hd_output_branch_name(const char *path, int64_t index, int64_t batch, const char *branch);
/* "fish.png" and "-3" to "fish-3.png". */
char *hd_output_suffixed(const char *path, const char *suffix);

HD_END_DECLS
#endif
