/* engine/samplers/flow_euler.c: Euler's method for models trained by flow matching (Lipman et al.,
 * "Flow Matching for Generative Modeling"), which predict noise - picture. Levels go from 1 to 0
 * and are shifted towards noise by a constant or by the size of the picture (Esser et al., "Scaling
 * Rectified Flow Transformers", section 5.3.2). */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>

static const hd_sampler_key flow_euler_keys[] = {
    {.name = "num_train_timesteps", .def = 1000},
    {.name = "shift", .def = 1},
    {.name = "use_dynamic_shifting"},
    {.name = "base_shift", .def = 0.5},
    {.name = "max_shift", .def = 1.15},
    {.name = "base_image_seq_len", .def = 256},
    {.name = "max_image_seq_len", .def = 4096},
    {.name = "invert_sigmas"},
    {.name = "shift_terminal", .def = (double)NAN},
    HD_SAMPLER_CURVE_KEYS,
    {.name = "time_shift_type", .def = HD_SHIFT_EXPONENTIAL},
    {.name = "stochastic_sampling"},
    {.name = NULL},
};

// A level of training in f32, as torch holds them: t of num_train_timesteps, shifted.
static double flow_train_level(const hd_sampler *s, int64_t t)
{
    const hd_sampler_config *c = &s->config;
    float sigma = (float)t / (float)c->num_train_timesteps, shift = (float)c->shift;
    if (!c->use_dynamic_shifting) sigma = shift * sigma / (1.0f + (float)(c->shift - 1) * sigma);
    return (double)sigma;
}

static hd_status flow_levels(const hd_sampler *s, double *sigmas)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps;
    double train = (double)c->num_train_timesteps, mu = 0;
    double high = flow_train_level(s, c->num_train_timesteps) * train;
    double low = flow_train_level(s, 1) * train;
    if (c->use_dynamic_shifting) HD_TRY(hd_flow_mu(s, &mu));
    for (int64_t i = 0; i < n; i++) {
        sigmas[i] =
            s->options.sigmas ? (double)s->options.sigmas[i] : hd_linspace(high, low, n, i) / train;
        if (!(sigmas[i] > 0 && sigmas[i] <= 1))
            return hd_fail(HD_ERR_ARGUMENT, "sampler: level %lld is %g, must be above 0, up to 1",
                           (long long)i, sigmas[i]);
        sigmas[i] = hd_flow_shift(s, c->shift, mu, sigmas[i]);
    }
    hd_flow_stretch(s, sigmas);
    hd_schedule_curve(s, sigmas[n - 1], sigmas[0], sigmas);
    return HD_OK;
}

static hd_status flow_euler_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_check_curves(s));
    HD_TRY(hd_schedule_allocate(s, n));
    s->config.prediction_type = HD_PREDICTION_FLOW;
    double *sigmas = malloc(sizeof *sigmas * (size_t)n);
    if (!sigmas) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_status status = flow_levels(s, sigmas);
    for (int64_t i = 0; i < n && status == HD_OK; i++) {
        float sigma = (float)sigmas[i];
        if (s->config.invert_sigmas) sigma = 1.0f - sigma;
        float t = sigma * (float)s->config.num_train_timesteps;
        s->sigmas[i] = sigma;
        s->calls[i] = (hd_sampler_call_info){t, 1.0f - sigma, sigma, 1.0f};
    }
    free(sigmas);
    s->sigmas[n] = s->config.invert_sigmas ? 1.0f : 0.0f;
    return status;
}

static hd_status flow_euler_step(hd_sampler *s, const float *output, float *latent,
                                 const hd_noise *noise)
{
    float sigma = s->sigmas[s->at], next = s->sigmas[s->at + 1], dt = next - sigma;
    if (!s->config.stochastic_sampling) {
        for (int64_t i = 0; i < s->values; i++)
            latent[i] = latent[i] + dt * output[i];
        return HD_OK;
    }
    HD_TRY(hd_sampler_draw(s, noise));
    for (int64_t i = 0; i < s->values; i++) {
        float x0 = latent[i] - sigma * output[i];
        latent[i] = (1.0f - next) * x0 + next * s->noise[i];
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_flow_euler = {
    .name = "flow-euler",
    .diffusers = "FlowMatchEulerDiscreteScheduler",
    .keys = flow_euler_keys,
    .flow = true,
    .calls_per_step = 1,
    .prepare = flow_euler_prepare,
    .step = flow_euler_step,
};
