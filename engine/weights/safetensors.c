/* engine/weights/safetensors.c: the header of a .safetensors file, trusted only after every check.
 */
#include "engine/weights/safetensors.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "engine/options/json.h"

enum { LENGTH_BYTES = 8, HEADER_MOST = 100000000 }; // the format's own limit

struct hd_safetensors {
    char *path;
    int fd;
    int64_t count;
    hd_safetensors_entry *entry; // offsets count from the start of the file
};

static hd_status read_dtype(hd_dtype *out, const char *file, const hd_json *tensor)
{
    static const struct {
        const char *name;
        hd_dtype dtype;
    } types[] = {{"F32", HD_F32},  {"BF16", HD_BF16}, {"F16", HD_F16}, {"F64", HD_F64},
                 {"I8", HD_I8},    {"U8", HD_U8},     {"I16", HD_I16}, {"U16", HD_U16},
                 {"I32", HD_I32},  {"U32", HD_U32},   {"I64", HD_I64}, {"U64", HD_U64},
                 {"BOOL", HD_BOOL}};
    const hd_json *node = hd_json_get(tensor, "dtype");
    const char *name;
    if (!node) return hd_json_fail(tensor, HD_ERR_FORMAT, "lacks \"dtype\"");
    HD_TRY(hd_json_to_string(node, &name));
    for (size_t i = 0; i < HD_COUNT(types); i++)
        if (strcmp(types[i].name, name) == 0) {
            *out = types[i].dtype;
            return HD_OK;
        }
    return hd_fail(HD_ERR_UNSUPPORTED,
                   "%s: %s is of type %.40s; F32, F16, BF16, F64, the integers of 8 to 64 bits and "
                   "BOOL can be read",
                   file, hd_json_key(tensor), name);
}

static hd_status read_shape(hd_shape *out, const char *file, const hd_json *tensor)
{
    const hd_json *node = hd_json_get(tensor, "shape");
    if (!node) return hd_json_fail(tensor, HD_ERR_FORMAT, "lacks \"shape\"");
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    if (hd_json_count(node) > HD_MAX_RANK)
        return hd_fail(HD_ERR_UNSUPPORTED, "%s: %s has %lld axes, at most %d can be read", file,
                       hd_json_key(tensor), (long long)hd_json_count(node), HD_MAX_RANK);
    out->rank = (int)hd_json_count(node);
    for (int i = 0; i < out->rank; i++)
        HD_TRY(hd_json_to_int(hd_json_at(node, i), 0, INT64_MAX, &out->dim[i]));
    return HD_OK;
}

static hd_status read_range(hd_safetensors_entry *e, const char *file, const hd_json *tensor,
                            int64_t data_bytes)
{
    const hd_json *node = hd_json_get(tensor, "data_offsets");
    int64_t range[2];
    if (!node) return hd_json_fail(tensor, HD_ERR_FORMAT, "lacks \"data_offsets\"");
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    if (hd_json_count(node) != 2)
        return hd_json_fail(node, HD_ERR_FORMAT, "has %lld entries, must have 2",
                            (long long)hd_json_count(node));
    for (int i = 0; i < 2; i++)
        HD_TRY(hd_json_to_int(hd_json_at(node, i), 0, INT64_MAX, &range[i]));
    if (range[0] > range[1])
        return hd_json_fail(node, HD_ERR_FORMAT, "is [%lld, %lld], it ends before it begins",
                            (long long)range[0], (long long)range[1]);
    if (range[1] > data_bytes)
        return hd_fail(HD_ERR_FORMAT,
                       "%s: %s ends at byte %lld of the data, the file has only %lld; is it cut "
                       "(an unfinished download)?",
                       file, hd_json_key(tensor), (long long)range[1], (long long)data_bytes);
    e->offset = range[0];
    e->bytes = range[1] - range[0];
    return HD_OK;
}

static hd_status read_entry(hd_safetensors_entry *e, const char *file, const hd_json *tensor,
                            int64_t data_bytes)
{
    for (const char *c = hd_json_key(tensor); *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return hd_json_fail(tensor, HD_ERR_FORMAT, "is a name with a control character");
    HD_TRY(hd_json_expect(tensor, HD_JSON_OBJECT));
    HD_TRY(read_dtype(&e->dtype, file, tensor));
    HD_TRY(read_shape(&e->shape, file, tensor));
    HD_TRY(read_range(e, file, tensor, data_bytes));
    int64_t count = hd_shape_count(e->shape), bytes = 0;
    char shape[160];
    hd_shape_text(shape, sizeof shape, e->shape);
    if (count < 0 || __builtin_mul_overflow(count, (int64_t)hd_dtype_size(e->dtype), &bytes))
        return hd_fail(HD_ERR_FORMAT, "%s: %s is %s, too large to exist", file, hd_json_key(tensor),
                       shape);
    if (bytes != e->bytes)
        return hd_fail(HD_ERR_FORMAT, "%s: %s is %s %s, which takes %lld bytes; it has %lld", file,
                       hd_json_key(tensor), shape, hd_dtype_name(e->dtype), (long long)bytes,
                       (long long)e->bytes);
    return HD_OK;
}

static hd_status check_metadata(const hd_json *metadata)
{
    const char *text;
    HD_TRY(hd_json_expect(metadata, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(metadata); i++)
        HD_TRY(hd_json_to_string(hd_json_at(metadata, i), &text));
    return HD_OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const hd_safetensors_entry *const *x = a, *const *y = b;
    if ((*x)->offset != (*y)->offset) return (*x)->offset < (*y)->offset ? -1 : 1;
    return (*x)->bytes < (*y)->bytes ? -1 : (*x)->bytes > (*y)->bytes;
}

// The tensors lie one after the other and fill the file.
static hd_status check_cover(const hd_safetensors_entry *entry, int64_t count, const char *file,
                             int64_t data_bytes)
{
    const hd_safetensors_entry **order = malloc(((size_t)count + 1) * sizeof *order);
    if (!order) return hd_fail(HD_ERR_NOMEM, "%s: no memory to check it", file);
    for (int64_t i = 0; i < count; i++)
        order[i] = &entry[i];
    qsort(order, (size_t)count, sizeof *order, compare_offsets);
    int64_t end = 0;
    const char *before = "the header";
    hd_status status = HD_OK;
    for (int64_t i = 0; i < count && status == HD_OK; i++) {
        const hd_safetensors_entry *e = order[i];
        if (e->offset < end)
            status = hd_fail(HD_ERR_FORMAT, "%s: %s and %s overlap", file, before, e->name);
        else if (e->offset > end)
            status = hd_fail(HD_ERR_FORMAT, "%s: %lld bytes between %s and %s belong to no tensor",
                             file, (long long)(e->offset - end), before, e->name);
        if (e->bytes == 0) continue;
        end = e->offset + e->bytes;
        before = e->name;
    }
    free(order);
    if (status == HD_OK && end != data_bytes)
        return hd_fail(HD_ERR_FORMAT, "%s: %lld bytes after the last tensor belong to none", file,
                       (long long)(data_bytes - end));
    return status;
}

static hd_status read_entries(hd_safetensors_entry *entry, int64_t count, const char *file,
                              const hd_json *root, int64_t data_bytes)
{
    char *names = (char *)(entry + count);
    hd_safetensors_entry *e = entry;
    for (int64_t i = 0; i < hd_json_count(root); i++) {
        const hd_json *node = hd_json_at(root, i);
        const char *key = hd_json_key(node);
        if (strcmp(key, "__metadata__") == 0) {
            HD_TRY(check_metadata(node));
            continue;
        }
        HD_TRY(read_entry(e, file, node, data_bytes));
        size_t bytes = strlen(key) + 1;
        e->name = memcpy(names, key, bytes);
        names += bytes;
        e++;
    }
    return check_cover(entry, count, file, data_bytes);
}

// One block: the entries, then their names.
static hd_status parse_root(hd_safetensors_entry **out, int64_t *count, const char *file,
                            const hd_json *root, int64_t data_bytes)
{
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    int64_t tensors = hd_json_count(root) - (hd_json_get(root, "__metadata__") != NULL);
    size_t bytes = ((size_t)tensors + 1) * sizeof **out;
    for (int64_t i = 0; i < hd_json_count(root); i++)
        bytes += strlen(hd_json_key(hd_json_at(root, i))) + 1;
    hd_safetensors_entry *entry = calloc(1, bytes);
    if (!entry) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its index", file);
    hd_status status = read_entries(entry, tensors, file, root, data_bytes);
    if (status != HD_OK) {
        free(entry);
        return status;
    }
    *out = entry;
    *count = tensors;
    return HD_OK;
}

hd_status hd_safetensors_parse(hd_safetensors_entry **out, int64_t *count, const char *name,
                               const char *header, size_t header_bytes, int64_t data_bytes)
{
    char title[600];
    snprintf(title, sizeof title, "%s: header", name);
    if (header_bytes == 0 || header[0] != '{')
        return hd_fail(HD_ERR_FORMAT, "%s: its header does not begin with {; is it safetensors?",
                       name);
    hd_json_doc *doc;
    HD_TRY(hd_json_parse(&doc, title, header, header_bytes));
    hd_status status = parse_root(out, count, name, hd_json_root(doc), data_bytes);
    hd_json_free(doc);
    // Nobody gave these values: the file is damaged.
    return status == HD_ERR_ARGUMENT ? HD_ERR_FORMAT : status;
}

// What a file that is no safetensors file is instead, if that is easily told.
static hd_status fail_length(const char *path, const unsigned char *start, uint64_t length,
                             int64_t file_bytes)
{
    if (memcmp(start, "version ", 8) == 0)
        return hd_fail(HD_ERR_FORMAT, "%s: is a Git LFS pointer, not the file; run git lfs pull",
                       path);
    if (memcmp(start, "PK\3\4", 4) == 0)
        return hd_fail(HD_ERR_UNSUPPORTED, "%s: is a PyTorch checkpoint, not safetensors", path);
    if (length > HEADER_MOST)
        return hd_fail(HD_ERR_FORMAT,
                       "%s: its header would be %llu bytes, at most %d are allowed; is it "
                       "safetensors?",
                       path, (unsigned long long)length, HEADER_MOST);
    return hd_fail(HD_ERR_FORMAT,
                   "%s: its header takes %llu bytes, the file has %lld; is it cut (an unfinished "
                   "download)?",
                   path, (unsigned long long)length, (long long)file_bytes);
}

static hd_status read_header(hd_safetensors *f)
{
    unsigned char start[LENGTH_BYTES];
    int64_t file_bytes;
    HD_TRY(hd_file_size(f->fd, f->path, &file_bytes));
    if (file_bytes < LENGTH_BYTES)
        return hd_fail(HD_ERR_FORMAT,
                       "%s: is %lld bytes long, too short for safetensors; is it cut (an "
                       "unfinished download)?",
                       f->path, (long long)file_bytes);
    HD_TRY(hd_file_read_at(f->fd, f->path, 0, start, LENGTH_BYTES));
    uint64_t length = 0;
    for (int i = 0; i < LENGTH_BYTES; i++)
        length |= (uint64_t)start[i] << (8 * i);
    if (length > HEADER_MOST || (int64_t)length > file_bytes - LENGTH_BYTES)
        return fail_length(f->path, start, length, file_bytes);
    char *header = malloc((size_t)length + 1);
    if (!header) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its header", f->path);
    int64_t data = LENGTH_BYTES + (int64_t)length;
    hd_status status = hd_file_read_at(f->fd, f->path, LENGTH_BYTES, header, (int64_t)length);
    if (status == HD_OK)
        status = hd_safetensors_parse(&f->entry, &f->count, f->path, header, (size_t)length,
                                      file_bytes - data);
    free(header);
    for (int64_t i = 0; i < f->count; i++)
        f->entry[i].offset += data;
    return status;
}

hd_status hd_safetensors_open(hd_safetensors **out, const char *path)
{
    hd_safetensors *f = calloc(1, sizeof *f);
    if (!f) return hd_fail(HD_ERR_NOMEM, "%s: no memory to open it", path);
    f->fd = -1;
    f->path = strdup(path);
    hd_status status = f->path ? HD_OK : hd_fail(HD_ERR_NOMEM, "%s: no memory to open it", path);
    // Asked before it is opened: opening a pipe waits for somebody to write it.
    struct stat info;
    if (status == HD_OK && stat(path, &info) == 0 && S_ISFIFO(info.st_mode))
        status = hd_fail(HD_ERR_IO, "%s: is not a regular file", path);
    if (status == HD_OK) status = hd_file_open(&f->fd, path);
    if (status == HD_OK) status = read_header(f);
    if (status != HD_OK) {
        hd_safetensors_free(f);
        return status;
    }
    // A cold file is read from front to back: let the system read further ahead.
    (void)!posix_fadvise(f->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    *out = f;
    return HD_OK;
}

void hd_safetensors_free(hd_safetensors *f)
{
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    free(f->entry);
    free(f->path);
    free(f);
}

const char *hd_safetensors_path(const hd_safetensors *f)
{
    return f->path;
}

int64_t hd_safetensors_count(const hd_safetensors *f)
{
    return f->count;
}

const hd_safetensors_entry *hd_safetensors_at(const hd_safetensors *f, int64_t index)
{
    return &f->entry[index];
}

static hd_status copy_metadata(const hd_json *root, const char *key, char **value)
{
    const hd_json *node = hd_json_get(hd_json_get(root, "__metadata__"), key);
    const char *text;
    if (!node) return HD_OK;
    HD_TRY(hd_json_to_string(node, &text));
    *value = strdup(text);
    return *value ? HD_OK : hd_fail(HD_ERR_NOMEM, "safetensors: no memory for \"%s\"", key);
}

// The header is read anew: it was checked when the file was opened, and is seldom asked for.
hd_status hd_safetensors_metadata(const hd_safetensors *f, const char *key, char **value)
{
    uint64_t length = 0;
    *value = NULL;
    HD_TRY(hd_file_read_at(f->fd, f->path, 0, &length, LENGTH_BYTES)); // little endian, as we are
    if (length > HEADER_MOST) return hd_fail(HD_ERR_FORMAT, "%s: has changed", f->path);
    char *header = malloc((size_t)length + 1);
    if (!header) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its header", f->path);
    hd_json_doc *doc = NULL;
    hd_status status = hd_file_read_at(f->fd, f->path, LENGTH_BYTES, header, (int64_t)length);
    if (status == HD_OK) status = hd_json_parse(&doc, f->path, header, (size_t)length);
    if (status == HD_OK) status = copy_metadata(hd_json_root(doc), key, value);
    hd_json_free(doc);
    free(header);
    return status;
}

hd_status hd_safetensors_read(const hd_safetensors *f, const hd_safetensors_entry *entry,
                              int64_t from, void *into, int64_t bytes)
{
    HD_ENSURE(from >= 0 && bytes >= 0 && from <= entry->bytes - bytes);
    return hd_note(hd_file_read_at(f->fd, f->path, entry->offset + from, into, bytes),
                   "while reading %s", entry->name);
}
