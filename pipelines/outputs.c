/* pipelines/outputs.c: the last metres of a picture. */
#include "pipelines/outputs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/output.h"
#include "codecs/canvas.h"
#include "codecs/image_ops.h"
#include "codecs/png.h"
#include "engine/arena.h"
#include "engine/ops/elementwise.h"

hd_status hd_decode_picture(const hd_exec *ex, const hd_vae_kl *vae, const hd_picture_size *z,
                            bool tiling, const float *latent, hd_image *image)
{
    size_t mark = hd_arena_mark(ex->arena);
    const hd_vae_kl_config *c = hd_vae_kl_configuration(vae);
    hd_tensor first = hd_tensor_of((void *)latent, HD_F32,
                                   hd_shape4(1, z->channels, z->latent_height, z->latent_width));
    hd_tensor last = hd_arena_tensor(ex->arena, HD_F32,
                                     hd_shape4(1, z->latent_height, z->latent_width, z->channels));
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(1, z->height, z->width, 3));
    hd_status status = hd_nchw_to_nhwc(ex, last, first);
    if (status == HD_OK && !ex->recording) {
        float *v = last.data; // divided, not multiplied by a reciprocal: diffusers' bytes
        for (int64_t i = 0; i < z->latent_values; i++)
            v[i] = v[i] / (float)c->scaling_factor + (float)c->shift_factor;
    }
    if (status == HD_OK)
        status = tiling ? hd_vae_kl_decode_tiled(ex, vae, NULL, x, last, 0)
                        : hd_vae_kl_decode(ex, vae, NULL, x, last);
    if (status == HD_OK && !ex->recording)
        status = hd_image_create(image, z->width, z->height, "picture");
    if (status == HD_OK && !ex->recording) hd_image_from_f32(image, x.data);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

char *hd_output_suffixed(const char *path, const char *suffix)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    size_t stem =
        dot && dot > path && (!slash || dot > slash + 1) ? (size_t)(dot - path) : strlen(path);
    size_t bytes = strlen(path) + strlen(suffix) + 1;
    char *name = malloc(bytes);
    if (name) snprintf(name, bytes, "%.*s%s%s", (int)stem, path, suffix, path + stem);
    return name;
}

char *hd_output_branch_name(const char *path, int64_t index, int64_t batch, const char *branch)
{
    char suffix[64] = "";
    if (batch > 1) snprintf(suffix, sizeof suffix, "-%" PRId64, index);
    size_t used = strlen(suffix);
    if (strcmp(branch, "main") != 0) snprintf(suffix + used, sizeof suffix - used, "-%s", branch);
    return hd_output_suffixed(path, suffix);
}

char *hd_output_name(const char *path, int64_t index, int64_t batch)
{
    return hd_output_branch_name(path, index, batch, "main");
}

// A temporary file is made beside it and removed again. Pipes and devices are left alone: opening
// one is an event at its other end.
static hd_status check_path(const char *path)
{
    struct stat info;
    hd_output *output = NULL;
    bool special = stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
    if (special) return HD_OK;
    HD_TRY(hd_output_open(&output, path));
    hd_output_discard(output);
    return HD_OK;
}

static hd_status check_name(const char *path, int64_t batch)
{
    if (!path) return HD_OK;
    char *first = hd_output_name(path, 0, batch);
    if (!first) return hd_fail(HD_ERR_NOMEM, "output: no memory for a name");
    hd_status status = check_path(first);
    free(first);
    return status;
}

hd_status hd_outputs_check(const hd_preset *preset)
{
    HD_TRY(check_name(preset->output, preset->batch));
    HD_TRY(check_name(preset->preview, preset->batch));
    HD_TRY(check_name(preset->sheet, preset->batch));
    HD_TRY(check_name(preset->maps, preset->batch));
    HD_TRY(check_name(preset->masks, preset->batch));
    HD_TRY(check_name(preset->map_values, preset->batch));
    if (preset->capture) HD_TRY(check_path(preset->capture));
    if (preset->save_inversion) HD_TRY(check_path(preset->save_inversion));
    return preset->latents_out ? check_path(preset->latents_out) : HD_OK;
}

hd_status hd_finish_picture(hd_result *result, const hd_preset *preset, const hd_resolved *made,
                            int64_t index, hd_image *image)
{
    char *json = NULL, *line = NULL, *path = NULL;
    hd_status status = hd_metadata_json(&json, preset, made);
    if (status == HD_OK) status = hd_metadata_line(&line, preset, made);
    if (status == HD_OK && preset->output) {
        path = hd_output_branch_name(preset->output, index, preset->batch, made->branch);
        hd_png_text texts[] = {{"parameters", line}, {"heddle", json}};
        status = path ? hd_png_write(path, image, texts, 2)
                      : hd_fail(HD_ERR_NOMEM, "output: no memory for a name");
    }
    if (status != HD_OK) {
        free(json);
        free(line);
        free(path);
        hd_image_free(image);
        return status;
    }
    hd_picture picture = {.width = image->width,
                          .height = image->height,
                          .rgb = image->rgb,
                          .seed = made->seed,
                          .metadata = json,
                          .parameters = line,
                          .path = path,
                          .branch = hd_result_branch(result, made->branch)};
    *image = (hd_image){0};
    return hd_result_add(result, picture);
}

hd_status hd_write_sheet(const hd_preset *preset, const hd_resolved *made, int64_t index,
                         const hd_image *images, const char *const *names, int count)
{
    enum { GAP = 2, LABEL = 14, TEXT = 10 };
    const hd_color black = {0, 0, 0};
    const int width = images[0].width, height = images[0].height;
    hd_canvas *sheet;
    HD_TRY(hd_canvas_create(&sheet, count * (width + GAP) - GAP, height + LABEL, false));
    for (int i = 0; i < count; i++) {
        const int x = i * (width + GAP);
        hd_canvas_picture(sheet, x, 0, 1, &images[i]);
        hd_canvas_text(sheet, x + width / 2.0, height + TEXT, TEXT, HD_TEXT_MIDDLE, black,
                       names[i]);
    }
    char *json = NULL, *path = hd_output_name(preset->sheet, index, preset->batch);
    hd_status status = path ? hd_metadata_json(&json, preset, made)
                            : hd_fail(HD_ERR_NOMEM, "sheet: no memory for a name");
    hd_png_text texts[] = {{"heddle", json}};
    if (status == HD_OK) status = hd_png_write(path, hd_canvas_image(sheet), texts, 1);
    free(json);
    free(path);
    hd_canvas_free(sheet);
    return status;
}

hd_status hd_write_preview(const hd_preset *preset, int64_t index, const hd_image *image)
{
    char *path = hd_output_name(preset->preview, index, preset->batch);
    if (!path) return hd_fail(HD_ERR_NOMEM, "preview: no memory for a name");
    hd_status status = hd_png_write(path, image, NULL, 0);
    free(path);
    return status;
}
