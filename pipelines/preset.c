/* pipelines/preset.c: the table of a run's fields. */
#include "pipelines/preset.h"

#include <string.h>
#include <strings.h>

const char *const hd_precision_names[] = {"auto", "f32", "bf16", NULL};
const char *const hd_fit_names[] = {"stretch", "crop", "pad", NULL};
static const char *const rng_names[] = {"cpu", "cuda", NULL};

#define SIZE_MAX_PX 16384

const hd_param hd_preset_params[] = {
    HD_PARAM_STRING(hd_preset, model, .required = true,
                    .help = "model folder in diffusers' layout"),
    HD_PARAM_STRING(hd_preset, prompt, .def_text = "", .help = "what the picture shows"),
    HD_PARAM_STRING(hd_preset, negative, .def_text = "", .help = "what it should not show"),
    HD_PARAM_STRING(hd_preset, output, .help = "PNG to write; a batch numbers them"),
    HD_PARAM_U64(hd_preset, seed, .given_flag = true,
                 .given_offset = offsetof(hd_preset, seed_given),
                 .help = "picture i of a batch has seed + i; random when not given"),
    HD_PARAM_INT(hd_preset, batch, .def = 1, .min = 1, .max = 4096, .help = "number of pictures"),
    HD_PARAM_INT(hd_preset, width, .def = 0, .min = 0, .max = SIZE_MAX_PX,
                 .help = "pixels; 0: the model's own"),
    HD_PARAM_INT(hd_preset, height, .def = 0, .min = 0, .max = SIZE_MAX_PX,
                 .help = "pixels; 0: the model's own"),
    HD_PARAM_INT(hd_preset, steps, .def = 25, .min = 1, .max = 1000, .help = "sampler steps"),
    HD_PARAM_STRING(hd_preset, sampler, .help = "sampler; the model's own when not given"),
    HD_PARAM_FLOAT(hd_preset, guidance, .def = 7.5, .min = 0, .max = 1000,
                   .help = "classifier-free guidance; 1 and less: none"),
    HD_PARAM_FLOAT(
        hd_preset, guidance_rescale, .def = 0, .min = 0, .max = 1,
        .help = "how much of the guided prediction is brought back to the plain one's contrast"),
    HD_PARAM_INT(hd_preset, clip_skip, .def = 0, .min = 0, .max = 100,
                 .help = "text encoder layers left out at its end"),
    HD_PARAM_ENUM(hd_preset, precision, .def_text = "auto", .names = hd_precision_names,
                  .help = "compute type; auto: what this machine is faster in"),
    HD_PARAM_ENUM(hd_preset, rng, .def_text = "cpu", .names = rng_names,
                  .help = "which of PyTorch's noise streams a seed means"),
    HD_PARAM_STRING(hd_preset, init_image, .help = "PNG to start from"),
    HD_PARAM_ENUM(hd_preset, fit, .def_text = "stretch", .names = hd_fit_names, .given_flag = true,
                  .given_offset = offsetof(hd_preset, fit_given),
                  .help = "how a picture of another shape is brought to the run's size"),
    HD_PARAM_FLOAT(hd_preset, strength, .def = 0.8, .min = 0, .max = 1,
                   .help = "how much of init_image is redrawn"),
    HD_PARAM_STRING(hd_preset, latents_in, .help = "safetensors file with the noise to start from"),
    HD_PARAM_STRING(hd_preset, latents_out, .help = "safetensors file for the last latents"),
    HD_PARAM_STRING(hd_preset, capture, .help = "safetensors file for queries, keys and values"),
    HD_PARAM_STRING(hd_preset, capture_sites, .def_text = "** self",
                    .help = "layers that capture keeps, with ; between selectors"),
    HD_PARAM_STRING(hd_preset, capture_steps,
                    .help = "steps that capture keeps, as 0,12; the middle one when not given"),
    HD_PARAM_STRING(hd_preset, sheet,
                    .help = "PNG of all branches side by side; a batch numbers them"),
    HD_PARAM_STRING(hd_preset, maps,
                    .help = "PNG of the heat maps that processors show; a batch numbers them"),
    HD_PARAM_STRING(hd_preset, masks,
                    .help = "PNG of each map's mask, black and white: NAME-WORD.png"),
    HD_PARAM_STRING(hd_preset, map_values,
                    .help = "safetensors file for the maps as measured; a batch numbers them"),
    HD_PARAM_STRING(hd_preset, save_inversion,
                    .help = "safetensors file for the trajectories of the inverted pictures"),
    HD_PARAM_STRING(hd_preset, preview, .help = "PNG to show the picture in the making"),
    HD_PARAM_INT(hd_preset, preview_every, .def = 1, .min = 1, .max = 1000,
                 .help = "steps between previews"),
    HD_PARAM_INT(hd_preset, threads, .def = 0, .min = 0, .max = 1024,
                 .help = "threads; 0: what the machine offers"),
    HD_PARAM_BOOL(hd_preset, vae_tiling, .def = 0,
                  .help = "decode in overlapping tiles: less memory"),
    HD_PARAM_STRING(hd_preset, description, .help = "for people; not used"),
    HD_PARAM_STRING(hd_preset, version, .help = "of the program that made the picture"),
    HD_PARAM_STRING(hd_preset, model_hash, .help = "of the model that made the picture"),
    HD_PARAM_STRING(hd_preset, init_image_hash, .help = "of the picture it started from"),
    HD_PARAM_STRING(hd_preset, branch, .help = "which branch the picture shows"),
    HD_PARAM_END,
};

// A name that promises another format would get a PNG all the same.
static hd_status check_png_name(const hd_json *root, const char *field, const char *path)
{
    if (!path) return HD_OK;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.');
    if (!dot || dot == base || strcasecmp(dot, ".png") == 0) return HD_OK;
    return hd_json_fail(hd_json_get(root, field), HD_ERR_ARGUMENT,
                        "is \"%s\", but only PNG is written; let it end in .png", path);
}

static hd_status check_together(const hd_preset *p, const hd_json *root)
{
    HD_TRY(check_png_name(root, "output", p->output));
    HD_TRY(check_png_name(root, "preview", p->preview));
    HD_TRY(check_png_name(root, "sheet", p->sheet));
    HD_TRY(check_png_name(root, "maps", p->maps));
    HD_TRY(check_png_name(root, "masks", p->masks));
    if (p->inversion && p->latents_in)
        return hd_json_fail(root, HD_ERR_ARGUMENT,
                            "has both inversion and latents_in; a run starts from one of them");
    if (p->init_image && p->latents_in)
        return hd_json_fail(root, HD_ERR_ARGUMENT,
                            "has both init_image and latents_in; a run starts from one of them");
    return HD_OK;
}

hd_status hd_preset_from_json(hd_preset *out, const hd_json *root)
{
    static const char *const also[] = {"processors", "branches", "inversion",
                                       "embeddings", "$schema",  NULL};
    memset(out, 0, sizeof *out);
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    HD_TRY(hd_params_default(hd_preset_params, out));
    HD_TRY(hd_params_read(hd_preset_params, out, root, also));
    out->processors = hd_json_get(root, "processors");
    if (out->processors) HD_TRY(hd_json_expect(out->processors, HD_JSON_ARRAY));
    out->branches = hd_json_get(root, "branches");
    if (out->branches) HD_TRY(hd_json_expect(out->branches, HD_JSON_OBJECT));
    out->inversion = hd_json_get(root, "inversion");
    out->embeddings = hd_json_get(root, "embeddings");
    return check_together(out, root);
}

void hd_preset_free(hd_preset *preset)
{
    hd_params_free(hd_preset_params, preset);
}
