/* benchmark/model_step.h: a guided step of a network that can be repeated with other processors. */
#ifndef HD_BENCHMARK_MODEL_STEP_H
#define HD_BENCHMARK_MODEL_STEP_H

#include "benchmark/model.h"
#include "engine/attention/run.h"
#include "pipelines/start.h"

HD_BEGIN_DECLS

typedef struct hd_model_step {
    const hd_model *model;
    hd_picture_size size;
    int64_t text_tokens, text_channels;
    float *text;            // [2, L, C]: without and with the prompt
    float *latent, *output; // [values], [2, values]
    float timestep, sigma;
} hd_model_step;

/* The run whose pictures are compared, as a preset: what is wrong with its sizes is said as ever.
 * Free *out with hd_preset_free and *doc with hd_json_free, on failure too. */
HD_CHECKED hd_status hd_model_step_preset(hd_preset *out, hd_json_doc **doc,
                                          const hd_bench_model_options *options);

/* Encodes the prompt, draws the noise, and goes one dense step of two. Freed by hd_model_step_end,
 * on failure too. */
HD_CHECKED hd_status hd_model_step_begin(hd_model_step *out, const hd_bench_model_options *options);
void hd_model_step_end(hd_model_step *step);

/* The network on both rows and their guidance: guess [values], NULL on the dry pass. `run` may be
 * NULL. */
HD_CHECKED hd_status hd_model_step_run(hd_model_step *step, const hd_exec *ex,
                                       hd_attention_run *run, float *guess);

HD_END_DECLS
#endif
