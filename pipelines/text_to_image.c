/* pipelines/text_to_image.c: prompt -> embeddings -> sampler loop -> decode -> PNG, a group of
 * pictures at a time.
 *
 * Latents stay in PyTorch's order [picture, channel, row, column] between network calls, because
 * that is the order the noise is drawn in; the network gets channels last. */
#include "pipelines/text_to_image.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run.h"
#include "engine/ops/elementwise.h"
#include "engine/rng.h"
#include "engine/samplers/guidance.h"
#include "engine/samplers/sampler.h"
#include "pipelines/clock.h"
#include "pipelines/latents_file.h"
#include "pipelines/outputs.h"
#include "pipelines/start.h"

// Rows of a network call are grouped until they have this many latent positions: small pictures
// share the reading of the weights, large ones keep memory at one picture's.
#define GROUP_POSITIONS 4096

typedef struct generation {
    const hd_run_request *request;
    const hd_preset *preset;
    hd_model *model;
    hd_exec ex;
    hd_attention_run *attention;
    hd_picture_size size; // of a picture and its latent
    int64_t group;        // pictures sampled together
    bool guided;          // rows: uncond of every picture, then cond of every picture
    float *text;          // [2, L, C]: uncond, cond
    int64_t text_tokens, text_channels;
    hd_start start; // init picture or given latents
    hd_sampler *sampler;
    hd_rng **rng;                          // [group]
    float *latent, *input, *guess, *noise; // [group, latent values]
    float *timestep, *guidance;            // [rows]
    hd_row *row;                           // [rows]
    hd_latents_file latents;               // collected for latents_out
} generation;

static int64_t rows_of(const generation *g)
{
    return g->group * (g->guided ? 2 : 1);
}

/* --- prompt
 * ----------------------------------------------------------------------------------------------------------
 */

static hd_status tokenize(generation *g, const char *which, const char *prompt, int64_t *ids)
{
    hd_encoding info;
    const hd_tokenizer *t = g->model->tokenizer;
    int64_t length = hd_tokenizer_length(t);
    hd_status status = hd_tokenizer_encode(t, prompt, strlen(prompt), length, ids, NULL, &info);
    if (status != HD_OK) return hd_note(status, "in the %s", which);
    if (info.ignored > 0) {
        char text[1024], warning[1100];
        hd_tokenizer_warning(text, sizeof text, prompt, strlen(prompt), length, &info);
        snprintf(warning, sizeof warning, "%s: %s", which, text);
        hd_result_warn(g->request->result, g->request->callbacks, warning);
    }
    return HD_OK;
}

static hd_status encode_row(generation *g, const hd_exec *ex, const int64_t *ids, int64_t skip,
                            float *out)
{
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor hidden = hd_tensor_of(out, HD_F32, hd_shape3(1, g->text_tokens, g->text_channels));
    if (ex->recording) hidden = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(hidden));
    hd_text_clip_inputs in = {.ids = ids, .rows = 1, .tokens = g->text_tokens, .clip_skip = skip};
    hd_status status =
        hd_text_clip_forward(ex, g->model->text, NULL, hidden, hd_tensor_none(), &in);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

// diffusers leaves layers out for the prompt only, not for the negative prompt.
static hd_status encode_prompts(generation *g)
{
    double begin = hd_seconds();
    const hd_preset *p = g->preset;
    int64_t *ids = calloc((size_t)(2 * g->text_tokens), sizeof *ids);
    if (!ids) return hd_fail(HD_ERR_NOMEM, "prompt: no memory");
    int64_t *cond = ids + g->text_tokens;
    hd_status status = tokenize(g, "prompt", p->prompt, cond);
    if (status == HD_OK && g->guided) status = tokenize(g, "negative prompt", p->negative, ids);
    if (status == HD_OK && g->guided) status = encode_row(g, &g->ex, ids, 0, g->text);
    if (status == HD_OK)
        status =
            encode_row(g, &g->ex, cond, p->clip_skip, g->text + g->text_tokens * g->text_channels);
    free(ids);
    hd_result_stage(g->request->result, "prompt", hd_seconds() - begin, 1);
    return status;
}

/* --- the network
 * -------------------------------------------------------------------------------------------------------
 */

static hd_forward forward_of(const generation *g)
{
    hd_forward forward = {
        .run = g->attention, .rows = {rows_of(g), g->row}, .model_key = g->model->key};
    const hd_sampler *s = g->sampler;
    forward.step.count = hd_sampler_calls(s);
    forward.step.index = hd_sampler_call(s);
    if (!hd_sampler_done(s)) {
        forward.step.timestep = (double)hd_sampler_timestep(s);
        forward.step.sigma = (double)hd_sampler_sigma(s);
    }
    return forward;
}

// The text of every row, uncond first, in the network's own copy.
static hd_tensor text_rows(const generation *g, const hd_exec *ex)
{
    hd_tensor t =
        hd_arena_tensor(ex->arena, HD_F32, hd_shape3(rows_of(g), g->text_tokens, g->text_channels));
    int64_t values = g->text_tokens * g->text_channels;
    if (ex->recording || !t.data) return t;
    for (int64_t r = 0; r < rows_of(g); r++) {
        bool cond = !g->guided || r >= g->group;
        memcpy((float *)t.data + r * values, g->text + (cond ? values : 0),
               (size_t)values * sizeof(float));
    }
    return t;
}

// One call of the network for all rows: `output` [rows, latent values], in PyTorch's order.
static hd_status call_network(generation *g, const hd_exec *ex, float *output)
{
    const hd_picture_size *z = &g->size;
    int64_t rows = rows_of(g), group = g->group;
    hd_shape last = hd_shape4(rows, z->latent_height, z->latent_width, z->channels);
    hd_tensor text = text_rows(g, ex);
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, last),
              y = hd_arena_tensor(ex->arena, HD_F32, last);
    hd_shape first = hd_shape4(group, z->channels, z->latent_height, z->latent_width);
    for (int64_t part = 0; part < rows / group; part++)
        HD_TRY(hd_nchw_to_nhwc(ex, hd_tensor_slice(x, 0, part * group, group),
                               hd_tensor_of(g->input, HD_F32, first)));
    for (int64_t r = 0; r < rows && !ex->recording; r++)
        g->timestep[r] = hd_sampler_timestep(g->sampler);
    hd_forward forward = forward_of(g);
    hd_unet2d_inputs in = {.timestep = g->timestep, .text = text};
    if (hd_unet2d_configuration(g->model->unet)->guidance_channels > 0) in.guidance = g->guidance;
    HD_TRY(hd_unet2d_forward(ex, g->model->unet, &forward, y, x, &in));
    first.dim[0] = rows;
    return hd_nhwc_to_nchw(ex, hd_tensor_of(output, HD_F32, first), y);
}

// Each picture's prediction from its two rows.
static void guide(generation *g, const float *uncond, const float *cond)
{
    int64_t values = g->size.latent_values;
    for (int64_t i = 0; i < g->group * values; i += values) {
        hd_guide(g->guess + i, uncond + i, cond + i, (double)g->preset->guidance, values);
        if (g->preset->guidance_rescale > 0)
            hd_guide_rescale(g->guess + i, cond + i, (double)g->preset->guidance_rescale, values);
    }
}

// The guided prediction of every picture of the group.
static hd_status predict(generation *g)
{
    size_t mark = hd_arena_mark(g->ex.arena);
    int64_t values = g->group * g->size.latent_values;
    float *output =
        hd_arena_bytes(g->ex.arena, (size_t)(rows_of(g) * g->size.latent_values) * sizeof *output);
    hd_status status =
        output ? call_network(g, &g->ex, output) : hd_fail(HD_ERR_NOMEM, "the arena is full");
    if (status == HD_OK && g->guided)
        guide(g, output, output + values);
    else if (status == HD_OK)
        memcpy(g->guess, output, (size_t)values * sizeof *output);
    hd_arena_rewind(g->ex.arena, mark);
    return status;
}

/* --- the loop
 * ----------------------------------------------------------------------------------------------------------
 */

static void draw_noise(void *arg, int64_t row, float *values, int64_t count)
{
    hd_rng_normal(((generation *)arg)->rng[row], values, count);
}

// Generators and first latents of the pictures first .. first + group - 1.
static hd_status begin_group(generation *g, int64_t first)
{
    hd_sampler_restart(g->sampler);
    hd_attention_run_restart(g->attention);
    int64_t values = g->size.latent_values;
    for (int64_t i = 0; i < g->group; i++) {
        hd_rng_free(g->rng[i]);
        g->rng[i] = NULL;
        HD_TRY(hd_rng_create(&g->rng[i], (hd_rng_kind)g->preset->rng,
                             g->preset->seed + (uint64_t)(first + i)));
        float *latent = g->latent + i * values, *noise = g->noise + i * values;
        if (g->start.picture_given) {
            hd_rng_normal(g->rng[i], noise,
                          values); // the draw of the autoencoder's sample comes first
            hd_start_sample(&g->start, &g->size, latent, noise);
            hd_rng_normal(g->rng[i], noise, values);
        } else if (g->start.latents) {
            memcpy(latent, g->start.latents + (g->start.latents_rows > 1 ? first + i : 0) * values,
                   (size_t)values * sizeof *latent);
        } else {
            hd_rng_normal(g->rng[i], latent, values);
        }
    }
    float scale = hd_sampler_init_noise_sigma(g->sampler);
    if (g->start.picture_given)
        hd_sampler_add_noise(g->sampler, g->latent, g->latent, g->noise);
    else
        for (int64_t i = 0; i < g->group * values; i++)
            g->latent[i] *= scale;
    return HD_OK;
}

static void tell(const generation *g, const char *stage, int64_t step, int64_t count,
                 double step_seconds, double begin)
{
    const hd_callbacks *c = g->request->callbacks;
    if (!c || !c->progress) return;
    hd_progress progress = {stage, (int)step, (int)count, step_seconds, hd_seconds() - begin};
    c->progress(c->user, &progress);
}

static hd_status show_preview(generation *g, int64_t first, int64_t step)
{
    const hd_preset *p = g->preset;
    const hd_callbacks *c = g->request->callbacks;
    bool wanted = p->preview || (c && c->preview);
    int64_t calls = hd_sampler_calls(g->sampler);
    if (!wanted || step == calls || step % p->preview_every != 0) return HD_OK;
    for (int64_t i = 0; i < g->group; i++) {
        hd_image image = {0};
        HD_TRY(hd_decode_picture(&g->ex, g->model->vae, &g->size, p->vae_tiling,
                                 g->guess + i * g->size.latent_values, &image));
        hd_preview preview = {(int)step,   (int)calls,   (int)(first + i),
                              image.width, image.height, image.rgb};
        if (c && c->preview) c->preview(c->user, &preview);
        hd_status status = p->preview ? hd_write_preview(p, first + i, &image) : HD_OK;
        hd_image_free(&image);
        HD_TRY(status);
    }
    return HD_OK;
}

static bool preview_wanted(const generation *g)
{
    const hd_callbacks *c = g->request->callbacks;
    return g->preset->preview || (c && c->preview);
}

static hd_status sample_group(generation *g, int64_t first, int64_t done_before, double begin)
{
    hd_noise noise = {draw_noise, g};
    int64_t calls = hd_sampler_calls(g->sampler),
            groups = (g->preset->batch + g->group - 1) / g->group;
    while (!hd_sampler_done(g->sampler)) {
        double step_begin = hd_seconds();
        HD_TRY(hd_exec_check(&g->ex));
        hd_sampler_scale_input(g->sampler, g->input, g->latent);
        HD_TRY(predict(g));
        // the picture in the making, before the step replaces what it is made from
        if (preview_wanted(g)) hd_sampler_predict(g->sampler, g->input, g->guess, g->latent);
        HD_TRY(hd_sampler_step(g->sampler, g->guess, g->latent, &noise));
        int64_t step = hd_sampler_call(g->sampler);
        tell(g, "sample", done_before + step, groups * calls, hd_seconds() - step_begin, begin);
        if (preview_wanted(g)) {
            float *guess = g->guess;
            g->guess = g->input;
            hd_status status = show_preview(g, first, step);
            g->guess = guess;
            HD_TRY(status);
        }
    }
    return HD_OK;
}

static hd_status finish_group(generation *g, int64_t first)
{
    const hd_run_request *r = g->request;
    double begin = hd_seconds();
    for (int64_t i = 0; i < g->group && first + i < g->preset->batch; i++) {
        HD_TRY(hd_exec_check(&g->ex));
        const float *latent = g->latent + i * g->size.latent_values;
        if (g->latents.values)
            memcpy(g->latents.values + (first + i) * g->size.latent_values, latent,
                   (size_t)g->size.latent_values * sizeof *latent);
        hd_image image = {0};
        double decode = hd_seconds();
        HD_TRY(hd_decode_picture(&g->ex, g->model->vae, &g->size, g->preset->vae_tiling, latent,
                                 &image));
        hd_result_stage(r->result, "decode", hd_seconds() - decode, 1);
        hd_resolved made = {.seed = g->preset->seed + (uint64_t)(first + i),
                            .width = g->size.width,
                            .height = g->size.height,
                            .sampler = hd_sampler_name(g->sampler),
                            .precision = hd_dtype_name(g->model->compute),
                            .model_hash = g->model->hash,
                            .init_image_hash =
                                g->start.picture_given ? g->start.picture_hash : NULL};
        HD_TRY(hd_finish_picture(r->result, g->preset, &made, first + i, &image));
        tell(g, "decode", first + i + 1, g->preset->batch, hd_seconds() - decode, begin);
    }
    return HD_OK;
}

/* --- before step 0
 * ------------------------------------------------------------------------------------------------------
 */

static hd_status make_buffers(generation *g)
{
    size_t values = (size_t)(g->group * g->size.latent_values), rows = (size_t)rows_of(g);
    g->latent = calloc(values, sizeof(float));
    g->input = calloc(values, sizeof(float));
    g->guess = calloc(values, sizeof(float));
    g->noise = calloc(values, sizeof(float));
    g->timestep = calloc(rows, sizeof(float));
    g->guidance = calloc(rows, sizeof(float));
    g->row = calloc(rows, sizeof *g->row);
    g->rng = calloc((size_t)g->group, sizeof *g->rng);
    g->text = calloc((size_t)(2 * g->text_tokens * g->text_channels), sizeof(float));
    if (!g->latent || !g->input || !g->guess || !g->noise || !g->timestep || !g->guidance ||
        !g->row || !g->rng || !g->text)
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for the latents of %" PRId64 " pictures",
                       g->group);
    for (int64_t r = 0; r < rows_of(g); r++) {
        g->row[r].picture = r % g->group;
        strcpy(g->row[r].branch, "main");
        strcpy(g->row[r].role, !g->guided || r >= g->group ? "cond" : "uncond");
        g->guidance[r] = g->preset->guidance;
    }
    return HD_OK;
}

static hd_status make_sampler(generation *g)
{
    const hd_preset *p = g->preset;
    const hd_picture_size *z = &g->size;
    if (!g->model->scheduler && !p->sampler)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s has no scheduler/scheduler_config.json; name a sampler with --sampler",
                       p->model);
    hd_sampler_options options = {.name = p->sampler,
                                  .config = g->model->scheduler ? hd_json_root(g->model->scheduler)
                                                                : NULL,
                                  .steps = p->steps,
                                  .image_to_image = g->start.picture_given,
                                  .strength = (double)p->strength,
                                  .image_tokens = z->latent_height * z->latent_width,
                                  .rows = g->group,
                                  .row_values = z->latent_values};
    return hd_sampler_create(&g->sampler, &options);
}

// The dry pass: the same code on a recording executor finds shapes that do not fit, resolves the
// processors, prepares the primitives and measures the memory.
static hd_status measure(generation *g, size_t *bytes)
{
    hd_exec dry = g->ex;
    dry.recording = true;
    dry.cancelled = NULL;
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    int64_t length = g->text_tokens;
    int64_t *ids = calloc((size_t)length, sizeof *ids);
    hd_status status = ids ? encode_row(g, &dry, ids, g->preset->clip_skip, g->text)
                           : hd_fail(HD_ERR_NOMEM, "prompt: no memory");
    free(ids);
    if (status == HD_OK) {
        void *output =
            hd_arena_bytes(dry.arena, (size_t)(rows_of(g) * g->size.latent_values) * sizeof(float));
        status = call_network(g, &dry, output);
        hd_arena_rewind(dry.arena, 0);
    }
    if (status == HD_OK) status = hd_attention_run_finish(g->attention);
    if (status == HD_OK)
        status = hd_decode_picture(&dry, g->model->vae, &g->size, g->preset->vae_tiling, g->latent,
                                   NULL);
    if (status == HD_OK && g->start.picture_given)
        status = hd_start_encode(&g->start, &dry, g->model->vae, &g->size, g->preset->vae_tiling);
    *bytes = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);
    return status;
}

static hd_status prepare(generation *g)
{
    const hd_run_request *r = g->request;
    const hd_preset *p = g->preset;
    HD_TRY(hd_start_open(&g->start, p, r->root, g->model, &g->size));
    const hd_unet2d_config *unet = hd_unet2d_configuration(g->model->unet);
    int64_t layers = hd_text_clip_configuration(g->model->text)->layers;
    if (p->clip_skip > layers)
        return hd_json_fail(hd_json_get(r->root, "clip_skip"), HD_ERR_ARGUMENT,
                            "is %" PRId64 ", must be 0 to %" PRId64 " for this model", p->clip_skip,
                            layers);
    g->guided = p->guidance > 1.0f && unet->guidance_channels == 0;
    int64_t positions = g->size.latent_height * g->size.latent_width;
    g->group = GROUP_POSITIONS / positions;
    if (g->group < 1) g->group = 1;
    if (g->group > p->batch) g->group = p->batch;
    if (g->group > HD_MAX_ROWS / 2) g->group = HD_MAX_ROWS / 2;
    int64_t groups = (p->batch + g->group - 1) / g->group;
    g->group =
        (p->batch + groups - 1) / groups; // of equal size: the last one has few places to spare
    g->text_tokens = hd_tokenizer_length(g->model->tokenizer);
    g->text_channels = hd_text_clip_configuration(g->model->text)->channels;
    HD_TRY(make_buffers(g));
    HD_TRY(make_sampler(g));
    HD_TRY(hd_attention_run_create(&g->attention, r->processors, p->processors,
                                   hd_sampler_calls(g->sampler)));
    hd_attention_run_watch(g->attention, r->watch, r->watch_user);
    if (p->latents_out) HD_TRY(hd_latents_file_begin(&g->latents, p->batch, &g->size));
    size_t bytes;
    HD_TRY(measure(g, &bytes));
    HD_TRY(hd_arena_create(&g->ex.arena, bytes));
    r->result->report.arena_bytes = bytes;
    r->result->report.sampler = hd_result_keep(r->result, hd_sampler_name(g->sampler));
    return HD_OK;
}

static void clear(generation *g)
{
    for (int64_t i = 0; g->rng && i < g->group; i++)
        hd_rng_free(g->rng[i]);
    free(g->rng);
    free(g->latent);
    free(g->input);
    free(g->guess);
    free(g->noise);
    free(g->timestep);
    free(g->guidance);
    free(g->row);
    free(g->text);
    hd_latents_file_free(&g->latents);
    hd_start_free(&g->start);
    hd_sampler_free(g->sampler);
    hd_attention_run_free(g->attention);
    hd_arena_free(g->ex.arena);
}

static hd_status run_all(generation *g)
{
    const hd_run_request *r = g->request;
    HD_TRY(prepare(g));
    tell(g, "prompt", 0, 1, 0, hd_seconds());
    HD_TRY(encode_prompts(g));
    if (g->start.picture_given) {
        double begin = hd_seconds();
        tell(g, "encode", 0, 1, 0, begin);
        HD_TRY(hd_start_encode(&g->start, &g->ex, g->model->vae, &g->size, g->preset->vae_tiling));
        hd_result_stage(r->result, "encode", hd_seconds() - begin, 1);
    }
    int64_t calls = hd_sampler_calls(g->sampler),
            groups = (g->preset->batch + g->group - 1) / g->group;
    double begin = hd_seconds();
    tell(g, "sample", 0, groups * calls, 0, begin);
    for (int64_t first = 0, n = 0; first < g->preset->batch; first += g->group, n++) {
        double sample = hd_seconds();
        HD_TRY(begin_group(g, first));
        HD_TRY(sample_group(g, first, n * calls, begin));
        hd_result_stage(r->result, "sample", hd_seconds() - sample, (int)calls);
        HD_TRY(finish_group(g, first));
    }
    if (!g->preset->latents_out) return HD_OK;
    HD_TRY(hd_latents_file_write(&g->latents, g->preset->latents_out));
    r->result->report.latents_path = hd_result_keep(r->result, g->preset->latents_out);
    return HD_OK;
}

hd_status hd_text_to_image(const hd_run_request *request)
{
    generation g = {
        .request = request, .preset = request->preset, .model = request->model, .ex = *request->ex};
    g.ex.arena = NULL;
    hd_status status = run_all(&g);
    clear(&g);
    return status;
}
