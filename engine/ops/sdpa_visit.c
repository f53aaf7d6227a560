/* engine/ops/sdpa_visit.c: blocks of queries through the keys that their row of the plan lists:
 * entries become stretches of positions with a word per key, and those fill steps of the kernel.
 *
 * A word has a bit for every query of the block: which of them see the key. Every rule of a partial
 * entry is such a word, and they are and-ed: of the window, per axis, those whose window holds the
 * key's coordinate; of the segments those of the key's label; of a row mask the block's part of it;
 * of a column mask all or nothing. Stretches that no query of the block sees are never computed.
 *
 * What a block meets, and in which steps, follows from the plan and its own queries alone. */
#include <math.h>
#include <string.h>

#include "engine/ops/sdpa_internal.h"

enum { LABELS = 256 };
enum { GAP = 8 }; // unseen keys in a row that are worth a span of their own

static const float log2e = 1.44269504088896341f;

// Some blocks of one query tile of one row and head, on their way.
typedef struct walk {
    const sdpa_run *run;
    const sdpa_row *row;
    const hd_sdpa_head *head;
    hd_sdpa_packed packed;
    const int32_t *token;       // [positions]
    const uint8_t *key_segment; // [key_ranks]
    sdpa_block *block;
    int blocks;
} walk;

// Neighbouring positions of one entry, at most a step.
typedef struct piece {
    int64_t position, count;
    int64_t mask;      // the entry's
    int64_t rank;      // of the first key
    int64_t number;    // of the first key in the entry
    const float *bias; // of proxies: [count], in units of log 2
} piece;

typedef enum sight { SEEN_BY_NONE, SEEN_BY_SOME, SEEN_BY_ALL } sight;

static int64_t block_floats(const sdpa_run *run)
{
    const int64_t tables = run->a->segments ? 2 * run->a->segments->key_labels : 0;
    return (5 + sdpa_depth(run) + run->value_dim + run->indicators + tables) *
           run->kernel->max_queries;
}

// The tables of one block.
static size_t block_bytes(const sdpa_run *run)
{
    size_t bytes = (size_t)(run->axis_words + LABELS) * sizeof(uint64_t) +
                   (size_t)block_floats(run) * sizeof(float);
    return (bytes + 63) / 64 * 64;
}

size_t sdpa_item_bytes(const sdpa_run *run)
{
    const int64_t lanes = run->kernel->max_queries;
    return (size_t)(run->step * lanes) * sizeof(float) +
           (size_t)sdpa_parts(run->item_queries, lanes) * (block_bytes(run) + sizeof(sdpa_block));
}

// The queries of a block by the coordinates that their windows hold.
static void fill_axes(const walk *w, sdpa_block *b, uint64_t *words)
{
    const hd_plan *plan = w->row->plan;
    for (int axis = 0; axis < 3; axis++) {
        const hd_plan_axis *rule = &hd_plan_window(plan, w->head->number)[axis];
        b->axis[axis] = words;
        words += plan->grid[axis];
        memset(b->axis[axis], 0, (size_t)plan->grid[axis] * sizeof *words);
        for (int i = 0; i < b->kernel.queries; i++) {
            if (b->token[i] < 0) continue;
            const int64_t x = w->row->place[b->token[i] - plan->grid_token].x[axis];
            const int64_t start = sdpa_larger(rule->start[x], 0);
            const int64_t end = sdpa_smaller(rule->end[x], plan->grid[axis]);
            // the first y >= start with y - x a multiple of the dilation
            int64_t y = start + ((x - start) % rule->dilation + rule->dilation) % rule->dilation;
            for (; y < end; y += rule->dilation)
                b->axis[axis][y] |= 1ull << i;
        }
    }
}

static void fill_segments(const walk *w, sdpa_block *b, int64_t first, uint64_t *words)
{
    const hd_plan *plan = w->row->plan;
    const uint8_t *label =
        plan->query_segment + (plan->orders > 1 ? w->head->number : 0) * plan->query_ranks;
    b->segment = words;
    memset(words, 0, LABELS * sizeof *words);
    for (int i = 0; i < b->kernel.queries; i++)
        words[label[first + i]] |= 1ull << i;
}

static void fill_tokens(const walk *w, sdpa_block *b, int64_t first)
{
    const sdpa_run *run = w->run;
    b->all = 0, b->lowest = INT32_MAX, b->highest = -1;
    for (int i = 0; i < b->kernel.queries; i++) {
        const int64_t token =
            hd_plan_query_token(w->row->plan, run->queries, w->head->number, first + i);
        b->token[i] = token < w->head->queries ? (int32_t)token : -1;
        if (b->token[i] < 0) continue;
        b->all |= 1ull << i;
        b->lowest = token < b->lowest ? (int32_t)token : b->lowest;
        b->highest = token > b->highest ? (int32_t)token : b->highest;
    }
}

// Asks for a block's rows of `data` ahead of their use: those of a head lie far apart, in runs too
// short for the processor to foresee.
static void expect_rows(const walk *w, const sdpa_block *b, const void *data, int64_t stride,
                        int64_t channels, bool written)
{
    const int64_t size = (int64_t)hd_dtype_size(w->head->dtype), bytes = channels * size;
    for (int i = 0; i < b->kernel.queries; i++) {
        if (b->token[i] < 0) continue;
        const char *row = (const char *)data + b->token[i] * stride * size;
        for (int64_t at = 0; at < bytes; at += 64) {
            if (written)
                __builtin_prefetch(row + at, 1);
            else
                __builtin_prefetch(row + at, 0);
        }
    }
}

static void expect_out(const walk *w)
{
    const hd_sdpa_head *h = w->head;
    for (int i = 0; i < w->blocks; i++)
        expect_rows(w, &w->block[i], h->out, h->out_stride, h->value_dim, true);
}

// The block of the ranks first .. from `bytes` on; `listed`: its query tile is the plan's.
static void begin_block(const walk *w, sdpa_block *b, char *bytes, float *scores, int64_t first,
                        int queries, bool listed)
{
    const sdpa_run *run = w->run;
    const int64_t lanes = run->kernel->max_queries;
    float *at = (float *)bytes, *out = at + (5 + sdpa_depth(run)) * lanes;
    float *tables = out + (run->value_dim + run->indicators) * lanes;
    uint64_t *words = (uint64_t *)(at + block_floats(run));
    b->kernel = (hd_sdpa_block){
        .head = w->head,
        .token = b->token,
        .queries = queries,
        .scores = scores,
        .max = at,
        .sum = at + lanes,
        .factor = at + 2 * lanes,
        .largest = at + 3 * lanes,
        .weight = at + 4 * lanes,
        .q = at + 5 * lanes,
        .out = out,
    };
    if (w->head->segment_bias) b->kernel.bias = tables;
    if (w->head->segment_gain) b->kernel.gain = tables + w->head->key_labels * lanes;
    b->step.packed = &w->packed;
    b->step.count = b->step.spans = 0;
    b->step.masked = false, b->step.edited = w->row->edited;
    b->segment = NULL;
    b->proxies = false;
    fill_tokens(w, b, first);
    expect_rows(w, b, w->head->q, w->head->q_stride, w->head->dim, false);
    if (listed && w->row->plan->window) fill_axes(w, b, words + LABELS);
    if (listed && w->row->plan->query_segment) fill_segments(w, b, first, words);
}

static void begin_blocks(walk *w, int64_t query_tile, int64_t first, int64_t end, char *scratch)
{
    const sdpa_run *run = w->run;
    const int64_t lanes = run->kernel->max_queries;
    const bool listed = query_tile < w->row->plan->query_tiles;
    const int64_t start = listed ? hd_plan_query_start(w->row->plan, query_tile) : first;
    const int64_t blocks = sdpa_parts(run->item_queries, lanes);
    float *scores = (float *)scratch;
    char *bytes = (char *)(scores + run->step * lanes);
    w->block = (sdpa_block *)(bytes + (size_t)blocks * block_bytes(run));
    for (w->blocks = 0; first < end; first += lanes, bytes += block_bytes(run)) {
        sdpa_block *b = &w->block[w->blocks++];
        b->in_tile = first - start;
        begin_block(w, b, bytes, scores, first, (int)sdpa_smaller(end - first, lanes), listed);
    }
    for (int i = 0; i < w->blocks; i++)
        run->kernel->begin(&w->block[i].kernel);
}

static void flush(const walk *w, sdpa_block *b)
{
    const hd_sdpa_kernel *kernel = w->run->kernel;
    if (b->step.count == 0) return;
    kernel->scores(&b->kernel, &b->step);
    if (b->step.edited) kernel->edit(&b->kernel, &b->step);
    if (b->proxies && w->row->plan->proxy.variance) sdpa_proxy_spread(w->run, w->row, w->head, b);
    kernel->softmax(&b->kernel, &b->step);
    kernel->accumulate(&b->kernel, &b->step);
    b->step.count = b->step.spans = 0;
    b->step.masked = false;
}

static void mask_step(sdpa_block *b)
{
    for (int64_t i = 0; i < b->step.count && !b->step.masked; i++)
        b->step.word[i] = b->all;
    b->step.masked = true;
}

// Fills the last unit of the step: with keys that nobody sees.
static void fill_unit(const walk *w, sdpa_block *b)
{
    hd_sdpa_step *step = &b->step;
    while (step->count % w->run->kernel->unit) {
        mask_step(b);
        const int64_t n = step->count++;
        step->span[step->spans - 1].count++;
        step->word[n] = 0, step->token[n] = -1, step->column_bias[n] = 0.0f, step->label[n] = 0;
    }
}

static void add_span(hd_sdpa_step *step, int64_t position, int64_t count)
{
    hd_sdpa_span *last = step->spans ? &step->span[step->spans - 1] : NULL;
    if (last && last->start + last->count == position)
        last->count += (int32_t)count;
    else
        step->span[step->spans++] = (hd_sdpa_span){(int32_t)position, (int32_t)count};
}

static void add_edits(const walk *w, hd_sdpa_step *step, int64_t position, int64_t count,
                      const float *bias)
{
    const hd_sdpa_head *h = w->head;
    for (int64_t i = 0; i < count; i++) {
        const int64_t n = step->count + i;
        const int32_t token = w->token[position + i];
        step->token[n] = token;
        step->column_bias[n] = bias ? bias[i] : 0.0f;
        if (h->column_bias && token >= 0) step->column_bias[n] = h->column_bias[token] * log2e;
        step->label[n] = h->key_label && token >= 0 ? h->key_label[token] : 0;
    }
}

// Positions of which word [count] says who sees what; NULL: all see all. `position` is the first of
// a unit.
static void append(const walk *w, sdpa_block *b, int64_t position, int64_t count,
                   const uint64_t *word, const float *bias)
{
    hd_sdpa_step *step = &b->step;
    fill_unit(w, b);
    while (count > 0) {
        const int64_t some = sdpa_smaller(w->run->step - step->count, count);
        if (some > 0) {
            add_span(step, position, some);
            if (word) mask_step(b);
            if (word) memcpy(step->word + step->count, word, (size_t)some * sizeof *word);
            for (int64_t i = 0; step->masked && !word && i < some; i++)
                step->word[step->count + i] = b->all;
            if (step->edited) add_edits(w, step, position, some, bias);
            step->count += some;
        }
        position += some, count -= some;
        if (word) word += some;
        if (bias) bias += some;
        if (step->count == w->run->step) flush(w, b);
    }
}

// The stretches of a piece that some query sees; a unit before `word` may be written.
static void append_seen(const walk *w, sdpa_block *b, const piece *p, uint64_t *word)
{
    memset(word - HD_SDPA_MAX_UNIT, 0, HD_SDPA_MAX_UNIT * sizeof *word);
    for (int64_t i = 0; i < p->count;) {
        if (!word[i]) {
            i++;
            continue;
        }
        int64_t end = i + 1;
        for (int64_t j = end; j < p->count && j < end + GAP; j++)
            if (word[j]) end = j + 1;
        const int64_t start = i - (p->position + i) % w->run->kernel->unit;
        append(w, b, p->position + start, end - start, word + start,
               p->bias ? p->bias + start : NULL);
        i = end;
    }
}

// The queries of the block that are not before the key.
static uint64_t not_before(const walk *w, const sdpa_block *b, int32_t key)
{
    if (key <= b->lowest) return ~0ull;
    if (key > b->highest) return 0;
    if (!w->row->plan->query_order) return ~0ull << (key - b->lowest);
    uint64_t word = 0;
    for (int i = 0; i < b->kernel.queries; i++)
        if (b->token[i] >= key) word |= 1ull << i;
    return word;
}

// The queries that see the entry at all, by its row mask.
static uint64_t row_word(const walk *w, const sdpa_block *b, int64_t mask)
{
    const hd_plan *plan = w->row->plan;
    if (mask < 0 || !plan->row_mask) return b->all;
    const uint64_t *words = plan->row_mask + mask * sdpa_parts(plan->query_tile, 64);
    return words[b->in_tile / 64] >> b->in_tile % 64 & b->all;
}

static sight sight_of(const sdpa_block *b, uint64_t either, uint64_t both)
{
    if (!either) return SEEN_BY_NONE;
    return both == b->all ? SEEN_BY_ALL : SEEN_BY_SOME;
}

// The word of every key of a line of a box, under windows alone: all but one axis are the line's.
static sight look_along(const walk *w, const sdpa_block *b, const piece *p, uint64_t rows,
                        uint64_t *word)
{
    const int64_t *grid = w->row->plan->grid;
    const int64_t line = p->rank / grid[2], x = p->rank % grid[2];
    rows &= b->axis[0][line / grid[1]] & b->axis[1][line % grid[1]];
    if (!rows) return SEEN_BY_NONE;
    uint64_t either = 0, both = b->all;
    for (int64_t i = 0; i < p->count; i++) {
        word[i] = rows & b->axis[2][x + i];
        either |= word[i], both &= word[i];
    }
    return sight_of(b, either, both);
}

// The word of every key of a piece.
static sight look(const walk *w, const sdpa_block *b, const piece *p, uint64_t *word)
{
    const hd_plan *plan = w->row->plan;
    const uint64_t rows = row_word(w, b, p->mask);
    if (!rows) return SEEN_BY_NONE;
    const bool partial = p->mask != HD_VISIT_FULL;
    const uint64_t *columns = NULL;
    if (p->mask >= 0 && plan->column_mask)
        columns = plan->column_mask + p->mask * sdpa_parts(plan->key_tile, 64);
    if (partial && plan->window && sdpa_boxes(plan) && !columns && !w->key_segment &&
        !w->head->causal && !w->row->holes)
        return look_along(w, b, p, rows, word);
    uint64_t either = 0, both = b->all;
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t token = w->token[p->position + i];
        uint64_t seen = token >= 0 ? rows : 0;
        if (partial && plan->window && token >= 0) {
            const int32_t *x = w->row->place[token - plan->grid_token].x;
            seen &= b->axis[0][x[0]] & b->axis[1][x[1]] & b->axis[2][x[2]];
        }
        if (partial && w->key_segment) seen &= b->segment[w->key_segment[p->rank + i]];
        const int64_t number = p->number + i;
        if (columns && !(columns[number / 64] >> number % 64 & 1)) seen = 0;
        if (w->head->causal) seen &= not_before(w, b, token);
        word[i] = seen;
        either |= seen, both &= seen;
    }
    return sight_of(b, either, both);
}

// What can be said of a piece without looking at its keys.
static sight glance(const walk *w, const sdpa_block *b, const piece *p)
{
    if (!b->all) return SEEN_BY_NONE;
    if (p->mask != HD_VISIT_FULL || w->row->holes || p->position % w->run->kernel->unit)
        return SEEN_BY_SOME;
    if (!w->head->causal) return SEEN_BY_ALL;
    if (w->row->plan->key_order) return SEEN_BY_SOME;
    if (w->token[p->position] > b->highest) return SEEN_BY_NONE;
    return w->token[p->position + p->count - 1] <= b->lowest ? SEEN_BY_ALL : SEEN_BY_SOME;
}

static void offer(const walk *w, const piece *p)
{
    uint64_t words[HD_SDPA_MAX_UNIT + HD_SDPA_STEP], *word = words + HD_SDPA_MAX_UNIT;
    for (sdpa_block *b = w->block; b < w->block + w->blocks; b++) {
        sight seen = glance(w, b, p);
        const bool looked = seen == SEEN_BY_SOME;
        if (looked) seen = look(w, b, p, word);
        if (seen == SEEN_BY_ALL && p->position % w->run->kernel->unit == 0)
            append(w, b, p->position, p->count, NULL, p->bias);
        else if (seen != SEEN_BY_NONE)
            append_seen(w, b, p, word);
    }
}

// Neighbouring positions, a step at a time.
static void offer_all(const walk *w, piece p)
{
    const int64_t end = p.position + p.count, step = w->run->step;
    while (p.position < end) {
        p.count = sdpa_smaller(end - p.position, step - p.position % w->run->kernel->unit);
        offer(w, &p);
        p.position += p.count, p.rank += p.count, p.number += p.count;
    }
}

// Ranks first .. end - 1 that lie at `position` ..
static void offer_ranks(const walk *w, int64_t position, int64_t first, int64_t end, int64_t mask)
{
    // in the tokens' own order, what the row lacks is at the end
    if (!w->row->plan->key_order) end = sdpa_smaller(end, w->row->keys);
    if (first < end)
        offer_all(w,
                  (piece){.position = position, .count = end - first, .mask = mask, .rank = first});
}

static void offer_tile(const walk *w, int64_t tile, int64_t mask)
{
    const hd_plan *plan = w->row->plan;
    offer_ranks(w, sdpa_tile_position(w->row, tile, w->run->kernel->unit),
                hd_plan_key_start(plan, tile), hd_plan_key_start(plan, tile + 1), mask);
}

static void offer_box(const walk *w, int64_t origin, const int64_t *extent, int64_t mask)
{
    const hd_plan *plan = w->row->plan;
    const int64_t at = origin - plan->grid_token, x = at % plan->grid[2];
    const int64_t first_y = at / plan->grid[2] % plan->grid[1];
    const int64_t first_f = at / plan->grid[2] / plan->grid[1];
    const int64_t end_f = sdpa_smaller(first_f + extent[0], plan->grid[0]);
    const int64_t end_y = sdpa_smaller(first_y + extent[1], plan->grid[1]);
    const int64_t end_x = sdpa_smaller(x + extent[2], plan->grid[2]);
    for (int64_t f = first_f; f < end_f; f++)
        for (int64_t y = first_y; y < end_y; y++) {
            const int64_t line = f * plan->grid[1] + y;
            offer_all(w, (piece){.position = line * w->row->line + x,
                                 .count = end_x - x,
                                 .mask = mask,
                                 .rank = line * plan->grid[2] + x,
                                 .number = ((f - first_f) * extent[1] + y - first_y) * extent[2]});
        }
}

// How many of the entries are in reach of the row's keys, and of the blocks' queries if causal.
static int64_t reachable(const walk *w, hd_visits visits)
{
    const hd_plan *plan = w->row->plan;
    if (plan->key_order || sdpa_boxes(plan)) return visits.count;
    int64_t end = w->row->keys, highest = -1;
    for (int i = 0; i < w->blocks; i++)
        highest = sdpa_larger(highest, w->block[i].highest);
    if (w->head->causal) end = sdpa_smaller(end, highest + 1);
    while (visits.count > 0 &&
           hd_plan_key_start(plan, hd_visits_entry(visits, visits.count - 1).key) >= end)
        visits.count--;
    return visits.count;
}

// Returns the entries visited.
static int64_t offer_row(const walk *w, int64_t query_tile)
{
    const hd_plan *plan = w->row->plan;
    hd_visits visits = hd_plan_row(plan, w->head->number, query_tile);
    visits.count = reachable(w, visits);
    for (int64_t i = 0; i < visits.count; i++) {
        const hd_visit entry = hd_visits_entry(visits, i);
        if (i + 1 == visits.count) expect_out(w);
        if (sdpa_boxes(plan))
            offer_box(w, entry.key, plan->box_extent, entry.mask);
        else
            offer_tile(w, entry.key, entry.mask);
    }
    return visits.count;
}

// Everything, to queries of the tail.
static void offer_everything(const walk *w)
{
    const hd_plan *plan = w->row->plan;
    if (sdpa_boxes(plan)) {
        offer_box(w, plan->grid_token, plan->grid, HD_VISIT_FULL);
        return;
    }
    for (int64_t t = 0; t < plan->key_tiles; t++)
        offer_tile(w, t, HD_VISIT_FULL);
}

// The proxies of tiles first .. first + count - 1 to the queries that the entries leave out;
// returns the first entry behind those tiles.
static int64_t offer_proxies(const walk *w, sdpa_block *b, hd_visits visits, int64_t at,
                             int64_t first, int64_t count)
{
    uint64_t words[HD_SDPA_MAX_UNIT + HD_SDPA_STEP], *word = words + HD_SDPA_MAX_UNIT;
    const sdpa_row *row = w->row;
    const int64_t pack = w->head->number / (w->run->heads / row->packs);
    const float *bias = row->proxy_bias + pack * row->plan->key_tiles + first;
    for (int64_t i = 0; i < count; i++)
        word[i] = bias[i] > -INFINITY ? b->all : 0; // of a tile without keys
    for (; at < visits.count && visits.entry[at].key < first + count; at++)
        word[visits.entry[at].key - first] &= ~row_word(w, b, visits.entry[at].mask);
    for (int64_t i = 0; i < count && (w->head->causal || w->head->mask); i++)
        word[i] = sdpa_proxy_seen(w->run, row, w->head, b, first + i, word[i]);
    const piece p = {.position = w->row->proxy + first, .count = count, .bias = bias};
    append_seen(w, b, &p, word);
    return at;
}

static void offer_rest(const walk *w, int64_t query_tile)
{
    const hd_visits visits = hd_plan_row(w->row->plan, w->head->number, query_tile);
    const int64_t tiles = w->row->plan->key_tiles, step = w->run->step;
    for (sdpa_block *b = w->block; b < w->block + w->blocks; b++) {
        flush(w, b);
        b->step.edited = b->proxies = true;
        int64_t at = 0;
        for (int64_t t = 0; t < tiles; t += step)
            at = offer_proxies(w, b, visits, at, t, sdpa_smaller(tiles - t, step));
    }
}

int64_t sdpa_visit(const sdpa_run *run, int64_t row, int64_t head, int64_t query_tile,
                   int64_t first, int64_t end, char *scratch)
{
    const hd_sdpa_head h = sdpa_head(run, row, head);
    const sdpa_row *r = &run->row[row];
    const hd_plan *plan = r->plan;
    walk w = {
        .run = run,
        .row = r,
        .head = &h,
        .packed = sdpa_packed(run, r, head),
        .token = r->token + (r->orders > 1 ? head : 0) * r->positions,
    };
    if (plan->key_segment)
        w.key_segment = plan->key_segment + (plan->orders > 1 ? head : 0) * plan->key_ranks;
    begin_blocks(&w, query_tile, first, end, scratch);
    int64_t visited = 0;
    const bool listed = query_tile < plan->query_tiles;
    if (listed)
        visited = offer_row(&w, query_tile);
    else
        offer_everything(&w);
    offer_ranks(&w, r->tail, plan->key_ranks, run->keys, HD_VISIT_FULL);
    if (listed && r->proxy_bias) offer_rest(&w, query_tile);
    for (int i = 0; i < w.blocks; i++) {
        flush(&w, &w.block[i]);
        run->kernel->finish(&w.block[i].kernel);
    }
    return visited;
}
