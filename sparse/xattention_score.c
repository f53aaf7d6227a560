/* sparse/xattention_score.c: antidiagonal and group-mean scores, their softmax, tile sums.
 *
 * 64 query groups stand in lanes and pass over the key tiles. A tile's exponentials are summed
 * about the tile's own maximum and brought to the common one at the end, so that the scores of one
 * tile are all that is ever in memory. Sums are f32 even where the products are of bf16. */
#include "sparse/xattention_score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/planner/means.h"

enum { LANES = HD_PLANNER_LANES };

static const float log2e = 1.44269504088896341f;

void hd_xattention_groups_free(hd_xattention_groups *groups)
{
    free(groups->bound);
    free(groups->tile_start);
    free(groups->panel_tile);
}

hd_status hd_xattention_groups_make(hd_xattention_groups *out, const hd_tiling *t, int64_t stride)
{
    hd_xattention_groups g = {.stride = stride};
    int64_t most = 0;
    for (int64_t i = 0; i < t->tiles; i++)
        most += (hd_tiling_count(t, i) + stride - 1) / stride;
    g.bound = malloc((size_t)(most + 1) * sizeof *g.bound);
    g.tile_start = malloc((size_t)(t->tiles + 1) * sizeof *g.tile_start);
    g.panel_tile = malloc((size_t)(t->tiles + 1) * sizeof *g.panel_tile);
    if (!g.bound || !g.tile_start || !g.panel_tile) {
        hd_xattention_groups_free(&g);
        return hd_fail(HD_ERR_NOMEM, "no memory for %lld groups", (long long)most);
    }
    int64_t in_panel = LANES; // full: the first tile opens a panel
    for (int64_t i = 0; i < t->tiles; i++) {
        const int64_t before = g.groups;
        g.tile_start[i] = (int32_t)before;
        for (int64_t r = t->bound[i]; r < t->bound[i + 1]; r += stride)
            g.bound[g.groups++] = (int32_t)r;
        in_panel += g.groups - before;
        if (in_panel > LANES) {
            g.panel_tile[g.panels++] = (int32_t)i;
            in_panel = g.groups - before;
        }
    }
    g.bound[g.groups] = (int32_t)t->ranks;
    g.tile_start[t->tiles] = (int32_t)g.groups;
    g.panel_tile[g.panels] = (int32_t)t->tiles;
    *out = g;
    return HD_OK;
}

hd_xattention_room hd_xattention_room_take(hd_room *room, const hd_tiling *t,
                                           const hd_xattention_groups *g, bool means, int64_t heads,
                                           int64_t dim)
{
    const int64_t units = means ? dim : g->stride * dim; // of f32: the most there can be
    const int64_t groups = heads * g->groups;
    hd_xattention_room r = {.key = hd_room_take(room, groups * units, sizeof(float))};
    if (means) {
        r.mean = hd_room_take(room, groups * dim, sizeof(float));
        r.query_mean = hd_room_take(room, groups * dim, sizeof(float));
        r.query_key = hd_room_take(room, groups * dim, sizeof(float));
    }
    r.panel = hd_room_take(room, HD_PLANNER_SHARES * units * LANES, sizeof(float));
    r.tile_max = hd_room_take(room, HD_PLANNER_SHARES * t->tiles * LANES, sizeof(float));
    r.tile_sum = hd_room_take(room, HD_PLANNER_SHARES * t->tiles * LANES, sizeof(float));
    return r;
}

typedef struct score_work {
    const hd_xattention_scorer *s;
    const hd_xattention_room *room;
    const hd_planner_kernels *kernels;
    hd_planner_product *product;
    bool pairs;     // units are pairs of bf16
    int64_t units;  // of a group's vector
    int64_t pieces; // tokens of a group's vector: stride, or 1
    int64_t heads;
    const hd_planner_tokens *query, *key; // [heads]
    float *weight;                        // per share
    hd_xattention_row row;
    void *arg;
} score_work;

static int64_t group_count(const hd_xattention_groups *g, int64_t group)
{
    return g->bound[group + 1] - g->bound[group];
}

// One token's numbers as units.
static void write_units(float *to, const void *token, hd_dtype dtype, int64_t dim, bool pairs)
{
    if (pairs || dtype == HD_F32) {
        memcpy(to, token, (size_t)dim * (pairs ? sizeof(hd_bf16) : sizeof(float)));
        return;
    }
    for (int64_t d = 0; d < dim; d++)
        to[d] = hd_bf16_to_f32(((const hd_bf16 *)token)[d]);
}

// The vector of one key group, its tokens side by side.
static void gather_key(const score_work *w, int64_t head, int64_t group)
{
    const hd_xattention_groups *g = w->s->groups;
    const hd_planner_tokens *key = &w->key[head];
    const int64_t piece = w->units / w->pieces, count = group_count(g, group);
    float *to = w->room->key + (head * g->groups + group) * w->units;
    for (int64_t t = 0; t < w->pieces; t++, to += piece) {
        if (t < count)
            write_units(to, hd_planner_token(key, g->bound[group] + t), key->dtype, key->dim,
                        w->pairs);
        else
            memset(to, 0, (size_t)piece * sizeof *to);
    }
}

enum { ITEM_GROUPS = 8 };

// Item: some key groups of every head; heads of a token lie side by side.
static hd_status gather_keys(void *arg, int64_t item, int64_t share)
{
    const score_work *w = arg;
    const int64_t first = item * ITEM_GROUPS, groups = w->s->groups->groups;
    (void)share;
    for (int64_t group = first; group < first + ITEM_GROUPS && group < groups; group++)
        for (int64_t head = 0; head < w->heads; head++)
            gather_key(w, head, group);
    return HD_OK;
}

// The means of one group of one head, as units.
static void convert_mean(const score_work *w, int64_t head, int64_t group)
{
    const int64_t dim = w->key->dim, at = head * w->s->groups->groups + group;
    float *mean[2] = {w->room->mean + at * dim, w->room->query_mean + at * dim};
    float *to[2] = {w->room->key + at * w->units, w->room->query_key + at * w->units};
    float padded = (float)group_count(w->s->groups, group) / (float)w->s->groups->stride;
    for (int i = 0; i < 2; i++) {
        for (int64_t d = 0; d < dim && !w->s->mask_padding; d++)
            mean[i][d] *= padded;
        if (w->pairs)
            hd_convert_f32_to_bf16((hd_bf16 *)to[i], mean[i], dim);
        else
            memcpy(to[i], mean[i], (size_t)dim * sizeof(float));
    }
}

// Item: the means of some groups of every head.
static hd_status make_means(void *arg, int64_t item, int64_t share)
{
    const score_work *w = arg;
    const hd_xattention_groups *g = w->s->groups;
    const int64_t first = item * ITEM_GROUPS;
    const int64_t end = first + ITEM_GROUPS < g->groups ? first + ITEM_GROUPS : g->groups;
    (void)share;
    hd_planner_means_some(w->kernels, w->room->mean, w->key, w->heads, g->bound, g->groups, first,
                          end);
    hd_planner_means_some(w->kernels, w->room->query_mean, w->query, w->heads, g->bound, g->groups,
                          first, end);
    for (int64_t head = 0; head < w->heads; head++)
        for (int64_t group = first; group < end; group++)
            convert_mean(w, head, group);
    return HD_OK;
}

static hd_status make_vectors(score_work *w)
{
    const int64_t items = (w->s->groups->groups + ITEM_GROUPS - 1) / ITEM_GROUPS;
    return hd_share_for(w->s->ex, items, w->s->means ? make_means : gather_keys, w);
}

// Query groups first .. first + count - 1 into lanes; of a sampled group the last token first.
static void pack_queries(const score_work *w, float *panel, int64_t head, int64_t first,
                         int64_t count)
{
    const hd_xattention_groups *g = w->s->groups;
    const hd_planner_tokens *query = &w->query[head];
    const float *mean = w->room->query_key + head * g->groups * w->units;
    const int64_t piece = w->units / w->pieces;
    const hd_dtype dtype = w->s->means || w->pairs ? HD_F32 : query->dtype;
    const void *token[LANES];
    for (int64_t t = 0; t < w->pieces; t++, panel += piece * LANES) {
        for (int64_t i = 0; i < LANES; i++) {
            const int64_t offset = w->pieces - 1 - t;
            token[i] = NULL;
            if (i >= count) continue;
            if (w->s->means)
                token[i] = mean + (first + i) * w->units;
            else if (offset < group_count(g, first + i))
                token[i] = hd_planner_token(query, g->bound[first + i] + offset);
        }
        w->kernels->pack(panel, token, dtype, piece);
    }
}

// A cell in which no sampled pair is real: its first query and first key stand for it.
static float first_pair(const score_work *w, int64_t head, int64_t query_group, int64_t key_group)
{
    const hd_xattention_groups *g = w->s->groups;
    const void *q = hd_planner_token(&w->query[head], g->bound[query_group]);
    const void *k = hd_planner_token(&w->key[head], g->bound[key_group]);
    double sum = 0;
    for (int64_t d = 0; d < w->key->dim; d++)
        sum += w->key->dtype == HD_BF16
                   ? (double)hd_bf16_to_f32(((const hd_bf16 *)q)[d]) *
                         (double)hd_bf16_to_f32(((const hd_bf16 *)k)[d])
                   : (double)((const float *)q)[d] * (double)((const float *)k)[d];
    return (float)sum * (float)g->stride;
}

// Sums over fewer than `stride` real pairs become what a mean of those pairs would have given.
static void mend_short(const score_work *w, float *scores, int64_t head, int64_t key_group,
                       int64_t keys, int64_t first, int64_t count)
{
    const hd_xattention_groups *g = w->s->groups;
    for (int64_t j = 0; j < keys; j++) {
        const int64_t key_count = group_count(g, key_group + j);
        for (int64_t i = 0; i < count; i++) {
            const int64_t pairs = key_count + group_count(g, first + i) - g->stride;
            if (pairs == g->stride) continue;
            float *s = scores + j * LANES + i;
            *s = pairs > 0 ? *s * (float)g->stride / (float)pairs
                           : first_pair(w, head, first + i, key_group + j);
        }
    }
}

// Is a group among `groups` from `first` on short?
static bool any_short(const hd_xattention_groups *g, int64_t first, int64_t groups)
{
    for (int64_t i = first; i < first + groups; i++)
        if (group_count(g, i) < g->stride) return true;
    return false;
}

// Maximum and exponential sum of every key tile for the panel's lanes.
static void panel_tiles(const score_work *w, const float *panel, float *max, float *sum,
                        int64_t head, int64_t first, int64_t count)
{
    const hd_xattention_groups *g = w->s->groups;
    const hd_tiling *t = w->s->tiling;
    const bool short_query = any_short(g, first, count);
    const float factor = w->s->factor * log2e / (w->s->means ? 1.0f : (float)g->stride);
    const int64_t filled = (t->tile + g->stride - 1) / g->stride; // groups of a padded tile
    const float *keys_of_head = w->room->key + head * g->groups * w->units;
    float scores[LANES * LANES];
    for (int64_t tile = 0; tile < t->tiles; tile++, max += LANES, sum += LANES) {
        const int64_t key = g->tile_start[tile];
        int64_t keys = g->tile_start[tile + 1] - key;
        w->product(scores, keys, keys_of_head + key * w->units, w->units, panel, w->units);
        const bool mend = w->s->mask_padding && !w->s->means;
        if (mend && (short_query || any_short(g, key, keys)))
            mend_short(w, scores, head, key, keys, first, count);
        for (; !w->s->mask_padding && keys < filled; keys++)
            memset(scores + keys * LANES, 0, LANES * sizeof *scores);
        w->kernels->max(max, scores, keys);
        w->kernels->exp_sum(sum, scores, keys, max, factor);
    }
}

// Tile sums to shares of each lane's total.
static void panel_shares(const score_work *w, float *max, float *sum)
{
    const int64_t tiles = w->s->tiling->tiles;
    const float factor = w->s->factor * log2e / (w->s->means ? 1.0f : (float)w->s->groups->stride);
    float top[LANES], total[LANES] = {0};
    w->kernels->max(top, max, tiles);
    for (int64_t j = 0; j < tiles; j++) {
        float *to = sum + j * LANES, *from = max + j * LANES;
        w->kernels->exp_sum(from, from, 1, top, factor);
        for (int i = 0; i < LANES; i++) {
            to[i] *= from[i];
            total[i] += to[i];
        }
    }
    for (int i = 0; i < LANES; i++)
        total[i] = total[i] > 0 ? 1.0f / total[i] : 0.0f;
    for (int64_t j = 0; j < tiles; j++)
        for (int i = 0; i < LANES; i++)
            sum[j * LANES + i] *= total[i];
}

// Item: a panel of whole query tiles of one head.
static hd_status score_panel(void *arg, int64_t item, int64_t share)
{
    const score_work *w = arg;
    const hd_xattention_groups *g = w->s->groups;
    const int64_t tiles = w->s->tiling->tiles;
    const int64_t head = item / g->panels, at = item % g->panels;
    const int64_t from = g->panel_tile[at], to = g->panel_tile[at + 1];
    const int64_t first = g->tile_start[from], count = g->tile_start[to] - first;
    float *panel = w->room->panel + share * w->units * LANES;
    float *max = w->room->tile_max + share * tiles * LANES;
    float *sum = w->room->tile_sum + share * tiles * LANES;
    float *weight = w->weight + share * tiles;
    pack_queries(w, panel, head, first, count);
    panel_tiles(w, panel, max, sum, head, first, count);
    panel_shares(w, max, sum);
    for (int64_t tile = from; tile < to; tile++) {
        const int64_t lane = g->tile_start[tile] - first, end = g->tile_start[tile + 1] - first;
        for (int64_t j = 0; j < tiles; j++) {
            weight[j] = 0.0f;
            for (int64_t i = lane; i < end; i++)
                weight[j] += sum[j * LANES + i];
        }
        HD_TRY(w->row(w->arg, head, tile, weight, share));
    }
    return HD_OK;
}

hd_status hd_xattention_score(const hd_xattention_scorer *scorer, const hd_xattention_room *room,
                              float *weight, const hd_planner_tokens *query,
                              const hd_planner_tokens *key, int64_t heads, hd_xattention_row row,
                              void *arg)
{
    score_work w = {.s = scorer,
                    .room = room,
                    .kernels = hd_planner_kernels_of(scorer->ex),
                    .product = hd_planner_pairs_of(scorer->ex),
                    .pieces = scorer->means ? 1 : scorer->groups->stride,
                    .heads = heads,
                    .query = query,
                    .key = key,
                    .weight = weight,
                    .row = row,
                    .arg = arg};
    w.pairs = w.product && key->dtype == HD_BF16 && key->dim % 2 == 0;
    if (!w.pairs) w.product = w.kernels->product;
    w.units = w.pieces * key->dim / (w.pairs ? 2 : 1);
    HD_TRY(make_vectors(&w));
    return hd_share_for(scorer->ex, heads * scorer->groups->panels, score_panel, &w);
}
