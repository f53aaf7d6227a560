/* engine/weights/tensor_file.c: see tensor_file.h. */
#include "engine/weights/tensor_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

// A zip archive (torch.save) or the older bare pickle.
static hd_status refuse_pickle(const char *path)
{
    unsigned char start[4] = {0};
    int64_t bytes = 0;
    int fd;
    HD_TRY(hd_file_open(&fd, path));
    hd_status status = hd_file_size(fd, path, &bytes);
    if (status == HD_OK && bytes >= (int64_t)sizeof start)
        status = hd_file_read_at(fd, path, 0, start, sizeof start);
    close(fd);
    HD_TRY(status);
    const bool bare = start[0] == 0x80 && start[1] >= 2 && start[1] <= 5 && start[2] != 0;
    if (!bare && memcmp(start, "PK\3\4", 4) != 0) return HD_OK;
    return hd_fail(HD_ERR_UNSUPPORTED,
                   "%s: is a PyTorch pickle, which can run any program and is not read; convert it "
                   "once: python3 tools/pickle_to_safetensors.py %s",
                   path, path);
}

hd_status hd_tensor_file_open(hd_safetensors **out, const char *path)
{
    HD_TRY(refuse_pickle(path));
    return hd_safetensors_open(out, path);
}

hd_status hd_tensor_file_floats(float **out, const hd_safetensors *file,
                                const hd_safetensors_entry *entry)
{
    const char *path = hd_safetensors_path(file);
    const int64_t count = hd_shape_count(entry->shape);
    if (entry->dtype != HD_F32 && entry->dtype != HD_F16 && entry->dtype != HD_BF16)
        return hd_fail(HD_ERR_UNSUPPORTED, "%s: %s is %s, must be F32, F16 or BF16", path,
                       entry->name, hd_dtype_name(entry->dtype));
    void *raw = malloc((size_t)entry->bytes + 1);
    float *floats = malloc((size_t)(count + 1) * sizeof *floats);
    hd_status status = raw && floats ? hd_safetensors_read(file, entry, 0, raw, entry->bytes)
                                     : hd_fail(HD_ERR_NOMEM, "%s: no memory for %s (%lld bytes)",
                                               path, entry->name, (long long)entry->bytes);
    if (status == HD_OK) status = hd_convert_to_f32(floats, raw, entry->dtype, count);
    for (int64_t i = 0; i < count && status == HD_OK; i++)
        if (!isfinite(floats[i]))
            status = hd_fail(HD_ERR_FORMAT, "%s: %s holds a value that is no finite number", path,
                             entry->name);
    free(raw);
    if (status != HD_OK) {
        free(floats);
        return status;
    }
    *out = floats;
    return HD_OK;
}

char *hd_tensor_file_shape(char *text, size_t bytes, hd_shape shape)
{
    size_t used = (size_t)snprintf(text, bytes, "[");
    for (int i = 0; i < shape.rank && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", i ? ", " : "",
                                 (long long)shape.dim[i]);
    if (used < bytes) snprintf(text + used, bytes - used, "]");
    return text;
}
