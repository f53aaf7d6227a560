/* engine/weights/tensor_file.h: small files of learned tensors that a run brings along beside its
 * model: embeddings of words, keys and values.
 *
 * Only safetensors: a PyTorch pickle (.pt, .bin, .ckpt) can run any program when it is read, and is
 * refused with the way to convert it. */
#ifndef HD_ENGINE_WEIGHTS_TENSOR_FILE_H
#define HD_ENGINE_WEIGHTS_TENSOR_FILE_H

#include "engine/weights/safetensors.h"

HD_BEGIN_DECLS

/* As hd_safetensors_open. */
HD_CHECKED hd_status hd_tensor_file_open(hd_safetensors **out, const char *path);
/* The tensor as f32, row after row; the caller frees *out. HD_ERR_UNSUPPORTED for a type that holds
 * no fractions; HD_ERR_FORMAT for values that are not finite. */
HD_CHECKED hd_status hd_tensor_file_floats(float **out, const hd_safetensors *file,
                                           const hd_safetensors_entry *entry);
/* "[2, 768]" into text; returns text. */
char *hd_tensor_file_shape(char *text, size_t bytes, hd_shape shape);

HD_END_DECLS
#endif
