/* pipelines/aside.c: branches of another size than the run's: a reference picture that keeps its
 * own, or has one in the preset.
 *
 * Such a branch has a latent of its own size, which a processor sets before each call
 * (not_sampled), and is a forward of its own before the run's call, through a run without
 * processors: it attends to itself. What it is good for are its keys and values, kept at the sites
 * where a processor asked for them (engine/attention/kept.h); its prediction is thrown away. */
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/kept.h"
#include "pipelines/generation.h"

static hd_status refuse_size(const generation *g, const hd_branch *is, const char *why)
{
    const char *const keys[] = {"width", "height", "keep_size"};
    const hd_json *node = NULL;
    for (size_t i = 0; i < HD_COUNT(keys) && !node; i++)
        node = hd_json_get(is->node, keys[i]);
    return hd_json_fail(node ? node : g->request->root, HD_ERR_ARGUMENT,
                        "branch \"%s\" cannot have a size of its own: %s", is->name, why);
}

static hd_status open_sized(generation *g, int b)
{
    hd_branch *is = &g->branches.item[b];
    gen_branch *have = &g->branch[b];
    const hd_json *node = is->node ? is->node : g->request->root;
    if (!is->init_image) return refuse_size(g, is, "it has no init_image");
    HD_TRY(hd_start_open_sized(&have->start, is->init_image, g->preset->fit, node, g->model,
                               is->width       ? is->width
                               : is->keep_size ? 0
                                               : g->size.width,
                               is->height      ? is->height
                               : is->keep_size ? 0
                                               : g->size.height,
                               &have->size));
    is->aside = have->size.width != g->size.width || have->size.height != g->size.height;
    if (!is->aside) return HD_OK;
    if (is->invert || !is->not_sampled || is->latent != b)
        return refuse_size(g, is,
                           "only a reference that a processor noises at each step can; the "
                           "others share the run's grid");
    return HD_OK;
}

hd_status gen_open_pictures(generation *g)
{
    for (int b = 0; b < g->branches.count; b++) {
        hd_branch *is = &g->branches.item[b];
        gen_branch *have = &g->branch[b];
        have->size = g->size;
        if (b > 0 && (is->width || is->height || is->keep_size))
            HD_TRY(open_sized(g, b));
        else if (b > 0)
            HD_TRY(hd_start_open_picture(&have->start, is->init_image, g->preset->fit, &g->size));
        is->latent_width = have->size.latent_width;
        is->latent_height = have->size.latent_height;
    }
    return HD_OK;
}

hd_status gen_aside_room(generation *g)
{
    for (int b = 0; b < g->branches.count; b++) {
        gen_branch *have = &g->branch[b];
        if (!g->branches.item[b].aside) continue;
        have->aside =
            calloc((size_t)(2 * g->group * have->size.latent_values), sizeof *have->aside);
        if (!have->aside)
            return hd_fail(HD_ERR_NOMEM, "branch \"%s\": no memory for its latents",
                           g->branches.item[b].name);
        if (g->aside) continue;
        HD_TRY(hd_attention_run_create(&g->aside, g->request->processors, NULL, g->calls));
        hd_attention_run_watch(g->aside, hd_attention_run_keep, g->attention);
    }
    return HD_OK;
}

// One row for each picture of the group. Its input is the latent as the network wants to see it.
static void set_rows(generation *g, int b, const hd_noise_level *level)
{
    gen_rows *r = &g->aside_rows;
    const gen_branch *have = &g->branch[b];
    const int64_t values = have->size.latent_values;
    float *input = have->aside + g->group * values;
    *r = (gen_rows){.count = g->group};
    for (int64_t i = 0; i < g->group; i++) {
        r->branch[i] = b;
        r->role[i] = HD_ROLE_COND;
        r->latent[i] = input + i * values;
        r->guidance[i] = g->branches.item[b].guidance;
        r->name[i] = (hd_row){.picture = i, .also = g->branches.item[b].also};
        strcpy(r->name[i].branch, g->branches.item[b].name);
        strcpy(r->name[i].role, hd_role_names[HD_ROLE_COND]);
        if (level) r->timestep[i] = g->data[i * g->branches.count + b].timestep;
    }
    for (int64_t i = 0; level && i < g->group * values; i++)
        input[i] = have->aside[i] / level->divisor;
}

static hd_status call_branch(generation *g, const hd_exec *ex, hd_step step, int b)
{
    const int64_t values = g->group * g->branch[b].size.latent_values;
    const size_t mark = hd_arena_mark(ex->arena);
    const gen_call call = {&g->aside_rows, g->aside, NULL, step, &g->branch[b].size};
    float *output = hd_arena_bytes(ex->arena, (size_t)values * sizeof *output);
    hd_attention_run_forget_text(g->aside); // another branch's, or another's order
    hd_status status = output ? gen_call_network(g, ex, &call, output)
                              : hd_fail(HD_ERR_NOMEM, "the arena is full");
    hd_arena_rewind(ex->arena, mark);
    return status;
}

hd_status gen_call_aside(generation *g, const hd_exec *ex, hd_step step, int64_t call)
{
    const hd_noise_level level = hd_sampler_level(g->sampler, call < 0 ? 0 : call);
    for (int b = 0; b < g->branches.count; b++) {
        const hd_branch *is = &g->branches.item[b];
        if (!is->aside || !hd_branch_has_row(is, HD_ROLE_COND, call)) continue;
        set_rows(g, b, ex->recording ? NULL : &level);
        HD_TRY(call_branch(g, ex, step, b));
    }
    return HD_OK;
}
