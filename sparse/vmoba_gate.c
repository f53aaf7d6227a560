/* sparse/vmoba_gate.c: gates 64 queries at a time, selection within a query, or by counting over a
 * whole head without sorting it. */
#include "sparse/vmoba_gate.h"

#include <math.h>
#include <string.h>

#include "engine/attention/planner/means.h"

enum { LANES = HD_PLANNER_LANES };

hd_vmoba_gates hd_vmoba_gates_take(hd_room *room, const hd_vmoba_shape *s, bool local)
{
    const int64_t panels = s->heads * s->panels;
    hd_vmoba_gates g;
    g.mean = hd_room_take(room, s->heads * s->blocks * s->dim, sizeof *g.mean);
    g.pairs = hd_room_take(room, s->heads * s->blocks * s->dim, sizeof *g.pairs);
    g.query = hd_room_take(room, s->heads, sizeof *g.query);
    g.key = hd_room_take(room, s->heads, sizeof *g.key);
    g.gate = hd_room_take(room, (local ? HD_PLANNER_SHARES : panels) * s->blocks * LANES,
                          sizeof *g.gate);
    g.panel = hd_room_take(room, HD_PLANNER_SHARES * s->dim * LANES, sizeof *g.panel);
    g.row = hd_room_take(room, HD_PLANNER_SHARES * s->blocks, sizeof *g.row);
    g.index = hd_room_take(room, HD_PLANNER_SHARES * s->blocks, sizeof *g.index);
    g.sort = hd_room_take(room, HD_PLANNER_SHARES * 2 * s->blocks, sizeof *g.sort);
    g.words = hd_room_take(room, panels * s->blocks, sizeof *g.words);
    return g;
}

hd_radix *hd_vmoba_radix_take(hd_room *room)
{
    return hd_room_take(room, HD_PLANNER_SHARES + 1, sizeof(hd_radix));
}

// Own block of each query of a panel (lanes behind the last query: some block), and which exist.
static uint64_t own_blocks(const hd_vmoba_shape *s, int64_t panel, int32_t own[LANES])
{
    const int64_t first = panel * LANES;
    int64_t low = 0, high = s->blocks - 1;
    while (low < high) { // the last block that begins at or before `first`
        int64_t middle = (low + high + 1) / 2;
        if (s->bound[middle] <= first)
            low = middle;
        else
            high = middle - 1;
    }
    for (int i = 0; i < LANES; i++) {
        while (low + 1 < s->blocks && s->bound[low + 1] <= first + i)
            low++;
        own[i] = (int32_t)low;
    }
    const int64_t count = s->ranks - first;
    return count >= LANES ? ~(uint64_t)0 : ((uint64_t)1 << count) - 1;
}

// min-max normalisation of a group's gates
typedef struct gate_range {
    float low, high;
} gate_range;

static float gate_weight(const gate_range *range, float gate)
{
    float span = range->high - range->low;
    return (gate - range->low) / (span <= 1e-6f ? 1.0f : span);
}

static double share_missing(const hd_vmoba_rule *rule, double own, double sum)
{
    double need = rule->tau - own / (sum + rule->eps);
    return need > 0 ? need : 0;
}

typedef struct gate_work {
    const hd_vmoba_shape *s;
    const hd_vmoba_rule *rule;
    const hd_vmoba_gates *g;
    const hd_planner_kernels *kernels;
    hd_planner_product *pairs; // products are of bf16 pairs; NULL: of f32
} gate_work;

// The threshold within one query: lane `lane` of the panel's gates [blocks][64].
static void threshold_lane(const gate_work *w, float *row, int32_t *index, uint64_t *sort,
                           const float *gate, uint64_t *words, int lane, int32_t own)
{
    const int64_t blocks = w->s->blocks;
    gate_range range = {INFINITY, -INFINITY};
    for (int64_t c = 0; c < blocks; c++) {
        row[c] = gate[c * LANES + lane];
        range.low = fminf(range.low, row[c]);
        range.high = fmaxf(range.high, row[c]);
    }
    double sum = 0, taken = 0;
    for (int64_t c = 0; c < blocks; c++) {
        row[c] = gate_weight(&range, row[c]);
        sum += (double)row[c];
    }
    const double need = share_missing(w->rule, (double)row[own], sum);
    hd_select_order(index, row, blocks, sort);
    words[own] |= (uint64_t)1 << lane;
    for (int64_t r = 0; r < blocks; r++) {
        if (index[r] == own) continue;
        words[index[r]] |= (uint64_t)1 << lane;
        taken += (double)row[index[r]];
        if (w->rule->tau < 1 && taken / (sum + w->rule->eps) >= need) break;
    }
}

static void select_panel(const gate_work *w, const float *gate, uint64_t *words, int64_t panel,
                         int64_t share)
{
    const int64_t blocks = w->s->blocks;
    int32_t own[LANES];
    const uint64_t valid = own_blocks(w->s, panel, own);
    if (w->rule->top > 0) {
        w->kernels->top(words, gate, blocks, w->rule->top, own);
    } else {
        float *row = w->g->row + share * blocks;
        memset(words, 0, (size_t)blocks * sizeof *words);
        for (int i = 0; i < LANES && valid >> i & 1; i++)
            threshold_lane(w, row, w->g->index + share * blocks, w->g->sort + share * 2 * blocks,
                           gate, words, i, own[i]);
    }
    for (int64_t c = 0; c < blocks; c++)
        words[c] &= valid;
}

// Item: a panel of one head.
static hd_status gate_panel(void *arg, int64_t item, int64_t share)
{
    const gate_work *w = arg;
    const hd_vmoba_shape *s = w->s;
    const bool local = w->rule->scope == HD_VMOBA_LOCAL;
    const int64_t head = item / s->panels, first = item % s->panels * LANES;
    float *panel = w->g->panel + share * s->dim * LANES;
    float *gate = w->g->gate + (local ? share : item) * s->blocks * LANES;
    const void *token[LANES];
    for (int64_t i = 0; i < LANES; i++)
        token[i] = first + i < s->ranks ? hd_planner_token(&w->g->query[head], first + i) : NULL;
    const int64_t at = head * s->blocks * s->dim, units = s->dim / 2;
    if (w->pairs) {
        w->kernels->pack(panel, token, HD_F32, units);
        w->pairs(gate, s->blocks, (const float *)(w->g->pairs + at), units, panel, units);
    } else {
        w->kernels->pack(panel, token, w->g->query[head].dtype, s->dim);
        w->kernels->product(gate, s->blocks, w->g->mean + at, s->dim, panel, s->dim);
    }
    if (local) select_panel(w, gate, w->g->words + item * s->blocks, item % s->panels, share);
    return HD_OK;
}

// Item: the means of one head.
static hd_status round_means(void *arg, int64_t head, int thread)
{
    const gate_work *w = arg;
    const int64_t count = w->s->blocks * w->s->dim;
    (void)thread;
    hd_convert_f32_to_bf16(w->g->pairs + head * count, w->g->mean + head * count, count);
    return HD_OK;
}

hd_status hd_vmoba_gate(const hd_exec *ex, const hd_vmoba_shape *s, const hd_vmoba_rule *rule,
                        const hd_vmoba_gates *gates)
{
    gate_work w = {s, rule, gates, hd_planner_kernels_of(ex), NULL};
    HD_TRY(hd_planner_means(ex, gates->mean, gates->key, s->heads, s->bound, s->blocks));
    if (gates->query->dtype == HD_BF16 && s->dim % 2 == 0) w.pairs = hd_planner_pairs_of(ex);
    if (w.pairs) HD_TRY(hd_parallel_for(ex->pool, s->heads, round_means, &w));
    return hd_share_for(ex, s->heads * s->panels, gate_panel, &w);
}

/* Gates that compete: of some rows, heads and blocks, all queries. */
typedef struct gate_group {
    const gate_work *w;
    const hd_vmoba_gates *const *row;
    int64_t first_row, end_row, first_head, end_head, first_block, end_block;
    gate_range range;
    double sum, own; // of the weights
    int64_t others;  // pairs that are not a query's own
    hd_radix_search search;
    hd_radix *radix; // per share, and one for their sum
    struct group_part {
        gate_range range;
        double sum, own;
        int64_t others;
    } part[HD_PLANNER_SHARES];
} gate_group;

// Where an item of a group, a panel of one head and row, is.
typedef struct group_panel {
    const hd_vmoba_gates *g;
    int64_t panel, at; // at: of its blocks in gate and words
    int32_t own[LANES];
    int lanes;
} group_panel;

static int64_t group_items(const gate_group *group)
{
    return (group->end_row - group->first_row) * (group->end_head - group->first_head) *
           group->w->s->panels;
}

static group_panel panel_of(const gate_group *group, int64_t item)
{
    const hd_vmoba_shape *s = group->w->s;
    const int64_t heads = group->end_head - group->first_head;
    group_panel p = {.panel = item % s->panels};
    const int64_t head = group->first_head + item / s->panels % heads;
    p.g = group->row[group->first_row + item / s->panels / heads];
    p.at = (head * s->panels + p.panel) * s->blocks;
    const uint64_t valid = own_blocks(s, p.panel, p.own);
    p.lanes = __builtin_popcountll(valid);
    return p;
}

static hd_status find_range(void *arg, int64_t item, int64_t share)
{
    gate_group *group = arg;
    const group_panel p = panel_of(group, item);
    struct group_part *part = &group->part[share];
    for (int64_t c = group->first_block; c < group->end_block; c++)
        for (int i = 0; i < p.lanes; i++) {
            const float gate = p.g->gate[(p.at + c) * LANES + i];
            part->range.low = fminf(part->range.low, gate);
            part->range.high = fmaxf(part->range.high, gate);
        }
    return HD_OK;
}

static hd_status find_sums(void *arg, int64_t item, int64_t share)
{
    gate_group *group = arg;
    const group_panel p = panel_of(group, item);
    struct group_part *part = &group->part[share];
    for (int64_t c = group->first_block; c < group->end_block; c++)
        for (int i = 0; i < p.lanes; i++) {
            const float n = gate_weight(&group->range, p.g->gate[(p.at + c) * LANES + i]);
            part->sum += (double)n;
            if (p.own[i] == c)
                part->own += (double)n;
            else
                part->others++;
        }
    return HD_OK;
}

static hd_status count_pass(void *arg, int64_t item, int64_t share)
{
    gate_group *group = arg;
    const group_panel p = panel_of(group, item);
    hd_radix *radix = &group->radix[share];
    for (int64_t c = group->first_block; c < group->end_block; c++)
        for (int i = 0; i < p.lanes; i++) {
            const float n = gate_weight(&group->range, p.g->gate[(p.at + c) * LANES + i]);
            const int bin = hd_radix_bin(&group->search, hd_radix_key(n));
            if (bin < 0 || p.own[i] == c) continue;
            radix->count[bin]++;
            radix->sum[bin] += (double)n;
        }
    return HD_OK;
}

// All pairs above the key; those equal to it if every one of them is kept.
static hd_status mark_above(void *arg, int64_t item, int64_t share)
{
    gate_group *group = arg;
    const group_panel p = panel_of(group, item);
    const hd_radix_search *search = &group->search;
    const bool ties = search->ties == search->equal;
    (void)share;
    for (int64_t c = group->first_block; c < group->end_block; c++) {
        uint64_t word = 0;
        for (int i = 0; i < p.lanes; i++) {
            const float n = gate_weight(&group->range, p.g->gate[(p.at + c) * LANES + i]);
            const uint32_t key = hd_radix_key(n);
            const bool kept = search->all || key > search->key || (ties && key == search->key);
            word |= (uint64_t)(kept || p.own[i] == c) << i;
        }
        p.g->words[p.at + c] = word;
    }
    return HD_OK;
}

// The first few of the pairs equal to the key, by row, head, block and query.
static void mark_ties(const gate_group *group)
{
    const hd_vmoba_shape *s = group->w->s;
    int64_t left = group->search.ties;
    if (group->search.all || left == group->search.equal) return;
    const int64_t strips = group_items(group) / s->panels;
    for (int64_t strip = 0; strip < strips; strip++)
        for (int64_t c = group->first_block; c < group->end_block; c++)
            for (int64_t panel = 0; panel < s->panels; panel++) {
                const group_panel p = panel_of(group, strip * s->panels + panel);
                for (int i = 0; i < p.lanes && left > 0; i++) {
                    const float n = gate_weight(&group->range, p.g->gate[(p.at + c) * LANES + i]);
                    if (p.own[i] == c || hd_radix_key(n) != group->search.key) continue;
                    p.g->words[p.at + c] |= (uint64_t)1 << i;
                    left--;
                }
                if (left == 0) return;
            }
}

static hd_status search_group(const hd_exec *ex, gate_group *group)
{
    hd_radix *sum = &group->radix[HD_PLANNER_SHARES];
    while (group->search.pass < HD_RADIX_PASSES && !group->search.all) {
        memset(group->radix, 0, (HD_PLANNER_SHARES + 1) * sizeof *group->radix);
        HD_TRY(hd_share_for(ex, group_items(group), count_pass, group));
        for (int i = 0; i < HD_PLANNER_SHARES; i++)
            for (int bin = 0; bin < HD_RADIX_BINS; bin++) {
                sum->count[bin] += group->radix[i].count[bin];
                sum->sum[bin] += group->radix[i].sum[bin];
            }
        hd_radix_next(&group->search, sum);
    }
    return HD_OK;
}

static hd_status select_group(const hd_exec *ex, gate_group *group)
{
    const hd_vmoba_rule *rule = group->w->rule;
    const int64_t items = group_items(group);
    group->range = (gate_range){INFINITY, -INFINITY};
    for (int i = 0; i < HD_PLANNER_SHARES; i++)
        group->part[i] = (struct group_part){.range = group->range};
    HD_TRY(hd_share_for(ex, items, find_range, group));
    for (int i = 0; i < HD_PLANNER_SHARES; i++) {
        group->range.low = fminf(group->range.low, group->part[i].range.low);
        group->range.high = fmaxf(group->range.high, group->part[i].range.high);
    }
    HD_TRY(hd_share_for(ex, items, find_sums, group));
    for (int i = 0; i < HD_PLANNER_SHARES; i++) {
        group->sum += group->part[i].sum;
        group->own += group->part[i].own;
        group->others += group->part[i].others;
    }
    const int64_t queries = items / group->w->s->panels * group->w->s->ranks;
    group->search = (hd_radix_search){
        .sum = share_missing(rule, group->own, group->sum) * (group->sum + rule->eps),
        .count = rule->top > 0 ? (rule->top - 1) * queries : 0,
        .all = rule->top > 0 ? (rule->top - 1) * queries >= group->others : rule->tau >= 1};
    if (rule->top == 1) { // nothing but the own blocks
        group->search.key = UINT32_MAX;
        group->search.equal = 1;
    } else {
        HD_TRY(search_group(ex, group));
    }
    HD_TRY(hd_share_for(ex, items, mark_above, group));
    mark_ties(group);
    return HD_OK;
}

hd_status hd_vmoba_select(const hd_exec *ex, const hd_vmoba_shape *s, const hd_vmoba_rule *rule,
                          const hd_vmoba_gates *const *row, int64_t rows, hd_radix *radix)
{
    const gate_work w = {s, rule, NULL, hd_planner_kernels_of(ex), NULL};
    const int64_t row_step = rule->pool_rows ? rows : 1;
    const int64_t head_step = rule->scope == HD_VMOBA_GLOBAL ? 1 : s->heads;
    const int64_t block_step = rule->scope == HD_VMOBA_BLOCK ? 1 : s->blocks;
    for (int64_t b = 0; b < rows; b += row_step)
        for (int64_t h = 0; h < s->heads; h += head_step)
            for (int64_t c = 0; c < s->blocks; c += block_step) {
                gate_group group = {.w = &w,
                                    .row = row,
                                    .first_row = b,
                                    .end_row = b + row_step,
                                    .first_head = h,
                                    .end_head = h + head_step,
                                    .first_block = c,
                                    .end_block = c + block_step,
                                    .radix = radix};
                HD_TRY(select_group(ex, &group));
            }
    return HD_OK;
}
