/* unet/blocks/time_embedding.h: the sampler's timestep, and the guidance scale of distilled models,
 * as a vector: sinusoids through two linear layers.
 *
 * In f32 in every mode: sinusoids of large timesteps do not survive bf16, and it is a few
 * megabytes. Reference: diffusers' Timesteps and TimestepEmbedding. */
#ifndef HD_UNET_BLOCKS_TIME_EMBEDDING_H
#define HD_UNET_BLOCKS_TIME_EMBEDDING_H

#include "engine/ops/norm.h"
#include "engine/weights/binder.h"

HD_BEGIN_DECLS

typedef struct hd_time_embedding_spec {
    int64_t in, out;
    int64_t guidance; // width of the guidance embedding; 0: none
    bool flip_sin_to_cos;
    float freq_shift;
    hd_activation act;      // between the layers
    hd_activation post_act; // behind them
} hd_time_embedding_spec;

typedef struct hd_time_embedding {
    hd_time_embedding_spec spec;
    struct hd_time_layer {
        float *weight, *bias; // until hd_time_embedding_pack
        hd_linear *linear;
        int64_t in, out;
    } first, second, guidance;
} hd_time_embedding;

/* Declares "time_embedding.*". *t must be zeroed before. After the load, pack. */
void hd_time_embedding_declare(hd_time_embedding *t, hd_binder *b,
                               const hd_time_embedding_spec *spec);
HD_CHECKED hd_status hd_time_embedding_pack(hd_time_embedding *t, const hd_exec *ex);
void hd_time_embedding_free(hd_time_embedding *t);

/* out [B, out] f32. timestep [B]; guidance [B] or NULL. */
HD_CHECKED hd_status hd_time_embedding_run(const hd_exec *ex, const hd_time_embedding *t,
                                           hd_tensor out, const float *timestep,
                                           const float *guidance);

HD_END_DECLS
#endif
