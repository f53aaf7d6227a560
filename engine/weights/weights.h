/* engine/weights/weights.h: the tensors of a model's files, by name.
 *
 * A component's folder holds one safetensors file, several, or shards with an index. Every field of
 * a header is validated before it is used. Nothing stays mapped: tensors are copied out with
 * hd_weights_read, so that a file which is cut while it is open is an error, not a signal. */
#ifndef HD_ENGINE_WEIGHTS_WEIGHTS_H
#define HD_ENGINE_WEIGHTS_WEIGHTS_H

#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_weights hd_weights;

typedef struct hd_weight_info {
    const char *name; // as in the file (after renaming)
    const char *file; // base name of the file that holds it
    hd_dtype dtype;
    hd_shape shape;
    int64_t bytes;
    int64_t file_number, offset; // where it is: reading in this order is fastest
} hd_weight_info;

/* `path`: a .safetensors file, an index of shards, or a folder that holds <stem>.safetensors,
 * <stem>.fp16.safetensors, or their sharded forms (<stem>*.index.json, or all of
 * <stem>-00001-of-0000N.safetensors), `stem` being "diffusion_pytorch_model", "model" ...; NULL
 * tries these two. Full-precision files win over variants. A folder with only .bin weights is
 * HD_ERR_UNSUPPORTED and says how to convert. The caller owns *out; hd_weights_free(NULL) does
 * nothing. */
HD_CHECKED hd_status hd_weights_open(hd_weights **out, const char *path, const char *stem);
void hd_weights_free(hd_weights *weights);
const char *hd_weights_path(const hd_weights *weights);

int64_t hd_weights_count(const hd_weights *weights);
hd_weight_info hd_weights_info(const hd_weights *weights, int64_t index); // sorted by name
int64_t hd_weights_find(const hd_weights *weights, const char *name);     // -1 if absent
/* 64-bit hash (XXH3) of the names in the files, types, shapes and contents, as hex. The same for a
 * model in one file and in shards. Reads what hd_weights_read has not read yet, nothing else. */
HD_CHECKED hd_status hd_weights_hash(const hd_weights *weights, char text[17]);

/* Renames tensors before binding: `rename` writes the new name into `out` and returns true, or
 * returns false to keep it. */
HD_CHECKED hd_status hd_weights_rename(hd_weights *weights,
                                       bool (*rename)(const char *name, char *out, size_t bytes));

/* Copies tensor `index`, as it is in the file, into `into` (bytes as in its info). Several threads
 * may read. HD_ERR_IO names file and tensor. */
HD_CHECKED hd_status hd_weights_read(const hd_weights *weights, int64_t index, void *into);

HD_END_DECLS
#endif
