/* codecs/textual_inversion.c: see textual_inversion.h. */
#include "codecs/textual_inversion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The names under which the web UI keeps a word's vectors.
static bool is_webui(const char *name)
{
    return strcmp(name, "emb_params") == 0 || strcmp(name, "string_to_param.*") == 0 ||
           strcmp(name, "*") == 0;
}

static hd_status fail_layout(const hd_safetensors *file)
{
    char names[500] = "";
    size_t used = 0;
    bool sdxl = false;
    const int64_t count = hd_safetensors_count(file);
    for (int64_t i = 0; i < count; i++) {
        const char *name = hd_safetensors_at(file, i)->name;
        sdxl |= strcmp(name, "clip_l") == 0 || strcmp(name, "clip_g") == 0;
        if (used < sizeof names - 1)
            used +=
                (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", name);
    }
    if (sdxl)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%s: is for the two text encoders of SDXL (%s); this model has one",
                       hd_safetensors_path(file), names);
    return hd_fail(HD_ERR_FORMAT,
                   "%s: is no embedding: it has %lld tensors (%s%s), must be one, named as the "
                   "token, or emb_params",
                   hd_safetensors_path(file), (long long)count, names,
                   used >= sizeof names - 1 ? "..." : "");
}

// The only tensor, or that of the web UI among others ("step", "sd_checkpoint" ...).
static hd_status find_vectors(const hd_safetensors *file, const hd_safetensors_entry **out)
{
    const int64_t count = hd_safetensors_count(file);
    *out = count == 1 ? hd_safetensors_at(file, 0) : NULL;
    for (int64_t i = 0; i < count && count > 1; i++)
        if (is_webui(hd_safetensors_at(file, i)->name)) *out = hd_safetensors_at(file, i);
    return *out ? HD_OK : fail_layout(file);
}

// "cat" of "learned/cat.safetensors".
static char *stem_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.');
    return strndup(base, dot && dot > base ? (size_t)(dot - base) : strlen(base));
}

static hd_status read_vectors(hd_textual_inversion *out, const hd_safetensors *file,
                              const hd_safetensors_entry *entry, int64_t channels)
{
    const hd_shape s = entry->shape;
    const int64_t width = s.rank > 0 ? s.dim[s.rank - 1] : 0;
    char shape[100];
    if (s.rank < 1 || s.rank > 2 || hd_shape_count(s) == 0)
        return hd_fail(HD_ERR_FORMAT, "%s: %s is %s, must be [%lld] or [vectors, %lld]",
                       hd_safetensors_path(file), entry->name,
                       hd_tensor_file_shape(shape, sizeof shape, s), (long long)channels,
                       (long long)channels);
    if (width != channels)
        return hd_fail(HD_ERR_SHAPE,
                       "%s: %s is %s, but this model's text encoder has vectors of %lld; it was "
                       "learned for another kind of model",
                       hd_safetensors_path(file), entry->name,
                       hd_tensor_file_shape(shape, sizeof shape, s), (long long)channels);
    out->count = s.rank == 1 ? 1 : s.dim[0];
    return hd_tensor_file_floats(&out->vectors, file, entry);
}

hd_status hd_textual_inversion_open(hd_textual_inversion *out, const char *path, const char *token,
                                    int64_t channels)
{
    *out = (hd_textual_inversion){0};
    hd_safetensors *file;
    const hd_safetensors_entry *entry = NULL;
    HD_TRY(hd_tensor_file_open(&file, path));
    hd_status status = find_vectors(file, &entry);
    if (status == HD_OK) status = read_vectors(out, file, entry, channels);
    if (status == HD_OK) {
        out->token = token                   ? strdup(token)
                     : is_webui(entry->name) ? stem_of(path)
                                             : strdup(entry->name);
        if (!out->token) status = hd_fail(HD_ERR_NOMEM, "%s: no memory for its token", path);
    }
    hd_safetensors_free(file);
    if (status != HD_OK) hd_textual_inversion_clear(out);
    return status;
}

void hd_textual_inversion_clear(hd_textual_inversion *learned)
{
    free(learned->token);
    free(learned->vectors);
    *learned = (hd_textual_inversion){0};
}
