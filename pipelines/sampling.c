/* pipelines/sampling.c: a group of pictures from noise to latents: first latents, then per call the
 * rows, the hooks beside the call, the network, guidance and the sampler's step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/samplers/guidance.h"
#include "pipelines/clock.h"
#include "pipelines/generation.h"

static void draw_noise(void *arg, int64_t row, float *values, int64_t count)
{
    hd_rng_normal(((generation *)arg)->rng[row], values, count);
}

/* --- first latents --- */

// Branch `b` begins as `from` does (itself, or the one it was bound to).
static hd_status begin_latent(generation *g, int b, int64_t first, int64_t picture)
{
    const hd_branch *is = &g->branches.item[b];
    int from = is->start < 0 ? b : is->start;
    const gen_branch *start = &g->branch[from];
    int64_t values = g->size.latent_values;
    int64_t row = g->branch[b].slot * g->group + picture;
    const hd_branch *seeded = &g->branches.item[is->seed_given ? b : from];
    uint64_t seed =
        (seeded->seed_given ? seeded->seed : g->preset->seed) + (uint64_t)(first + picture);
    float *latent = g->latent + row * values;
    hd_rng_free(g->rng[row]);
    g->rng[row] = NULL;
    HD_TRY(hd_rng_create(&g->rng[row], (hd_rng_kind)g->preset->rng, seed));
    if (start->trajectory) {
        memcpy(latent, start->trajectory, (size_t)values * sizeof *latent);
        return HD_OK;
    }
    if (start->start.picture_given) {
        hd_rng_normal(g->rng[row], g->noise,
                      values); // the draw of the autoencoder's sample comes first
        hd_start_sample(&start->start, &g->size, latent, g->noise);
        hd_rng_normal(g->rng[row], g->noise, values);
        hd_noise_level level = hd_sampler_level(g->sampler, 0);
        for (int64_t i = 0; i < values; i++)
            latent[i] = level.alpha * latent[i] + level.sigma * g->noise[i];
        return HD_OK;
    }
    const hd_start *given = &start->start;
    if (given->latents)
        memcpy(latent, given->latents + (given->latents_rows > 1 ? first + picture : 0) * values,
               (size_t)values * sizeof *latent);
    else
        hd_rng_normal(g->rng[row], latent, values);
    float scale = hd_sampler_init_noise_sigma(g->sampler);
    for (int64_t i = 0; i < values; i++)
        latent[i] *= scale;
    return HD_OK;
}

hd_status gen_begin_group(generation *g, int64_t first)
{
    hd_sampler_restart(g->sampler);
    hd_attention_run_restart(g->attention);
    hd_beside_run_restart(g->beside);
    memset(g->latent, 0, (size_t)(g->slots * g->group * g->size.latent_values) * sizeof *g->latent);
    for (int b = 0; b < g->branches.count; b++) {
        if (g->branch[b].slot < 0 || g->branch[b].slot >= g->sampled) continue;
        for (int64_t i = 0; i < g->group; i++)
            HD_TRY(begin_latent(g, b, first, i));
    }
    return HD_OK;
}

/* --- the hooks beside the call --- */

static hd_step step_now(const generation *g)
{
    hd_step step = {.index = hd_sampler_call(g->sampler), .count = g->calls};
    if (!hd_sampler_done(g->sampler)) {
        step.timestep = (double)hd_sampler_timestep(g->sampler);
        step.sigma = (double)hd_sampler_sigma(g->sampler);
    }
    return step;
}

static hd_beside_branch *data_of(const generation *g, int64_t picture)
{
    return g->data + picture * g->branches.count;
}

hd_beside_ctx gen_beside_of(const generation *g, int64_t first, int64_t picture, hd_step step)
{
    return (hd_beside_ctx){.ex = &g->ex,
                           .step = step,
                           .picture = picture,
                           .seed = g->preset->seed + (uint64_t)(first + picture),
                           .channels = g->size.channels,
                           .height = g->size.latent_height,
                           .width = g->size.latent_width,
                           .values = g->size.latent_values,
                           .sampler = g->sampler,
                           .branches = &g->branches,
                           .data = data_of(g, picture)};
}

// What every hook may see of the branches; predictions, guesses and x0 come and go.
static void set_data(generation *g)
{
    for (int64_t i = 0; i < g->group; i++)
        for (int b = 0; b < g->branches.count; b++)
            data_of(g, i)[b] = (hd_beside_branch){.height = g->branch[b].size.latent_height,
                                                  .width = g->branch[b].size.latent_width,
                                                  .values = g->branch[b].size.latent_values,
                                                  .latent = gen_latent(g, b, i),
                                                  .timestep = hd_sampler_timestep(g->sampler),
                                                  .clean = g->branch[b].start.mean,
                                                  .trajectory = g->branch[b].trajectory,
                                                  .guidance = g->branches.item[b].guidance};
}

static hd_status latent_hooks(generation *g, int64_t first, hd_latent_when when, hd_step step)
{
    for (int64_t i = 0; i < g->group; i++) {
        hd_beside_ctx ctx = gen_beside_of(g, first, i, step);
        ctx.when = when;
        HD_TRY(hd_beside_run_latent(g->beside, &ctx));
    }
    return HD_OK;
}

// Branches that follow their inversion are where it was before call `call`.
static void follow(generation *g, int64_t call)
{
    int64_t values = g->size.latent_values;
    for (int b = 0; b < g->branches.count; b++) {
        if (!g->branches.item[b].follow || !g->branch[b].trajectory || g->branch[b].slot < 0)
            continue;
        for (int64_t i = 0; i < g->group; i++)
            memcpy(gen_latent(g, b, i), g->branch[b].trajectory + call * values,
                   (size_t)values * sizeof(float));
    }
}

/* --- one call --- */

static void scale_inputs(generation *g)
{
    hd_sampler_scale_input(g->sampler, g->input, g->latent);
    int64_t values = g->group * g->size.latent_values;
    float divisor = hd_sampler_level(g->sampler, hd_sampler_call(g->sampler)).divisor;
    for (int64_t i = g->sampled * values; i < g->slots * values; i++)
        g->input[i] = g->latent[i] / divisor;
}

static hd_status no_guess(const generation *g, int b, int64_t call)
{
    const hd_branch *is = &g->branches.item[b];
    return hd_json_fail(is->node ? is->node : g->request->root, HD_ERR_ARGUMENT,
                        "branch \"%s\" has neither a row \"cond\" nor a processor that makes its "
                        "guess at call %lld",
                        is->name, (long long)call);
}

// A branch's guess from the predictions of its rows, as processors make or change it.
static hd_status guess_branch(generation *g, hd_beside_ctx *ctx, int b)
{
    hd_beside_branch *d = &ctx->data[b];
    int64_t values = g->size.latent_values;
    const float *cond = d->prediction[HD_ROLE_COND], *uncond = d->prediction[HD_ROLE_UNCOND];
    bool made;
    HD_TRY(hd_beside_run_guess(g->beside, ctx, b, &made));
    if (!made && !cond) return no_guess(g, b, ctx->step.index);
    if (!made && uncond)
        hd_guide(d->guess, uncond, cond, (double)d->guidance, values);
    else if (!made)
        memcpy(d->guess, cond, (size_t)values * sizeof *cond);
    HD_TRY(hd_beside_run_add(g->beside, ctx, b));
    if (g->preset->guidance_rescale > 0 && cond && (made || uncond))
        hd_guide_rescale(d->guess, cond, (double)g->preset->guidance_rescale, values);
    return HD_OK;
}

static hd_status guess_all(generation *g, int64_t first, hd_step step, const float *output)
{
    int64_t values = g->size.latent_values;
    for (int64_t r = 0; r < g->rows.count; r++)
        data_of(g, g->rows.name[r].picture)[g->rows.branch[r]].prediction[g->rows.role[r]] =
            output + r * values;
    for (int64_t i = 0; i < g->group; i++) {
        hd_beside_ctx ctx = gen_beside_of(g, first, i, step);
        for (int b = 0; b < g->branches.count; b++) {
            int64_t slot = g->branch[b].slot;
            if (slot < 0 || slot >= g->sampled) continue;
            ctx.data[b].guess = g->guess + (slot * g->group + i) * values;
        }
        for (int b = 0; b < g->branches.count; b++)
            if (ctx.data[b].guess) HD_TRY(guess_branch(g, &ctx, b));
    }
    return HD_OK;
}

// The guided prediction of every sampled branch of every picture of the group.
static hd_status predict(generation *g, int64_t first, hd_step step)
{
    size_t mark = hd_arena_mark(g->ex.arena);
    float *output = hd_arena_bytes(g->ex.arena, (size_t)(g->rows.count * g->size.latent_values) *
                                                    sizeof *output);
    gen_call call = {&g->rows, g->attention, g->features, step, &g->size};
    for (int64_t r = 0; r < g->rows.count; r++)
        g->rows.timestep[r] = data_of(g, g->rows.name[r].picture)[g->rows.branch[r]].timestep;
    hd_status status = output ? gen_call_network(g, &g->ex, &call, output)
                              : hd_fail(HD_ERR_NOMEM, "the arena is full");
    if (status == HD_OK) status = guess_all(g, first, step, output);
    hd_arena_rewind(g->ex.arena, mark);
    return status;
}

// Processors change the clean latents that the guesses stand for. A guess whose clean latent stays
// as it was stays too, to the bit.
static hd_status x0_hooks(generation *g, int64_t first, hd_step step)
{
    if (!hd_beside_run_wants_x0(g->beside, step.index)) return HD_OK;
    int64_t values = g->size.latent_values, rows = g->sampled * g->group;
    size_t bytes = (size_t)values * sizeof(float);
    float *x0 = g->x0[0], *before = g->x0[1], *back = g->x0[2];
    hd_sampler_predict(g->sampler, x0, g->guess, g->latent);
    memcpy(before, x0, bytes * (size_t)rows);
    for (int64_t i = 0; i < g->group; i++) {
        hd_beside_ctx ctx = gen_beside_of(g, first, i, step);
        for (int b = 0; b < g->branches.count; b++)
            if (ctx.data[b].guess)
                ctx.data[b].x0 = x0 + (g->branch[b].slot * g->group + i) * values;
        HD_TRY(hd_beside_run_x0(g->beside, &ctx));
    }
    hd_sampler_unpredict(g->sampler, back, x0, g->latent);
    for (int64_t r = 0; r < rows; r++)
        if (memcmp(before + r * values, x0 + r * values, bytes) != 0)
            memcpy(g->guess + r * values, back + r * values, bytes);
    return HD_OK;
}

/* --- the loop --- */

static bool preview_wanted(const generation *g)
{
    const hd_callbacks *c = g->request->callbacks;
    return g->preset->preview || (c && c->preview);
}

// Main's pictures in the making: their clean latents are in g->input.
static hd_status show_preview(generation *g, int64_t first, int64_t step)
{
    const hd_preset *p = g->preset;
    const hd_callbacks *c = g->request->callbacks;
    if (!preview_wanted(g) || step == g->calls || step % p->preview_every != 0) return HD_OK;
    for (int64_t i = 0; i < g->group; i++) {
        hd_image image = {0};
        HD_TRY(hd_decode_picture(&g->ex, g->model->vae, &g->size, p->vae_tiling,
                                 g->input + i * g->size.latent_values, &image));
        hd_preview preview = {(int)step,   (int)g->calls, (int)(first + i),
                              image.width, image.height,  image.rgb};
        if (c && c->preview) c->preview(c->user, &preview);
        hd_status status = p->preview ? hd_write_preview(p, first + i, &image) : HD_OK;
        hd_image_free(&image);
        HD_TRY(status);
    }
    return HD_OK;
}

static hd_status sample_call(generation *g, int64_t first)
{
    hd_noise noise = {draw_noise, g};
    hd_step step = step_now(g);
    HD_TRY(gen_set_rows(g, step.index));
    set_data(g);
    follow(g, step.index);
    HD_TRY(latent_hooks(g, first, HD_LATENT_BEFORE_CALL, step));
    scale_inputs(g);
    HD_TRY(gen_call_aside(g, &g->ex, step, step.index));
    HD_TRY(predict(g, first, step));
    HD_TRY(x0_hooks(g, first, step));
    // the picture in the making, before the step replaces what it is made from
    if (preview_wanted(g)) hd_sampler_predict(g->sampler, g->input, g->guess, g->latent);
    HD_TRY(hd_sampler_step(g->sampler, g->guess, g->latent, &noise));
    set_data(g);
    if (hd_sampler_done(g->sampler)) follow(g, g->calls);
    return latent_hooks(g, first, HD_LATENT_AFTER_STEP, step);
}

hd_status gen_sample_group(generation *g, int64_t first, int64_t done_before, double begin)
{
    int64_t groups = (g->preset->batch + g->group - 1) / g->group;
    set_data(g);
    HD_TRY(latent_hooks(g, first, HD_LATENT_START, step_now(g)));
    while (!hd_sampler_done(g->sampler)) {
        double step_begin = hd_seconds();
        HD_TRY(hd_exec_check(&g->ex));
        HD_TRY(sample_call(g, first));
        int64_t step = hd_sampler_call(g->sampler);
        gen_tell(g, "sample", done_before + step, groups * g->calls, hd_seconds() - step_begin,
                 begin);
        HD_TRY(show_preview(g, first, step));
    }
    return HD_OK;
}
