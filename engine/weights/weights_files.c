/* engine/weights/weights_files.c: from a folder to a list of .safetensors files.
 *
 * In this order: full precision before variants; one file, then shards with an index, then shards
 * that are all there by their own count. The names are those that diffusers and transformers have
 * written over the years. */
#include "engine/weights/weights_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FILES_MOST = 1000, NAME_MOST = 256 };

typedef struct listing {
    const char *folder;
    char **name; // sorted
    size_t count, room;
} listing;

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void listing_free(listing *l)
{
    for (size_t i = 0; i < l->count; i++)
        free(l->name[i]);
    free(l->name);
}

static hd_status listing_add(listing *l, const char *name)
{
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 32;
        char **more = realloc(l->name, room * sizeof *more);
        if (!more) return hd_fail(HD_ERR_NOMEM, "%s: no memory to list it", l->folder);
        l->name = more;
        l->room = room;
    }
    if (!(l->name[l->count] = strdup(name)))
        return hd_fail(HD_ERR_NOMEM, "%s: no memory to list it", l->folder);
    l->count++;
    return HD_OK;
}

static hd_status listing_read(listing *l, const char *folder)
{
    *l = (listing){.folder = folder};
    DIR *dir = opendir(folder);
    if (!dir) return hd_fail(HD_ERR_IO, "%s: cannot list it: %s", folder, strerror(errno));
    hd_status status = HD_OK;
    for (struct dirent *entry; status == HD_OK && (entry = readdir(dir));)
        if (entry->d_name[0] != '.') status = listing_add(l, entry->d_name);
    closedir(dir);
    if (l->count > 1) qsort(l->name, l->count, sizeof *l->name, compare_text);
    return status;
}

static bool listed(const listing *l, const char *name)
{
    return l->count && bsearch(&name, l->name, l->count, sizeof *l->name, compare_text);
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static hd_status add_file(hd_weights_files *files, const char *folder, const char *name)
{
    char **more = realloc(files->path, (size_t)(files->count + 1) * sizeof *more);
    if (more) files->path = more;
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = more ? malloc(bytes) : NULL;
    if (!path) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its files", folder);
    snprintf(path, bytes, "%s%s%s", folder, folder[0] ? "/" : "", name);
    files->path[files->count++] = path;
    return HD_OK;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// The shard that `node` of the index names: a plain name, of a file in the index's own folder.
static hd_status add_shard(hd_weights_files *files, const char *folder, const hd_json *node)
{
    const char *name;
    HD_TRY(hd_json_to_string(node, &name));
    for (int64_t i = files->count - 1; i >= 0; i--) // mostly the one that came last
        if (strcmp(base_name(files->path[i]), name) == 0) return HD_OK;
    if (name[0] == '.' || strchr(name, '/') || !ends_with(name, ".safetensors"))
        return hd_json_fail(node, HD_ERR_FORMAT,
                            "is \"%.200s\", must be the name of a .safetensors file in the folder "
                            "of the index",
                            name);
    if (files->count == FILES_MOST)
        return hd_json_fail(node, HD_ERR_FORMAT, "is shard number %d, at most %d are read",
                            FILES_MOST + 1, FILES_MOST);
    HD_TRY(add_file(files, folder, name));
    struct stat info;
    if (stat(files->path[files->count - 1], &info) != 0)
        return hd_json_fail(node, HD_ERR_IO,
                            "is in \"%.200s\", which is not in the folder; is "
                            "the download finished?",
                            name);
    return HD_OK;
}

static hd_status read_index(hd_weights_files *files, const char *folder, const char *name)
{
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = malloc(bytes);
    if (!path) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its index", folder);
    snprintf(path, bytes, "%s%s%s", folder, folder[0] ? "/" : "", name);
    hd_status status = hd_json_read(&files->index, path);
    free(path);
    HD_TRY(status);
    const hd_json *root = hd_json_root(files->index);
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    const hd_json *map = hd_json_get(root, "weight_map");
    if (!map) return hd_json_fail(root, HD_ERR_FORMAT, "lacks \"weight_map\"");
    HD_TRY(hd_json_expect(map, HD_JSON_OBJECT));
    files->weight_map = map;
    for (int64_t i = 0; i < hd_json_count(map); i++)
        HD_TRY(add_shard(files, folder, hd_json_at(map, i)));
    return HD_OK;
}

// Shards without an index: BASE-00001-of-00003.safetensors; all of them, or it is an error.
static hd_status add_counted_shards(hd_weights_files *files, const listing *l, const char *base)
{
    size_t length = strlen(base);
    int shards = 0;
    for (size_t i = 0; i < l->count && !shards; i++) {
        int number, end = 0;
        if (strncmp(l->name[i], base, length) != 0) continue;
        if (sscanf(l->name[i] + length, "-%5d-of-%5d.safetensors%n", &number, &shards, &end) != 2 ||
            !end || l->name[i][length + (size_t)end] || shards < 1 || shards > FILES_MOST)
            shards = 0;
    }
    for (int i = 1; i <= shards; i++) {
        char name[2 * NAME_MOST];
        snprintf(name, sizeof name, "%s-%05d-of-%05d.safetensors", base, i, shards);
        if (!listed(l, name))
            return hd_fail(HD_ERR_IO, "%s: has shards of %s, but not %s; is the download finished?",
                           l->folder, base, name);
        HD_TRY(add_file(files, l->folder, name));
    }
    return HD_OK;
}

// What `stem` is stored as in the given variant ("" for full precision); no file when it is not.
static hd_status find_variant(hd_weights_files *files, const listing *l, const char *stem,
                              const char *variant)
{
    static const char *const index_forms[] = {
        "%s%s%s.safetensors.index.json", // model.fp16.safetensors.index.json
        "%s.safetensors.index%s%s.json", // model.safetensors.index.fp16.json
        "%s.safetensors%s%s.index.json", // model.safetensors.fp16.index.json
        "%s%s%s.index.json",             // model.fp16.index.json
    };
    const char *dot = variant[0] ? "." : "";
    char name[NAME_MOST], base[NAME_MOST];
    snprintf(base, sizeof base, "%s%s%s", stem, dot, variant);
    snprintf(name, sizeof name, "%s.safetensors", base);
    if (listed(l, name)) return add_file(files, l->folder, name);
    for (size_t i = 0; i < HD_COUNT(index_forms); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof name, index_forms[i], stem, dot, variant);
#pragma GCC diagnostic pop
        if (listed(l, name)) return read_index(files, l->folder, name);
    }
    return add_counted_shards(files, l, base);
}

static bool is_pickle(const char *name)
{
    return ends_with(name, ".bin") || ends_with(name, ".ckpt") || ends_with(name, ".pt") ||
           ends_with(name, ".pth");
}

static hd_status refuse_pickle(const char *folder, const char *file)
{
    return hd_fail(HD_ERR_UNSUPPORTED,
                   "%s: has its weights as a PyTorch pickle only (%s), which can run any program "
                   "and is not read; convert the model once: python3 -c \"from diffusers import "
                   "DiffusionPipeline as P; P.from_pretrained('MODEL').save_pretrained("
                   "'MODEL-safetensors')\"",
                   folder, file);
}

static hd_status fail_nothing(const listing *l, const char *stem)
{
    for (size_t i = 0; i < l->count; i++)
        if (is_pickle(l->name[i])) return refuse_pickle(l->folder, l->name[i]);
    char names[600] = "";
    for (size_t i = 0, used = 0; i < l->count && used < sizeof names; i++)
        used +=
            (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", l->name[i]);
    return hd_fail(HD_ERR_IO,
                   "%s: has no weights: no %s.safetensors, nor its fp16 or sharded forms; it has "
                   "%s",
                   l->folder, stem ? stem : "diffusion_pytorch_model or model",
                   names[0] ? names : "nothing");
}

static hd_status find_in_folder(hd_weights_files *files, const listing *l, const char *stem)
{
    static const char *const variants[] = {"", "fp16", "bf16"};
    const char *const stems[] = {stem ? stem : "diffusion_pytorch_model", stem ? NULL : "model"};
    for (size_t v = 0; v < HD_COUNT(variants); v++)
        for (size_t s = 0; s < HD_COUNT(stems) && stems[s]; s++) {
            HD_TRY(find_variant(files, l, stems[s], variants[v]));
            if (files->count) return HD_OK;
        }
    return fail_nothing(l, stem);
}

static hd_status find_file(hd_weights_files *files, const char *path)
{
    if (is_pickle(path)) return refuse_pickle(path, base_name(path));
    if (!ends_with(path, ".json")) return add_file(files, "", path);
    size_t length = strlen(path) - strlen(base_name(path));
    char *folder = strdup(length ? path : ".");
    if (!folder) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its files", path);
    if (length) folder[length > 1 ? length - 1 : length] = 0;
    hd_status status = read_index(files, folder, base_name(path));
    free(folder);
    return status;
}

hd_status hd_weights_files_find(hd_weights_files *out, const char *path, const char *stem)
{
    struct stat info;
    *out = (hd_weights_files){0};
    if (stat(path, &info) != 0)
        return hd_fail(HD_ERR_IO, "%s: %s", path,
                       errno == ENOENT || errno == ENOTDIR ? "there is no such file or folder"
                                                           : strerror(errno));
    hd_status status;
    if (S_ISDIR(info.st_mode)) {
        listing l;
        status = listing_read(&l, path);
        if (status == HD_OK) status = find_in_folder(out, &l, stem);
        listing_free(&l);
    } else {
        status = find_file(out, path);
    }
    // What is wrong in an index is wrong with the file, not with what somebody asked for.
    return status == HD_ERR_ARGUMENT ? HD_ERR_FORMAT : status;
}

void hd_weights_files_free(hd_weights_files *files)
{
    for (int64_t i = 0; i < files->count; i++)
        free(files->path[i]);
    free(files->path);
    hd_json_free(files->index);
    *files = (hd_weights_files){0};
}
