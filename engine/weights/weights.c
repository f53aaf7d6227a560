/* engine/weights/weights.c: the tensors of one or several files under one sorted list of names.
 *
 * Which files make up a folder's weights is decided in weights_files.c. The contents' hash costs no
 * second pass: what is read is hashed while it is in the processor's cache, and hd_weights_hash
 * reads only what nobody has read yet. */
#include "engine/weights/weights.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/weights/safetensors.h"
#include "engine/weights/weights_files.h"

enum { CHUNK_BYTES = 1 << 20 }; // fits a core's own cache; part of the hash's definition

typedef struct weight {
    const char *name;    // what it is called now
    char *renamed;       // owned; NULL: the name in the file
    int64_t file, index; // where it is
    int64_t slot;        // of its hash
} weight;

typedef struct weight_hash {
    atomic_bool known;
    atomic_uint_fast64_t value;
} weight_hash;

struct hd_weights {
    char *path;
    int64_t files, count;
    hd_safetensors **file;
    weight *tensor;    // sorted by name
    weight_hash *hash; // filled by readers: several threads, a const hd_weights
};

static const hd_safetensors_entry *entry_of(const hd_weights *w, int64_t index)
{
    return hd_safetensors_at(w->file[w->tensor[index].file], w->tensor[index].index);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *file_name(const hd_weights *w, int64_t index)
{
    return base_name(hd_safetensors_path(w->file[w->tensor[index].file]));
}

static int compare_names(const void *a, const void *b)
{
    const weight *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static hd_status sort_by_name(hd_weights *w)
{
    if (w->count > 1) qsort(w->tensor, (size_t)w->count, sizeof *w->tensor, compare_names);
    for (int64_t i = 1; i < w->count; i++) {
        if (strcmp(w->tensor[i - 1].name, w->tensor[i].name) != 0) continue;
        const char *a = file_name(w, i - 1), *b = file_name(w, i);
        if (strcmp(a, b) != 0)
            return hd_fail(HD_ERR_FORMAT, "%s: %s is in both %s and %s", w->path, w->tensor[i].name,
                           a, b);
        return hd_fail(HD_ERR_FORMAT, "%s: %s and %s are one tensor to us (%s)", w->path,
                       entry_of(w, i - 1)->name, entry_of(w, i)->name, w->tensor[i].name);
    }
    return HD_OK;
}

static hd_status open_files(hd_weights *w, const hd_weights_files *files)
{
    w->file = calloc((size_t)files->count + 1, sizeof *w->file);
    if (!w->file) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its index", w->path);
    for (; w->files < files->count; w->files++) {
        HD_TRY(hd_safetensors_open(&w->file[w->files], files->path[w->files]));
        w->count += hd_safetensors_count(w->file[w->files]);
    }
    w->tensor = calloc((size_t)w->count + 1, sizeof *w->tensor);
    w->hash = calloc((size_t)w->count + 1, sizeof *w->hash);
    if (!w->tensor || !w->hash)
        return hd_fail(HD_ERR_NOMEM, "%s: no memory for its index", w->path);
    weight *t = w->tensor;
    for (int64_t f = 0; f < w->files; f++)
        for (int64_t i = 0; i < hd_safetensors_count(w->file[f]); i++, t++)
            *t = (weight){.name = hd_safetensors_at(w->file[f], i)->name,
                          .file = f,
                          .index = i,
                          .slot = t - w->tensor};
    return sort_by_name(w);
}

// Every tensor of the index is in the file that the index says.
static hd_status check_index(const hd_weights *w, const hd_weights_files *files)
{
    const hd_json *map = files->weight_map;
    for (int64_t i = 0; map && i < hd_json_count(map); i++) {
        const hd_json *node = hd_json_at(map, i);
        const char *file;
        HD_TRY(hd_json_to_string(node, &file));
        int64_t found = hd_weights_find(w, hd_json_key(node));
        if (found < 0 || strcmp(file_name(w, found), file) != 0)
            return hd_fail(HD_ERR_FORMAT, "%s: %s is not in %s, where it should be%s%s",
                           hd_json_name(map), hd_json_key(node), file,
                           found < 0 ? "" : "; it is in ", found < 0 ? "" : file_name(w, found));
    }
    return HD_OK;
}

hd_status hd_weights_open(hd_weights **out, const char *path, const char *stem)
{
    hd_weights *w = calloc(1, sizeof *w);
    hd_weights_files files = {0};
    if (w) w->path = strdup(path);
    hd_status status = w && w->path ? hd_weights_files_find(&files, path, stem)
                                    : hd_fail(HD_ERR_NOMEM, "%s: no memory to open it", path);
    if (status == HD_OK) status = open_files(w, &files);
    if (status == HD_OK) status = check_index(w, &files);
    hd_weights_files_free(&files);
    if (status != HD_OK) {
        hd_weights_free(w);
        return status;
    }
    *out = w;
    return HD_OK;
}

void hd_weights_free(hd_weights *w)
{
    if (!w) return;
    for (int64_t i = 0; w->tensor && i < w->count; i++)
        free(w->tensor[i].renamed);
    for (int64_t i = 0; i < w->files; i++)
        hd_safetensors_free(w->file[i]);
    free(w->hash);
    free(w->tensor);
    free(w->file);
    free(w->path);
    free(w);
}

const char *hd_weights_path(const hd_weights *w)
{
    return w->path;
}

int64_t hd_weights_count(const hd_weights *w)
{
    return w->count;
}

hd_weight_info hd_weights_info(const hd_weights *w, int64_t index)
{
    const hd_safetensors_entry *e = entry_of(w, index);
    return (hd_weight_info){.name = w->tensor[index].name,
                            .file = file_name(w, index),
                            .dtype = e->dtype,
                            .shape = e->shape,
                            .bytes = e->bytes,
                            .file_number = w->tensor[index].file,
                            .offset = e->offset};
}

int64_t hd_weights_find(const hd_weights *w, const char *name)
{
    int64_t low = 0, high = w->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(w->tensor[middle].name, name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

hd_status hd_weights_rename(hd_weights *w,
                            bool (*rename)(const char *name, char *out, size_t bytes))
{
    char name[1024];
    for (int64_t i = 0; i < w->count; i++) {
        weight *t = &w->tensor[i];
        if (!rename(t->name, name, sizeof name)) continue;
        char *copy = strdup(name);
        if (!copy) return hd_fail(HD_ERR_NOMEM, "%s: no memory to rename tensors", w->path);
        free(t->renamed);
        t->name = t->renamed = copy;
    }
    return sort_by_name(w);
}

// Reads tensor `index` chunk by chunk into `into`, or, when that is NULL, through `scratch`.
static hd_status read_hashed(const hd_weights *w, int64_t index, char *into, char *scratch)
{
    const hd_safetensors_entry *e = entry_of(w, index);
    const hd_safetensors *file = w->file[w->tensor[index].file];
    uint64_t hash = 0;
    for (int64_t from = 0; from < e->bytes; from += CHUNK_BYTES) {
        int64_t bytes = e->bytes - from < CHUNK_BYTES ? e->bytes - from : CHUNK_BYTES;
        char *chunk = into ? into + from : scratch;
        HD_TRY(hd_safetensors_read(file, e, from, chunk, bytes));
        hash = XXH3_64bits_withSeed(chunk, (size_t)bytes, hash);
    }
    weight_hash *kept = &w->hash[w->tensor[index].slot];
    atomic_store(&kept->value, hash);
    atomic_store(&kept->known, true);
    return HD_OK;
}

hd_status hd_weights_read(const hd_weights *w, int64_t index, void *into)
{
    HD_ENSURE(index >= 0 && index < w->count);
    return read_hashed(w, index, into, NULL);
}

hd_status hd_weights_hash(const hd_weights *w, char text[17])
{
    char *scratch = malloc(CHUNK_BYTES);
    if (!scratch) return hd_fail(HD_ERR_NOMEM, "%s: no memory to hash it", w->path);
    hd_status status = HD_OK;
    uint64_t sum = 0; // the order of the tensors and their split into files do not matter
    for (int64_t i = 0; i < w->count && status == HD_OK; i++) {
        const hd_safetensors_entry *e = entry_of(w, i);
        weight_hash *hash = &w->hash[w->tensor[i].slot];
        if (!atomic_load(&hash->known)) status = read_hashed(w, i, NULL, scratch);
        char kind[200], shape[160];
        int bytes = snprintf(kind, sizeof kind, "%s %s %016llx", hd_dtype_name(e->dtype),
                             hd_shape_text(shape, sizeof shape, e->shape),
                             (unsigned long long)atomic_load(&hash->value));
        uint64_t name = XXH3_64bits(e->name, strlen(e->name));
        sum += XXH3_64bits_withSeed(kind, (size_t)bytes, name);
    }
    free(scratch);
    if (status == HD_OK) snprintf(text, 17, "%016llx", (unsigned long long)sum);
    return status;
}
