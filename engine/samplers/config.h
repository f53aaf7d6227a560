/* engine/samplers/config.h: the keys of scheduler_config.json, typed.
 *
 * One struct for all sampler classes; each class lists the keys it has, with its defaults and the
 * values it takes (the same key has other defaults in other classes). Fields that a class does not
 * list stay zero. */
#ifndef HD_ENGINE_SAMPLERS_CONFIG_H
#define HD_ENGINE_SAMPLERS_CONFIG_H

#include <math.h>

#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef enum hd_beta_schedule {
    HD_BETA_LINEAR,
    HD_BETA_SCALED_LINEAR,
    HD_BETA_COSINE, // "squaredcos_cap_v2"
    HD_BETA_LAPLACE,
    HD_BETA_SIGMOID,
    HD_BETA_EXP,
} hd_beta_schedule;

typedef enum hd_prediction {
    HD_PREDICTION_EPSILON,
    HD_PREDICTION_V,
    HD_PREDICTION_SAMPLE,
    HD_PREDICTION_FLOW,
} hd_prediction;

typedef enum hd_spacing { HD_SPACING_LEADING, HD_SPACING_LINSPACE, HD_SPACING_TRAILING } hd_spacing;
typedef enum hd_final_sigma { HD_FINAL_ZERO, HD_FINAL_SIGMA_MIN } hd_final_sigma;
typedef enum hd_interpolation { HD_INTERPOLATE_LINEAR, HD_INTERPOLATE_LOG } hd_interpolation;
typedef enum hd_timestep_type { HD_TIMESTEP_DISCRETE, HD_TIMESTEP_CONTINUOUS } hd_timestep_type;
typedef enum hd_time_shift { HD_SHIFT_EXPONENTIAL, HD_SHIFT_LINEAR } hd_time_shift;

typedef enum hd_variance {
    HD_VARIANCE_SMALL,
    HD_VARIANCE_SMALL_LOG,
    HD_VARIANCE_LARGE,
} hd_variance;

typedef enum hd_dpm_algorithm {
    HD_DPM_PP,     // "dpmsolver++"
    HD_DPM_SDE_PP, // "sde-dpmsolver++"
    HD_DPM,        // "dpmsolver"
    HD_DPM_SDE,    // "sde-dpmsolver"
    HD_DPM_DEIS,   // "deis", which this family reads as dpmsolver++
} hd_dpm_algorithm;

typedef enum hd_solver_type {
    HD_SOLVER_MIDPOINT,
    HD_SOLVER_HEUN,
    HD_SOLVER_BH1,
    HD_SOLVER_BH2,
    HD_SOLVER_LOGRHO,
} hd_solver_type;

typedef struct hd_sampler_config {
    int64_t num_train_timesteps;
    double beta_start, beta_end;
    int beta_schedule;
    float *trained_betas; // [num_train_timesteps] or NULL, owned
    bool rescale_betas_zero_snr;
    int prediction_type;

    int timestep_spacing;
    int64_t steps_offset;
    bool use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas;
    double sigma_min, sigma_max; // NAN: from the schedule
    int final_sigmas_type, interpolation_type, timestep_type;
    double lambda_min_clipped;
    int64_t original_inference_steps;

    bool use_flow_sigmas, use_dynamic_shifting, invert_sigmas, stochastic_sampling;
    double flow_shift, shift, base_shift, max_shift, shift_terminal; // NAN: none
    int64_t base_image_seq_len, max_image_seq_len;
    int time_shift_type;

    bool clip_sample, thresholding;
    double clip_sample_range, dynamic_thresholding_ratio, sample_max_value;

    bool set_alpha_to_one, skip_prk_steps;
    int variance_type;
    int64_t solver_order;
    int algorithm_type, solver_type;
    bool lower_order_final, euler_at_final, predict_x0;
    int64_t *disable_corrector; // [disable_corrector_count] step numbers, owned
    int64_t disable_corrector_count;
    double timestep_scaling;
} hd_sampler_config;

/* A key of a class. `takes`: of an enum, the values this class has (bits by their number; 0: all).
 */
typedef struct hd_sampler_key {
    const char *name; // NULL ends a list
    double def;
    unsigned takes;
} hd_sampler_key;

#define HD_TAKES(value)      (1u << (value))
#define HD_TAKES_NOTHING     (1u << 31) // only null is accepted
#define HD_TAKES_EPSILON_V   (HD_TAKES(HD_PREDICTION_EPSILON) | HD_TAKES(HD_PREDICTION_V))
#define HD_TAKES_EPSILON_V_X (HD_TAKES_EPSILON_V | HD_TAKES(HD_PREDICTION_SAMPLE))

/* Rows that most classes share. */
#define HD_SAMPLER_BETA_KEYS(start, end, schedule)                                                 \
    {.name = "num_train_timesteps", .def = 1000}, {.name = "beta_start", .def = (start)},          \
        {.name = "beta_end", .def = (end)}, {.name = "beta_schedule", .def = (schedule)},          \
    {                                                                                              \
        .name = "trained_betas"                                                                    \
    }
#define HD_SAMPLER_THRESHOLD_KEYS                                                                  \
    {.name = "thresholding"}, {.name = "dynamic_thresholding_ratio", .def = 0.995},                \
    {                                                                                              \
        .name = "sample_max_value", .def = 1                                                       \
    }
#define HD_SAMPLER_CURVE_KEYS                                                                      \
    {.name = "use_karras_sigmas"}, {.name = "use_exponential_sigmas"},                             \
    {                                                                                              \
        .name = "use_beta_sigmas"                                                                  \
    }
#define HD_SAMPLER_SIGMA_RANGE_KEYS                                                                \
    {.name = "sigma_min", .def = (double)NAN},                                                     \
    {                                                                                              \
        .name = "sigma_max", .def = (double)NAN                                                    \
    }

/* The defaults of a class. Frees nothing: `config` is new. */
void hd_sampler_config_init(hd_sampler_config *config, const hd_sampler_key *keys);
/* Reads an object over what is there. Keys that other classes have are passed over, unless
 * `strict`; keys that nobody has are refused. `class_name` is for messages. */
HD_CHECKED hd_status hd_sampler_config_read(hd_sampler_config *config, const hd_sampler_key *keys,
                                            const char *class_name, const hd_json *object,
                                            bool strict);
void hd_sampler_config_clear(hd_sampler_config *config);

HD_END_DECLS
#endif
