/* sparse/agent_match.c: cells, similarities, lists. */
#include "sparse/agent_match.h"

#include <math.h>
#include <string.h>

#include "engine/attention/planner/means.h"
#include "engine/attention/planner/select.h"
#include "engine/rng.h"

enum { LANES = HD_PLANNER_LANES, PIECE = 64 }; // targets of one product

hd_match_grid hd_match_grid_of(const int64_t size[3], const int64_t stride[3])
{
    hd_match_grid g = {.tokens = 1, .targets = 1};
    for (int i = 0; i < 3; i++) {
        g.size[i] = size[i];
        g.stride[i] = stride[i];
        g.cells[i] = size[i] / stride[i];
        g.tokens *= size[i];
        g.targets *= g.cells[i];
    }
    g.sources = g.tokens - g.targets;
    return g;
}

void hd_match_targets(const hd_match_grid *g, const uint64_t *seed, int64_t step, uint32_t site,
                      int32_t *target)
{
    const uint64_t places = (uint64_t)(g->stride[0] * g->stride[1] * g->stride[2]);
    for (int64_t c = 0; c < g->targets; c++) {
        int64_t place = 0;
        if (seed) {
            const uint32_t counter[4] = {(uint32_t)c, (uint32_t)(c >> 32), (uint32_t)step, site};
            const uint32_t key[2] = {(uint32_t)*seed, (uint32_t)(*seed >> 32)};
            uint32_t drawn[4];
            hd_philox4x32(counter, key, drawn);
            place = (int64_t)(drawn[0] * places >> 32);
        }
        const int64_t x = c % g->cells[2] * g->stride[2] + place % g->stride[2];
        const int64_t y =
            c / g->cells[2] % g->cells[1] * g->stride[1] + place / g->stride[2] % g->stride[1];
        const int64_t f =
            c / g->cells[2] / g->cells[1] * g->stride[0] + place / g->stride[2] / g->stride[1];
        target[c] = (int32_t)((f * g->size[1] + y) * g->size[2] + x);
    }
}

void hd_match_take(hd_room *room, hd_match *m, const hd_match_grid *g)
{
    m->source = hd_room_take(room, g->sources, sizeof *m->source);
    m->best = hd_room_take(room, g->sources, sizeof *m->best);
    m->alike = hd_room_take(room, g->sources, sizeof *m->alike);
    m->order = hd_room_take(room, g->sources, sizeof *m->order);
    m->start = hd_room_take(room, g->targets + 1, sizeof *m->start);
    m->list = hd_room_take(room, g->tokens, sizeof *m->list);
}

void hd_match_work_take(hd_room *room, hd_match_work *w, const hd_match_grid *g, int64_t channels)
{
    w->target = hd_room_take(room, g->targets * channels, sizeof(float));
    w->panel = hd_room_take(room, HD_PLANNER_SHARES * channels * LANES, sizeof(float));
    w->dots = hd_room_take(room, (int64_t)HD_PLANNER_SHARES * PIECE * LANES, sizeof(float));
    w->key = hd_room_take(room, 2 * g->sources, sizeof *w->key);
}

typedef struct match_run {
    const hd_planner_kernels *kernels;
    hd_match *m;
    const hd_match_grid *g;
    const hd_match_features *x;
    const hd_match_work *work;
} match_run;

static const void *token_of(const hd_match_features *x, int64_t token)
{
    return (const char *)x->data + token * x->stride * (int64_t)hd_dtype_size(x->dtype);
}

// One over a vector's length; 0 for a vector without.
static float inverse_length(const float *x, int64_t n, int64_t step)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i * step] * (double)x[i * step];
    return sum > 0 ? (float)(1.0 / sqrt(sum)) : 0.0f;
}

static void load_target(const hd_match_features *x, int64_t token, float *to)
{
    const void *from = token_of(x, token);
    for (int64_t i = 0; i < x->channels; i++)
        to[i] = x->dtype == HD_F32 ? ((const float *)from)[i]
                                   : hd_bf16_to_f32(((const uint16_t *)from)[i]);
    const float scale = inverse_length(to, x->channels, 1);
    for (int64_t i = 0; i < x->channels; i++)
        to[i] *= scale;
}

// Item: 64 sources against all targets.
static hd_status match_item(void *arg, int64_t item, int64_t share)
{
    const match_run *r = arg;
    const int64_t channels = r->x->channels, first = item * LANES;
    const void *token[LANES];
    float *panel = r->work->panel + share * channels * LANES;
    float *dots = r->work->dots + share * PIECE * LANES;
    float most[LANES];
    int32_t best[LANES] = {0};
    for (int i = 0; i < LANES; i++) {
        token[i] = first + i < r->g->sources ? token_of(r->x, r->m->source[first + i]) : NULL;
        most[i] = -INFINITY;
    }
    r->kernels->pack(panel, token, r->x->dtype, channels);
    for (int64_t t = 0; t < r->g->targets; t += PIECE) {
        const int64_t count = r->g->targets - t < PIECE ? r->g->targets - t : PIECE;
        r->kernels->product(dots, count, r->work->target + t * channels, channels, panel, channels);
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < LANES; i++) {
                const bool better = dots[j * LANES + i] > most[i];
                most[i] = better ? dots[j * LANES + i] : most[i];
                best[i] = better ? (int32_t)(t + j) : best[i];
            }
    }
    for (int i = 0; i < LANES && first + i < r->g->sources; i++) {
        r->m->best[first + i] = best[i];
        r->m->alike[first + i] = most[i] * inverse_length(panel + i, channels, LANES);
    }
    return HD_OK;
}

hd_status hd_match_find(const hd_exec *ex, hd_match *m, const hd_match_grid *g,
                        const hd_match_features *x, const int32_t *target,
                        const hd_match_work *work)
{
    match_run run = {hd_planner_kernels_of(ex), m, g, x, work};
    // place is free until the lists are made: it marks the targets
    memset(m->place, 0, (size_t)g->tokens * sizeof *m->place);
    for (int64_t t = 0; t < g->targets; t++) {
        m->place[target[t]] = 1;
        load_target(x, target[t], work->target + t * x->channels);
    }
    int64_t sources = 0;
    for (int64_t i = 0; i < g->tokens; i++)
        if (!m->place[i]) m->source[sources++] = (int32_t)i;
    HD_ENSURE(sources == g->sources);
    HD_TRY(hd_share_for(ex, (sources + LANES - 1) / LANES, match_item, &run));
    hd_select_order(m->order, m->alike, sources, work->key);
    return HD_OK;
}

void hd_match_lists(hd_match *m, const hd_match_grid *g, const int32_t *target, int64_t merged)
{
    const int64_t stay = g->sources - merged;
    m->start[0] = 0;
    for (int64_t t = 0; t < g->targets; t++)
        m->start[t + 1] = 1;
    for (int64_t i = 0; i < merged; i++)
        m->start[m->best[m->order[i]] + 1]++;
    for (int64_t t = 0; t < g->targets; t++)
        m->start[t + 1] += m->start[t];
    for (int64_t t = 0; t < g->targets; t++)
        m->list[m->start[t]++] = target[t];
    for (int64_t i = 0; i < merged; i++) {
        const int32_t s = m->order[i];
        m->list[m->start[m->best[s]]++] = m->source[s];
    }
    for (int64_t t = g->targets; t > 0; t--) // each start has run ahead to the next
        m->start[t] = m->start[t - 1];
    m->start[0] = 0;
    for (int64_t i = 0; i < g->sources; i++) {
        const int32_t s = m->order[i];
        m->place[m->source[s]] = (int32_t)(i < merged ? stay + m->best[s] : i - merged);
    }
    for (int64_t t = 0; t < g->targets; t++)
        m->place[target[t]] = (int32_t)(stay + t);
}
