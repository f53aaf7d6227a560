/* engine/samplers/noise.c: draws channels first, stores channels last. */
#include "engine/samplers/noise.h"

void hd_noise_channels_last(hd_rng *rng, float *values, int64_t channels, int64_t places,
                            float *scratch)
{
    hd_rng_normal(rng, scratch, channels * places);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < places; p++)
            values[p * channels + c] = scratch[c * places + p];
}

static void draw_row(void *arg, int64_t row, float *values, int64_t count)
{
    const hd_row_noise *rows = arg;
    (void)count;
    hd_noise_channels_last(rows->rng[row], values, rows->channels, rows->places, rows->scratch);
}

hd_noise hd_row_noise_source(hd_row_noise *rows)
{
    return (hd_noise){draw_row, rows};
}
