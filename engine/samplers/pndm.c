/* engine/samplers/pndm.c: pseudo numerical methods (Liu et al., "Pseudo Numerical Methods for
 * Diffusion Models on Manifolds"): a linear multistep method on the predicted noise.
 *
 * With skip_prk_steps (Stable Diffusion's PLMS) the first step is taken twice, the second time with
 * the mean of both predictions, and the order grows to 4: n + 1 calls. Without, three Runge-Kutta
 * steps of four calls come first, on half steps: n + 9 calls, at least 4 steps. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>
#include <string.h>

static const hd_sampler_key pndm_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    {.name = "skip_prk_steps"},
    {.name = "set_alpha_to_one"},
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V},
    {.name = "timestep_spacing", .def = HD_SPACING_LEADING},
    {.name = "steps_offset"},
    {.name = NULL},
};

enum { PRK_CALLS = 12, EPSILONS = 4, FIRST_LATENT = 4, RUNGE_SUM = 5 };

static int64_t pndm_stride(const hd_sampler *s)
{
    return s->config.num_train_timesteps / s->options.steps;
}

// t [n] holds the spacing, descending. Calls of the multistep form: the second timestep twice.
static hd_status pndm_lay_out_plms(hd_sampler *s, const double *t)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_allocate(s, n > 1 ? n + 1 : 1));
    for (int64_t i = 0; i < s->count; i++)
        HD_TRY(hd_schedule_call_at(s, i, t[i < 2 ? i : i - 1]));
    // the second call steps again from one stride above it
    double again = n > 1 ? t[1] + (double)pndm_stride(s) : 0;
    if (again >= (double)s->config.num_train_timesteps)
        return hd_sampler_refuse(s,
                                 "%lld steps reach timestep %.0f, the model knows 0 to %lld; "
                                 "use timestep_spacing \"leading\"",
                                 (long long)s->options.steps, again,
                                 (long long)s->config.num_train_timesteps - 1);
    return HD_OK;
}

static hd_status pndm_lay_out_prk(hd_sampler *s, const double *t)
{
    int64_t n = s->options.steps;
    double half = (double)(pndm_stride(s) / 2);
    if (n < EPSILONS)
        return hd_sampler_refuse(s, "%lld steps; with skip_prk_steps false at least 4 are needed",
                                 (long long)n);
    if (s->options.image_to_image)
        return hd_sampler_refuse(s, "skip_prk_steps false cannot start from a picture");
    HD_TRY(hd_schedule_allocate(s, PRK_CALLS + n - 3));
    for (int64_t round = 0; round < 3; round++) {
        // start, twice the middle, the end; the middle is half a stride above the end
        const double at[4] = {t[round], t[round + 1] + half, t[round + 1] + half, t[round + 1]};
        for (int64_t i = 0; i < 4; i++)
            HD_TRY(hd_schedule_call_at(s, 4 * round + i, at[i]));
    }
    for (int64_t i = 3; i < n; i++)
        HD_TRY(hd_schedule_call_at(s, PRK_CALLS + i - 3, t[i]));
    return HD_OK;
}

static hd_status pndm_prepare(hd_sampler *s)
{
    HD_TRY(hd_schedule_training(s, false));
    double *t = malloc(sizeof *t * (size_t)s->options.steps);
    if (!t) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_schedule_spacing(s, true, t);
    hd_status status = s->config.skip_prk_steps ? pndm_lay_out_plms(s, t) : pndm_lay_out_prk(s, t);
    free(t);
    return status;
}

// The latent at `from` moved to `to` along epsilon (eq. 9); latent may be out.
static void pndm_move(const hd_sampler *s, float *out, const float *latent, const float *output,
                      int64_t from, int64_t to)
{
    float a = s->alphas_cumprod[from];
    float a_to = to >= 0                      ? s->alphas_cumprod[to]
                 : s->config.set_alpha_to_one ? 1.0f
                                              : s->alphas_cumprod[0];
    float b = 1.0f - a, b_to = 1.0f - a_to;
    float root_a = sqrtf(a), root_b = sqrtf(b), gain = a_to - a;
    float of_latent = sqrtf(a_to / a), divisor = a * sqrtf(b_to) + sqrtf(a * b * a_to);
    bool v = s->config.prediction_type == HD_PREDICTION_V;
    for (int64_t i = 0; i < s->values; i++) {
        float epsilon = v ? root_a * output[i] + root_b * latent[i] : output[i];
        out[i] = of_latent * latent[i] - gain * epsilon / divisor;
    }
}

static hd_status pndm_step_prk(hd_sampler *s, const float *output, float *latent, int64_t call)
{
    float *sum = s->history[RUNGE_SUM], *start = s->history[FIRST_LATENT];
    int64_t t = (int64_t)s->calls[s->at].timestep;
    int64_t to = t - (call % 2 ? 0 : pndm_stride(s) / 2);
    int64_t from = (int64_t)s->calls[call / 4 * 4].timestep;
    size_t bytes = sizeof(float) * (size_t)s->values;
    const float weight = call % 4 == 0 || call % 4 == 3 ? 1.0f / 6 : 1.0f / 3;
    if (call % 4 == 0) {
        memcpy(hd_sampler_rotate(s, EPSILONS), output, bytes);
        memcpy(start, latent, bytes);
        memset(sum, 0, bytes);
    }
    for (int64_t i = 0; i < s->values; i++)
        sum[i] += weight * output[i];
    pndm_move(s, latent, start, call % 4 == 3 ? sum : output, from, to);
    return HD_OK;
}

// The weighted sum of the predictions so far into s->x0 (eq. 12 and its starts).
static void pndm_combine(hd_sampler *s)
{
    float *const *e = s->history;
    for (int64_t i = 0; i < s->values; i++) {
        if (s->filled == 1)
            s->x0[i] = e[0][i];
        else if (s->filled == 2)
            s->x0[i] = (3 * e[0][i] - e[1][i]) / 2;
        else if (s->filled == 3)
            s->x0[i] = (23 * e[0][i] - 16 * e[1][i] + 5 * e[2][i]) / 12;
        else
            s->x0[i] = 1.0f / 24 * (55 * e[0][i] - 59 * e[1][i] + 37 * e[2][i] - 9 * e[3][i]);
    }
}

static hd_status pndm_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    (void)noise;
    int64_t call = s->at - s->begin, t = (int64_t)s->calls[s->at].timestep;
    if (!s->config.skip_prk_steps && call < PRK_CALLS)
        return pndm_step_prk(s, output, latent, call);
    float *first = s->history[FIRST_LATENT];
    if (call == 1 && s->config.skip_prk_steps) {
        for (int64_t i = 0; i < s->values; i++)
            s->x0[i] = (output[i] + s->history[0][i]) / 2;
        pndm_move(s, latent, first, s->x0, t + pndm_stride(s), t);
        return HD_OK;
    }
    if (call == 0) memcpy(first, latent, sizeof *first * (size_t)s->values);
    memcpy(hd_sampler_rotate(s, EPSILONS), output, sizeof *output * (size_t)s->values);
    pndm_combine(s);
    pndm_move(s, latent, latent, s->x0, t, t - pndm_stride(s));
    return HD_OK;
}

const hd_sampler_class hd_sampler_pndm = {
    .name = "pndm",
    .diffusers = "PNDMScheduler",
    .keys = pndm_keys,
    .calls_per_step = 1,
    .history = 6,
    .prepare = pndm_prepare,
    .step = pndm_step,
};
