/* engine/samplers/ddpm.c: DDPM (Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models",
 * eqs. 6 and 7): the posterior mean, plus noise of the posterior's variance while t > 0. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

static const hd_sampler_key ddpm_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "variance_type", .def = HD_VARIANCE_SMALL},
    {.name = "clip_sample", .def = true},
    {.name = "clip_sample_range", .def = 1},
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    HD_SAMPLER_THRESHOLD_KEYS,
    {.name = "timestep_spacing", .def = HD_SPACING_LEADING},
    {.name = "steps_offset"},
    {.name = "rescale_betas_zero_snr"},
    {.name = NULL},
};

static float ddpm_deviation(const hd_sampler *s, float a, float a_prev)
{
    float beta = 1.0f - a / a_prev;
    float variance = fmaxf((1.0f - a_prev) / (1.0f - a) * beta, 1e-20f);
    switch ((hd_variance)s->config.variance_type) {
    case HD_VARIANCE_SMALL:
        break;
    case HD_VARIANCE_SMALL_LOG:
        return expf(0.5f * logf(variance));
    case HD_VARIANCE_LARGE:
        variance = beta;
        break;
    }
    return sqrtf(variance);
}

static hd_status ddpm_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    int64_t t = (int64_t)s->calls[s->at].timestep;
    bool last = s->at == s->count - 1;
    float a = s->alphas_cumprod[t];
    float a_prev = last ? 1.0f : s->alphas_cumprod[(int64_t)s->calls[s->at + 1].timestep];
    float alpha_now = a / a_prev, beta_now = 1.0f - alpha_now;
    float of_x0 = sqrtf(a_prev) * beta_now / (1.0f - a);
    float of_latent = sqrtf(alpha_now) * (1.0f - a_prev) / (1.0f - a);
    const float *x0 = hd_sampler_clipped(s, output, latent);
    for (int64_t i = 0; i < s->values; i++)
        latent[i] = of_x0 * x0[i] + of_latent * latent[i];
    if (t == 0) return HD_OK;
    HD_TRY(hd_sampler_draw(s, noise));
    float deviation = ddpm_deviation(s, a, a_prev);
    for (int64_t i = 0; i < s->values; i++)
        latent[i] += deviation * s->noise[i];
    return HD_OK;
}

const hd_sampler_class hd_sampler_ddpm = {
    .name = "ddpm",
    .diffusers = "DDPMScheduler",
    .keys = ddpm_keys,
    .calls_per_step = 1,
    .prepare = hd_schedule_trained_timesteps,
    .step = ddpm_step,
};
