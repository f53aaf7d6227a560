/* engine/samplers/ddim.c: DDIM (Song, Meng, Ermon, "Denoising Diffusion Implicit Models", eq. 12),
 * deterministic, or with eta times the noise of DDPM. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

static const hd_sampler_key ddim_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "clip_sample", .def = true},
    {.name = "clip_sample_range", .def = 1},
    {.name = "set_alpha_to_one", .def = true},
    {.name = "steps_offset"},
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    HD_SAMPLER_THRESHOLD_KEYS,
    {.name = "timestep_spacing", .def = HD_SPACING_LEADING},
    {.name = "rescale_betas_zero_snr"},
    {.name = NULL},
};

static hd_status ddim_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    const hd_sampler_call_info *call = &s->calls[s->at];
    int64_t before = (int64_t)call->timestep - s->config.num_train_timesteps / s->options.steps;
    float a = s->alphas_cumprod[(int64_t)call->timestep];
    float a_prev = before >= 0                  ? s->alphas_cumprod[before]
                   : s->config.set_alpha_to_one ? 1.0f
                                                : s->alphas_cumprod[0];
    float root_a = call->alpha, root_b = call->sigma;
    float variance = (1.0f - a_prev) / (1.0f - a) * (1.0f - a / a_prev);
    float deviation = (float)s->options.eta * sqrtf(variance);
    float to_noise = sqrtf(1.0f - a_prev - deviation * deviation), to_x0 = sqrtf(a_prev);

    const float *x0 = hd_sampler_clipped(s, output, latent);
    if (s->options.eta > 0) HD_TRY(hd_sampler_draw(s, noise));
    for (int64_t i = 0; i < s->values; i++) {
        float epsilon = output[i];
        if (s->config.prediction_type == HD_PREDICTION_SAMPLE)
            epsilon = (latent[i] - root_a * output[i]) / root_b;
        else if (s->config.prediction_type == HD_PREDICTION_V)
            epsilon = root_a * output[i] + root_b * latent[i];
        latent[i] = to_x0 * x0[i] + to_noise * epsilon;
        if (s->options.eta > 0) latent[i] += deviation * s->noise[i];
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_ddim = {
    .name = "ddim",
    .diffusers = "DDIMScheduler",
    .keys = ddim_keys,
    .has_eta = true,
    .calls_per_step = 1,
    .prepare = hd_schedule_trained_timesteps,
    .step = ddim_step,
};
