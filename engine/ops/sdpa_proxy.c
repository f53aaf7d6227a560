/* engine/ops/sdpa_proxy.c: what stands for key tiles that a query does not see (base/plan.h): one
 * key and value per tile, packed as further keys behind the others.
 *
 * The mean of keys k_j with biases b_j is that of the first-order expansion of the tile's part of
 * the softmax: weights exp(b_j), and the logarithm of their sum in the score. Sums are f32, in the
 * order of the ranks, rounded to the call's type; kernels/cpu/sdpa.h knows nothing of all this. */
#include <math.h>
#include <string.h>

#include "engine/ops/sdpa_internal.h"

enum { PROXY_TILES = 32 }; // of an item
enum { STRETCH = 256, SUMS = 8 };

static const float log2e = 1.44269504088896341f;

/* The keys of a tile that the row has, and how much each counts. */
typedef struct tile_keys {
    const int32_t *token;
    int64_t count;            // of tokens, -1 among them
    const float *column_bias; // by token; NULL: all the same
    float largest;            // bias
    float weight;             // of all keys together
    int64_t met;              // keys there
} tile_keys;

static float weight_of(const tile_keys *t, int32_t token)
{
    return t->column_bias ? expf(t->column_bias[token] - t->largest) : 1.0f;
}

static tile_keys find_keys(const hd_sdpa_head *h, const int32_t *token, int64_t count)
{
    tile_keys t = {.token = token, .count = count, .column_bias = h->column_bias};
    if (t.column_bias) t.largest = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        if (token[i] < 0) continue;
        t.met++;
        if (t.column_bias) t.largest = fmaxf(t.largest, t.column_bias[token[i]]);
    }
    for (int64_t i = 0; i < count && t.largest > -INFINITY; i++)
        if (token[i] >= 0) t.weight += weight_of(&t, token[i]);
    return t;
}

// What is added to the score, in units of log 2; -inf: nothing is left to stand for.
static float score_bias(const tile_keys *t, const hd_plan_proxy *form)
{
    if (t->weight == 0.0f) return -INFINITY;
    const float counted = log2f(t->weight) + t->largest * log2e;
    return form->uncounted ? counted - log2f((float)t->met) : counted;
}

// The mean of a tile's `channels` channels, to `to` in the call's type.
static void mean_of(const void *data, hd_dtype dtype, int64_t stride, int64_t channels,
                    const tile_keys *t, float *sum, void *to)
{
    for (int64_t d = 0; d < channels; d++)
        sum[d] = 0.0f;
    for (int64_t i = 0; i < t->count && t->weight > 0.0f; i++) {
        if (t->token[i] < 0) continue;
        const float weight = weight_of(t, t->token[i]);
        const int64_t at = t->token[i] * stride;
        if (weight == 0.0f) continue;
        if (dtype == HD_BF16)
            for (int64_t d = 0; d < channels; d++)
                sum[d] += weight * hd_bf16_to_f32(((const hd_bf16 *)data)[at + d]);
        else
            for (int64_t d = 0; d < channels; d++)
                sum[d] += weight * ((const float *)data)[at + d];
    }
    const float share = 1.0f / (t->weight > 0.0f ? t->weight : 1.0f);
    for (int64_t d = 0; d < channels; d++) {
        if (dtype == HD_BF16)
            ((hd_bf16 *)to)[d] = hd_bf16_from_f32(sum[d] * share);
        else
            ((float *)to)[d] = sum[d] * share;
    }
}

// The tile's keys, or of them the one of a chosen rank if the row has it.
static tile_keys taken(const tile_keys *t, const hd_plan *plan, const int32_t *chosen, int64_t pack,
                       int64_t tile)
{
    if (!chosen) return *t;
    const int64_t rank = chosen[(plan->orders > 1 ? pack : 0) * plan->key_tiles + tile];
    const int64_t at = rank - hd_plan_key_start(plan, tile);
    if (t->token[at] < 0) return *t;
    return (tile_keys){.token = t->token + at, .count = 1, .weight = 1.0f, .met = 1};
}

static int64_t mean_floats(const sdpa_run *run)
{
    return run->dim + run->value_dim + run->indicators;
}

size_t sdpa_proxy_bytes(const sdpa_run *run)
{
    return (size_t)((PROXY_TILES + 1) * mean_floats(run)) * sizeof(float);
}

// The tokens of a tile, in a row's list.
static const int32_t *tile_tokens(const sdpa_run *run, const sdpa_row *row, int64_t pack,
                                  int64_t tile)
{
    return row->token + (row->orders > 1 ? pack : 0) * row->positions +
           sdpa_tile_position(row, tile, run->kernel->unit);
}

static int64_t tile_length(const hd_plan *plan, int64_t tile)
{
    return hd_plan_key_start(plan, tile + 1) - hd_plan_key_start(plan, tile);
}

// Item: the proxies of some tiles of one pack of one row.
static hd_status proxy_item(void *arg, int64_t item, int thread)
{
    const sdpa_run *run = arg;
    const int64_t pack = item % run->heads;
    const sdpa_row *row = &run->row[item / run->heads % run->rows];
    const hd_plan *plan = row->plan;
    const int64_t first = item / run->heads / run->rows * PROXY_TILES;
    if (pack >= row->packs || !sdpa_proxies(plan) || first >= plan->key_tiles) return HD_OK;
    const int64_t head = pack * (run->heads / row->packs);
    const int64_t count = sdpa_smaller(plan->key_tiles - first, PROXY_TILES);
    hd_sdpa_head h = sdpa_head(run, row - run->row, head), mean = h;
    float *sum = (float *)(run->scratch + run->scratch_bytes * (size_t)thread);
    float *k = sum + mean_floats(run), *v = k + PROXY_TILES * h.dim;
    float *e = v + PROXY_TILES * h.value_dim;
    int32_t number[PROXY_TILES];
    const size_t size = hd_dtype_size(h.dtype);
    for (int64_t i = 0; i < count; i++) {
        const int64_t tile = first + i;
        const tile_keys all =
            find_keys(&h, tile_tokens(run, row, pack, tile), tile_length(plan, tile));
        const tile_keys key = taken(&all, plan, plan->proxy.key, pack, tile);
        const tile_keys value = taken(&all, plan, plan->proxy.value, pack, tile);
        number[i] = (int32_t)i;
        row->proxy_bias[pack * plan->key_tiles + tile] = score_bias(&all, &plan->proxy);
        mean_of(h.k, h.dtype, h.k_stride, h.dim, &key, sum, (char *)k + (size_t)(i * h.dim) * size);
        mean_of(h.v, h.dtype, h.v_stride, h.value_dim, &value, sum,
                (char *)v + (size_t)(i * h.value_dim) * size);
        if (h.indicators)
            mean_of(h.indicator, HD_F32, h.indicator_stride, h.indicators, &value, sum,
                    e + i * h.indicators);
    }
    mean.k = k, mean.v = v, mean.indicator = e;
    mean.k_stride = h.dim, mean.v_stride = h.value_dim, mean.indicator_stride = h.indicators;
    const hd_sdpa_packed to = sdpa_packed(run, row, head);
    run->kernel->pack_keys(&mean, number, row->proxy + first, count, &to);
    run->kernel->pack_values(&mean, number, row->proxy + first, count, &to);
    return HD_OK;
}

hd_status sdpa_pack_proxies(hd_pool *pool, sdpa_run *run)
{
    int64_t chunks = 0;
    for (int64_t b = 0; b < run->rows; b++)
        if (sdpa_proxies(run->row[b].plan))
            chunks = sdpa_larger(chunks, sdpa_parts(run->row[b].plan->key_tiles, PROXY_TILES));
    return hd_parallel_for(pool, run->rows * run->heads * chunks, proxy_item, run);
}

uint64_t sdpa_proxy_seen(const sdpa_run *run, const sdpa_row *row, const hd_sdpa_head *h,
                         const sdpa_block *b, int64_t tile, uint64_t seen)
{
    const int64_t pack = h->number / (run->heads / row->packs);
    const int32_t *token = tile_tokens(run, row, pack, tile);
    const int64_t count = tile_length(row->plan, tile);
    for (int64_t j = 0; j < count; j++)
        for (int i = 0; i < b->kernel.queries && token[j] >= 0; i++) {
            const uint64_t bit = 1ull << i;
            if (!(seen & bit)) continue;
            if (h->causal && token[j] > b->token[i]) seen &= ~bit;
            if (h->mask && !h->mask[b->token[i] * h->mask_stride + token[j]]) seen &= ~bit;
        }
    return seen;
}

// Some squared channels of a query, times the scale.
static void square(const hd_sdpa_head *h, int64_t query, int64_t first, int64_t count, float *to)
{
    const float scale = h->scale * (h->row_scale ? h->row_scale[query] : 1.0f);
    for (int64_t d = 0; d < count; d++) {
        const int64_t at = query * h->q_stride + first + d;
        const float q = scale * (h->dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)h->q)[at])
                                                     : ((const float *)h->q)[at]);
        to[d] = q * q;
    }
}

// The sum of products, in eight sums that the compiler may keep side by side.
static float dot(const float *a, const float *b, int64_t count)
{
    float sum[SUMS] = {0.0f}, all = 0.0f;
    int64_t d = 0;
    for (; d + SUMS <= count; d += SUMS)
        for (int i = 0; i < SUMS; i++)
            sum[i] += a[d + i] * b[d + i];
    for (int i = 0; i < SUMS; i++)
        all += sum[i];
    for (; d < count; d++)
        all += a[d] * b[d];
    return all;
}

// What one query's scores of the step's keys gain; tile [keys], -1: none.
static void spread_query(const sdpa_run *run, const sdpa_row *row, const hd_sdpa_head *h,
                         sdpa_block *b, int lane, const int32_t *tile)
{
    const hd_plan *plan = row->plan;
    const float *variance = plan->proxy.variance + h->number * plan->key_tiles * h->dim;
    const int64_t lanes = b->kernel.vectors * run->kernel->lanes;
    float squared[STRETCH], term[HD_SDPA_STEP] = {0.0f};
    for (int64_t d = 0; d < h->dim; d += STRETCH) {
        const int64_t some = sdpa_smaller(h->dim - d, STRETCH);
        square(h, b->token[lane], d, some, squared);
        for (int64_t n = 0; n < b->step.count; n++)
            if (tile[n] >= 0) term[n] += dot(squared, variance + tile[n] * h->dim + d, some);
    }
    for (int64_t n = 0; n < b->step.count; n++)
        if (tile[n] >= 0)
            b->kernel.scores[n * lanes + lane] += fminf(0.5f * term[n], plan->proxy.clip) * log2e;
}

void sdpa_proxy_spread(const sdpa_run *run, const sdpa_row *row, const hd_sdpa_head *h,
                       sdpa_block *b)
{
    int32_t tile[HD_SDPA_STEP];
    int64_t n = 0;
    for (int s = 0; s < b->step.spans; s++)
        for (int32_t i = 0; i < b->step.span[s].count; i++, n++) {
            const int64_t at = b->step.span[s].start + i - row->proxy;
            tile[n] = at < row->plan->key_tiles ? (int32_t)at : -1;
        }
    for (int i = 0; i < b->kernel.queries; i++)
        if (b->token[i] >= 0) spread_query(run, row, h, b, i, tile);
}
