/* engine/samplers/euler_ancestral.c: Euler's method to a level below the next one, then noise up to
 * it, as in DDPM's ancestral sampling. Noise is drawn at the last step too, though it adds none. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>

static const hd_sampler_key euler_ancestral_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V},
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "steps_offset"},
    {.name = "rescale_betas_zero_snr"},
    {.name = NULL},
};

static hd_status euler_ancestral_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_allocate(s, n));
    double *t = malloc(sizeof *t * (size_t)n);
    if (!t) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_status status = hd_schedule_sigma_space(s, t);
    for (int64_t i = 0; i < n && status == HD_OK; i++)
        hd_schedule_sigma_call(s, i, t[i]);
    free(t);
    return status;
}

static hd_status euler_ancestral_step(hd_sampler *s, const float *output, float *latent,
                                      const hd_noise *noise)
{
    float from = s->sigmas[s->at], to = s->sigmas[s->at + 1];
    float from2 = from * from, to2 = to * to;
    float up = sqrtf(to2 * (from2 - to2) / from2), down = sqrtf(to2 - up * up);
    float dt = down - from;
    HD_TRY(hd_sampler_draw(s, noise));
    hd_sampler_predict(s, s->x0, output, latent);
    for (int64_t i = 0; i < s->values; i++) {
        float moved = latent[i] + (latent[i] - s->x0[i]) / from * dt;
        latent[i] = moved + s->noise[i] * up;
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_euler_ancestral = {
    .name = "euler-a",
    .diffusers = "EulerAncestralDiscreteScheduler",
    .keys = euler_ancestral_keys,
    .calls_per_step = 1,
    .prepare = euler_ancestral_prepare,
    .step = euler_ancestral_step,
};
