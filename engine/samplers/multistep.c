/* engine/samplers/multistep.c: what DPM-Solver and UniPC share: levels as (alpha, sigma, lambda).
 */
#include "engine/samplers/schedule.h"

hd_status hd_schedule_check_multistep(const hd_sampler *s)
{
    const hd_sampler_config *c = &s->config;
    HD_TRY(hd_schedule_check_curves(s));
    if ((c->prediction_type == HD_PREDICTION_FLOW) != c->use_flow_sigmas)
        return hd_sampler_refuse(s,
                                 "use_flow_sigmas is %s; true goes with prediction_type "
                                 "\"flow_prediction\", and only with it",
                                 c->use_flow_sigmas ? "true" : "false");
    if (c->use_dynamic_shifting)
        return hd_sampler_refuse(s, "use_dynamic_shifting is true; supported is false, with the "
                                    "shift in flow_shift");
    if (c->use_flow_sigmas && (c->use_exponential_sigmas || c->use_beta_sigmas))
        return hd_sampler_refuse(s, "use_flow_sigmas cannot be combined with "
                                    "use_exponential_sigmas or use_beta_sigmas");
    return HD_OK;
}

hd_level hd_schedule_level(const hd_sampler *s, int64_t index)
{
    float sigma = s->sigmas[index];
    hd_level level;
    if (s->config.use_flow_sigmas) {
        level.alpha = 1.0f - sigma;
        level.sigma = sigma;
    } else {
        level.alpha = 1.0f / sqrtf(sigma * sigma + 1.0f);
        level.sigma = sigma * level.alpha;
    }
    level.lambda = logf(level.alpha) - logf(level.sigma);
    return level;
}

hd_status hd_schedule_multistep(hd_sampler *s, const double *timesteps, const double *sigmas,
                                double last)
{
    HD_TRY(hd_schedule_allocate(s, s->options.steps));
    for (int64_t i = 0; i < s->count; i++)
        s->sigmas[i] = (float)sigmas[i];
    s->sigmas[s->count] = (float)last;
    for (int64_t i = 0; i < s->count; i++) {
        hd_level level = hd_schedule_level(s, i);
        s->calls[i] =
            (hd_sampler_call_info){(float)(int64_t)timesteps[i], level.alpha, level.sigma, 1.0f};
    }
    return hd_schedule_check_falling(s, s->count - 1);
}
