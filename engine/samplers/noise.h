/* engine/samplers/noise.h: the noise of pictures whose latents are stored channels last.
 *
 * PyTorch's pipelines draw a latent as [C, H, W]; ours are [H, W, C]. The values of one draw are
 * the same, each at its own place. */
#ifndef HD_ENGINE_SAMPLERS_NOISE_H
#define HD_ENGINE_SAMPLERS_NOISE_H

#include "engine/rng.h"
#include "engine/samplers/sampler.h"

HD_BEGIN_DECLS

/* One generator per row, all borrowed. `scratch` holds channels * places values. */
typedef struct hd_row_noise {
    hd_rng *const *rng;       // [rows]
    int64_t channels, places; // places = height * width of the latent
    float *scratch;
} hd_row_noise;

/* values [places, channels]: one torch.randn of [channels, places] from rng, transposed. */
void hd_noise_channels_last(hd_rng *rng, float *values, int64_t channels, int64_t places,
                            float *scratch);

/* As the noise of a sampler whose rows are [places, channels]; `rows` must outlive it. */
hd_noise hd_row_noise_source(hd_row_noise *rows);

HD_END_DECLS
#endif
