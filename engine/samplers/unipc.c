/* engine/samplers/unipc.c: UniPC (Zhao et al., "UniPC: A Unified Predictor-Corrector Framework"),
 * B(h) forms bh1 and bh2, order 1 to 3.
 *
 * Before each prediction the step before is corrected with the network's new output, at no extra
 * call. Predictor and corrector are the same sum over earlier predictions; the corrector has one
 * more term, the new one. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>
#include <string.h>

static const hd_sampler_key unipc_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "solver_order", .def = 2},
    {.name = "prediction_type"},
    HD_SAMPLER_THRESHOLD_KEYS,
    {.name = "predict_x0", .def = true},
    {.name = "solver_type", .def = HD_SOLVER_BH2},
    {.name = "lower_order_final", .def = true},
    {.name = "disable_corrector"},
    {.name = "solver_p"},
    HD_SAMPLER_CURVE_KEYS,
    {.name = "use_flow_sigmas"},
    {.name = "flow_shift", .def = 1},
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "steps_offset"},
    {.name = "final_sigmas_type", .def = HD_FINAL_ZERO},
    {.name = "rescale_betas_zero_snr"},
    {.name = "use_dynamic_shifting"},
    {.name = "time_shift_type"},
    HD_SAMPLER_SIGMA_RANGE_KEYS,
    {.name = "shift_terminal", .def = (double)NAN},
    {.name = NULL},
};

enum { MOST_ORDER = 3, LAST_LATENT = MOST_ORDER + 1 };

static hd_status unipc_check(hd_sampler *s)
{
    hd_sampler_config *c = &s->config;
    // The names that other solvers of the family use for the same thing.
    if (c->solver_type != HD_SOLVER_BH1) c->solver_type = HD_SOLVER_BH2;
    HD_TRY(hd_schedule_check_multistep(s));
    if (!isnan(c->shift_terminal) && (!c->use_flow_sigmas || c->use_karras_sigmas))
        return hd_sampler_refuse(s,
                                 "shift_terminal is %g; it needs use_flow_sigmas true and "
                                 "use_karras_sigmas false",
                                 c->shift_terminal);
    if (!c->predict_x0 && c->prediction_type == HD_PREDICTION_FLOW)
        return hd_sampler_refuse(s, "prediction_type \"flow_prediction\" needs predict_x0 true");
    if (!c->predict_x0 && c->final_sigmas_type == HD_FINAL_ZERO)
        return hd_sampler_refuse(s, "predict_x0 false needs final_sigmas_type \"sigma_min\"");
    if (!c->lower_order_final && c->solver_order > 1 && s->options.steps > 1 &&
        c->final_sigmas_type == HD_FINAL_ZERO)
        return hd_sampler_refuse(s, "lower_order_final false needs final_sigmas_type "
                                    "\"sigma_min\": a step to zero has order 1");
    return HD_OK;
}

static void unipc_flow_levels(const hd_sampler *s, double *t, double *sigmas)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps;
    double train = (double)c->num_train_timesteps;
    for (int64_t i = 0; i < n && !c->use_karras_sigmas; i++)
        sigmas[i] = hd_flow_shift(s, c->flow_shift, 0, hd_linspace(1, 1 / train, n + 1, i));
    if (c->use_karras_sigmas) {
        for (int64_t i = 0; i < n; i++)
            sigmas[i] = sigmas[i] / (sigmas[i] + 1);
    } else {
        hd_flow_stretch(s, sigmas);
        if (fabs(sigmas[0] - 1) < 1e-6) sigmas[0] -= 1e-6; // alpha must not be zero
    }
    for (int64_t i = 0; i < n; i++)
        t[i] = sigmas[i] * train;
}

// t and sigmas [steps]; returns the level after the last step. train [2 * levels] is scratch.
static double unipc_levels(const hd_sampler *s, float *train, double *t, double *sigmas)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps, levels = c->num_train_timesteps;
    float *logs = train + levels;
    hd_schedule_train_sigmas(s, train);
    for (int64_t i = 0; i < levels; i++)
        logs[i] = logf(train[i]);
    double last = (double)train[0];
    bool curve = hd_schedule_curve(s, (double)train[0], (double)train[levels - 1], sigmas);
    if (c->use_flow_sigmas) {
        unipc_flow_levels(s, t, sigmas);
    } else if (curve) {
        for (int64_t i = 0; i < n; i++) {
            t[i] = hd_schedule_sigma_to_t(logs, levels, sigmas[i]);
            if (c->use_karras_sigmas) t[i] = rint(t[i]);
        }
    } else {
        hd_schedule_spacing_multistep(s, levels, t);
        for (int64_t i = 0; i < n; i++)
            sigmas[i] = hd_schedule_interpolate(train, levels, t[i]);
    }
    if (c->use_flow_sigmas || curve) last = sigmas[n - 1];
    return c->final_sigmas_type == HD_FINAL_ZERO ? 0 : last;
}

static hd_status unipc_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps, levels = s->config.num_train_timesteps;
    HD_TRY(unipc_check(s));
    HD_TRY(hd_schedule_training(s, true));
    float *train = malloc(sizeof *train * 2 * (size_t)levels);
    double *t = malloc(sizeof *t * 2 * (size_t)n);
    hd_status status = HD_OK;
    if (!train || !t) {
        status = hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    } else {
        double last = unipc_levels(s, train, t, t + n);
        status = hd_schedule_multistep(s, t, t + n, last);
        if (status == HD_OK) status = hd_schedule_check_falling(s, n);
    }
    free(train);
    free(t);
    return status;
}

// The prediction that the solver combines, into `out`.
static void unipc_convert(hd_sampler *s, float *out, const float *output, const float *latent)
{
    if (s->config.predict_x0) {
        memcpy(out, hd_sampler_clipped(s, output, latent), sizeof *out * (size_t)s->values);
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
}

// x of A x = b, order n, by elimination with row exchange; A and b are destroyed.
static void solve_f32(float a[MOST_ORDER][MOST_ORDER], float *b, float *x, int n)
{
    for (int k = 0; k < n; k++) {
        int pivot = k;
        for (int r = k + 1; r < n; r++)
            if (fabsf(a[r][k]) > fabsf(a[pivot][k])) pivot = r;
        for (int c = 0; c < n; c++) {
            float swapped = a[k][c];
            a[k][c] = a[pivot][c];
            a[pivot][c] = swapped;
        }
        float swapped = b[k];
        b[k] = b[pivot];
        b[pivot] = swapped;
        for (int r = k + 1; r < n; r++) {
            float factor = a[r][k] / a[k][k];
            for (int c = k; c < n; c++)
                a[r][c] -= factor * a[k][c];
            b[r] -= factor * b[k];
        }
    }
    for (int k = n - 1; k >= 0; k--) {
        x[k] = b[k];
        for (int c = k + 1; c < n; c++)
            x[k] -= a[k][c] * x[c];
        x[k] /= a[k][k];
    }
}

// A step from level `start` to `start + 1`: x = of_latent * latent + of_m0 * m0 + of_sum * sum,
// sum = sum_k rho[k] * (m_k - m0) / r[k], over the `order - 1` predictions before m0 and, for the
// corrector, the new one (r = 1).
typedef struct unipc_weights {
    float of_latent, of_m0, of_sum;
    float rho[MOST_ORDER], r[MOST_ORDER];
} unipc_weights;

static unipc_weights unipc_weigh(const hd_sampler *s, int64_t start, int order, bool corrector)
{
    hd_level to = hd_schedule_level(s, start + 1), from = hd_schedule_level(s, start);
    float h = to.lambda - from.lambda, hh = s->config.predict_x0 ? -h : h;
    float phi_1 = expm1f(hh), phi = phi_1 / hh - 1.0f, factorial = 1;
    float b_h = s->config.solver_type == HD_SOLVER_BH1 ? hh : phi_1;
    unipc_weights w = {.rho = {0.5f}, .r = {1, 1, 1}};
    for (int k = 1; k < order; k++)
        w.r[k - 1] = (hd_schedule_level(s, start - k).lambda - from.lambda) / h;
    w.r[order - 1] = 1;

    float a[MOST_ORDER][MOST_ORDER], b[MOST_ORDER];
    for (int row = 0; row < order; row++) {
        for (int k = 0; k < order; k++)
            a[row][k] = row == 0 ? 1.0f : row == 1 ? w.r[k] : w.r[k] * w.r[k];
        b[row] = phi * factorial / b_h;
        factorial *= (float)(row + 2);
        phi = phi / hh - 1.0f / factorial;
    }
    // The lowest orders use 1/2 instead of solving for it.
    int terms = corrector ? order : order - 1;
    if (corrector ? order > 1 : order > 2) solve_f32(a, b, w.rho, terms);

    float scale = s->config.predict_x0 ? to.alpha : to.sigma;
    w.of_latent = s->config.predict_x0 ? to.sigma / from.sigma : to.alpha / from.alpha;
    w.of_m0 = scale * phi_1;
    w.of_sum = terms > 0 ? scale * b_h : 0.0f; // b_h may be infinite in a step to zero
    return w;
}

// m [order + 1]: m[0] the prediction at the start, m[1 ..] those before it. `fresh`: the prediction
// at the end, or NULL for the predictor. latent may be out.
static void unipc_move(const hd_sampler *s, float *out, const float *latent, float *const *m,
                       const float *fresh, int order, const unipc_weights *w)
{
    for (int64_t i = 0; i < s->values; i++) {
        float moved = w->of_latent * latent[i] - w->of_m0 * m[0][i], sum = 0;
        for (int k = 1; k < order; k++)
            sum += w->rho[k - 1] * ((m[k][i] - m[0][i]) / w->r[k - 1]);
        if (fresh) sum += w->rho[order - 1] * (fresh[i] - m[0][i]);
        out[i] = moved - w->of_sum * sum;
    }
}

static bool unipc_corrects(const hd_sampler *s)
{
    if (s->filled == 0) return false;
    for (int64_t i = 0; i < s->config.disable_corrector_count; i++)
        if (s->config.disable_corrector[i] == s->at - 1) return false;
    return true;
}

static hd_status unipc_step(hd_sampler *s, const float *output, float *latent,
                            const hd_noise *noise)
{
    (void)noise;
    float *last = s->history[LAST_LATENT];
    bool corrects = unipc_corrects(s);
    unipc_convert(s, hd_sampler_rotate(s, MOST_ORDER + 1), output, latent);
    if (corrects) {
        unipc_weights w = unipc_weigh(s, s->at - 1, s->order, true);
        unipc_move(s, latent, last, s->history + 1, s->history[0], s->order, &w);
    }
    int64_t left = s->count - s->at, order = s->config.solver_order;
    if (s->config.lower_order_final && left < order) order = left;
    if (order > s->filled) order = s->filled;
    s->order = (int)order;
    memcpy(last, latent, sizeof *last * (size_t)s->values);
    unipc_weights w = unipc_weigh(s, s->at, s->order, false);
    unipc_move(s, latent, latent, s->history, NULL, s->order, &w);
    return HD_OK;
}

const hd_sampler_class hd_sampler_unipc = {
    .name = "unipc",
    .diffusers = "UniPCMultistepScheduler",
    .keys = unipc_keys,
    .calls_per_step = 1,
    .history = 5,
    .prepare = unipc_prepare,
    .step = unipc_step,
};
