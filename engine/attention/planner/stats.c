/* engine/attention/planner/stats.c: what a plan costs: pairs executed and pairs seen.
 *
 * A partial entry is counted by the product of its axes where only the window rule speaks and both
 * tiles are boxes of the grid, by its bits where only masks speak, and pair by pair otherwise. */
#include "engine/attention/planner/builder.h"

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// Steps from `first` to the first coordinate that is not below x: 0 .. count.
static int64_t steps_to(hd_plan_line line, int64_t x)
{
    if (x <= line.first) return 0;
    return least((x - line.first + line.step - 1) / line.step, line.count);
}

int64_t hd_plan_axis_pairs(const hd_plan_axis *axis, hd_plan_line queries, hd_plan_line keys)
{
    const int64_t dilation = axis->dilation > 1 ? axis->dilation : 1;
    int64_t pairs = 0;
    for (int64_t i = 0; i < queries.count; i++) {
        const int64_t x = queries.first + i * queries.step;
        const int64_t from = steps_to(keys, axis->start[x]), to = steps_to(keys, axis->end[x]);
        if (from >= to) continue;
        if (keys.step % dilation == 0) {
            if ((keys.first - x) % dilation == 0) pairs += to - from;
            continue;
        }
        for (int64_t j = from; j < to; j++)
            pairs += (keys.first + j * keys.step - x) % dilation == 0;
    }
    return pairs;
}

typedef struct measuring {
    const hd_plan *plan;
    int64_t head, queries, keys;
} measuring;

// A box of the grid, axis by axis.
typedef struct box {
    hd_plan_line axis[3];
} box;

static void coordinates(const hd_plan *p, int64_t token, int64_t x[3])
{
    const int64_t t = token - p->grid_token;
    x[0] = t / (p->grid[1] * p->grid[2]);
    x[1] = t / p->grid[2] % p->grid[1];
    x[2] = t % p->grid[2];
}

typedef int64_t (*token_of)(const hd_plan *, int64_t tokens, int64_t head, int64_t rank);

// Are the ranks first .. end - 1 a box in row-major order? Then which.
static bool ranks_are_box(const measuring *m, token_of token, int64_t tokens, int64_t first,
                          int64_t end, box *out)
{
    const hd_plan *p = m->plan;
    const int64_t count = end - first;
    const int64_t stride[3] = {p->grid[1] * p->grid[2], p->grid[2], 1};
    int64_t at[3], next[3], run = 1;
    coordinates(p, token(p, tokens, m->head, first), at);
    for (int i = 2; i >= 0; i--) {
        // coordinates of this axis: what follows in steps of `run` ranks with the outer ones still
        int64_t n = 1, step = 1;
        while (n * run < count) {
            coordinates(p, token(p, tokens, m->head, first + n * run), next);
            bool same = true;
            for (int outer = 0; outer < i; outer++)
                same = same && next[outer] == at[outer];
            if (!same) break;
            if (n == 1) step = next[i] - at[i];
            n++;
        }
        out->axis[i] = (hd_plan_line){at[i], n, step};
        if (step < 1) return false;
        run *= n;
    }
    if (run != count) return false;
    const box b = *out;
    const int64_t origin = token(p, tokens, m->head, first);
    for (int64_t r = 0; r < count; r++) {
        const int64_t f = r / (b.axis[1].count * b.axis[2].count);
        const int64_t y = r / b.axis[2].count % b.axis[1].count, x = r % b.axis[2].count;
        if (token(p, tokens, m->head, first + r) != origin + f * b.axis[0].step * stride[0] +
                                                        y * b.axis[1].step * stride[1] +
                                                        x * b.axis[2].step)
            return false;
    }
    return true;
}

// A key box, cut at the grid's end.
static box box_at(const hd_plan *p, int64_t origin)
{
    int64_t x[3];
    box b;
    coordinates(p, origin, x);
    for (int i = 0; i < 3; i++)
        b.axis[i] = (hd_plan_line){x[i], least(p->box_extent[i], p->grid[i] - x[i]), 1};
    return b;
}

static int64_t box_tokens(const box *b)
{
    return b->axis[0].count * b->axis[1].count * b->axis[2].count;
}

static bool bit(const uint64_t *words, int64_t i)
{
    return words[i / 64] >> (i % 64) & 1;
}

static int64_t bits(const uint64_t *words, int64_t count)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += bit(words, i);
    return sum;
}

// The keys of an entry as the kernel meets them.
typedef struct entry_keys {
    bool boxed; // a key box (else ranks first ..)
    box box;    // of a key box
    int64_t first, count;
} entry_keys;

static entry_keys keys_of(const hd_plan *p, hd_visit e)
{
    entry_keys k = {.boxed = p->box_extent[0] > 0};
    if (k.boxed) {
        k.box = box_at(p, e.key);
        k.count = box_tokens(&k.box);
    } else {
        k.first = hd_plan_key_start(p, e.key);
        k.count = hd_plan_key_start(p, (int64_t)e.key + 1) - k.first;
    }
    return k;
}

// Token of key i of the entry, and its number there as the column mask counts.
static int64_t key_token(const measuring *m, const entry_keys *k, int64_t i, int64_t *number)
{
    const hd_plan *p = m->plan;
    if (!k->boxed) {
        *number = i;
        return hd_plan_key_token(p, m->keys, m->head, k->first + i);
    }
    const int64_t width = k->box.axis[2].count, height = k->box.axis[1].count;
    const int64_t f = i / (width * height), y = i / width % height, x = i % width;
    *number = (f * p->box_extent[1] + y) * p->box_extent[2] + x;
    return p->grid_token +
           ((k->box.axis[0].first + f) * p->grid[1] + k->box.axis[1].first + y) * p->grid[2] +
           k->box.axis[2].first + x;
}

static bool window_sees(const hd_plan *p, int64_t head, int64_t query, int64_t key)
{
    int64_t a[3], b[3];
    coordinates(p, query, a);
    coordinates(p, key, b);
    for (int i = 0; i < 3; i++) {
        const hd_plan_axis *w = &hd_plan_window(p, head)[i];
        if (b[i] < w->start[a[i]] || b[i] >= w->end[a[i]]) return false;
        if (w->dilation > 1 && (b[i] - a[i]) % w->dilation != 0) return false;
    }
    return true;
}

static int64_t count_pairs(const measuring *m, hd_visit e, const entry_keys *k, int64_t first,
                           int64_t end)
{
    const hd_plan *p = m->plan;
    const int64_t order = p->orders <= 1 ? 0 : m->head;
    const int64_t row_words = (p->query_tile + 63) / 64, key_words = (p->key_tile + 63) / 64;
    int64_t pairs = 0;
    for (int64_t r = first; r < end; r++) {
        if (e.mask >= 0 && p->row_mask && !bit(p->row_mask + e.mask * row_words, r - first))
            continue;
        const int64_t query = hd_plan_query_token(p, m->queries, m->head, r);
        for (int64_t i = 0; i < k->count; i++) {
            int64_t number;
            const int64_t key = key_token(m, k, i, &number);
            bool seen = !p->window || window_sees(p, m->head, query, key);
            if (p->query_segment)
                seen = seen &&
                       p->query_segment[order * p->query_ranks + r] ==
                           p->key_segment[order * p->key_ranks + (k->boxed ? key : k->first + i)];
            if (e.mask >= 0 && p->column_mask)
                seen = seen && bit(p->column_mask + e.mask * key_words, number);
            pairs += seen;
        }
    }
    return pairs;
}

static int64_t useful_pairs(const measuring *m, hd_visit e, const entry_keys *k, int64_t first,
                            int64_t end)
{
    const hd_plan *p = m->plan;
    if (e.mask == HD_VISIT_FULL) return (end - first) * k->count;
    if (p->window && !p->query_segment && e.mask < 0) {
        box queries, keys = k->box;
        if (ranks_are_box(m, hd_plan_query_token, m->queries, first, end, &queries) &&
            (k->boxed ||
             ranks_are_box(m, hd_plan_key_token, m->keys, k->first, k->first + k->count, &keys))) {
            int64_t pairs = 1;
            for (int i = 0; i < 3; i++)
                pairs *= hd_plan_axis_pairs(&hd_plan_window(p, m->head)[i], queries.axis[i],
                                            keys.axis[i]);
            return pairs;
        }
    }
    if (!p->window && !p->query_segment && !k->boxed) {
        const int64_t row_words = (p->query_tile + 63) / 64, key_words = (p->key_tile + 63) / 64;
        int64_t rows = end - first, columns = k->count;
        if (e.mask >= 0 && p->row_mask) rows = bits(p->row_mask + e.mask * row_words, rows);
        if (e.mask >= 0 && p->column_mask)
            columns = bits(p->column_mask + e.mask * key_words, columns);
        return rows * columns;
    }
    return count_pairs(m, e, k, first, end);
}

// Queries of the tile that see the key tile's proxy: all but those the entries show the tile to.
static int64_t hidden_proxies(const hd_plan *p, hd_visit e, int64_t rows)
{
    if (e.mask < 0 || !p->row_mask) return rows;
    return bits(p->row_mask + e.mask * ((p->query_tile + 63) / 64), rows);
}

static void measure_head(hd_plan_stats *s, double *key_visits, const measuring *m)
{
    const hd_plan *p = m->plan;
    for (int64_t t = 0; t < p->query_tiles; t++) {
        const hd_visits row = hd_plan_row(p, m->head, t);
        const int64_t first = hd_plan_query_start(p, t), end = hd_plan_query_start(p, t + 1);
        int64_t proxies = (end - first) * p->key_tiles;
        for (int64_t i = 0; i < row.count; i++) {
            const hd_visit e = hd_visits_entry(row, i);
            const entry_keys k = keys_of(p, e);
            s->entries++;
            *(e.mask == HD_VISIT_FULL ? &s->full : &s->partial) += 1;
            s->executed_pairs += (double)((end - first) * k.count);
            s->useful_pairs += (double)useful_pairs(m, e, &k, first, end);
            *key_visits += (double)k.count;
            proxies -= hidden_proxies(p, e, end - first);
        }
        if (p->rest == HD_REST_PROXY) {
            s->proxy_pairs += (double)((end - first) * p->key_tiles);
            s->useful_pairs += (double)proxies;
            *key_visits += (double)p->key_tiles;
        }
    }
}

hd_status hd_plan_measure(hd_plan_stats *out, const hd_plan *plan, int64_t heads, int64_t queries,
                          int64_t keys, int64_t dim, int64_t value_dim, size_t size)
{
    if (plan->box_extent[0] > 0 && plan->query_segment && plan->key_order)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "plan: no figures for key boxes with segments in an order of their own");
    hd_plan_stats s = {0};
    double key_visits = 0.0;
    const bool shared = plan->heads == 1 && plan->orders <= 1 && plan->windows <= 1;
    for (int64_t h = 0; h < (shared ? 1 : heads); h++)
        measure_head(&s, &key_visits, &(measuring){plan, h, queries, keys});
    const double times = shared ? (double)heads : 1.0;
    const int64_t tail_queries = queries - plan->query_ranks, tail_keys = keys - plan->key_ranks;
    const double h = (double)heads;
    s.entries *= (int64_t)times;
    s.full *= (int64_t)times;
    s.partial *= (int64_t)times;
    s.proxy_pairs *= times;
    s.tail_pairs =
        h * ((double)plan->query_ranks * (double)tail_keys + (double)tail_queries * (double)keys);
    s.executed_pairs = s.executed_pairs * times + s.tail_pairs + s.proxy_pairs;
    s.useful_pairs = s.useful_pairs * times + s.tail_pairs;
    s.dense_pairs = h * (double)queries * (double)keys;
    s.density = s.dense_pairs > 0.0 ? s.executed_pairs / s.dense_pairs : 0.0;
    const double width = (double)(dim + value_dim);
    s.executed_flops = 2.0 * width * s.executed_pairs;
    s.useful_flops = 2.0 * width * s.useful_pairs;
    const int64_t tail_tiles =
        plan->query_tile > 0 ? (tail_queries + plan->query_tile - 1) / plan->query_tile : 0;
    const double tail_visits =
        h * ((double)(plan->query_tiles * tail_keys) + (double)(tail_tiles * keys));
    s.streamed_bytes =
        width * (double)size * (h * (double)queries + key_visits * times + tail_visits);
    s.unique_bytes = width * (double)size * h * (double)(queries + keys);
    *out = s;
    return HD_OK;
}
