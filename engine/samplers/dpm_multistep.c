/* engine/samplers/dpm_multistep.c: DPM-Solver and DPM-Solver++ in their multistep forms, order 1 to
 * 3, and their SDE versions (Lu et al., "DPM-Solver" and "DPM-Solver++").
 *
 * The ++ forms extrapolate the predicted picture, the others the predicted noise, in the half
 * logarithm of the signal-to-noise ratio, lambda. A step is a weighted sum of the latent, the
 * newest prediction D0, its differences D1 and D2, and noise; the weights are scalars. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>
#include <string.h>

static const hd_sampler_key dpm_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "solver_order", .def = 2},
    {.name = "prediction_type"},
    HD_SAMPLER_THRESHOLD_KEYS,
    {.name = "algorithm_type", .def = HD_DPM_PP},
    {.name = "solver_type", .def = HD_SOLVER_MIDPOINT},
    {.name = "lower_order_final", .def = true},
    {.name = "euler_at_final"},
    HD_SAMPLER_CURVE_KEYS,
    {.name = "use_lu_lambdas"},
    {.name = "use_flow_sigmas"},
    {.name = "flow_shift", .def = 1},
    {.name = "final_sigmas_type", .def = HD_FINAL_ZERO},
    {.name = "lambda_min_clipped", .def = -(double)INFINITY},
    {.name = "variance_type", .takes = HD_TAKES_NOTHING},
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "steps_offset"},
    {.name = "rescale_betas_zero_snr"},
    {.name = "use_dynamic_shifting"},
    {.name = "time_shift_type", .takes = HD_TAKES(HD_SHIFT_EXPONENTIAL)},
    {.name = NULL},
};

static bool dpm_predicts_x0(const hd_sampler *s)
{
    return s->config.algorithm_type == HD_DPM_PP || s->config.algorithm_type == HD_DPM_SDE_PP;
}

static hd_status dpm_check(hd_sampler *s)
{
    hd_sampler_config *c = &s->config;
    // The names that other solvers of the family use for the same thing.
    if (c->algorithm_type == HD_DPM_DEIS) c->algorithm_type = HD_DPM_PP;
    if (c->solver_type != HD_SOLVER_HEUN) c->solver_type = HD_SOLVER_MIDPOINT;
    HD_TRY(hd_schedule_check_multistep(s));
    bool curve = c->use_karras_sigmas || c->use_exponential_sigmas || c->use_beta_sigmas;
    if (c->use_flow_sigmas && (curve || c->use_lu_lambdas))
        return hd_sampler_refuse(s, "use_flow_sigmas cannot be combined with use_karras_sigmas or "
                                    "use_lu_lambdas");
    if (!dpm_predicts_x0(s) && c->final_sigmas_type == HD_FINAL_ZERO)
        return hd_sampler_refuse(s, "final_sigmas_type \"zero\" needs algorithm_type "
                                    "\"dpmsolver++\" or \"sde-dpmsolver++\"; use \"sigma_min\"");
    if (!dpm_predicts_x0(s) && c->prediction_type == HD_PREDICTION_FLOW)
        return hd_sampler_refuse(s, "prediction_type \"flow_prediction\" needs algorithm_type "
                                    "\"dpmsolver++\" or \"sde-dpmsolver++\"");
    if (c->algorithm_type == HD_DPM_SDE && c->solver_order > 2)
        return hd_sampler_refuse(s, "algorithm_type \"sde-dpmsolver\" has no solver_order 3; "
                                    "1 and 2 are supported");
    return HD_OK;
}

// How many timesteps have lambda >= lambda_min_clipped.
static int64_t dpm_unclipped(const hd_sampler *s)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < s->config.num_train_timesteps; i++) {
        float a = s->alphas_cumprod[i];
        float lambda = logf(sqrtf(a)) - logf(sqrtf(1.0f - a));
        if ((double)lambda >= s->config.lambda_min_clipped) kept++;
    }
    return kept;
}

// t and sigmas [steps], from the training's sigmas [train] and their logarithms [train].
static void dpm_levels(const hd_sampler *s, const float *train, const float *logs, double *t,
                       double *sigmas)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps, levels = c->num_train_timesteps;
    bool curve = hd_schedule_curve(s, (double)train[0], (double)train[levels - 1], sigmas);
    if (c->use_flow_sigmas) {
        for (int64_t i = 0; i < n; i++) {
            double sigma = 1.0 - hd_linspace(1, 1 / (double)levels, n + 1, n - i);
            sigmas[i] = hd_flow_shift(s, c->flow_shift, 0, sigma);
            t[i] = sigmas[i] * (double)levels;
        }
        return;
    }
    if (!curve && !c->use_lu_lambdas) {
        hd_schedule_spacing_multistep(s, dpm_unclipped(s), t);
        for (int64_t i = 0; i < n; i++)
            sigmas[i] = hd_schedule_interpolate(train, levels, t[i]);
        return;
    }
    bool lu = c->use_lu_lambdas && !c->use_karras_sigmas;
    bool whole = (c->use_karras_sigmas || lu) && c->beta_schedule != HD_BETA_COSINE;
    for (int64_t i = 0; i < n; i++) {
        double high = (double)logs[levels - 1], low = (double)logs[0];
        if (lu) sigmas[i] = exp(high + hd_linspace(0, 1, n, i) * (low - high));
        t[i] = hd_schedule_sigma_to_t(logs, levels, sigmas[i]);
        if (whole) t[i] = rint(t[i]);
    }
}

// Curves end at the level that final_sigmas_type "sigma_min" repeats: that step, of length 0, is
// defined for the sums that do not divide by its square.
static hd_status dpm_check_end(const hd_sampler *s)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->count;
    bool order_1 = c->solver_order == 1 || c->euler_at_final || (c->lower_order_final && n < 15);
    bool plain = c->solver_order == 2 && c->solver_type == HD_SOLVER_MIDPOINT;
    if (order_1 || plain) return HD_OK;
    return hd_schedule_check_falling(s, n);
}

static hd_status dpm_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps, levels = s->config.num_train_timesteps;
    HD_TRY(dpm_check(s));
    HD_TRY(hd_schedule_training(s, true));
    float *train = malloc(sizeof *train * 2 * (size_t)levels);
    double *t = malloc(sizeof *t * 2 * (size_t)n);
    hd_status status = HD_OK;
    if (!train || !t) {
        status = hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    } else {
        hd_schedule_train_sigmas(s, train);
        for (int64_t i = 0; i < levels; i++)
            train[levels + i] = logf(train[i]);
        dpm_levels(s, train, train + levels, t, t + n);
        double last = s->config.final_sigmas_type == HD_FINAL_ZERO ? 0 : (double)train[0];
        status = hd_schedule_multistep(s, t, t + n, last);
        if (status == HD_OK) status = dpm_check_end(s);
    }
    free(train);
    free(t);
    return status;
}

// The prediction that the solver extrapolates, into `out`.
static void dpm_convert(hd_sampler *s, float *out, const float *output, const float *latent)
{
    size_t bytes = sizeof *out * (size_t)s->values;
    if (dpm_predicts_x0(s)) {
        memcpy(out, hd_sampler_clipped(s, output, latent), bytes);
        return;
    }
    const hd_sampler_call_info *call = &s->calls[s->at];
    for (int64_t i = 0; i < s->values; i++) {
        if (s->config.prediction_type == HD_PREDICTION_SAMPLE)
            out[i] = (latent[i] - call->alpha * output[i]) / call->sigma;
        else if (s->config.prediction_type == HD_PREDICTION_V)
            out[i] = call->alpha * output[i] + call->sigma * latent[i];
        else
            out[i] = output[i];
    }
    if (!s->config.thresholding) return;
    for (int64_t i = 0; i < s->values; i++)
        s->x0[i] = (latent[i] - call->sigma * out[i]) / call->alpha;
    hd_sampler_threshold(s, s->x0);
    for (int64_t i = 0; i < s->values; i++)
        out[i] = (latent[i] - call->alpha * s->x0[i]) / call->sigma;
}

// A step: latent * of_latent + D0 * d0 + D1 * d1 + D2 * d2 + noise * of_noise.
typedef struct dpm_weights {
    float of_latent, d0, d1, d2, of_noise;
} dpm_weights;

// A flat table of the papers' update rules, one case per algorithm; h is the step in lambda.
static dpm_weights dpm_weigh(const hd_sampler *s, int order, hd_level from, hd_level to, float h)
{
    bool heun = order == 3 || s->config.solver_type == HD_SOLVER_HEUN;
    dpm_weights w = {0};
    float grown, part;
    switch ((hd_dpm_algorithm)s->config.algorithm_type) {
    case HD_DPM_PP:
    case HD_DPM_DEIS:
        part = expf(-h) - 1.0f;
        w.of_latent = to.sigma / from.sigma;
        w.d0 = -(to.alpha * part);
        w.d1 = heun ? to.alpha * (part / h + 1.0f) : -(0.5f * (to.alpha * part));
        w.d2 = -(to.alpha * ((part + h) / (h * h) - 0.5f));
        break;
    case HD_DPM:
        part = expf(h) - 1.0f;
        w.of_latent = to.alpha / from.alpha;
        w.d0 = -(to.sigma * part);
        w.d1 = heun ? -(to.sigma * (part / h - 1.0f)) : -(0.5f * (to.sigma * part));
        w.d2 = -(to.sigma * ((part - h) / (h * h) - 0.5f));
        break;
    case HD_DPM_SDE_PP:
        grown = 1.0f - expf(-2.0f * h);
        w.of_latent = to.sigma / from.sigma * expf(-h);
        w.d0 = to.alpha * grown;
        w.d1 = heun ? to.alpha * (grown / (-2.0f * h) + 1.0f) : 0.5f * (to.alpha * grown);
        w.d2 = to.alpha * ((grown - 2.0f * h) / ((2.0f * h) * (2.0f * h)) - 0.5f);
        w.of_noise = to.sigma * sqrtf(grown);
        break;
    case HD_DPM_SDE:
        part = expf(h) - 1.0f;
        w.of_latent = to.alpha / from.alpha;
        w.d0 = -(2.0f * (to.sigma * part));
        w.d1 = heun ? -(2.0f * (to.sigma * (part / h - 1.0f))) : -(to.sigma * part);
        w.of_noise = to.sigma * sqrtf(expf(2.0f * h) - 1.0f);
        break;
    }
    return w;
}

static int dpm_order(const hd_sampler *s)
{
    const hd_sampler_config *c = &s->config;
    bool few = c->lower_order_final && s->count < 15;
    if (c->solver_order == 1 || s->filled < 2) return 1;
    if (s->at == s->count - 1 &&
        (c->euler_at_final || few || c->final_sigmas_type == HD_FINAL_ZERO))
        return 1;
    if (c->solver_order == 2 || s->filled < 3 || (s->at == s->count - 2 && few)) return 2;
    return 3;
}

static hd_status dpm_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    bool sde = s->config.algorithm_type == HD_DPM_SDE_PP || s->config.algorithm_type == HD_DPM_SDE;
    dpm_convert(s, hd_sampler_rotate(s, 3), output, latent);
    if (sde) HD_TRY(hd_sampler_draw(s, noise));

    int order = dpm_order(s);
    hd_level to = hd_schedule_level(s, s->at + 1), from = hd_schedule_level(s, s->at);
    float h = to.lambda - from.lambda, r0 = 1, r1 = 1;
    if (order > 1) {
        hd_level before = hd_schedule_level(s, s->at - 1);
        r0 = (from.lambda - before.lambda) / h;
        if (order > 2) r1 = (before.lambda - hd_schedule_level(s, s->at - 2).lambda) / h;
    }
    dpm_weights w = dpm_weigh(s, order, from, to, h);
    const float *m0 = s->history[0], *m1 = s->history[1], *m2 = s->history[2];
    for (int64_t i = 0; i < s->values; i++) {
        float x = w.of_latent * latent[i] + w.d0 * m0[i];
        if (order == 2) {
            x += w.d1 * (1.0f / r0 * (m0[i] - m1[i]));
        } else if (order == 3) {
            float d10 = 1.0f / r0 * (m0[i] - m1[i]), d11 = 1.0f / r1 * (m1[i] - m2[i]);
            x += w.d1 * (d10 + r0 / (r0 + r1) * (d10 - d11));
            x += w.d2 * (1.0f / (r0 + r1) * (d10 - d11));
        }
        latent[i] = sde ? x + w.of_noise * s->noise[i] : x;
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_dpm_multistep = {
    .name = "dpm++2m",
    .diffusers = "DPMSolverMultistepScheduler",
    .keys = dpm_keys,
    .calls_per_step = 1,
    .history = 3,
    .prepare = dpm_prepare,
    .step = dpm_step,
};
