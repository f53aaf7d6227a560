/* engine/samplers/lcm.c: sampling of latent consistency models (Luo et al., "Latent Consistency
 * Models", algorithm 3): jump to the picture, mix in fresh noise, again. Steps are a subset of the
 * ones the model was distilled with. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

static const hd_sampler_key lcm_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.00085, 0.012, HD_BETA_SCALED_LINEAR),
    {.name = "original_inference_steps", .def = 50},
    {.name = "clip_sample"},
    {.name = "clip_sample_range", .def = 1},
    {.name = "set_alpha_to_one", .def = true},
    {.name = "steps_offset"},
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    HD_SAMPLER_THRESHOLD_KEYS,
    {.name = "timestep_spacing", .def = HD_SPACING_LEADING},
    {.name = "timestep_scaling", .def = 10},
    {.name = "rescale_betas_zero_snr"},
    {.name = NULL},
};

static hd_status lcm_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps, distilled = s->config.original_inference_steps;
    int64_t train = s->config.num_train_timesteps;
    if (distilled > train)
        return hd_sampler_refuse(s,
                                 "original_inference_steps is %lld, more than "
                                 "num_train_timesteps, %lld",
                                 (long long)distilled, (long long)train);
    if (n > distilled)
        return hd_sampler_refuse(s,
                                 "%lld steps, but the model was distilled with %lld "
                                 "(original_inference_steps)",
                                 (long long)n, (long long)distilled);
    HD_TRY(hd_schedule_training(s, false));
    HD_TRY(hd_schedule_allocate(s, n));
    for (int64_t i = 0; i < n; i++) {
        // floor of numpy.linspace(0, distilled, n, endpoint=False), counted from the noisy end
        int64_t index = (int64_t)floor((double)i * ((double)distilled / (double)n));
        HD_TRY(hd_schedule_call_at(s, i, (double)((distilled - index) * (train / distilled) - 1)));
    }
    return HD_OK;
}

static hd_status lcm_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    bool last = s->at == s->count - 1;
    float scaled = s->calls[s->at].timestep * (float)s->config.timestep_scaling;
    float spread = scaled * scaled + 0.25f; // the data's deviation is taken as 0.5
    float of_latent = 0.25f / spread, of_x0 = scaled / sqrtf(spread);
    const float *x0 = hd_sampler_clipped(s, output, latent);
    for (int64_t i = 0; i < s->values; i++)
        latent[i] = of_x0 * x0[i] + of_latent * latent[i];
    if (last) return HD_OK;
    HD_TRY(hd_sampler_draw(s, noise));
    const hd_sampler_call_info *next = &s->calls[s->at + 1];
    for (int64_t i = 0; i < s->values; i++)
        latent[i] = next->alpha * latent[i] + next->sigma * s->noise[i];
    return HD_OK;
}

const hd_sampler_class hd_sampler_lcm = {
    .name = "lcm",
    .diffusers = "LCMScheduler",
    .keys = lcm_keys,
    .calls_per_step = 1,
    .prepare = lcm_prepare,
    .step = lcm_step,
};
