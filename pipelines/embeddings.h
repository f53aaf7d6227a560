/* pipelines/embeddings.h: the learned words of a run.
 *
 *     "embeddings": [{"file": "cat.safetensors", "token": "<cat>"}, "dog.safetensors"]
 *
 * They belong to the run, not to the model: the tokenizer is extended and the vectors lie behind
 * the text encoder's vocabulary for as long as the run lasts. */
#ifndef HD_PIPELINES_EMBEDDINGS_H
#define HD_PIPELINES_EMBEDDINGS_H

#include "pipelines/model.h"

HD_BEGIN_DECLS

typedef struct hd_embeddings {
    const hd_tokenizer *tokenizer; // the model's, or `own`
    hd_tokenizer *own;
    float *vectors; // [count, channels]
    int64_t count;
} hd_embeddings;

/* node: the preset's list, a file name or an object alone is a list of one; NULL: none. Refused
 * with the path of the entry. Free with hd_embeddings_free, on failure too. */
HD_CHECKED hd_status hd_embeddings_read(hd_embeddings *out, const hd_json *node,
                                        const hd_model *model);
void hd_embeddings_free(hd_embeddings *embeddings);

HD_END_DECLS
#endif
