/* engine/samplers/schedule.c: betas, spacings and curves, with the roundings of torch and numpy.
 *
 * Zero terminal SNR: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed".
 * Karras levels: "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5. */
#include "engine/samplers/schedule.h"

#include <stdlib.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

// torch.linspace: from both ends to the middle, one rounding per value.
static void linspace_f32(float *out, double first, double last, int64_t count)
{
    float a = (float)first, b = (float)last;
    if (count == 1) {
        out[0] = a;
        return;
    }
    float step = (b - a) / (float)(count - 1);
    for (int64_t i = 0; i < count; i++)
        out[i] = i < count / 2 ? fmaf(step, (float)i, a) : fmaf(-step, (float)(count - i - 1), b);
}

static double alpha_bar(hd_beta_schedule kind, double t)
{
    if (kind == HD_BETA_COSINE) {
        double c = cos((t + 0.008) / 1.008 * PI / 2);
        return c * c;
    }
    if (kind == HD_BETA_EXP) return exp(t * -12.0);
    double lambda = -0.5 * copysign(1, 0.5 - t) * log(1 - 2 * fabs(0.5 - t) + 1e-6);
    double snr = exp(lambda);
    return sqrt(snr / (1 + snr));
}

static void make_betas(const hd_sampler_config *c, float *betas)
{
    int64_t n = c->num_train_timesteps;
    switch ((hd_beta_schedule)c->beta_schedule) {
    case HD_BETA_LINEAR:
        linspace_f32(betas, c->beta_start, c->beta_end, n);
        return;
    case HD_BETA_SCALED_LINEAR:
        linspace_f32(betas, sqrt(c->beta_start), sqrt(c->beta_end), n);
        for (int64_t i = 0; i < n; i++)
            betas[i] *= betas[i];
        return;
    case HD_BETA_SIGMOID:
        linspace_f32(betas, -6, 6, n);
        for (int64_t i = 0; i < n; i++)
            betas[i] = 1.0f / (1.0f + expf(-betas[i])) * (float)(c->beta_end - c->beta_start) +
                       (float)c->beta_start;
        return;
    case HD_BETA_COSINE:
    case HD_BETA_LAPLACE:
    case HD_BETA_EXP:
        for (int64_t i = 0; i < n; i++) {
            double now = alpha_bar(c->beta_schedule, (double)i / (double)n);
            double next = alpha_bar(c->beta_schedule, (double)(i + 1) / (double)n);
            betas[i] = (float)fmin(1 - next / now, 0.999);
        }
        return;
    }
}

// torch.cumprod of 1 - beta: products in f64, stored as f32.
static void cumulate(const float *betas, float *alphas_cumprod, int64_t n)
{
    double product = 1;
    for (int64_t i = 0; i < n; i++) {
        product *= (double)(1.0f - betas[i]);
        alphas_cumprod[i] = (float)product;
    }
}

// betas such that the last level is noise alone and the first keeps its value; `root` is scratch.
static void rescale_zero_snr(float *betas, float *root, int64_t n)
{
    cumulate(betas, root, n);
    for (int64_t i = 0; i < n; i++)
        root[i] = sqrtf(root[i]);
    float first = root[0], last = root[n - 1];
    float stretch = first / (first - last);
    for (int64_t i = 0; i < n; i++) {
        float r = (root[i] - last) * stretch;
        root[i] = r * r;
    }
    betas[0] = 1.0f - root[0];
    for (int64_t i = 1; i < n; i++)
        betas[i] = 1.0f - root[i] / root[i - 1];
}

hd_status hd_schedule_training(hd_sampler *s, bool floor)
{
    int64_t n = s->config.num_train_timesteps;
    s->alphas_cumprod = malloc(sizeof(float) * (size_t)n);
    float *betas = malloc(sizeof(float) * (size_t)n);
    if (!s->alphas_cumprod || !betas) {
        free(betas);
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a schedule of %lld timesteps",
                       (long long)n);
    }
    if (s->config.trained_betas)
        memcpy(betas, s->config.trained_betas, sizeof(float) * (size_t)n);
    else
        make_betas(&s->config, betas);
    if (s->config.rescale_betas_zero_snr) rescale_zero_snr(betas, s->alphas_cumprod, n);
    cumulate(betas, s->alphas_cumprod, n);
    free(betas);
    if (s->config.rescale_betas_zero_snr && floor) s->alphas_cumprod[n - 1] = 0x1p-24f;
    return HD_OK;
}

double hd_linspace(double a, double b, int64_t count, int64_t i)
{
    if (count > 1 && i == count - 1) return b;
    return count > 1 ? (double)i * ((b - a) / (double)(count - 1)) + a : a;
}

// numpy.arange(last, 0, -step)[i], rounded, one less.
static double trailing(double last, double step, int64_t i)
{
    double delta = (last - step) - last;
    return rint(last + (double)i * delta) - 1;
}

void hd_schedule_spacing(const hd_sampler *s, bool rounded, double *t)
{
    int64_t n = s->options.steps, train = s->config.num_train_timesteps;
    for (int64_t i = 0; i < n; i++) {
        switch ((hd_spacing)s->config.timestep_spacing) {
        case HD_SPACING_LEADING:
            t[i] = (double)((n - 1 - i) * (train / n) + s->config.steps_offset);
            break;
        case HD_SPACING_LINSPACE:
            t[i] = hd_linspace(0, (double)(train - 1), n, n - 1 - i);
            t[i] = rounded ? rint(t[i]) : (double)(float)t[i];
            break;
        case HD_SPACING_TRAILING:
            t[i] = trailing((double)train, (double)train / (double)n, i);
            break;
        }
    }
}

void hd_schedule_spacing_multistep(const hd_sampler *s, int64_t last, double *t)
{
    int64_t n = s->options.steps, train = s->config.num_train_timesteps;
    for (int64_t i = 0; i < n; i++) {
        switch ((hd_spacing)s->config.timestep_spacing) {
        case HD_SPACING_LEADING:
            t[i] = (double)((n - i) * (last / (n + 1)) + s->config.steps_offset);
            break;
        case HD_SPACING_LINSPACE:
            t[i] = rint(hd_linspace(0, (double)(last - 1), n + 1, n - i));
            break;
        case HD_SPACING_TRAILING:
            t[i] = trailing((double)last, (double)train / (double)n, i);
            break;
        }
    }
}

hd_status hd_schedule_allocate(hd_sampler *s, int64_t count)
{
    s->count = count;
    s->calls = calloc((size_t)count, sizeof *s->calls);
    s->sigmas = calloc((size_t)count + 1, sizeof *s->sigmas);
    if (!s->calls || !s->sigmas)
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a run of %lld calls",
                       (long long)count);
    return HD_OK;
}

hd_status hd_schedule_call_at(hd_sampler *s, int64_t call, double t)
{
    if (t < 0 || t >= (double)s->config.num_train_timesteps)
        return hd_sampler_refuse(
            s,
            "%lld steps reach timestep %.0f, the model knows 0 to %lld; fewer steps, or another "
            "steps_offset or timestep_spacing",
            (long long)s->options.steps, t, (long long)s->config.num_train_timesteps - 1);
    float a = s->alphas_cumprod[(int64_t)t];
    if (a == 0 && s->config.prediction_type == HD_PREDICTION_EPSILON)
        return hd_sampler_refuse(
            s,
            "rescale_betas_zero_snr makes timestep %.0f noise alone, from which prediction_type "
            "\"epsilon\" cannot start; use timestep_spacing \"leading\"",
            t);
    s->calls[call] = (hd_sampler_call_info){(float)t, sqrtf(a), sqrtf(1.0f - a), 1.0f};
    return HD_OK;
}

hd_status hd_schedule_trained_timesteps(hd_sampler *s)
{
    int64_t n = s->options.steps;
    HD_TRY(hd_schedule_training(s, false));
    HD_TRY(hd_schedule_allocate(s, n));
    double *t = malloc(sizeof *t * (size_t)n);
    if (!t)
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a run of %lld steps", (long long)n);
    hd_schedule_spacing(s, true, t);
    hd_status status = HD_OK;
    for (int64_t i = 0; i < n && status == HD_OK; i++)
        status = hd_schedule_call_at(s, i, t[i]);
    free(t);
    return status;
}

void hd_schedule_train_sigmas(const hd_sampler *s, float *sigmas)
{
    for (int64_t i = 0; i < s->config.num_train_timesteps; i++)
        sigmas[i] = sqrtf((1.0f - s->alphas_cumprod[i]) / s->alphas_cumprod[i]);
}

double hd_schedule_interpolate(const float *sigmas, int64_t count, double t)
{
    if (t <= 0) return (double)sigmas[0];
    if (t >= (double)(count - 1)) return (double)sigmas[count - 1];
    int64_t i = (int64_t)t;
    double low = (double)sigmas[i], high = (double)sigmas[i + 1];
    return (high - low) * (t - (double)i) + low;
}

double hd_schedule_sigma_to_t(const float *log_sigmas, int64_t count, double sigma)
{
    double wanted = log(fmax(sigma, 1e-10));
    int64_t low = 0;
    for (int64_t i = 0; i < count; i++)
        if (wanted - (double)log_sigmas[i] >= 0) low = i;
    if (low > count - 2) low = count - 2;
    if (low < 0) return 0;
    double span = (double)(log_sigmas[low] - log_sigmas[low + 1]);
    double w = ((double)log_sigmas[low] - wanted) / span;
    w = w < 0 ? 0 : w > 1 ? 1 : w;
    return (1 - w) * (double)low + w * (double)(low + 1);
}

hd_status hd_schedule_check_curves(const hd_sampler *s)
{
    const hd_sampler_config *c = &s->config;
    if (c->use_karras_sigmas + c->use_exponential_sigmas + c->use_beta_sigmas > 1)
        return hd_sampler_refuse(s, "only one of use_karras_sigmas, use_exponential_sigmas and "
                                    "use_beta_sigmas can be true");
    return HD_OK;
}

bool hd_schedule_curve(const hd_sampler *s, double low, double high, double *sigmas)
{
    const hd_sampler_config *c = &s->config;
    if (!c->use_karras_sigmas && !c->use_exponential_sigmas && !c->use_beta_sigmas) return false;
    if (!isnan(c->sigma_min) && c->sigma_min > 0) low = c->sigma_min;
    if (!isnan(c->sigma_max) && c->sigma_max > 0) high = c->sigma_max;
    int64_t n = s->options.steps;
    double low_root = pow(low, 1 / 7.0), high_root = pow(high, 1 / 7.0);
    for (int64_t i = 0; i < n; i++) {
        double ramp = hd_linspace(0, 1, n, i);
        if (c->use_karras_sigmas)
            sigmas[i] = pow(high_root + ramp * (low_root - high_root), 7.0);
        else if (c->use_exponential_sigmas)
            sigmas[i] = exp(hd_linspace(log(high), log(low), n, i));
        else
            sigmas[i] = low + hd_beta_quantile(1 - ramp, 0.6, 0.6) * (high - low);
    }
    return true;
}

hd_status hd_schedule_check_falling(const hd_sampler *s, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!(s->sigmas[i + 1] < s->sigmas[i]))
            return hd_sampler_refuse(s,
                                     "%lld steps: the noise after step %lld is %g, not below the "
                                     "%g before it; use fewer steps or another timestep_spacing",
                                     (long long)s->options.steps, (long long)i + 1,
                                     (double)s->sigmas[i + 1], (double)s->sigmas[i]);
    return HD_OK;
}

void hd_schedule_sigma_call(hd_sampler *s, int64_t call, double timestep)
{
    float sigma = s->sigmas[call];
    s->calls[call] =
        (hd_sampler_call_info){(float)timestep, 1.0f, sigma, sqrtf(sigma * sigma + 1.0f)};
}

// The levels of sigma space in f64 and the timesteps they belong to; train [2][num_train_timesteps]
// is scratch.
static void sigma_space_levels(hd_sampler *s, float *train, double *sigmas, double *timesteps)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps, levels = c->num_train_timesteps;
    float *logs = train + levels;
    hd_schedule_train_sigmas(s, train);
    for (int64_t i = 0; i < levels; i++)
        logs[i] = logf(train[i]);
    hd_schedule_spacing(s, false, timesteps);
    if (c->interpolation_type == HD_INTERPOLATE_LOG) {
        // one level more than steps; the last is only the end of the curves below
        float *line = logs;
        linspace_f32(line, (double)logf(train[levels - 1]), (double)logf(train[0]), n + 1);
        for (int64_t i = 0; i <= n; i++)
            sigmas[i] = (double)expf(line[i]);
        for (int64_t i = 0; i < levels; i++)
            logs[i] = logf(train[i]);
    } else {
        for (int64_t i = 0; i < n; i++)
            sigmas[i] = hd_schedule_interpolate(train, levels, timesteps[i]);
        sigmas[n] = sigmas[n - 1];
    }
    if (hd_schedule_curve(s, sigmas[n], sigmas[0], sigmas))
        for (int64_t i = 0; i < n; i++)
            timesteps[i] = hd_schedule_sigma_to_t(logs, levels, sigmas[i]);
}

hd_status hd_schedule_sigma_space(hd_sampler *s, double *timesteps)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->options.steps, levels = c->num_train_timesteps;
    HD_TRY(hd_schedule_check_curves(s));
    HD_TRY(hd_schedule_training(s, true));
    int64_t scratch = 2 * (levels > n + 1 ? levels : n + 1);
    float *train = malloc(sizeof *train * (size_t)scratch);
    double *sigmas = malloc(sizeof *sigmas * (size_t)(n + 1));
    if (!train || !sigmas) {
        free(train);
        free(sigmas);
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a run of %lld steps", (long long)n);
    }
    sigma_space_levels(s, train, sigmas, timesteps);
    float top = 0;
    for (int64_t i = 0; i < n; i++) {
        s->sigmas[i] = (float)sigmas[i];
        top = fmaxf(top, s->sigmas[i]);
    }
    // With interpolation in the logarithm the level after the last step is the lowest of the
    // training; without, noise ends as final_sigmas_type says.
    bool curve = c->use_karras_sigmas || c->use_exponential_sigmas || c->use_beta_sigmas;
    if (c->interpolation_type == HD_INTERPOLATE_LOG && !curve)
        s->sigmas[n] = (float)sigmas[n];
    else
        s->sigmas[n] = c->final_sigmas_type == HD_FINAL_SIGMA_MIN ? train[0] : 0.0f;
    free(train);
    free(sigmas);
    s->scaled_input = true;
    s->init_noise_sigma = c->timestep_spacing == HD_SPACING_LEADING ? sqrtf(top * top + 1.0f) : top;
    return HD_OK;
}
