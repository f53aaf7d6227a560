/* benchmark/model_step.c: prompt, noise and one step of a deterministic sampler, then the step that
 * is measured. */
#include "benchmark/model_step.h"

#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"
#include "engine/options/json_write.h"
#include "engine/rng.h"
#include "engine/samplers/guidance.h"
#include "engine/samplers/sampler.h"

#define GUIDANCE 7.5

static hd_status encode(hd_model_step *s, const hd_exec *ex, const int64_t *ids, float *out)
{
    const size_t mark = hd_arena_mark(ex->arena);
    hd_tensor hidden = hd_tensor_of(out, HD_F32, hd_shape3(1, s->text_tokens, s->text_channels));
    if (ex->recording) hidden = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(hidden));
    const hd_text_clip_inputs in = {.ids = ids, .rows = 1, .tokens = s->text_tokens};
    hd_status status =
        hd_text_clip_forward(ex, s->model->text, NULL, hidden, hd_tensor_none(), &in);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

static hd_status encode_both(hd_model_step *s, const hd_exec *ex, const char *prompt)
{
    const char *const texts[2] = {"", prompt};
    int64_t *ids = calloc((size_t)s->text_tokens, sizeof *ids);
    hd_status status = ids ? HD_OK : hd_fail(HD_ERR_NOMEM, "bench: no memory for the prompt");
    for (int i = 0; i < 2 && status == HD_OK; i++) {
        status = hd_tokenizer_encode(s->model->tokenizer, texts[i], strlen(texts[i]),
                                     s->text_tokens, ids, NULL, NULL);
        if (status == HD_OK)
            status = encode(s, ex, ids, s->text + i * s->text_tokens * s->text_channels);
    }
    free(ids);
    return status;
}

static hd_status call_network(hd_model_step *s, const hd_exec *ex, hd_attention_run *run)
{
    const hd_picture_size *z = &s->size;
    const hd_shape last = hd_shape4(2, z->latent_height, z->latent_width, z->channels);
    hd_shape first = hd_shape4(1, z->channels, z->latent_height, z->latent_width);
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, last),
              y = hd_arena_tensor(ex->arena, HD_F32, last);
    const hd_tensor latent = hd_tensor_of(s->latent, HD_F32, first);
    for (int64_t row = 0; row < 2; row++)
        HD_TRY(hd_nchw_to_nhwc(ex, hd_tensor_slice(x, 0, row, 1), latent));
    const hd_row rows[2] = {{.branch = "main", .role = "uncond"},
                            {.branch = "main", .role = "cond"}};
    const hd_forward forward = {
        .run = run,
        .rows = {2, rows},
        .step = {.count = 1, .timestep = (double)s->timestep, .sigma = (double)s->sigma},
        .model_key = s->model->key};
    const float timestep[2] = {s->timestep, s->timestep}, guidance[2] = {GUIDANCE, GUIDANCE};
    hd_unet2d_inputs in = {
        .timestep = timestep,
        .text = hd_tensor_of(s->text, HD_F32, hd_shape3(2, s->text_tokens, s->text_channels))};
    if (hd_unet2d_configuration(s->model->unet)->guidance_channels > 0) in.guidance = guidance;
    HD_TRY(hd_unet2d_forward(ex, s->model->unet, &forward, y, x, &in));
    first.dim[0] = 2;
    return hd_nhwc_to_nchw(ex, hd_tensor_of(s->output, HD_F32, first), y);
}

hd_status hd_model_step_run(hd_model_step *s, const hd_exec *ex, hd_attention_run *run,
                            float *guess)
{
    const size_t mark = hd_arena_mark(ex->arena);
    hd_status status = call_network(s, ex, run);
    hd_arena_rewind(ex->arena, mark);
    const int64_t values = s->size.latent_values;
    if (status == HD_OK && guess) hd_guide(guess, s->output, s->output + values, GUIDANCE, values);
    return status;
}

static hd_status measure(hd_model_step *s, const hd_exec *shared, const char *prompt, size_t *bytes)
{
    hd_exec dry = *shared;
    dry.recording = true;
    dry.cancelled = NULL;
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    hd_status status = encode_both(s, &dry, prompt);
    if (status == HD_OK) status = hd_model_step_run(s, &dry, NULL, NULL);
    *bytes = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);
    return status;
}

// The latent of the second of two steps: a picture already shows in it.
static hd_status go_half_way(hd_model_step *s, const hd_exec *ex, uint64_t seed)
{
    const int64_t values = s->size.latent_values;
    const hd_sampler_options options = {
        .name = "ddim",
        .config = s->model->scheduler ? hd_json_root(s->model->scheduler) : NULL,
        .steps = 2,
        .image_tokens = s->size.latent_height * s->size.latent_width,
        .rows = 1,
        .row_values = values};
    hd_sampler *sampler = NULL;
    hd_rng *rng = NULL;
    float *noisy = malloc((size_t)values * sizeof *noisy),
          *guess = malloc((size_t)values * sizeof *guess);
    hd_status status = noisy && guess ? hd_sampler_create(&sampler, &options)
                                      : hd_fail(HD_ERR_NOMEM, "bench: no memory");
    if (status == HD_OK) status = hd_rng_create(&rng, HD_RNG_CPU, seed);
    if (status == HD_OK) {
        hd_rng_normal(rng, noisy, values);
        for (int64_t i = 0; i < values; i++)
            noisy[i] *= hd_sampler_init_noise_sigma(sampler);
        hd_sampler_scale_input(sampler, s->latent, noisy);
        s->timestep = hd_sampler_timestep(sampler), s->sigma = hd_sampler_sigma(sampler);
        status = hd_model_step_run(s, ex, NULL, guess);
    }
    if (status == HD_OK) status = hd_sampler_step(sampler, guess, noisy, NULL);
    if (status == HD_OK) {
        hd_sampler_scale_input(sampler, s->latent, noisy);
        s->timestep = hd_sampler_timestep(sampler), s->sigma = hd_sampler_sigma(sampler);
    }
    free(noisy);
    free(guess);
    hd_rng_free(rng);
    hd_sampler_free(sampler);
    return status;
}

hd_status hd_model_step_preset(hd_preset *out, hd_json_doc **doc, const hd_bench_model_options *o)
{
    hd_json_writer w = {0};
    char *text = NULL;
    *out = (hd_preset){0};
    *doc = NULL;
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "model", o->model->path);
    hd_json_write_string(&w, "prompt", o->prompt);
    hd_json_write_int(&w, "width", o->width);
    hd_json_write_int(&w, "height", o->height);
    hd_json_write_u64(&w, "seed", o->seed);
    hd_json_write_int(&w, "steps", o->steps);
    hd_json_write_int(&w, "batch", o->pictures ? o->pictures : 1);
    hd_json_write_end(&w, '}');
    HD_TRY(hd_json_writer_take(&w, &text));
    hd_status status = hd_json_parse(doc, "bench model", text, strlen(text));
    free(text);
    HD_TRY(status);
    return hd_preset_from_json(out, hd_json_root(*doc));
}

static hd_status choose_size(hd_picture_size *size, const hd_bench_model_options *o)
{
    hd_preset preset;
    hd_json_doc *doc;
    hd_start start = {0};
    hd_status status = hd_model_step_preset(&preset, &doc, o);
    if (status == HD_OK) status = hd_start_open(&start, &preset, hd_json_root(doc), o->model, size);
    hd_start_free(&start);
    hd_preset_free(&preset);
    hd_json_free(doc);
    return status;
}

hd_status hd_model_step_begin(hd_model_step *s, const hd_bench_model_options *o)
{
    *s = (hd_model_step){.model = o->model, .timestep = 500};
    HD_TRY(choose_size(&s->size, o));
    s->text_tokens = hd_tokenizer_length(o->model->tokenizer);
    s->text_channels = hd_text_clip_configuration(o->model->text)->channels;
    const size_t values = (size_t)s->size.latent_values;
    s->text = calloc((size_t)(2 * s->text_tokens * s->text_channels), sizeof *s->text);
    s->latent = calloc(values, sizeof *s->latent);
    s->output = calloc(2 * values, sizeof *s->output);
    if (!s->text || !s->latent || !s->output)
        return hd_fail(HD_ERR_NOMEM, "bench: no memory for the latent");
    size_t bytes;
    hd_exec ex = *o->ex;
    HD_TRY(measure(s, &ex, o->prompt, &bytes));
    HD_TRY(hd_arena_create(&ex.arena, bytes));
    hd_status status = encode_both(s, &ex, o->prompt);
    if (status == HD_OK) status = go_half_way(s, &ex, o->seed);
    hd_arena_free(ex.arena);
    return status;
}

void hd_model_step_end(hd_model_step *s)
{
    free(s->text);
    free(s->latent);
    free(s->output);
    *s = (hd_model_step){0};
}
