/* engine/samplers/euler.c: Euler's method in sigma (Karras et al., "Elucidating the Design Space of
 * Diffusion-Based Generative Models", algorithm 1 without its second order). */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>

static const hd_sampler_key euler_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    {.name = "interpolation_type", .def = HD_INTERPOLATE_LINEAR},
    HD_SAMPLER_CURVE_KEYS,
    HD_SAMPLER_SIGMA_RANGE_KEYS,
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "timestep_type", .def = HD_TIMESTEP_DISCRETE},
    {.name = "steps_offset"},
    {.name = "rescale_betas_zero_snr"},
    {.name = "final_sigmas_type", .def = HD_FINAL_ZERO},
    {.name = NULL},
};

static hd_status euler_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_allocate(s, n));
    double *t = malloc(sizeof *t * (size_t)n);
    if (!t) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_status status = hd_schedule_sigma_space(s, t);
    // Networks of this kind are told the logarithm of the level instead of a timestep.
    bool continuous = s->config.timestep_type == HD_TIMESTEP_CONTINUOUS &&
                      s->config.prediction_type == HD_PREDICTION_V;
    for (int64_t i = 0; i < n && status == HD_OK; i++) {
        if (continuous) t[i] = (double)(0.25f * logf(s->sigmas[i]));
        hd_schedule_sigma_call(s, i, t[i]);
    }
    free(t);
    return status;
}

static hd_status euler_step(hd_sampler *s, const float *output, float *latent,
                            const hd_noise *noise)
{
    (void)noise;
    float sigma = s->sigmas[s->at], dt = s->sigmas[s->at + 1] - sigma;
    hd_sampler_predict(s, s->x0, output, latent);
    for (int64_t i = 0; i < s->values; i++)
        latent[i] = latent[i] + (latent[i] - s->x0[i]) / sigma * dt;
    return HD_OK;
}

const hd_sampler_class hd_sampler_euler = {
    .name = "euler",
    .diffusers = "EulerDiscreteScheduler",
    .keys = euler_keys,
    .calls_per_step = 1,
    .prepare = euler_prepare,
    .step = euler_step,
};
