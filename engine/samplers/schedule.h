/* engine/samplers/schedule.h: levels of noise and the timesteps at which a sampler meets them; for
 * the files of this folder.
 *
 * The types follow diffusers, because the last digits decide which timestep a level rounds to:
 * torch tensors are f32, numpy's intermediate arrays f64. */
#ifndef HD_ENGINE_SAMPLERS_SCHEDULE_H
#define HD_ENGINE_SAMPLERS_SCHEDULE_H

#include "engine/samplers/class.h"

HD_BEGIN_DECLS

/* s->alphas_cumprod from the betas of the config, rescaled to end at zero if it says so. `floor`
 * replaces an end of zero by 2^-24, for samplers that divide by it. */
HD_CHECKED hd_status hd_schedule_training(hd_sampler *s, bool floor);

/* The three spacings: t [steps], descending. Whole numbers, except linspace when not `rounded`. */
void hd_schedule_spacing(const hd_sampler *s, bool rounded, double *t);
/* As the multistep solvers space them: steps + 1 points of `last` timesteps, without the final one.
 */
void hd_schedule_spacing_multistep(const hd_sampler *s, int64_t last, double *t);

/* s->calls [count], zeroed, and s->sigmas [count + 1]. */
HD_CHECKED hd_status hd_schedule_allocate(hd_sampler *s, int64_t count);
/* A call at a timestep of the training: alpha and sigma from alphas_cumprod. Refuses a timestep
 * outside it. */
HD_CHECKED hd_status hd_schedule_call_at(hd_sampler *s, int64_t call, double t);

/* `prepare` of the samplers that step between timesteps of the training: one call per step. */
HD_CHECKED hd_status hd_schedule_trained_timesteps(hd_sampler *s);

/* sqrt((1 - a) / a) of every level of the training: sigmas [num_train_timesteps], and their
 * logarithms. */
void hd_schedule_train_sigmas(const hd_sampler *s, float *sigmas);
/* numpy.interp of the training sigmas at t. */
double hd_schedule_interpolate(const float *sigmas, int64_t count, double t);
/* The timestep, with fraction, whose level is nearest to sigma in the logarithm. */
double hd_schedule_sigma_to_t(const float *log_sigmas, int64_t count, double sigma);

/* Replaces sigmas [steps] by a curve from `high` to `low` (sigma_max and sigma_min of the config
 * override them) if the config asks for Karras, exponential or beta levels; false if it does not.
 */
bool hd_schedule_curve(const hd_sampler *s, double low, double high, double *sigmas);
/* At most one of them may be asked for. */
HD_CHECKED hd_status hd_schedule_check_curves(const hd_sampler *s);

/* Euler, Euler ancestral, Heun and LMS: sigma space, the network sees latent / sqrt(sigma^2 + 1).
 * Fills s->sigmas[0 .. steps], timesteps [steps] and init_noise_sigma; `steps` calls. */
HD_CHECKED hd_status hd_schedule_sigma_space(hd_sampler *s, double *timesteps);
/* The first count + 1 levels fall: multistep methods divide by their differences. */
HD_CHECKED hd_status hd_schedule_check_falling(const hd_sampler *s, int64_t count);
/* calls[i] of sigma space from s->sigmas[i] and its timestep. */
void hd_schedule_sigma_call(hd_sampler *s, int64_t call, double timestep);

/* The shift of a picture of options.image_tokens tokens, for use_dynamic_shifting. */
HD_CHECKED hd_status hd_flow_mu(const hd_sampler *s, double *mu);
/* A level (0, 1] shifted: by mu if use_dynamic_shifting, else by `shift`. */
double hd_flow_shift(const hd_sampler *s, double shift, double mu, double sigma);
/* sigmas [steps] stretched to end at shift_terminal, if there is one. */
void hd_flow_stretch(const hd_sampler *s, double *sigmas);

/* For the multistep solvers: s->sigmas and calls from sigmas [steps], the last level, and
 * timesteps, of which the whole part counts. Refuses levels that do not fall,
 * but for the last, which final_sigmas_type "sigma_min" may repeat. */
HD_CHECKED hd_status hd_schedule_multistep(hd_sampler *s, const double *timesteps,
                                           const double *sigmas, double last);
/* What every multistep solver refuses. */
HD_CHECKED hd_status hd_schedule_check_multistep(const hd_sampler *s);
/* Of level `index`: latent = alpha * picture + sigma * noise, and log(alpha / sigma). */
typedef struct hd_level {
    float alpha, sigma, lambda;
} hd_level;
hd_level hd_schedule_level(const hd_sampler *s, int64_t index);

/* numpy.linspace(a, b, count)[i]. */
double hd_linspace(double a, double b, int64_t count, int64_t i);

/* x with I_x(a, b) = p: the quantile of the beta distribution. p [0, 1], a and b > 0. */
double hd_beta_quantile(double p, double a, double b);

HD_END_DECLS
#endif
