/* engine/samplers/lms.c: linear multistep in sigma, order up to 4 (k-diffusion's LMS): the slope is
 * the Lagrange polynomial through the last slopes, integrated exactly over the step. */
#include "engine/samplers/classes.h"
#include "engine/samplers/schedule.h"

#include <stdlib.h>

static const hd_sampler_key lms_keys[] = {
    HD_SAMPLER_BETA_KEYS(0.0001, 0.02, HD_BETA_LINEAR),
    HD_SAMPLER_CURVE_KEYS,
    {.name = "prediction_type", .takes = HD_TAKES_EPSILON_V_X},
    {.name = "timestep_spacing", .def = HD_SPACING_LINSPACE},
    {.name = "steps_offset"},
    {.name = NULL},
};

enum { MOST_SLOPES = 4 };

static hd_status lms_prepare(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_allocate(s, n));
    double *t = malloc(sizeof *t * (size_t)n);
    if (!t) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule");
    hd_status status = hd_schedule_sigma_space(s, t);
    for (int64_t i = 0; i < n && status == HD_OK; i++)
        hd_schedule_sigma_call(s, i, t[i]);
    free(t);
    return status == HD_OK ? hd_schedule_check_falling(s, n) : status;
}

// The integral over the step of the Lagrange basis polynomial of slope `which` (0 the newest) among
// `order`. Two Gauss points are exact up to degree 3.
static double lms_weight(const hd_sampler *s, int order, int which)
{
    const float *sigma = s->sigmas + s->at;
    double from = (double)sigma[0], to = (double)sigma[1], sum = 0;
    double middle = 0.5 * (from + to), half = 0.5 * (to - from);
    for (int point = -1; point <= 1; point += 2) {
        double tau = middle + point * half / sqrt(3.0), product = 1;
        for (int k = 0; k < order; k++) {
            if (k == which) continue;
            product *= (tau - (double)sigma[-k]) / ((double)sigma[-which] - (double)sigma[-k]);
        }
        sum += product;
    }
    return sum * half;
}

static hd_status lms_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    (void)noise;
    float sigma = s->sigmas[s->at];
    hd_sampler_predict(s, s->x0, output, latent);
    float *slope = hd_sampler_rotate(s, MOST_SLOPES);
    for (int64_t i = 0; i < s->values; i++)
        slope[i] = (latent[i] - s->x0[i]) / sigma;
    // The order follows the place in the schedule, not the slopes that there are: diffusers does so
    // when a run starts in the middle.
    int order = s->at + 1 < MOST_SLOPES ? (int)s->at + 1 : MOST_SLOPES;
    float weight[MOST_SLOPES];
    for (int k = 0; k < order; k++)
        weight[k] = (float)lms_weight(s, order, k);
    int used = order < s->filled ? order : s->filled;
    for (int64_t i = 0; i < s->values; i++) {
        float sum = 0;
        for (int k = 0; k < used; k++)
            sum += weight[k] * s->history[k][i];
        latent[i] += sum;
    }
    return HD_OK;
}

const hd_sampler_class hd_sampler_lms = {
    .name = "lms",
    .diffusers = "LMSDiscreteScheduler",
    .keys = lms_keys,
    .calls_per_step = 1,
    .history = 4,
    .prepare = lms_prepare,
    .step = lms_step,
};
