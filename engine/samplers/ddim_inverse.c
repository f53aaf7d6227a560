/* engine/samplers/ddim_inverse.c: DDIM run backwards, from a picture to the noise that DDIM would
 * make it from (Mokady et al., "Null-text Inversion", section 3). Timesteps ascend; what the
 * network is told at a call is the level that the latent reaches by it. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>

static const hd_sampler_key ddim_inverse_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "clip_sample", .def = true},
    {.name = "clip_sample_range", .def = 1},
    {.name = "set_alpha_to_one", .def = true},
    {.name = "steps_offset"},
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    {.name = "timestep_spacing",
     .def = HD_SPACING_LEADING,
     .takes = HD_TAKES(HD_SPACING_LEADING) | HD_TAKES(HD_SPACING_TRAILING)},
    {.name = "rescale_betas_zero_snr"},
    {.name = NULL},
};

// The level a call starts from: one step below the timestep it is told.
static float level_before(const hd_sampler *s, int64_t timestep)
{
    int64_t t = timestep - s->config.num_train_timesteps / s->options.steps;
    if (t >= s->config.num_train_timesteps) t = s->config.num_train_timesteps - 1;
    if (t >= 0) return s->alphas_cumprod[t];
    return s->config.set_alpha_to_one ? 1.0f : s->alphas_cumprod[0];
}

static hd_status ddim_inverse_prepare(hd_sampler *s)
{
    HD_TRY(hd_schedule_trained_timesteps(s));
    for (int64_t i = 0; i < s->count / 2; i++) {
        hd_sampler_call_info swapped = s->calls[i];
        s->calls[i] = s->calls[s->count - 1 - i];
        s->calls[s->count - 1 - i] = swapped;
    }
    for (int64_t i = 0; i < s->count; i++) {
        float a = level_before(s, (int64_t)s->calls[i].timestep);
        s->calls[i].alpha = sqrtf(a);
        s->calls[i].sigma = sqrtf(1.0f - a);
        if (a == 1.0f && s->config.prediction_type == HD_PREDICTION_SAMPLE)
            return hd_sampler_refuse(s, "prediction_type \"sample\" cannot start from a picture "
                                        "without noise; set_alpha_to_one must be false");
    }
    return HD_OK;
}

static hd_status ddim_inverse_step(hd_sampler *s, const float *output, float *latent,
                                   const hd_noise *noise)
{
    (void)noise;
    const hd_sampler_call_info *call = &s->calls[s->at];
    float a_next = s->alphas_cumprod[(int64_t)call->timestep];
    float root_a = call->alpha, root_b = call->sigma;
    float to_noise = sqrtf(1.0f - a_next), to_x0 = sqrtf(a_next);
    const float *x0 = hd_sampler_clipped(s, output, latent);
    for (int64_t i = 0; i < s->values; i++) {
        float epsilon = output[i];
        if (s->config.prediction_type == HD_PREDICTION_SAMPLE)
            epsilon = (latent[i] - root_a * output[i]) / root_b;
        else if (s->config.prediction_type == HD_PREDICTION_V)
            epsilon = root_a * output[i] + root_b * latent[i];
        latent[i] = to_x0 * x0[i] + to_noise * epsilon;
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_ddim_inverse = {
    .name = "ddim-inverse",
    .diffusers = "DDIMInverseScheduler",
    .keys = ddim_inverse_keys,
    .no_start_in_the_middle = true,
    .calls_per_step = 1,
    .prepare = ddim_inverse_prepare,
    .step = ddim_inverse_step,
};
