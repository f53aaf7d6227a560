/* engine/samplers/heun.c: Heun's method in sigma (Karras et al., "Elucidating the Design Space of
 * Diffusion-Based Generative Models", algorithm 1): an Euler step, a second call at its end, and
 * the step again with the mean slope. The last step, to zero, has one call: 2 n - 1 calls. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>
#include <string.h>

static const hd_sampler_key heun_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.00085, 0.012, HD_BETA_LINEAR),
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    HD_SAMPLER_CURVE_KEYS,
    {.name = "clip_sample"},
    {.name = "clip_sample_range", .def = 1},
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "steps_offset"},
    {.name = NULL},
};

enum { SLOPE, START };

static hd_status heun_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_allocate(s, 2 * n - 1));
    double *t = malloc(sizeof *t * (size_t)n);
    if (!t) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_status status = hd_schedule_sigma_space(s, t);
    if (status == HD_OK) {
        // every level but the first and the last is called twice: 0, 1, 1, 2, 2, ..
        s->sigmas[2 * n - 1] = s->sigmas[n];
        for (int64_t i = 2 * n - 2; i > 0; i--)
            s->sigmas[i] = s->sigmas[(i + 1) / 2];
        for (int64_t i = 0; i < s->count; i++)
            hd_schedule_sigma_call(s, i, t[(i + 1) / 2]);
    }
    free(t);
    return status;
}

static hd_status heun_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    (void)noise;
    bool second = (s->at - s->begin) % 2 == 1;
    float sigma = s->sigmas[s->at];
    float *slope = s->history[SLOPE], *start = s->history[START];
    const float *x0 = hd_sampler_clipped(s, output, latent);
    if (!second) {
        float dt = s->sigmas[s->at + 1] - sigma;
        memcpy(start, latent, sizeof *start * (size_t)s->values);
        for (int64_t i = 0; i < s->values; i++) {
            slope[i] = (latent[i] - x0[i]) / sigma;
            latent[i] = latent[i] + slope[i] * dt;
        }
        return HD_OK;
    }
    float dt = sigma - s->sigmas[s->at - 1];
    for (int64_t i = 0; i < s->values; i++) {
        float mean = (slope[i] + (latent[i] - x0[i]) / sigma) / 2;
        latent[i] = start[i] + mean * dt;
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_heun = {
    .name = "heun",
    .diffusers = "HeunDiscreteScheduler",
    .keys = heun_keys,
    .calls_per_step = 2,
    .history = 2,
    .prepare = heun_prepare,
    .step = heun_step,
};
