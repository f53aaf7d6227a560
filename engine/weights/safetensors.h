/* engine/weights/safetensors.h: one .safetensors file: its header, checked to the last field, and
 * reads of its tensors.
 *
 * The file is 8 bytes of header length (little endian), the header (JSON: name -> dtype, shape,
 * data_offsets), and the tensors' bytes, which cover the rest without overlap or hole. It is read,
 * not mapped: a file that is cut while it is open gives an error instead of a signal, and the
 * system's cache of it never counts as our memory. */
#ifndef HD_ENGINE_WEIGHTS_SAFETENSORS_H
#define HD_ENGINE_WEIGHTS_SAFETENSORS_H

#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_safetensors hd_safetensors;

typedef struct hd_safetensors_entry {
    const char *name; // borrowed from the file
    hd_dtype dtype;
    hd_shape shape;
    int64_t offset; // of its bytes, from the start of the file; of any alignment
    int64_t bytes;
} hd_safetensors_entry;

/* HD_ERR_IO when it cannot be read, HD_ERR_FORMAT when a field is wrong, HD_ERR_UNSUPPORTED for an
 * element type or a rank that we lack. The caller owns *out. hd_safetensors_free(NULL) does
 * nothing. */
HD_CHECKED hd_status hd_safetensors_open(hd_safetensors **out, const char *path);
void hd_safetensors_free(hd_safetensors *file);

const char *hd_safetensors_path(const hd_safetensors *file);
int64_t hd_safetensors_count(const hd_safetensors *file);
const hd_safetensors_entry *hd_safetensors_at(const hd_safetensors *file, int64_t index);

/* The text that the file's metadata has under `key`; the caller frees *value. NULL: there is none.
 */
HD_CHECKED hd_status hd_safetensors_metadata(const hd_safetensors *file, const char *key,
                                             char **value);

/* `bytes` bytes of a tensor from byte `from` of it. Several threads may read one file. */
HD_CHECKED hd_status hd_safetensors_read(const hd_safetensors *file,
                                         const hd_safetensors_entry *entry, int64_t from,
                                         void *into, int64_t bytes);

/* The check alone, of a header in memory, before tensors of data_bytes bytes in all: *out is an
 * array of *count entries whose names lie behind it in the same block; the caller frees it. */
HD_CHECKED hd_status hd_safetensors_parse(hd_safetensors_entry **out, int64_t *count,
                                          const char *name, const char *header, size_t header_bytes,
                                          int64_t data_bytes);

HD_END_DECLS
#endif
