/* kernels/reference/sdpa.c: attention as the formula has it, one query after the other, in f64.
 *
 * out_i = sum_j p_ij g_ij v_j / sum_j p_ij, p_ij = exp(s_ij - max_j s_ij),
 * s_ij = scale * row_scale_i * q_i . k_j + biases, over the keys j that i sees by its plan
 * (base/plan.h); the proxies of a plan are further j. */
#include <math.h>

#include "kernels/sdpa.h"

static const double minus_infinity = -(double)INFINITY;

/* One query. */
typedef struct query {
    const hd_sdpa_head *h;
    int64_t rank, token; // of the query
    int64_t in_tile;     // its number in its query tile
    double *score;       // [keys]: -inf: not seen
    double *proxy;       // [key tiles]: the same; NULL: the plan has none
    double *mean;        // [max(D, channels)]
} query;

static double element(const void *data, hd_dtype dtype, int64_t i)
{
    if (dtype == HD_BF16) return (double)hd_bf16_to_f32(((const hd_bf16 *)data)[i]);
    return (double)((const float *)data)[i];
}

// Channel d of a value; the indicators are behind them.
static double value_of(const hd_sdpa_head *h, int64_t key, int64_t d)
{
    if (d < h->value_dim) {
        const double v = element(h->v, h->dtype, key * h->v_stride + d);
        return h->value_largest ? hd_sdpa_reference_int8_value(h, d, (float)v) : v;
    }
    return (double)h->indicator[key * h->indicator_stride + d - h->value_dim];
}

static double scale_of(const query *q)
{
    return (double)q->h->scale * (q->h->row_scale ? (double)q->h->row_scale[q->token] : 1.0);
}

// s_ij, or -inf where query i does not see key j whatever the plan says.
static double score(const query *q, int64_t j)
{
    const hd_sdpa_head *h = q->h;
    const int64_t i = q->token;
    if (j >= h->keys || (h->causal && j > i)) return minus_infinity;
    if (h->mask && !h->mask[i * h->mask_stride + j]) return minus_infinity;
    double dot = h->key_mean ? hd_sdpa_reference_int8_dot(h, i, j, NULL) : 0.0;
    for (int64_t d = 0; !h->key_mean && d < h->dim; d++)
        dot += element(h->q, h->dtype, i * h->q_stride + d) *
               element(h->k, h->dtype, j * h->k_stride + d);
    double s = scale_of(q) * dot;
    if (h->bias) s += (double)h->bias[i * h->bias_stride + j];
    if (h->column_bias) s += (double)h->column_bias[j];
    if (h->segment_bias)
        s += (double)h->segment_bias[h->query_label[i] * h->key_labels + h->key_label[j]];
    return s;
}

static double gain(const query *q, int64_t j)
{
    const hd_sdpa_head *h = q->h;
    if (!h->segment_gain) return 1.0;
    return (double)h->segment_gain[h->query_label[q->token] * h->key_labels + h->key_label[j]];
}

static int64_t coordinate(const hd_plan *plan, int64_t token, int axis)
{
    const int64_t t = token - plan->grid_token;
    if (axis == 2) return t % plan->grid[2];
    return axis == 1 ? t / plan->grid[2] % plan->grid[1] : t / plan->grid[2] / plan->grid[1];
}

static bool window_sees(const hd_plan *plan, int64_t head, int64_t i, int64_t j)
{
    for (int axis = 0; axis < 3; axis++) {
        const hd_plan_axis *rule = &hd_plan_window(plan, head)[axis];
        const int64_t x = coordinate(plan, i, axis), y = coordinate(plan, j, axis);
        if (y < rule->start[x] || y >= rule->end[x] || (y - x) % rule->dilation) return false;
    }
    return true;
}

static bool bit(const uint64_t *words, int64_t i)
{
    return words[i / 64] >> i % 64 & 1;
}

static bool row_sees(const query *q, int64_t mask)
{
    const hd_plan *plan = q->h->plan;
    if (mask < 0 || !plan->row_mask) return true;
    return bit(plan->row_mask + mask * ((plan->query_tile + 63) / 64), q->in_tile);
}

// Key j, of rank `rank`, the entry's key number `number`, if the rules agree.
static void see(const query *q, int64_t mask, int64_t j, int64_t rank, int64_t number)
{
    const hd_plan *plan = q->h->plan;
    if (!row_sees(q, mask)) return;
    if (mask != HD_VISIT_FULL) {
        const int64_t order = plan->orders > 1 ? q->h->number : 0;
        if (plan->window && !window_sees(plan, q->h->number, q->token, j)) return;
        if (plan->query_segment && plan->query_segment[order * plan->query_ranks + q->rank] !=
                                       plan->key_segment[order * plan->key_ranks + rank])
            return;
        if (mask >= 0 && plan->column_mask &&
            !bit(plan->column_mask + mask * ((plan->key_tile + 63) / 64), number))
            return;
    }
    q->score[j] = score(q, j);
}

static void see_ranks(const query *q, int64_t mask, int64_t first, int64_t end)
{
    const hd_sdpa_head *h = q->h;
    for (int64_t r = first; r < end; r++)
        see(q, mask, hd_plan_key_token(h->plan, h->all_keys, h->number, r), r, r - first);
}

static void see_box(const query *q, hd_visit entry)
{
    const hd_plan *plan = q->h->plan;
    const int64_t *extent = plan->box_extent, *grid = plan->grid;
    int64_t number = 0, first[3];
    for (int axis = 0; axis < 3; axis++)
        first[axis] = coordinate(plan, entry.key, axis);
    for (int64_t f = first[0]; f < first[0] + extent[0] && f < grid[0]; f++)
        for (int64_t y = first[1]; y < first[1] + extent[1] && y < grid[1]; y++)
            for (int64_t x = first[2]; x < first[2] + extent[2] && x < grid[2]; x++) {
                number = ((f - first[0]) * extent[1] + y - first[1]) * extent[2] + x - first[2];
                const int64_t rank = (f * grid[1] + y) * grid[2] + x;
                see(q, entry.mask, plan->grid_token + rank, rank, number);
            }
}

// How much a key counts in what stands for its tile.
static double weight_of(const hd_sdpa_head *h, int64_t j)
{
    return h->column_bias ? exp((double)h->column_bias[j]) : 1.0;
}

/* The keys of a tile that a row has. */
typedef struct tile_sum {
    int64_t met;
    double weight; // of all of them
    bool allowed;  // the query may see every one
} tile_sum;

static tile_sum sum_tile(const query *q, int64_t tile)
{
    const hd_sdpa_head *h = q->h;
    tile_sum sum = {.allowed = true};
    for (int64_t r = hd_plan_key_start(h->plan, tile); r < hd_plan_key_start(h->plan, tile + 1);
         r++) {
        const int64_t j = hd_plan_key_token(h->plan, h->all_keys, h->number, r);
        if (j >= h->keys) continue;
        sum.met++;
        sum.weight += weight_of(h, j);
        if (h->causal && j > q->token) sum.allowed = false;
        if (h->mask && !h->mask[q->token * h->mask_stride + j]) sum.allowed = false;
    }
    return sum;
}

// Channel d of a key, or (channels > 0) of its value.
static double part_of(const hd_sdpa_head *h, int64_t j, int64_t d, int64_t channels)
{
    return channels > 0 ? value_of(h, j, d) : element(h->k, h->dtype, j * h->k_stride + d);
}

// What stands for a tile's keys, or (channels > 0) for their value channels, into q->mean.
static void mean_of_tile(const query *q, int64_t tile, int64_t channels)
{
    const hd_sdpa_head *h = q->h;
    const hd_plan *plan = h->plan;
    const int32_t *chosen = channels > 0 ? plan->proxy.value : plan->proxy.key;
    const int64_t width = channels > 0 ? channels : h->dim;
    int64_t only = -1;
    if (chosen) {
        const int64_t order = plan->orders > 1 ? h->number : 0;
        only =
            hd_plan_key_token(plan, h->all_keys, h->number, chosen[order * plan->key_tiles + tile]);
        if (only >= h->keys) only = -1;
    }
    const double share = 1.0 / sum_tile(q, tile).weight;
    for (int64_t d = 0; d < width; d++)
        q->mean[d] = only < 0 ? 0.0 : part_of(h, only, d, channels);
    for (int64_t r = hd_plan_key_start(plan, tile);
         only < 0 && r < hd_plan_key_start(plan, tile + 1); r++) {
        const int64_t j = hd_plan_key_token(plan, h->all_keys, h->number, r);
        for (int64_t d = 0; d < width && j < h->keys; d++)
            q->mean[d] += share * weight_of(h, j) * part_of(h, j, d, channels);
    }
}

// The second-order term of a tile's part of the softmax.
static double spread(const query *q, int64_t tile)
{
    const hd_sdpa_head *h = q->h;
    const hd_plan_proxy *form = &h->plan->proxy;
    double term = 0.0;
    if (!form->variance) return 0.0;
    const float *variance = form->variance + (h->number * h->plan->key_tiles + tile) * h->dim;
    for (int64_t d = 0; d < h->dim; d++) {
        const double x = scale_of(q) * element(h->q, h->dtype, q->token * h->q_stride + d);
        term += 0.5 * x * x * (double)variance[d];
    }
    return term < (double)form->clip ? term : (double)form->clip;
}

// The scores of the proxies of all tiles but those that the query visits.
static void see_proxies(const query *q, hd_visits visits)
{
    const hd_sdpa_head *h = q->h;
    int64_t at = 0;
    for (int64_t t = 0; t < h->plan->key_tiles; t++) {
        q->proxy[t] = minus_infinity;
        bool visited = false;
        for (; at < visits.count && visits.entry[at].key <= t; at++)
            visited = row_sees(q, visits.entry[at].mask);
        const tile_sum sum = sum_tile(q, t);
        if (visited || sum.weight == 0.0 || !sum.allowed) continue;
        mean_of_tile(q, t, 0);
        double dot = h->key_mean ? hd_sdpa_reference_int8_dot(h, q->token, 0, q->mean) : 0.0;
        for (int64_t d = 0; !h->key_mean && d < h->dim; d++)
            dot += element(h->q, h->dtype, q->token * h->q_stride + d) * q->mean[d];
        q->proxy[t] = scale_of(q) * dot + log(sum.weight) + spread(q, t);
        if (h->plan->proxy.uncounted) q->proxy[t] -= log((double)sum.met);
    }
}

// The scores of everything that a query of the query tile sees.
static void see_all(query *q, int64_t query_tile)
{
    const hd_sdpa_head *h = q->h;
    const hd_plan *plan = h->plan;
    for (int64_t j = 0; j < h->all_keys; j++)
        q->score[j] = minus_infinity;
    if (query_tile >= plan->query_tiles) {
        see_ranks(q, HD_VISIT_FULL, 0, h->all_keys);
        q->proxy = NULL;
        return;
    }
    const hd_visits visits = hd_plan_row(plan, h->number, query_tile);
    for (int64_t i = 0; i < visits.count; i++) {
        const hd_visit entry = hd_visits_entry(visits, i);
        if (plan->box_extent[0])
            see_box(q, entry);
        else
            see_ranks(q, entry.mask, hd_plan_key_start(plan, entry.key),
                      hd_plan_key_start(plan, entry.key + 1));
    }
    see_ranks(q, HD_VISIT_FULL, plan->key_ranks, h->all_keys);
    if (q->proxy) see_proxies(q, visits);
}

// Scores to weights against the largest of all, which is returned, and their sum.
static double softmax(const query *q, double *sum)
{
    const int64_t keys = q->h->all_keys, tiles = q->proxy ? q->h->plan->key_tiles : 0;
    double max = minus_infinity;
    *sum = 0.0;
    for (int64_t j = 0; j < keys + tiles; j++) {
        const double s = j < keys ? q->score[j] : q->proxy[j - keys];
        if (!(s <= max)) max = s; // not fmax, which would lose a NaN
    }
    if (q->h->value_largest) {
        *sum = hd_sdpa_reference_int8_weights(q->score, keys, max);
        if (tiles > 0) *sum += hd_sdpa_reference_int8_weights(q->proxy, tiles, max);
        return max;
    }
    for (int64_t j = 0; j < keys + tiles; j++) {
        double *s = j < keys ? &q->score[j] : &q->proxy[j - keys];
        *s = *s == minus_infinity ? 0.0 : exp(*s - max);
        *sum += *s;
    }
    return max;
}

static void store(const query *q, int64_t d, double value)
{
    const hd_sdpa_head *h = q->h;
    if (d >= h->value_dim)
        h->probed[q->token * h->probed_stride + d - h->value_dim] = (float)value;
    else if (h->dtype == HD_BF16)
        ((hd_bf16 *)h->out)[q->token * h->out_stride + d] = hd_bf16_from_f32((float)value);
    else
        ((float *)h->out)[q->token * h->out_stride + d] = (float)value;
}

static void write(const query *q, double *total)
{
    const hd_sdpa_head *h = q->h;
    const int64_t channels = h->value_dim + h->indicators;
    double sum, max = softmax(q, &sum);
    for (int64_t d = 0; d < channels; d++) {
        total[d] = 0.0;
        for (int64_t j = 0; j < h->keys; j++)
            if (q->score[j] != 0.0) total[d] += q->score[j] * gain(q, j) * value_of(h, j, d);
    }
    for (int64_t t = 0; q->proxy && t < h->plan->key_tiles; t++) {
        if (q->proxy[t] == 0.0) continue;
        mean_of_tile(q, t, channels);
        for (int64_t d = 0; d < channels; d++)
            total[d] += q->proxy[t] * (h->value_largest
                                           ? hd_sdpa_reference_int8_value(h, d, (float)q->mean[d])
                                           : q->mean[d]);
    }
    for (int64_t d = 0; d < channels; d++)
        store(q, d, sum == 0.0 ? 0.0 : total[d] / sum);
    for (int64_t d = 0; h->key_mean && h->lse && d < h->dim; d++) // what int8 took off the keys
        max += scale_of(q) * element(h->q, h->dtype, q->token * h->q_stride + d) *
               (double)h->key_mean[d];
    if (h->lse) h->lse[q->token * h->lse_stride] = (float)(max + log(sum)); // log 0 = -inf
}

static int64_t wider(int64_t dim, int64_t channels)
{
    return dim > channels ? dim : channels;
}

int64_t hd_sdpa_reference_doubles(const hd_plan *plan, int64_t all_keys, int64_t dim,
                                  int64_t channels)
{
    return all_keys + plan->key_tiles + wider(dim, channels) + channels;
}

int64_t hd_sdpa_reference(const hd_sdpa_head *h, int64_t query_tile, int64_t first, int64_t count,
                          double *scratch)
{
    const hd_plan *plan = h->plan;
    const int64_t channels = h->value_dim + h->indicators;
    const bool listed = query_tile < plan->query_tiles;
    for (int64_t rank = first; rank < first + count; rank++) {
        query q = {
            .h = h,
            .rank = rank,
            .token = hd_plan_query_token(plan, h->all_queries, h->number, rank),
            .in_tile = listed ? rank - hd_plan_query_start(plan, query_tile) : 0,
            .score = scratch,
            .mean = scratch + h->all_keys + plan->key_tiles,
        };
        if (plan->rest == HD_REST_PROXY && plan->row_start) q.proxy = scratch + h->all_keys;
        if (q.token >= h->queries) continue;
        see_all(&q, query_tile);
        write(&q, q.mean + wider(h->dim, channels));
    }
    if (!listed) return 0;
    hd_visits visits = hd_plan_row(plan, h->number, query_tile);
    int64_t end = h->keys;
    if (h->causal && first + count < end) end = first + count;
    while (!plan->key_order && !plan->query_order && !plan->box_extent[0] && visits.count > 0 &&
           hd_plan_key_start(plan, hd_visits_entry(visits, visits.count - 1).key) >= end)
        visits.count--;
    return visits.count;
}
