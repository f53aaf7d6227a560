/* engine/samplers/sampler.c: what every sampler shares: creation, the position in the schedule,
 * predictions, clipping, noise. */
#include "engine/samplers/sampler.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/samplers/class.h"
#include "engine/samplers/classes.h"
#include "engine/samplers/find.h"

hd_status hd_sampler_refuse(const hd_sampler *s, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return hd_fail(HD_ERR_UNSUPPORTED, "%s: %s: %s", s->source, s->kind->diffusers, text);
}

const char *hd_sampler_name(const hd_sampler *s)
{
    return s->name;
}

const char *hd_sampler_class_name(const hd_sampler *s)
{
    return s->kind->diffusers;
}

int64_t hd_sampler_calls(const hd_sampler *s)
{
    return s->count - s->begin;
}

int64_t hd_sampler_call(const hd_sampler *s)
{
    return s->at - s->begin;
}

bool hd_sampler_done(const hd_sampler *s)
{
    return s->at >= s->count;
}

void hd_sampler_restart(hd_sampler *s)
{
    s->at = s->begin;
    s->filled = 0;
    s->order = 0;
}

static const hd_sampler_call_info *call_now(const hd_sampler *s)
{
    return &s->calls[s->at < s->count ? s->at : s->count - 1];
}

float hd_sampler_timestep(const hd_sampler *s)
{
    return call_now(s)->timestep;
}

float hd_sampler_alpha(const hd_sampler *s)
{
    return call_now(s)->alpha;
}

float hd_sampler_sigma(const hd_sampler *s)
{
    return call_now(s)->sigma;
}

float hd_sampler_init_noise_sigma(const hd_sampler *s)
{
    return s->init_noise_sigma;
}

void hd_sampler_add_noise(const hd_sampler *s, float *latent, const float *clean,
                          const float *noise)
{
    const hd_sampler_call_info *call = &s->calls[s->begin];
    for (int64_t i = 0; i < s->values; i++)
        latent[i] = call->alpha * clean[i] + call->sigma * noise[i];
}

void hd_sampler_scale_input(const hd_sampler *s, float *input, const float *latent)
{
    float divisor = call_now(s)->divisor;
    for (int64_t i = 0; i < s->values; i++)
        input[i] = latent[i] / divisor;
}

void hd_sampler_predict(const hd_sampler *s, float *x0, const float *output, const float *latent)
{
    const hd_sampler_call_info *call = call_now(s);
    float alpha = call->alpha, sigma = call->sigma;
    switch ((hd_prediction)s->config.prediction_type) {
    case HD_PREDICTION_EPSILON:
        for (int64_t i = 0; i < s->values; i++)
            x0[i] = (latent[i] - sigma * output[i]) / alpha;
        return;
    case HD_PREDICTION_V:
        if (s->scaled_input) {
            float of_output = -sigma / call->divisor, of_latent = sigma * sigma + 1.0f;
            for (int64_t i = 0; i < s->values; i++)
                x0[i] = output[i] * of_output + latent[i] / of_latent;
            return;
        }
        for (int64_t i = 0; i < s->values; i++)
            x0[i] = alpha * latent[i] - sigma * output[i];
        return;
    case HD_PREDICTION_SAMPLE:
        if (x0 != output) memcpy(x0, output, sizeof *x0 * (size_t)s->values);
        return;
    case HD_PREDICTION_FLOW:
        for (int64_t i = 0; i < s->values; i++)
            x0[i] = latent[i] - sigma * output[i];
        return;
    }
}

void hd_sampler_unpredict(const hd_sampler *s, float *output, const float *x0, const float *latent)
{
    const hd_sampler_call_info *call = call_now(s);
    float alpha = call->alpha, sigma = call->sigma;
    switch ((hd_prediction)s->config.prediction_type) {
    case HD_PREDICTION_EPSILON:
        for (int64_t i = 0; i < s->values; i++)
            output[i] = (latent[i] - alpha * x0[i]) / sigma;
        return;
    case HD_PREDICTION_V:
        if (s->scaled_input) {
            float of_output = -sigma / call->divisor, of_latent = sigma * sigma + 1.0f;
            for (int64_t i = 0; i < s->values; i++)
                output[i] = (x0[i] - latent[i] / of_latent) / of_output;
            return;
        }
        for (int64_t i = 0; i < s->values; i++)
            output[i] = (alpha * latent[i] - x0[i]) / sigma;
        return;
    case HD_PREDICTION_SAMPLE:
        if (x0 != output) memcpy(output, x0, sizeof *x0 * (size_t)s->values);
        return;
    case HD_PREDICTION_FLOW:
        for (int64_t i = 0; i < s->values; i++)
            output[i] = (latent[i] - x0[i]) / sigma;
        return;
    }
}

hd_noise_level hd_sampler_level(const hd_sampler *s, int64_t call)
{
    if (call < s->count - s->begin) {
        const hd_sampler_call_info *c = &s->calls[s->begin + call];
        return (hd_noise_level){c->timestep, c->alpha, c->sigma, c->divisor};
    }
    hd_noise_level clean = {0.0f, 1.0f, 0.0f, 1.0f};
    if (s->kind == &hd_sampler_ddim && !s->config.set_alpha_to_one) {
        clean.alpha = sqrtf(s->alphas_cumprod[0]);
        clean.sigma = sqrtf(1.0f - s->alphas_cumprod[0]);
    }
    return clean;
}

hd_status hd_sampler_level_at(const hd_sampler *s, double timestep, hd_noise_level *out)
{
    if (s->kind->flow || s->config.use_flow_sigmas) {
        double sigma = fmin(fmax(timestep / (double)s->config.num_train_timesteps, 0.0), 1.0);
        float t = (float)(sigma * (double)s->config.num_train_timesteps);
        *out = (hd_noise_level){t, (float)(1.0 - sigma), (float)sigma, 1.0f};
        return HD_OK;
    }
    if (!s->alphas_cumprod)
        return hd_fail(HD_ERR_UNSUPPORTED, "sampler: %s has no levels between its own", s->name);
    double last = (double)(s->config.num_train_timesteps - 1);
    double t = fmin(fmax(timestep, 0.0), last);
    float a = s->alphas_cumprod[(int64_t)(t + 0.5)];
    *out = (hd_noise_level){(float)t, sqrtf(a), sqrtf(1.0f - a), 1.0f};
    if (s->calls[s->begin].alpha == 1.0f) { // a latent that is never made smaller
        out->alpha = 1.0f;
        out->sigma = sqrtf((1.0f - a) / a);
    }
    if (s->scaled_input) out->divisor = sqrtf(out->sigma * out->sigma + 1.0f);
    return HD_OK;
}

void hd_sampler_noise(const hd_sampler *s, hd_noise_level level, float *noise, const float *output,
                      const float *latent, int64_t count)
{
    float alpha = level.alpha / level.divisor, sigma = level.sigma / level.divisor;
    switch ((hd_prediction)s->config.prediction_type) {
    case HD_PREDICTION_EPSILON:
        if (noise != output) memcpy(noise, output, sizeof *noise * (size_t)count);
        return;
    case HD_PREDICTION_V:
        for (int64_t i = 0; i < count; i++)
            noise[i] = alpha * output[i] + sigma * (latent[i] / level.divisor);
        return;
    case HD_PREDICTION_SAMPLE:
        for (int64_t i = 0; i < count; i++)
            noise[i] = (latent[i] - level.alpha * output[i]) / level.sigma;
        return;
    case HD_PREDICTION_FLOW: // latent = (1 - sigma) picture + sigma noise, output = noise - picture
        for (int64_t i = 0; i < count; i++)
            noise[i] = latent[i] + (1.0f - level.sigma) * output[i];
        return;
    }
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Dynamic thresholding (Saharia et al., "Photorealistic Text-to-Image Diffusion Models"): a row is
// cut at a quantile of its magnitudes and divided by it, if that is more than 1. The quantile is
// torch.quantile's, linear between neighbours.
void hd_sampler_threshold(hd_sampler *s, float *x0)
{
    const hd_sampler_config *c = &s->config;
    int64_t n = s->row_values;
    for (int64_t row = 0; row < s->rows; row++) {
        float *x = x0 + row * n;
        for (int64_t i = 0; i < n; i++)
            s->sorted[i] = fabsf(x[i]);
        qsort(s->sorted, (size_t)n, sizeof *s->sorted, ascending);
        float rank = (float)c->dynamic_thresholding_ratio * (float)(n - 1);
        int64_t below = (int64_t)floorf(rank), above = (int64_t)ceilf(rank);
        float weight = rank - floorf(rank), low = s->sorted[below], high = s->sorted[above];
        float limit =
            weight < 0.5f ? low + weight * (high - low) : high - (high - low) * (1.0f - weight);
        limit = fminf(fmaxf(limit, 1.0f), (float)c->sample_max_value);
        for (int64_t i = 0; i < n; i++)
            x[i] = fminf(fmaxf(x[i], -limit), limit) / limit;
    }
}

float *hd_sampler_clipped(hd_sampler *s, const float *output, const float *latent)
{
    hd_sampler_predict(s, s->x0, output, latent);
    if (s->config.thresholding) {
        hd_sampler_threshold(s, s->x0);
    } else if (s->config.clip_sample) {
        float limit = (float)s->config.clip_sample_range;
        for (int64_t i = 0; i < s->values; i++)
            s->x0[i] = fminf(fmaxf(s->x0[i], -limit), limit);
    }
    return s->x0;
}

hd_status hd_sampler_draw(hd_sampler *s, const hd_noise *noise)
{
    if (!noise)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: %s draws noise at every step, but was given none",
                       s->name);
    for (int64_t row = 0; row < s->rows; row++)
        noise->draw(noise->arg, row, s->noise + row * s->row_values, s->row_values);
    return HD_OK;
}

float *hd_sampler_rotate(hd_sampler *s, int count)
{
    float *oldest = s->history[count - 1];
    for (int i = count - 1; i > 0; i--)
        s->history[i] = s->history[i - 1];
    s->history[0] = oldest;
    if (s->filled < count) s->filled++;
    return oldest;
}

hd_status hd_sampler_step(hd_sampler *s, const float *output, float *latent, const hd_noise *noise)
{
    HD_ENSURE(s->at < s->count);
    HD_TRY(s->kind->step(s, output, latent, noise));
    s->at++;
    return HD_OK;
}

static hd_status read_config(hd_sampler *s, bool named, const char *settings)
{
    const hd_sampler_class *kind = s->kind;
    hd_sampler_config_init(&s->config, kind->keys);
    if (s->options.config)
        HD_TRY(hd_sampler_config_read(&s->config, kind->keys, kind->diffusers, s->options.config,
                                      false));
    if (named && settings) {
        hd_json_doc *doc;
        HD_TRY(hd_json_parse(&doc, s->name, settings, strlen(settings)));
        hd_status status = hd_sampler_config_read(&s->config, kind->keys, kind->diffusers,
                                                  hd_json_root(doc), true);
        hd_json_free(doc);
        HD_TRY(status);
    }
    if (s->options.settings)
        HD_TRY(hd_sampler_config_read(&s->config, kind->keys, kind->diffusers, s->options.settings,
                                      true));
    return HD_OK;
}

// A flow sampler runs flow models, the others the rest: the file's class or prediction tells.
static hd_status check_family(const hd_sampler *s)
{
    const hd_json *config = s->options.config;
    const char *class_name = "", *prediction = "";
    if (!config) return HD_OK;
    if (hd_json_get(config, "_class_name"))
        HD_TRY(hd_json_to_string(hd_json_get(config, "_class_name"), &class_name));
    if (hd_json_get(config, "prediction_type") &&
        hd_json_kind(hd_json_get(config, "prediction_type")) == HD_JSON_STRING)
        HD_TRY(hd_json_to_string(hd_json_get(config, "prediction_type"), &prediction));
    bool flow_model =
        strncmp(class_name, "FlowMatch", 9) == 0 || strcmp(prediction, "flow_prediction") == 0;
    if (s->kind->flow && !flow_model && class_name[0])
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s: the model is no flow model (_class_name is \"%s\"), sampler %s cannot "
                       "run it",
                       s->source, class_name, s->name);
    if (!s->kind->flow && strncmp(class_name, "FlowMatch", 9) == 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s: the model is a flow model (_class_name is \"%s\"), sampler %s cannot "
                       "run it; use flow-euler",
                       s->source, class_name, s->name);
    return HD_OK;
}

static hd_status check_options(const hd_sampler *s)
{
    const hd_sampler_options *o = &s->options;
    HD_ENSURE(o->rows > 0 && o->row_values > 0);
    if (o->steps < 1 || o->steps > 100000)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: %lld steps; 1 to 100000 are possible",
                       (long long)o->steps);
    if (!s->kind->flow && o->steps > s->config.num_train_timesteps)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: %lld steps, but the model has %lld timesteps",
                       (long long)o->steps, (long long)s->config.num_train_timesteps);
    if (o->image_to_image && !(o->strength > 0 && o->strength <= 1))
        return hd_fail(HD_ERR_ARGUMENT, "sampler: strength is %g, must be more than 0, up to 1",
                       o->strength);
    if (o->image_to_image && s->kind->no_start_in_the_middle)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: %s does not start from a picture with a strength",
                       s->name);
    if (!(o->eta >= 0 && o->eta <= 1))
        return hd_fail(HD_ERR_ARGUMENT, "sampler: eta is %g, must be 0 to 1", o->eta);
    if (o->eta != 0 && !s->kind->has_eta)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: eta is %g, but %s has no eta; only ddim has",
                       o->eta, s->name);
    if (o->sigmas && !s->kind->flow)
        return hd_fail(HD_ERR_ARGUMENT,
                       "sampler: %s takes no levels of noise; only flow-euler does", s->name);
    return HD_OK;
}

// Where a run from a picture starts, as diffusers' pipelines count it: those of flow models round
// the steps that are left out, the others the steps that are run.
static hd_status set_begin(hd_sampler *s)
{
    const hd_sampler_options *o = &s->options;
    if (!o->image_to_image) return HD_OK;
    double wanted = (double)o->steps * o->strength;
    int64_t skipped = s->kind->flow ? (int64_t)((double)o->steps - fmin(wanted, (double)o->steps))
                                    : o->steps - (int64_t)wanted;
    s->begin = skipped * s->kind->calls_per_step;
    if (skipped >= o->steps || s->begin >= s->count)
        return hd_fail(HD_ERR_ARGUMENT,
                       "sampler: strength %g of %lld steps leaves no step to run; use %g or more, "
                       "or more steps",
                       o->strength, (long long)o->steps, 1.0 / (double)o->steps);
    return HD_OK;
}

static hd_status take_memory(hd_sampler *s)
{
    s->rows = s->options.rows;
    s->row_values = s->options.row_values;
    s->values = s->rows * s->row_values;
    size_t tensors = (size_t)s->kind->history + 2;
    s->memory = calloc(tensors * (size_t)s->values + (size_t)s->row_values, sizeof(float));
    if (!s->memory)
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for %zu latents of %lld values", tensors,
                       (long long)s->values);
    float *next = s->memory;
    for (int i = 0; i < s->kind->history; i++, next += s->values)
        s->history[i] = next;
    s->x0 = next;
    s->noise = next + s->values;
    s->sorted = next + 2 * s->values;
    return HD_OK;
}

static hd_status create(hd_sampler *s)
{
    const hd_sampler_entry *entry;
    bool named;
    HD_TRY(hd_sampler_find(s->options.name, s->options.config, &entry, &named));
    s->kind = entry->kind;
    s->name = named ? entry->name : entry->kind->name;
    snprintf(s->source, sizeof s->source, "%s",
             s->options.config ? hd_json_name(s->options.config) : "sampler");
    HD_TRY(check_family(s));
    HD_TRY(read_config(s, named, entry->settings));
    HD_TRY(check_options(s));
    s->init_noise_sigma = 1.0f;
    HD_TRY(s->kind->prepare(s));
    HD_TRY(set_begin(s));
    HD_TRY(take_memory(s));
    s->options.name = NULL;
    s->options.config = s->options.settings = NULL;
    s->options.sigmas = NULL;
    hd_sampler_restart(s);
    return HD_OK;
}

hd_status hd_sampler_create(hd_sampler **out, const hd_sampler_options *options)
{
    hd_sampler *s = calloc(1, sizeof *s);
    if (!s) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for a sampler");
    s->options = *options;
    hd_status status = create(s);
    if (status != HD_OK) {
        hd_sampler_free(s);
        return status;
    }
    *out = s;
    return HD_OK;
}

void hd_sampler_free(hd_sampler *s)
{
    if (!s) return;
    hd_sampler_config_clear(&s->config);
    free(s->alphas_cumprod);
    free(s->calls);
    free(s->sigmas);
    free(s->memory);
    free(s);
}
