/* pipelines/network.c: the rows of a network call, and the call. */
#include <stdio.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"
#include "pipelines/generation.h"

float *gen_latent(const generation *g, int b, int64_t picture)
{
    if (g->branch[b].aside) return g->branch[b].aside + picture * g->branch[b].size.latent_values;
    int64_t slot = g->branch[g->branches.item[b].latent].slot;
    return g->latent + (slot * g->group + picture) * g->size.latent_values;
}

// Rows that may wait for their cond row: numbers of the rows before the fork.
static void set_fork(generation *g, gen_rows *r)
{
    int64_t before = 0;
    r->forks = false;
    for (int64_t b = 0; b < r->count; b++) {
        const hd_branch *branch = &g->branches.item[r->branch[b]];
        int64_t twin = -1;
        bool may = r->role[b] == HD_ROLE_PERTURBED || r->role[b] == HD_ROLE_NOREF;
        for (int64_t c = 0; c < b && may && branch->fork[r->role[b]]; c++)
            if (r->branch[c] == r->branch[b] && r->role[c] == HD_ROLE_COND &&
                r->name[c].picture == r->name[b].picture)
                twin = c;
        if (twin >= 0) {
            r->from[b] = r->from[twin];
            r->forks = true;
        } else {
            r->before[before] = r->name[b];
            r->from[b] = before++;
        }
    }
    r->fork = (hd_fork){g->fork_path, {before, r->before}, r->from};
}

hd_status gen_set_rows(generation *g, int64_t call)
{
    gen_rows *r = &g->rows;
    int64_t had = r->count;
    unsigned char same = 1;
    int branch[HD_MAX_ROWS];
    hd_role role[HD_MAX_ROWS];
    memcpy(branch, r->branch, sizeof branch);
    memcpy(role, r->role, sizeof role);
    r->count = hd_branches_rows(&g->branches, call, g->group, r->name, r->branch, r->role);
    same = had == r->count;
    for (int64_t b = 0; b < r->count; b++) {
        same = same && branch[b] == r->branch[b] && role[b] == r->role[b];
        int64_t latent_slot = g->branch[g->branches.item[r->branch[b]].latent].slot;
        r->latent[b] =
            g->input + (latent_slot * g->group + r->name[b].picture) * g->size.latent_values;
        r->guidance[b] = g->branches.item[r->branch[b]].guidance;
    }
    set_fork(g, r);
    if (!same) hd_attention_run_forget_text(g->attention);
    if (r->count == 0)
        return hd_fail(HD_ERR_ARGUMENT, "call %lld of the network has no rows", (long long)call);
    return HD_OK;
}

void gen_find_fork(generation *g)
{
    g->fork_path[0] = 0;
    if (!g->rows.forks) return;
    hd_rows rows = {g->rows.count, g->rows.name};
    int64_t twin[HD_MAX_ROWS];
    for (int64_t b = 0; b < g->rows.count; b++) {
        twin[b] = b; // the row that stands for it before the fork
        for (int64_t c = b - 1; c >= 0; c--)
            if (g->rows.from[c] == g->rows.from[b]) twin[b] = c;
    }
    const char *path = hd_beside_run_fork(g->beside, g->features, &rows, twin);
    snprintf(g->fork_path, sizeof g->fork_path, "%s", path ? path : "");
}

// The text of every row in the network's own copy.
static hd_tensor text_rows(const generation *g, const hd_exec *ex, const gen_rows *r)
{
    hd_tensor t =
        hd_arena_tensor(ex->arena, HD_F32, hd_shape3(r->count, g->text_tokens, g->text_channels));
    int64_t values = g->text_tokens * g->text_channels;
    if (ex->recording || !t.data) return t;
    for (int64_t b = 0; b < r->count; b++)
        memcpy((float *)t.data + b * values,
               g->branch[r->branch[b]].text[r->role[b] == HD_ROLE_UNCOND ? 0 : 1],
               (size_t)values * sizeof(float));
    return t;
}

// The latent of a row through its branch's view.
static const float *seen(const generation *g, const hd_exec *ex, const gen_rows *r, int64_t b)
{
    const hd_latent_view *v = &g->branches.item[r->branch[b]].view;
    if (ex->recording || (!v->source && !v->sign)) return r->latent[b];
    int64_t plane = g->size.latent_height * g->size.latent_width;
    for (int64_t c = 0; c < g->size.channels; c++)
        for (int64_t p = 0; p < plane; p++) {
            float value = r->latent[b][c * plane + (v->source ? v->source[p] : p)];
            g->viewed[c * plane + p] = v->sign ? v->sign[p] * value : value;
        }
    return g->viewed;
}

hd_status gen_call_network(generation *g, const hd_exec *ex, const gen_call *call, float *output)
{
    const hd_picture_size *z = call->size ? call->size : &g->size;
    gen_rows *r = call->rows;
    hd_shape last = hd_shape4(r->count, z->latent_height, z->latent_width, z->channels);
    hd_tensor text = text_rows(g, ex, r);
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, last),
              y = hd_arena_tensor(ex->arena, HD_F32, last);
    hd_shape first = hd_shape4(1, z->channels, z->latent_height, z->latent_width);
    for (int64_t b = 0; b < r->count; b++)
        HD_TRY(hd_nchw_to_nhwc(ex, hd_tensor_slice(x, 0, b, 1),
                               hd_tensor_of((void *)seen(g, ex, r, b), HD_F32, first)));
    hd_forward forward = {.run = call->attention,
                          .rows = {r->count, r->name},
                          .step = call->step,
                          .features = call->features,
                          .fork = r->forks && g->fork_path[0] ? &r->fork : NULL,
                          .model_key = g->model->key};
    hd_unet2d_inputs in = {.timestep = r->timestep, .text = text};
    if (hd_unet2d_configuration(g->model->unet)->guidance_channels > 0) in.guidance = r->guidance;
    HD_TRY(hd_unet2d_forward(ex, g->model->unet, &forward, y, x, &in));
    first.dim[0] = r->count;
    return hd_nhwc_to_nchw(ex, hd_tensor_of(output, HD_F32, first), y);
}
