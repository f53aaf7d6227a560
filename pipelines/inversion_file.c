/* pipelines/inversion_file.c: see inversion_file.h. */
#include "pipelines/inversion_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "engine/attention/branches.h"
#include "engine/ops/elementwise.h"
#include "engine/weights/safetensors_write.h"
#include "engine/weights/weights.h"

#define FILE_MOST_BYTES ((size_t)4 << 30)

// "981 961 ... 1": every timestep, so that two lists can be compared as texts.
static hd_status timesteps_text(char **text, const hd_inversion_use *use)
{
    size_t bytes = (size_t)use->calls * 24 + 1, used = 0;
    *text = malloc(bytes);
    if (!*text) return hd_fail(HD_ERR_NOMEM, "inversion: no memory");
    (*text)[0] = 0;
    for (int64_t i = 0; i < use->calls; i++)
        used += (size_t)snprintf(*text + used, bytes - used, "%s%.9g", i ? " " : "",
                                 (double)use->timesteps[i]);
    return HD_OK;
}

// The first and the last of a list, and how many: what people tell two lists by.
static char *summary(char *out, size_t bytes, const char *list)
{
    int64_t count = list[0] ? 1 : 0;
    const char *last = list, *second = list + strcspn(list, " ");
    for (const char *c = list; *c; c++)
        if (*c == ' ') {
            count++;
            last = c + 1;
        }
    snprintf(out, bytes, "%" PRId64 " timesteps from %.*s to %s", count, (int)(second - list), list,
             last);
    return out;
}

// The header's metadata, checked against the run.
static hd_status check_header(const char *path, const char *header, size_t bytes,
                              const hd_inversion_use *use, const hd_json *node)
{
    hd_json_doc *doc;
    HD_TRY(hd_json_parse(&doc, path, header, bytes));
    const hd_json *metadata = hd_json_get(hd_json_root(doc), "__metadata__");
    const hd_json *hash = hd_json_get(metadata, "model_hash"),
                  *list = hd_json_get(metadata, "timesteps");
    const char *made_with = "", *made_at = "";
    char *wanted = NULL, here[128], there[128];
    hd_status status = hash && list ? HD_OK
                                    : hd_fail(HD_ERR_FORMAT,
                                              "%s holds no inversion: its metadata has no "
                                              "model_hash and timesteps",
                                              path);
    if (status == HD_OK) status = hd_json_to_string(hash, &made_with);
    if (status == HD_OK) status = hd_json_to_string(list, &made_at);
    if (status == HD_OK && strcmp(made_with, use->model_hash) != 0)
        status = hd_json_fail(node, HD_ERR_ARGUMENT,
                              "%s was made with another model (hash %s, this one's is %s)", path,
                              made_with, use->model_hash);
    if (status == HD_OK) status = timesteps_text(&wanted, use);
    if (status == HD_OK && strcmp(wanted, made_at) != 0)
        status = hd_json_fail(node, HD_ERR_ARGUMENT,
                              "%s has %s, sampler %s of this run has %s; use the same sampler, "
                              "steps and strength, or invert again",
                              path, summary(there, sizeof there, made_at), use->sampler,
                              summary(here, sizeof here, wanted));
    free(wanted);
    hd_json_free(doc);
    return status;
}

static hd_status check_file(const char *path, const hd_inversion_use *use, const hd_json *node)
{
    char *data;
    size_t bytes;
    HD_TRY(hd_file_read(&data, &bytes, path, FILE_MOST_BYTES));
    uint64_t length = 0;
    if (bytes >= 8)
        for (int i = 7; i >= 0; i--)
            length = length << 8 | (uint8_t)data[i];
    hd_status status = bytes < 8 || length > bytes - 8
                           ? hd_fail(HD_ERR_FORMAT, "%s is no safetensors file", path)
                           : check_header(path, data + 8, (size_t)length, use, node);
    free(data);
    return status;
}

static hd_status read_tensor(float *trajectory, const hd_weights *file, const char *path,
                             const char *name, const hd_inversion_use *use, const hd_json *node)
{
    int64_t index = hd_weights_find(file, name);
    if (index < 0 && hd_weights_count(file) == 1) index = 0;
    if (index < 0)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "%s has no inversion of branch \"%s\"", path,
                            name);
    hd_weight_info info = hd_weights_info(file, index);
    bool fits = info.dtype == HD_F32 && info.shape.rank == use->shape.rank;
    for (int d = 0; fits && d < use->shape.rank; d++)
        fits = info.shape.dim[d] == use->shape.dim[d];
    char found[160], wanted[160];
    if (!fits)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "%s: %s is %s %s, this run needs f32 %s", path,
                            info.name, hd_dtype_name(info.dtype),
                            hd_shape_text(found, sizeof found, info.shape),
                            hd_shape_text(wanted, sizeof wanted, use->shape));
    return hd_weights_read(file, index, trajectory);
}

hd_status hd_inversion_file_read(float *trajectory, const char *path, const char *name,
                                 const hd_inversion_use *use, const hd_json *node)
{
    hd_weights *file;
    HD_TRY(hd_weights_open(&file, path, ""));
    hd_status status = check_file(path, use, node);
    if (status == HD_OK) status = read_tensor(trajectory, file, path, name, use, node);
    hd_weights_free(file);
    return status;
}

hd_status hd_inversion_file_write(const char *path, int count, const char *const *name,
                                  const float *const *trajectory, const hd_inversion_use *use)
{
    hd_named_tensor tensor[HD_MAX_BRANCHES];
    int64_t tensors = 0;
    for (int i = 0; i < count; i++)
        if (trajectory[i])
            tensor[tensors++] =
                (hd_named_tensor){name[i], hd_tensor_of((void *)trajectory[i], HD_F32, use->shape)};
    char *timesteps;
    HD_TRY(timesteps_text(&timesteps, use));
    const char *metadata[] = {"model_hash", use->model_hash, "timesteps", timesteps,
                              "sampler",    use->sampler,    NULL};
    hd_status status = hd_safetensors_write(path, tensors, tensor, metadata);
    free(timesteps);
    return status;
}
