/* engine/samplers/config.c: reads scheduler_config.json into hd_sampler_config. */
#include "engine/samplers/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "engine/samplers/sampler.h"

typedef enum key_type {
    KEY_BOOL,
    KEY_INT,
    KEY_FLOAT,
    KEY_ENUM,
    KEY_BETAS,
    KEY_STEPS,
    KEY_NULL
} key_type;

typedef struct key_row {
    const char *name;
    key_type type;
    size_t offset;
    double min, max;
    const char *const *names;
} key_row;

static const char *const beta_schedules[] = {
    "linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid", "exp", NULL};
static const char *const predictions[] = {"epsilon", "v_prediction", "sample", "flow_prediction",
                                          NULL};
static const char *const spacings[] = {"leading", "linspace", "trailing", NULL};
static const char *const final_sigmas[] = {"zero", "sigma_min", NULL};
static const char *const interpolations[] = {"linear", "log_linear", NULL};
static const char *const timestep_types[] = {"discrete", "continuous", NULL};
static const char *const time_shifts[] = {"exponential", "linear", NULL};
static const char *const variances[] = {"fixed_small", "fixed_small_log", "fixed_large", NULL};
static const char *const algorithms[] = {
    "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis", NULL};
static const char *const solver_types[] = {"midpoint", "heun", "bh1", "bh2", "logrho", NULL};

#define AT(field) .name = #field, .offset = offsetof(hd_sampler_config, field)

static const key_row rows[] = {
    {AT(num_train_timesteps), .type = KEY_INT, .min = 1, .max = 1000000},
    {AT(beta_start), .type = KEY_FLOAT, .min = 0, .max = 1},
    {AT(beta_end), .type = KEY_FLOAT, .min = 0, .max = 1},
    {AT(beta_schedule), .type = KEY_ENUM, .names = beta_schedules},
    {AT(trained_betas), .type = KEY_BETAS},
    {AT(rescale_betas_zero_snr), .type = KEY_BOOL},
    {AT(prediction_type), .type = KEY_ENUM, .names = predictions},
    {AT(timestep_spacing), .type = KEY_ENUM, .names = spacings},
    {AT(steps_offset), .type = KEY_INT, .min = 0, .max = 1000000},
    {AT(use_karras_sigmas), .type = KEY_BOOL},
    {AT(use_exponential_sigmas), .type = KEY_BOOL},
    {AT(use_beta_sigmas), .type = KEY_BOOL},
    {AT(use_lu_lambdas), .type = KEY_BOOL},
    {AT(sigma_min), .type = KEY_FLOAT, .min = 1e-10, .max = 1e10},
    {AT(sigma_max), .type = KEY_FLOAT, .min = 1e-10, .max = 1e10},
    {AT(final_sigmas_type), .type = KEY_ENUM, .names = final_sigmas},
    {AT(interpolation_type), .type = KEY_ENUM, .names = interpolations},
    {AT(timestep_type), .type = KEY_ENUM, .names = timestep_types},
    {AT(lambda_min_clipped), .type = KEY_FLOAT, .min = -(double)INFINITY, .max = 1e3},
    {AT(original_inference_steps), .type = KEY_INT, .min = 1, .max = 1000000},
    {AT(use_flow_sigmas), .type = KEY_BOOL},
    {AT(use_dynamic_shifting), .type = KEY_BOOL},
    {AT(invert_sigmas), .type = KEY_BOOL},
    {AT(stochastic_sampling), .type = KEY_BOOL},
    {AT(flow_shift), .type = KEY_FLOAT, .min = 1e-3, .max = 1e3},
    {AT(shift), .type = KEY_FLOAT, .min = 1e-3, .max = 1e3},
    {AT(base_shift), .type = KEY_FLOAT, .min = -100, .max = 100},
    {AT(max_shift), .type = KEY_FLOAT, .min = -100, .max = 100},
    {AT(shift_terminal), .type = KEY_FLOAT, .min = 0, .max = 0.999},
    {AT(base_image_seq_len), .type = KEY_INT, .min = 1, .max = INT32_MAX},
    {AT(max_image_seq_len), .type = KEY_INT, .min = 1, .max = INT32_MAX},
    {AT(time_shift_type), .type = KEY_ENUM, .names = time_shifts},
    {AT(clip_sample), .type = KEY_BOOL},
    {AT(clip_sample_range), .type = KEY_FLOAT, .min = 0, .max = 1e10},
    {AT(thresholding), .type = KEY_BOOL},
    {AT(dynamic_thresholding_ratio), .type = KEY_FLOAT, .min = 0, .max = 1},
    {AT(sample_max_value), .type = KEY_FLOAT, .min = 1e-10, .max = 1e10},
    {AT(set_alpha_to_one), .type = KEY_BOOL},
    {AT(skip_prk_steps), .type = KEY_BOOL},
    {AT(variance_type), .type = KEY_ENUM, .names = variances},
    {AT(solver_order), .type = KEY_INT, .min = 1, .max = 3},
    {AT(algorithm_type), .type = KEY_ENUM, .names = algorithms},
    {AT(solver_type), .type = KEY_ENUM, .names = solver_types},
    {AT(lower_order_final), .type = KEY_BOOL},
    {AT(euler_at_final), .type = KEY_BOOL},
    {AT(predict_x0), .type = KEY_BOOL},
    {AT(disable_corrector), .type = KEY_STEPS},
    {AT(timestep_scaling), .type = KEY_FLOAT, .min = 1e-10, .max = 1e10},
    {.name = "solver_p", .type = KEY_NULL},
};

// Keys of diffusers' scheduler classes that we do not have. A folder's file may carry them over
// from such a class; a sampler of ours passes over them, as diffusers does.
static const char *const foreign[] = {
    "sigma_data",
    "sigma_schedule",
    "rho",
    "s_noise",
    "noise_sampler_seed",
    "snr_shift_scale",
    "predictor_order",
    "tau_func",
    "corrector_order",
    "corrector_steps",
    "corrector_k",
    "scale_factors",
    "upscale_mode",
    "eta",
    "clip_denoised",
};

static const key_row *row_of(const char *name)
{
    for (size_t i = 0; i < HD_COUNT(rows); i++)
        if (strcmp(rows[i].name, name) == 0) return &rows[i];
    return NULL;
}

static const hd_sampler_key *key_of(const hd_sampler_key *keys, const char *name)
{
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0) return keys;
    return NULL;
}

static bool is_foreign(const char *name)
{
    for (size_t i = 0; i < HD_COUNT(foreign); i++)
        if (strcmp(foreign[i], name) == 0) return true;
    return false;
}

static void set_default(hd_sampler_config *config, const key_row *row, double value)
{
    void *field = (char *)config + row->offset;
    switch (row->type) {
    case KEY_BOOL:
        *(bool *)field = value != 0;
        break;
    case KEY_INT:
        *(int64_t *)field = (int64_t)value;
        break;
    case KEY_FLOAT:
        *(double *)field = value;
        break;
    case KEY_ENUM:
        *(int *)field = (int)value;
        break;
    case KEY_BETAS:
        free(config->trained_betas);
        config->trained_betas = NULL;
        break;
    case KEY_STEPS:
        free(config->disable_corrector);
        config->disable_corrector = NULL;
        config->disable_corrector_count = 0;
        break;
    case KEY_NULL:
        break;
    }
}

void hd_sampler_config_init(hd_sampler_config *config, const hd_sampler_key *keys)
{
    memset(config, 0, sizeof *config);
    for (; keys->name; keys++) {
        const key_row *row = row_of(keys->name);
        if (row) set_default(config, row, keys->def);
    }
}

static hd_status read_enum(int *field, const key_row *row, const hd_sampler_key *key,
                           const char *class_name, const hd_json *node)
{
    const char *text;
    HD_TRY(hd_json_to_string(node, &text));
    char list[256] = "";
    size_t used = 0;
    for (int i = 0; row->names[i]; i++) {
        if (key->takes && !(key->takes & HD_TAKES(i))) continue;
        if (strcmp(row->names[i], text) == 0) {
            *field = i;
            return HD_OK;
        }
        if (used < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "",
                                     row->names[i]);
    }
    return hd_json_fail(node, HD_ERR_UNSUPPORTED, "is \"%s\"; %s takes %s here", text, class_name,
                        used ? list : "only null");
}

static hd_status read_betas(hd_sampler_config *config, const hd_json *node)
{
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    int64_t count = hd_json_count(node);
    if (count < 1 || count > 1000000)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "has %lld entries, expected 1 to 1000000",
                            (long long)count);
    float *betas = malloc(sizeof *betas * (size_t)count);
    if (!betas) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for trained_betas");
    free(config->trained_betas);
    config->trained_betas = betas;
    config->num_train_timesteps = count;
    for (int64_t i = 0; i < count; i++) {
        double beta;
        HD_TRY(hd_json_to_double(hd_json_at(node, i), 0, 1, &beta));
        betas[i] = (float)beta;
    }
    return HD_OK;
}

static hd_status read_steps(hd_sampler_config *config, const hd_json *node)
{
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    int64_t count = hd_json_count(node);
    int64_t *steps = malloc(sizeof *steps * (size_t)(count + 1));
    if (!steps) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for disable_corrector");
    free(config->disable_corrector);
    config->disable_corrector = steps;
    config->disable_corrector_count = count;
    for (int64_t i = 0; i < count; i++)
        HD_TRY(hd_json_to_int(hd_json_at(node, i), 0, INT32_MAX, &steps[i]));
    return HD_OK;
}

static hd_status read_key(hd_sampler_config *config, const key_row *row, const hd_sampler_key *key,
                          const char *class_name, const hd_json *node)
{
    void *field = (char *)config + row->offset;
    // null is None, which diffusers has as the default of these and as "no" of a switch
    bool none = hd_json_kind(node) == HD_JSON_NULL;
    bool may_be_none = row->type == KEY_BOOL || row->type == KEY_NULL || row->type == KEY_BETAS ||
                       row->type == KEY_STEPS || !isfinite(key->def) ||
                       key->takes == HD_TAKES_NOTHING;
    if (none && may_be_none) {
        set_default(config, row, row->type == KEY_BOOL ? 0 : key->def);
        return HD_OK;
    }
    switch (row->type) {
    case KEY_BOOL:
        return hd_json_to_bool(node, field);
    case KEY_INT:
        return hd_json_to_int(node, (int64_t)row->min, (int64_t)row->max, field);
    case KEY_FLOAT:
        return hd_json_to_double(node, row->min, row->max, field);
    case KEY_ENUM:
        return read_enum(field, row, key, class_name, node);
    case KEY_BETAS:
        return read_betas(config, node);
    case KEY_STEPS:
        return read_steps(config, node);
    case KEY_NULL:
        break;
    }
    return hd_json_fail(node, HD_ERR_UNSUPPORTED, "must be null: %s takes nothing else here",
                        class_name);
}

static hd_status refuse_key(const hd_sampler_key *keys, const char *class_name, const hd_json *node)
{
    const char *names[HD_COUNT(rows)];
    size_t count = 0;
    for (const hd_sampler_key *k = keys; k->name && count < HD_COUNT(names); k++)
        names[count++] = k->name;
    const char *near = hd_nearest_name(hd_json_key(node), names, count);
    if (near)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "is no key of %s; did you mean \"%s\"?",
                            class_name, near);
    return hd_json_fail(node, HD_ERR_ARGUMENT, "is no key of %s; remove it", class_name);
}

hd_status hd_sampler_config_read(hd_sampler_config *config, const hd_sampler_key *keys,
                                 const char *class_name, const hd_json *object, bool strict)
{
    HD_TRY(hd_json_expect(object, HD_JSON_OBJECT));
    bool has_betas = hd_json_get(object, "trained_betas") &&
                     hd_json_kind(hd_json_get(object, "trained_betas")) == HD_JSON_ARRAY;
    for (int64_t i = 0; i < hd_json_count(object); i++) {
        const hd_json *node = hd_json_at(object, i);
        const char *name = hd_json_key(node);
        if (name[0] == '_') continue;
        const key_row *row = row_of(name);
        const hd_sampler_key *key = key_of(keys, name);
        if (!key) {
            if (!strict && (row || is_foreign(name))) continue;
            return refuse_key(keys, class_name, node);
        }
        // The list of betas says how many there are.
        if (has_betas && strcmp(name, "num_train_timesteps") == 0) {
            int64_t count = 0;
            HD_TRY(hd_json_to_int(node, 1, 1000000, &count));
            if (count != hd_json_count(hd_json_get(object, "trained_betas")))
                return hd_json_fail(node, HD_ERR_ARGUMENT,
                                    "is %lld, but trained_betas has %lld entries", (long long)count,
                                    (long long)hd_json_count(hd_json_get(object, "trained_betas")));
            continue;
        }
        HD_TRY(read_key(config, row, key, class_name, node));
    }
    return HD_OK;
}

hd_status hd_sampler_config_open(hd_json_doc **out, const char *path)
{
    char *text;
    size_t bytes;
    HD_TRY(hd_file_read(&text, &bytes, path, 64u << 20));
    // Python writes the default of lambda_min_clipped as -Infinity, which is no JSON; null means
    // the same here. The text keeps its length, so that a message names the right place.
    bool quoted = false;
    for (size_t i = 0; i + 9 <= bytes; i++) {
        if (text[i] == '"') quoted = !quoted;
        if (quoted && text[i] == '\\') i++;
        if (!quoted && memcmp(text + i, "-Infinity", 9) == 0) memcpy(text + i, "null     ", 9);
    }
    hd_status status = hd_json_parse(out, path, text, bytes);
    free(text);
    return status;
}

void hd_sampler_config_clear(hd_sampler_config *config)
{
    free(config->trained_betas);
    free(config->disable_corrector);
    memset(config, 0, sizeof *config);
}
