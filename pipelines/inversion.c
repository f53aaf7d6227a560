/* pipelines/inversion.c: a picture's latent back to noise, level by level: deterministic DDIM steps
 * run upwards (Song et al., "Denoising Diffusion Implicit Models", section 4.3), with the noise
 * levels of the run's own sampler, so that its calls find the latent they would have met.
 *
 * The network sees the latent of a level with the next level's timestep (Mokady et al., "Null-text
 * Inversion", section 3) or, as StyleID does (Chung et al., 2312.09008), with its own, the picture
 * counting as the lowest level. `fixed_point` repeats a step with the noise seen at its own result
 * (Pan et al., 2309.04907). */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/samplers/guidance.h"
#include "pipelines/clock.h"
#include "pipelines/generation.h"
#include "pipelines/inversion_file.h"

typedef struct inversion {
    generation *g;
    const hd_exec *ex;
    int branch;
    const hd_inversion *how;
    hd_sampler *fine; // of how->steps steps; NULL: the run's
    gen_rows rows;    // cond; or uncond, cond
    float *input;     // [latent values]
    float *x, *next, *noise;
} inversion;

static const hd_sampler *levels_of(const inversion *v)
{
    return v->fine ? v->fine : v->g->sampler;
}

static bool guided(const inversion *v)
{
    return v->how->guidance > 1.0f &&
           hd_unet2d_configuration(v->g->model->unet)->guidance_channels == 0;
}

static void set_rows(inversion *v)
{
    gen_rows *r = &v->rows;
    r->count = guided(v) ? 2 : 1;
    for (int64_t b = 0; b < r->count; b++) {
        r->role[b] = r->count == 2 && b == 0 ? HD_ROLE_UNCOND : HD_ROLE_COND;
        r->branch[b] = v->branch;
        r->latent[b] = v->input;
        r->guidance[b] = v->how->guidance;
        r->name[b] = (hd_row){.also = v->g->branches.item[v->branch].also};
        strcpy(r->name[b].branch, v->g->branches.item[v->branch].name);
        strcpy(r->name[b].role, hd_role_names[r->role[b]]);
    }
}

// The noise that the network sees in x [latent values], which is at level `at`, when it is told
// `timestep`.
static hd_status see_noise(inversion *v, const float *x, hd_noise_level at, float timestep,
                           int64_t index, int64_t count)
{
    generation *g = v->g;
    int64_t values = g->size.latent_values;
    size_t mark = hd_arena_mark(v->ex->arena);
    float *output = hd_arena_bytes(v->ex->arena, (size_t)(v->rows.count * values) * sizeof *output);
    if (!output) return hd_fail(HD_ERR_NOMEM, "the arena is full");
    for (int64_t i = 0; i < values; i++)
        v->input[i] = x[i] / at.divisor;
    for (int64_t b = 0; b < v->rows.count; b++)
        v->rows.timestep[b] = timestep;
    gen_call call = {
        .rows = &v->rows,
        .attention = g->inverting,
        .step = {index, count, (double)timestep, (double)at.sigma, HD_PHASE_INVERSION}};
    hd_status status = gen_call_network(g, v->ex, &call, output);
    if (status == HD_OK && !v->ex->recording) {
        if (v->rows.count == 2)
            hd_guide(output, output, output + values, (double)v->how->guidance, values);
        hd_sampler_noise(levels_of(v), at, v->noise, output, x, values);
    }
    hd_arena_rewind(v->ex->arena, mark);
    return status;
}

// next = the picture in x (of level `from`) at level `to`, by the noise in v->noise.
static void move(inversion *v, hd_noise_level from, hd_noise_level to)
{
    for (int64_t i = 0; i < v->g->size.latent_values; i++) {
        float clean = (v->x[i] - from.sigma * v->noise[i]) / from.alpha;
        v->next[i] = to.alpha * clean + to.sigma * v->noise[i];
    }
}

static hd_status step_up(inversion *v, hd_noise_level from, hd_noise_level to, int64_t index,
                         int64_t count)
{
    bool own = v->how->pairing == HD_PAIRING_SAME_LEVEL;
    HD_TRY(hd_exec_check(v->ex));
    HD_TRY(see_noise(v, v->x, from, own ? from.timestep : to.timestep, index, count));
    move(v, from, to);
    for (int64_t i = 0; i < v->how->fixed_point; i++) {
        HD_TRY(see_noise(v, v->next, to, to.timestep, index, count));
        move(v, from, to);
    }
    float *swapped = v->x;
    v->x = v->next;
    v->next = swapped;
    return HD_OK;
}

// The run's call of this timestep; -1: none.
static int64_t run_call(const generation *g, float timestep)
{
    for (int64_t i = 0; i < g->calls; i++)
        if (hd_sampler_level(g->sampler, i).timestep == timestep) return i;
    return -1;
}

static hd_status walk(inversion *v, float *trajectory)
{
    const generation *g = v->g;
    const hd_sampler *s = levels_of(v);
    int64_t values = g->size.latent_values, calls = hd_sampler_calls(s), step = 0;
    size_t bytes = (size_t)values * sizeof(float);
    int64_t top = 0, lowest = calls - 1;
    while (top < calls - 1 &&
           hd_sampler_level(s, top).timestep != hd_sampler_level(g->sampler, 0).timestep)
        top++;
    hd_noise_level at = hd_sampler_level(s, calls);
    memcpy(v->x, g->branch[v->branch].start.mean, bytes);
    memcpy(trajectory + g->calls * values, v->x, bytes);
    if (v->how->pairing == HD_PAIRING_SAME_LEVEL) {
        at = hd_sampler_level(s, lowest);
        int64_t call = run_call(g, at.timestep);
        if (call >= 0) memcpy(trajectory + call * values, v->x, bytes);
        lowest--;
    }
    double begin = hd_seconds();
    for (int64_t j = lowest; j >= top; j--, step++) {
        double step_begin = hd_seconds();
        hd_noise_level to = hd_sampler_level(s, j);
        HD_TRY(step_up(v, at, to, step, lowest - top + 1));
        at = to;
        int64_t call = run_call(g, at.timestep);
        if (call >= 0) memcpy(trajectory + call * values, v->x, bytes);
        gen_tell(g, "invert", step + 1, lowest - top + 1, hd_seconds() - step_begin, begin);
    }
    for (int64_t i = 0; i < values; i++)
        if (!isfinite(v->x[i]))
            return hd_fail(HD_ERR_UNSUPPORTED,
                           "branch \"%s\": the inversion with sampler %s leaves the numbers; "
                           "try ddim",
                           g->branches.item[v->branch].name, hd_sampler_name(g->sampler));
    return HD_OK;
}

/* --- before it --- */

static const hd_json *node_of(const generation *g, int b)
{
    const hd_branch *is = &g->branches.item[b];
    const hd_json *node = hd_json_get(is->node ? is->node : g->request->root, "inversion");
    return node ? node : is->node ? is->node : g->request->root;
}

static hd_status open_fine(inversion *v)
{
    const generation *g = v->g;
    if (v->how->steps == 0 || v->how->steps == g->preset->steps) return HD_OK;
    hd_sampler_options options = {.name = g->preset->sampler,
                                  .config = g->model->scheduler ? hd_json_root(g->model->scheduler)
                                                                : NULL,
                                  .steps = v->how->steps,
                                  .image_tokens = g->size.latent_height * g->size.latent_width,
                                  .rows = 1,
                                  .row_values = 1};
    HD_TRY(hd_sampler_create(&v->fine, &options));
    int64_t at = 0, calls = hd_sampler_calls(v->fine);
    for (int64_t i = 0; i < g->calls; i++) {
        float wanted = hd_sampler_level(g->sampler, i).timestep;
        while (at < calls && hd_sampler_level(v->fine, at).timestep > wanted)
            at++;
        if (at < calls && hd_sampler_level(v->fine, at).timestep == wanted) continue;
        return hd_json_fail(node_of(g, v->branch), HD_ERR_ARGUMENT,
                            "steps is %" PRId64 ": these do not meet timestep %g of the run's "
                            "%" PRId64 " steps; use those, or a multiple",
                            v->how->steps, (double)wanted, g->preset->steps);
    }
    return HD_OK;
}

static void close_inversion(inversion *v)
{
    hd_sampler_free(v->fine);
    free(v->input);
    free(v->x);
    free(v->next);
    free(v->noise);
}

static hd_status open_inversion(inversion *v, generation *g, const hd_exec *ex, int b)
{
    size_t values = (size_t)g->size.latent_values;
    *v = (inversion){.g = g, .ex = ex, .branch = b, .how = &g->branches.item[b].inversion};
    v->input = calloc(values, sizeof(float));
    v->x = calloc(values, sizeof(float));
    v->next = calloc(values, sizeof(float));
    v->noise = calloc(values, sizeof(float));
    if (!v->input || !v->x || !v->next || !v->noise)
        return hd_fail(HD_ERR_NOMEM, "inversion: no memory");
    set_rows(v);
    return open_fine(v);
}

// Timesteps must fall: a sampler that comes back to one has no level between two calls.
static hd_status check_sampler(const generation *g, int b)
{
    for (int64_t i = 1; i < g->calls; i++)
        if (!(hd_sampler_level(g->sampler, i).timestep <
              hd_sampler_level(g->sampler, i - 1).timestep))
            return hd_json_fail(node_of(g, b), HD_ERR_UNSUPPORTED,
                                "sampler %s calls the network more than once at a level, which an "
                                "inversion cannot follow; use ddim",
                                hd_sampler_name(g->sampler));
    return HD_OK;
}

hd_status gen_invert_check(generation *g)
{
    for (int b = 0; b < g->branches.count; b++) {
        if (!g->branches.item[b].invert) continue;
        HD_TRY(check_sampler(g, b));
        g->branch[b].trajectory =
            calloc((size_t)((g->calls + 1) * g->size.latent_values), sizeof(float));
        if (!g->branch[b].trajectory)
            return hd_fail(HD_ERR_NOMEM, "inversion: no memory for %" PRId64 " latents",
                           g->calls + 1);
    }
    return HD_OK;
}

hd_status gen_invert_dry(generation *g, const hd_exec *dry)
{
    for (int b = 0; b < g->branches.count; b++) {
        if (!g->branches.item[b].invert || g->branches.item[b].inversion.file) continue;
        inversion v;
        hd_status status = open_inversion(&v, g, dry, b);
        if (status == HD_OK) status = see_noise(&v, v.x, hd_sampler_level(g->sampler, 0), 0, 0, 1);
        close_inversion(&v);
        HD_TRY(status);
    }
    return HD_OK;
}

static hd_status invert_branch(generation *g, int b, const hd_inversion_use *use)
{
    const hd_branch *is = &g->branches.item[b];
    inversion v;
    if (is->inversion.file)
        return hd_inversion_file_read(g->branch[b].trajectory, is->inversion.file, is->name, use,
                                      node_of(g, b));
    hd_attention_run_forget_text(g->inverting);
    hd_status status = open_inversion(&v, g, &g->ex, b);
    if (status == HD_OK) status = walk(&v, g->branch[b].trajectory);
    close_inversion(&v);
    return status;
}

static hd_status save(const generation *g, const hd_inversion_use *use)
{
    const char *names[HD_MAX_BRANCHES];
    const float *trajectories[HD_MAX_BRANCHES];
    int found = 0;
    for (int b = 0; b < g->branches.count; b++) {
        names[b] = g->branches.item[b].name;
        trajectories[b] = g->branch[b].trajectory;
        found += trajectories[b] != NULL;
    }
    if (found == 0)
        return hd_json_fail(hd_json_get(g->request->root, "save_inversion"), HD_ERR_ARGUMENT,
                            "has nothing to save: no branch of this run has an inversion");
    return hd_inversion_file_write(g->preset->save_inversion, g->branches.count, names,
                                   trajectories, use);
}

hd_status gen_invert(generation *g)
{
    double begin = hd_seconds();
    const hd_picture_size *z = &g->size;
    hd_inversion_use use = {
        .model_hash = g->model->hash,
        .sampler = hd_sampler_name(g->sampler),
        .calls = g->calls,
        .shape = hd_shape4(g->calls + 1, z->channels, z->latent_height, z->latent_width)};
    float *timesteps = malloc((size_t)g->calls * sizeof *timesteps);
    if (!timesteps) return hd_fail(HD_ERR_NOMEM, "inversion: no memory");
    for (int64_t i = 0; i < g->calls; i++)
        timesteps[i] = hd_sampler_level(g->sampler, i).timestep;
    use.timesteps = timesteps;
    hd_status status = HD_OK;
    int inverted = 0;
    for (int b = 0; b < g->branches.count && status == HD_OK; b++)
        if (g->branches.item[b].invert) {
            status = invert_branch(g, b, &use);
            inverted++;
        }
    if (status == HD_OK && g->preset->save_inversion) status = save(g, &use);
    free(timesteps);
    if (inverted > 0) hd_result_stage(g->request->result, "invert", hd_seconds() - begin, inverted);
    return status;
}
