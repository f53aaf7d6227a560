/* pipelines/metadata.c: a run back into JSON, and into the line other programs write. */
#include "pipelines/metadata.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine/options/json_write.h"

hd_status hd_metadata_json(char **json, const hd_preset *p, const hd_resolved *made)
{
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "version", HD_VERSION);
    hd_json_write_string(&w, "model", p->model);
    hd_json_write_string(&w, "model_hash", made->model_hash);
    hd_json_write_string(&w, "prompt", p->prompt);
    hd_json_write_string(&w, "negative", p->negative);
    hd_json_write_u64(&w, "seed", made->seed);
    hd_json_write_int(&w, "width", made->width);
    hd_json_write_int(&w, "height", made->height);
    hd_json_write_int(&w, "steps", p->steps);
    // left out when the model's folder decides: its scheduler may hold more than a name says
    if (p->sampler) hd_json_write_string(&w, "sampler", p->sampler);
    hd_json_write_float(&w, "guidance", p->guidance);
    hd_json_write_float(&w, "guidance_rescale", p->guidance_rescale);
    hd_json_write_int(&w, "clip_skip", p->clip_skip);
    hd_json_write_string(&w, "precision", made->precision);
    hd_json_write_string(&w, "rng", p->rng ? "cuda" : "cpu");
    if (p->vae_tiling) hd_json_write_bool(&w, "vae_tiling", true);
    if (p->init_image) {
        hd_json_write_string(&w, "init_image", p->init_image);
        hd_json_write_string(&w, "init_image_hash", made->init_image_hash);
        hd_json_write_float(&w, "strength", p->strength);
    }
    if (p->fit_given) hd_json_write_string(&w, "fit", hd_fit_names[p->fit]);
    if (p->inversion) hd_json_write_node(&w, "inversion", p->inversion);
    if (p->latents_in) hd_json_write_string(&w, "latents_in", p->latents_in);
    if (p->embeddings) hd_json_write_node(&w, "embeddings", p->embeddings);
    if (p->branches) hd_json_write_node(&w, "branches", p->branches);
    if (strcmp(made->branch, "main") != 0) hd_json_write_string(&w, "branch", made->branch);
    if (p->processors) hd_json_write_node(&w, "processors", p->processors);
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, json);
}

// The last component of a path, without slashes behind it.
static void base_name(char *out, size_t bytes, const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    snprintf(out, bytes, "%.*s", (int)(end - start), path + start);
}

hd_status hd_metadata_line(char **text, const hd_preset *p, const hd_resolved *made)
{
    char *buffer = NULL, model[128];
    size_t bytes = 0;
    FILE *out = open_memstream(&buffer, &bytes);
    if (!out) return hd_fail(HD_ERR_NOMEM, "metadata: no memory");
    fprintf(out, "%s\n", p->prompt);
    if (p->negative[0]) fprintf(out, "Negative prompt: %s\n", p->negative);
    fprintf(out,
            "Steps: %" PRId64 ", Sampler: %s, CFG scale: %g, Seed: %" PRIu64 ", Size: %" PRId64
            "x%" PRId64,
            p->steps, made->sampler, (double)p->guidance, made->seed, made->width, made->height);
    base_name(model, sizeof model, p->model);
    fprintf(out, ", Model hash: %.10s, Model: %s", made->model_hash, model);
    if (p->clip_skip > 0)
        fprintf(out, ", Clip skip: %" PRId64, p->clip_skip + 1); // there 1 is the last layer
    if (p->init_image) fprintf(out, ", Denoising strength: %g", (double)p->strength);
    if (p->guidance_rescale > 0) fprintf(out, ", CFG rescale: %g", (double)p->guidance_rescale);
    fprintf(out, ", RNG: %s, Version: Heddle %s", p->rng ? "GPU" : "CPU", HD_VERSION);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed || !buffer) {
        free(buffer);
        return hd_fail(HD_ERR_NOMEM, "metadata: no memory");
    }
    *text = buffer;
    return HD_OK;
}
