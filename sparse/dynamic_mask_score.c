/* sparse/dynamic_mask_score.c: priorities of key tiles from means, sampled queries or values. */
#include "sparse/dynamic_mask_score.h"

#include <math.h>
#include <string.h>

#include "engine/attention/planner/means.h"
#include "engine/attention/planner/scores.h"

enum { LANES = HD_PLANNER_LANES };

static const float log2e = 1.44269504088896341f;

hd_dynamic_mask_room hd_dynamic_mask_room_take(hd_room *room, const hd_tiling *t,
                                               hd_dynamic_mask_scorer scorer, int64_t heads,
                                               int64_t dim, int64_t value_dim)
{
    const int64_t shares = HD_PLANNER_SHARES;
    hd_dynamic_mask_room r = {0};
    r.query = hd_room_take(room, heads, sizeof *r.query);
    r.key = hd_room_take(room, heads, sizeof *r.key);
    if (scorer == HD_DYNAMIC_MASK_BLOCK_MEAN) {
        r.query_mean = hd_room_take(room, heads * t->tiles * dim, sizeof(float));
        r.key_mean = hd_room_take(room, heads * t->tiles * dim, sizeof(float));
    } else {
        r.key_mean = hd_room_take(room, heads * value_dim, sizeof(float));
        r.shares = hd_room_take(room, heads * t->tiles, sizeof(float));
    }
    if (scorer == HD_DYNAMIC_MASK_COL_MASS) {
        r.max = hd_room_take(room, shares * t->tiles * LANES, sizeof(float));
        r.gathered = hd_room_take(room, shares * t->tile * (dim + LANES), sizeof(float));
    }
    r.panel = hd_room_take(room, shares * dim * LANES, sizeof(float));
    r.scores = hd_room_take(room, shares * t->tiles * LANES, sizeof(float));
    return r;
}

typedef struct score_work {
    const hd_dynamic_mask_scoring *s;
    const hd_dynamic_mask_room *room;
    const hd_planner_kernels *kernels;
    int64_t tiles, dim, panels;
    float *row_memory;
    hd_dynamic_mask_row row;
    void *arg;
} score_work;

// Item: 64 query tiles of one head, by their mean query.
static hd_status mean_panel(void *arg, int64_t item, int64_t share)
{
    const score_work *w = arg;
    const int64_t head = item / w->panels, first = item % w->panels * LANES;
    const int64_t means = head * w->tiles * w->dim;
    float *scores = w->room->scores + share * w->tiles * LANES;
    float *row = w->row_memory + share * w->tiles;
    hd_planner_scores(w->kernels, scores, w->room->panel + share * w->dim * LANES,
                      w->room->query_mean + means, first, w->tiles, w->room->key_mean + means,
                      w->tiles, w->dim);
    hd_planner_shares(w->kernels, scores, w->tiles, w->s->scale * log2e, w->s->tiling->bound);
    for (int64_t a = first; a < first + LANES && a < w->tiles; a++) {
        hd_planner_lane(row, scores, w->tiles, (int)(a - first));
        HD_TRY(w->row(w->arg, head, a, row, share));
    }
    return HD_OK;
}

// Keys of one tile as f32, side by side.
static void gather_tile(const score_work *w, const hd_planner_tokens *key, int64_t tile, float *to)
{
    for (int64_t r = w->s->tiling->bound[tile]; r < w->s->tiling->bound[tile + 1]; r++)
        for (int64_t d = 0; d < w->dim; d++) {
            const void *token = hd_planner_token(key, r);
            *to++ = key->dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)token)[d])
                                          : ((const float *)token)[d];
        }
}

// The attention of the panel's sampled queries, by tile and lane, into `sum`.
static void sampled_tiles(const score_work *w, const hd_planner_tokens *key, const float *panel,
                          float *max, float *sum, int64_t share)
{
    const int64_t longest = w->s->tiling->tile;
    float *keys = w->room->gathered + share * longest * (w->dim + LANES);
    float *scores = keys + longest * w->dim, top[LANES], total[LANES] = {0};
    const float factor = w->s->scale * log2e;
    for (int64_t t = 0; t < w->tiles; t++) {
        const int64_t count = hd_tiling_count(w->s->tiling, t);
        gather_tile(w, key, t, keys);
        w->kernels->product(scores, count, keys, w->dim, panel, w->dim);
        w->kernels->max(max + t * LANES, scores, count);
        w->kernels->exp_sum(sum + t * LANES, scores, count, max + t * LANES, factor);
    }
    w->kernels->max(top, max, w->tiles);
    for (int64_t t = 0; t < w->tiles; t++) {
        w->kernels->exp_sum(max + t * LANES, max + t * LANES, 1, top, factor);
        for (int i = 0; i < LANES; i++)
            total[i] += sum[t * LANES + i] *= max[t * LANES + i];
    }
    for (int64_t t = 0; t < w->tiles; t++)
        for (int i = 0; i < LANES; i++)
            sum[t * LANES + i] /= total[i] > 0 ? total[i] : 1.0f;
}

// Item: a head; every query_sample-th query, from the middle of the first such stretch on.
static hd_status sampled_head(void *arg, int64_t head, int64_t share)
{
    const score_work *w = arg;
    const int64_t step = w->s->query_sample, ranks = w->s->tiling->ranks;
    const int64_t queries = ranks / step > 0 ? ranks / step : 1;
    float *panel = w->room->panel + share * w->dim * LANES;
    float *max = w->room->max + share * w->tiles * LANES;
    float *sum = w->room->scores + share * w->tiles * LANES;
    float *shares = w->room->shares + head * w->tiles;
    memset(shares, 0, (size_t)w->tiles * sizeof *shares);
    for (int64_t first = 0; first < queries; first += LANES) {
        const void *token[LANES];
        const int64_t count = queries - first < LANES ? queries - first : LANES;
        for (int64_t i = 0; i < LANES; i++) {
            int64_t rank = (first + i) * step + step / 2;
            token[i] = NULL;
            if (i >= count) continue;
            token[i] = hd_planner_token(&w->room->query[head], rank < ranks ? rank : ranks - 1);
        }
        w->kernels->pack(panel, token, w->room->query[head].dtype, w->dim);
        sampled_tiles(w, &w->room->key[head], panel, max, sum, share);
        for (int64_t t = 0; t < w->tiles; t++)
            for (int64_t i = 0; i < count; i++)
                shares[t] += sum[t * LANES + i] / (float)queries;
    }
    return HD_OK;
}

// Item: a head; the length of its values, or of what sets them apart from their mean.
static hd_status value_head(void *arg, int64_t head, int64_t share)
{
    const score_work *w = arg;
    const hd_tiling *t = w->s->tiling;
    const hd_planner_tokens *v = &w->room->key[head];
    const int32_t all[2] = {0, (int32_t)t->ranks};
    float *mean = w->room->key_mean + head * v->dim, *shares = w->room->shares + head * t->tiles;
    double total = 0;
    (void)share;
    w->kernels->sum(mean, v, 0, all[1]);
    const float part = w->s->scorer == HD_DYNAMIC_MASK_VALUE_DEV ? 1.0f / (float)t->ranks : 0.0f;
    for (int64_t i = 0; i < t->tiles; i++) {
        double sum = 0;
        for (int64_t r = t->bound[i]; r < t->bound[i + 1]; r++) {
            const void *token = hd_planner_token(v, r);
            double square = 0;
            for (int64_t d = 0; d < v->dim; d++) {
                const float x = v->dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)token)[d])
                                                    : ((const float *)token)[d];
                const double apart = (double)(x - mean[d] * part);
                square += apart * apart;
            }
            sum += sqrt(square);
        }
        shares[i] = (float)sum;
        total += sum;
    }
    for (int64_t i = 0; i < t->tiles && total > 0; i++)
        shares[i] = (float)((double)shares[i] / total);
    return HD_OK;
}

// Item: a query tile of a head, where all query tiles of a head have the same priorities.
static hd_status same_row(void *arg, int64_t item, int64_t share)
{
    const score_work *w = arg;
    const int64_t head = item / w->tiles;
    return w->row(w->arg, head, item % w->tiles, w->room->shares + head * w->tiles, share);
}

hd_status hd_dynamic_mask_score(const hd_dynamic_mask_scoring *s, const hd_dynamic_mask_room *room,
                                float *row_memory, hd_dynamic_mask_row row, void *arg)
{
    const hd_tiling *t = s->tiling;
    score_work w = {.s = s,
                    .room = room,
                    .kernels = hd_planner_kernels_of(s->ex),
                    .tiles = t->tiles,
                    .dim = s->q.dim[3],
                    .panels = (t->tiles + LANES - 1) / LANES,
                    .row_memory = row_memory,
                    .row = row,
                    .arg = arg};
    const bool of_values = s->scorer >= HD_DYNAMIC_MASK_VALUE_NORM;
    for (int64_t h = 0; h < s->heads; h++) {
        room->query[h] = hd_tiling_tokens(t, s->q, s->row, h, s->heads);
        room->key[h] = hd_tiling_tokens(t, of_values ? s->v : s->k, s->row, h, s->heads);
    }
    if (s->scorer == HD_DYNAMIC_MASK_BLOCK_MEAN) {
        HD_TRY(
            hd_planner_means(s->ex, room->query_mean, room->query, s->heads, t->bound, t->tiles));
        HD_TRY(hd_planner_means(s->ex, room->key_mean, room->key, s->heads, t->bound, t->tiles));
        return hd_share_for(s->ex, s->heads * w.panels, mean_panel, &w);
    }
    HD_TRY(hd_share_for(s->ex, s->heads, of_values ? value_head : sampled_head, &w));
    return hd_share_for(s->ex, s->heads * w.tiles, same_row, &w);
}
