/* engine/samplers/class.h: what a sampler class is made of; only for the files of this folder.
 *
 * A class is one file: its keys with their defaults, `prepare`, which lays out the calls of a run,
 * and `step`, which is its formula. One line in all.c makes it known. */
#ifndef HD_ENGINE_SAMPLERS_CLASS_H
#define HD_ENGINE_SAMPLERS_CLASS_H

#include "engine/samplers/config.h"
#include "engine/samplers/sampler.h"

HD_BEGIN_DECLS

enum { HD_SAMPLER_HISTORY = 6 }; // the most tensors a class keeps between calls

typedef struct hd_sampler_class {
    const char *name, *diffusers;
    const hd_sampler_key *keys;
    bool flow;                   // for models trained by flow matching only
    bool no_start_in_the_middle; // it does not make pictures (inversion)
    bool has_eta;
    int calls_per_step;
    int history; // tensors [rows, row_values] kept between calls
    /* Makes the levels of training if it needs them, then lays out every call. */
    hd_status (*prepare)(hd_sampler *s);
    hd_status (*step)(hd_sampler *s, const float *output, float *latent, const hd_noise *noise);
} hd_sampler_class;

typedef struct hd_sampler_call_info {
    float timestep;
    float alpha, sigma; // the latent is alpha * picture + sigma * noise
    float divisor;      // the network sees latent / divisor
} hd_sampler_call_info;

struct hd_sampler {
    const hd_sampler_class *kind;
    const char *name;
    hd_sampler_config config;
    hd_sampler_options options; // pointers in it are NULL after creation
    char source[200];           // what messages call the config

    float *alphas_cumprod;       // [num_train_timesteps], for classes that use it
    hd_sampler_call_info *calls; // [count]: the whole schedule
    float *sigmas;               // [count + 1], for classes that step in sigma
    int64_t count;
    float init_noise_sigma;
    bool scaled_input; // v predictions are of latent / divisor, not of the latent

    int64_t begin, at; // the run is calls begin .. count - 1; at is the next one
    int64_t rows, row_values, values;
    float *memory;
    float *history[HD_SAMPLER_HISTORY]; // newest first where a class rotates them
    int filled;                         // how many of them hold something
    int order;                          // of the call before, where a class varies it
    float *x0, *noise;                  // [values]
    float *sorted;                      // [row_values]
};

/* Fails with the name of the config, for combinations of keys. */
hd_status hd_sampler_refuse(const hd_sampler *s, const char *format, ...) HD_PRINTF(2, 3);

/* x0 [values] as the class computes with it: the picture that the output stands for, clipped or
 * thresholded as the config says. Returns s->x0. */
float *hd_sampler_clipped(hd_sampler *s, const float *output, const float *latent);
void hd_sampler_threshold(hd_sampler *s, float *x0);
/* Draws into s->noise and returns it, or NULL without a source. */
HD_CHECKED hd_status hd_sampler_draw(hd_sampler *s, const hd_noise *noise);
/* The oldest of history[0 .. count) becomes the first, to be overwritten. */
float *hd_sampler_rotate(hd_sampler *s, int count);

/* The classes, NULL-ended, and the names people use. */
typedef struct hd_sampler_entry {
    const char *name;
    const hd_sampler_class *kind;
    const char *settings; // a JSON object of keys that the name stands for, or NULL
} hd_sampler_entry;
extern const hd_sampler_entry hd_sampler_entries[]; // ended by name NULL

HD_END_DECLS
#endif
