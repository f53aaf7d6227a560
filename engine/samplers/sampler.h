/* engine/samplers/sampler.h: from noise to a picture's latent, one network call at a time.
 *
 * A sampler holds the schedule of one run (which timesteps, which noise levels), made from a
 * model's scheduler_config.json, and the memory that its method needs between calls. It knows
 * neither the network nor guidance: the caller does
 *
 *     while (!hd_sampler_done(s)) {
 *         hd_sampler_scale_input(s, input, latent);
 *         ... output = network(input, hd_sampler_timestep(s)), guided ...
 *         hd_sampler_step(s, output, latent, &noise);
 *     }
 *
 * A call is one evaluation of the network: Heun makes 2 n - 1 of them for n steps, PNDM n + 1.
 * Latents are f32, `rows` pictures of `row_values` values each, one after the other; every value is
 * treated alike (only dynamic thresholding looks at a whole row), so the layout of a row does not
 * matter, and a row's result does not depend on the others. Nothing is allocated after creation.
 *
 * Values follow diffusers 0.42: the same timesteps, and latents that agree to f32 rounding. Where
 * diffusers divides by zero or reads a wrong table entry, the combination is refused. One
 * difference is meant: spacing "trailing" gives exactly n steps; for some n (61 is the first)
 * rounding makes diffusers append a step at timestep -1. */
#ifndef HD_ENGINE_SAMPLERS_SAMPLER_H
#define HD_ENGINE_SAMPLERS_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef struct hd_sampler hd_sampler;

/* Where a sampler's noise comes from: fills values [count] with the next standard normals of a row,
 * in the layout of the latents. It is asked row by row, rows ascending, once per call that draws.
 */
typedef struct hd_noise {
    void (*draw)(void *arg, int64_t row, float *values, int64_t count);
    void *arg;
} hd_noise;

typedef struct hd_sampler_options {
    /* As on the command line ("euler-a", "dpm++2m-karras", also "euler_a" or "DPM++ 2M Karras") or
     * a diffusers class; NULL: the class that `config` names. */
    const char *name;
    /* The root of scheduler_config.json, or NULL: the defaults of the class. With a `name` of
     * another class than the file's, the keys that the named class has are used, as diffusers'
     * from_config does. Not needed after creation. */
    const hd_json *config;
    const hd_json *settings; // an object whose keys replace those of config, or NULL
    int64_t steps;           // 1 or more
    bool image_to_image;     // start in the middle, from a noised picture
    double strength;         // (0, 1], of the schedule that is run; only for image_to_image
    double eta;              // DDIM: 0 deterministic .. 1 as noisy as DDPM; else must be 0
    int64_t image_tokens; // tokens of a picture: for models that shift the schedule with the size
    const float *sigmas;  // flow models: [steps] levels to use before shifting, or NULL
    int64_t rows, row_values;
} hd_sampler_options;

/* The caller owns *out; hd_sampler_free(NULL) does nothing. Fails on a key or value that cannot be
 * honoured, naming file, key, what was found and what is supported. */
HD_CHECKED hd_status hd_sampler_create(hd_sampler **out, const hd_sampler_options *options);
void hd_sampler_free(hd_sampler *s);

/* Reads a model's scheduler_config.json as diffusers writes it: JSON, but for the -Infinity that
 * stands in some of them. The caller owns *out. */
HD_CHECKED hd_status hd_sampler_config_open(hd_json_doc **out, const char *path);

/* The names that options.name knows, in the order to show them; NULL past the end. */
const char *hd_sampler_name_at(size_t index);

const char *hd_sampler_name(const hd_sampler *s);       // of the list above
const char *hd_sampler_class_name(const hd_sampler *s); // "EulerDiscreteScheduler"

int64_t hd_sampler_calls(const hd_sampler *s); // network calls of the run
int64_t hd_sampler_call(const hd_sampler *s);  // the next one, from 0; calls when it is done
bool hd_sampler_done(const hd_sampler *s);
/* Back to the first call, nothing remembered. */
void hd_sampler_restart(hd_sampler *s);

/* What the network is told at the next call. A whole number for most samplers. */
float hd_sampler_timestep(const hd_sampler *s);
/* The latent before the next call is alpha * picture + sigma * noise. */
float hd_sampler_alpha(const hd_sampler *s);
float hd_sampler_sigma(const hd_sampler *s);

/* A run from noise starts at normals times this. */
float hd_sampler_init_noise_sigma(const hd_sampler *s);
/* A run from a picture starts at latent = clean mixed with noise as the first call expects it. All
 * [rows, row_values]; latent may be clean. */
void hd_sampler_add_noise(const hd_sampler *s, float *latent, const float *clean,
                          const float *noise);

/* input [rows, row_values]: the latent as the network wants to see it at the next call. */
void hd_sampler_scale_input(const hd_sampler *s, float *input, const float *latent);

/* The picture that the network's output at the next call stands for, before the sampler clips it:
 * for previews, and for what edits it. And back: the output that stands for a picture. May be used
 * in place. */
void hd_sampler_predict(const hd_sampler *s, float *x0, const float *output, const float *latent);
void hd_sampler_unpredict(const hd_sampler *s, float *output, const float *x0, const float *latent);

/* A level of noise: latent = alpha * picture + sigma * noise, shown to the network as
 * latent / divisor. */
typedef struct hd_noise_level {
    float timestep, alpha, sigma, divisor;
} hd_noise_level;

/* The level of the latent before a call of the run, 0 .. calls - 1; at `calls` the level that the
 * run ends at (its timestep is 0). */
hd_noise_level hd_sampler_level(const hd_sampler *s, int64_t call);
/* The level of a timestep of the training, kept inside it. */
HD_CHECKED hd_status hd_sampler_level_at(const hd_sampler *s, double timestep, hd_noise_level *out);
/* The noise that the network's output for a latent of this level stands for, all [count]. May be
 * used in place. */
void hd_sampler_noise(const hd_sampler *s, hd_noise_level level, float *noise, const float *output,
                      const float *latent, int64_t count);

/* Goes on by one call: latent [rows, row_values] in place. `noise` may be NULL for a sampler that
 * draws none. */
HD_CHECKED hd_status hd_sampler_step(hd_sampler *s, const float *output, float *latent,
                                     const hd_noise *noise);

HD_END_DECLS
#endif
