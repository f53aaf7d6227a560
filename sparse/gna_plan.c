/* sparse/gna_plan.c: from windows and tiles to visit lists.
 *
 * The axes are independent: what a box of queries visits is the product of what its piece visits on
 * each axis, so each axis is planned alone (which key pieces a query piece visits, which of them
 * whole) and the rows of the plan are products. Heads of different dilation share the order of
 * the least common multiple of their groups. */
#include "sparse/gna_plan.h"

#include <stdlib.h>
#include <string.h>

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b; // both >= 1
    while (y > 0) {
        const int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return x > 0 ? a / x * b : 0;
}

// Groups of the order on each axis.
static void order_groups(int64_t groups[3], const hd_gna_problem *p)
{
    for (int i = 0; i < 3; i++) {
        groups[i] = 1;
        for (int64_t r = 0; r < p->rules; r++)
            groups[i] = common_multiple(groups[i], p->rule[r][i].dilation);
    }
}

bool hd_gna_dilated(const hd_gna_problem *p)
{
    int64_t groups[3];
    order_groups(groups, p);
    return groups[0] * groups[1] * groups[2] > 1;
}

// One axis under one rule.
typedef struct axis_plan {
    int64_t length, groups; // of the order
    const hd_gna_axis *axis;
    const int32_t *start, *end; // [length]
    hd_cut query, key;
    bool dynamic;
} axis_plan;

// A key piece that a query piece visits.
typedef struct piece_visit {
    int64_t group;  // of the keys
    int64_t index;  // static: piece of that group; dynamic: its first coordinate
    int64_t tokens; // of it that exist
    bool full;
} piece_visit;

typedef struct piece_visits {
    int64_t count;
    piece_visit *item; // NULL: only counted
} piece_visits;

// What the windows of a query piece's tokens have together and in common.
typedef struct reach {
    int64_t group; // of the queries
    int64_t low, high, common_low, common_high;
} reach;

static reach reach_of(const axis_plan *a, int64_t group, hd_piece piece)
{
    const int64_t first = piece.first * a->groups + group;
    const int64_t last = (piece.first + piece.count - 1) * a->groups + group;
    return (reach){group, a->start[first], a->end[last], a->start[last], a->end[first]};
}

static void visit_static(piece_visits *out, const axis_plan *a, const reach *r, int64_t group)
{
    const int64_t length = hd_cut_group_length(a->key, a->length, group);
    const int64_t from = r->low > group ? (r->low - group + a->groups - 1) / a->groups : 0;
    const int64_t to = r->high > group ? (r->high - 1 - group) / a->groups : -1;
    if (from > to || from >= length) return;
    const int64_t last = hd_cut_piece_of(a->key, least(to, length - 1));
    for (int64_t k = hd_cut_piece_of(a->key, from); k <= last; k++) {
        if (out->item) {
            const hd_piece piece = hd_cut_piece(a->key, length, k);
            const int64_t first = piece.first * a->groups + group;
            const int64_t end = (piece.first + piece.count - 1) * a->groups + group;
            out->item[out->count] = (piece_visit){group, k, piece.count,
                                                  first >= r->common_low && end < r->common_high};
        }
        out->count++;
    }
}

static void visit_dynamic(piece_visits *out, const axis_plan *a, const reach *r)
{
    for (int64_t at = r->low; at < r->high; at += a->key.extent) {
        const int64_t tokens = least(a->key.extent, a->length - at);
        if (out->item)
            out->item[out->count] =
                (piece_visit){0, at, tokens, at >= r->common_low && at + tokens <= r->common_high};
        out->count++;
    }
}

static void visit_pieces(piece_visits *out, const axis_plan *a, const reach *r)
{
    if (a->dynamic) {
        visit_dynamic(out, a, r);
        return;
    }
    for (int64_t group = 0; group < a->groups; group++)
        if ((group - r->group) % a->axis->dilation == 0) visit_static(out, a, r, group);
}

/* --- what tiles cost */

// Sums over the query pieces of one axis.
typedef struct axis_sums {
    double pieces, visited, full; // key pieces
    double keys, full_keys;       // their tokens
    double worst;                 // visited by one query piece
} axis_sums;

// room: for the visits of one query piece.
static axis_sums sum_axis(const axis_plan *a, piece_visit *room)
{
    axis_sums s = {0};
    for (int64_t group = 0; group < a->groups; group++) {
        const int64_t length = hd_cut_group_length(a->query, a->length, group);
        const int64_t pieces = hd_cut_pieces(a->query, length);
        for (int64_t q = 0; q < pieces; q++) {
            const reach r = reach_of(a, group, hd_cut_piece(a->query, length, q));
            piece_visits v = {0, room};
            visit_pieces(&v, a, &r);
            s.pieces++;
            s.visited += (double)v.count;
            if ((double)v.count > s.worst) s.worst = (double)v.count;
            for (int64_t i = 0; i < v.count; i++) {
                // what a free box has beyond its queries' reach is not computed
                const int64_t tokens = a->dynamic
                                           ? least(v.item[i].tokens, r.high - v.item[i].index)
                                           : v.item[i].tokens;
                s.keys += (double)tokens;
                if (!v.item[i].full) continue;
                s.full++;
                s.full_keys += (double)tokens;
            }
        }
    }
    return s;
}

// The axis as the plan sees it; start, end: room for [length] each.
static axis_plan axis_of(const hd_gna_axis *axis, int64_t length, int64_t groups,
                         const hd_gna_tiles *tiles, int i, int32_t *start, int32_t *end)
{
    hd_gna_windows(axis, length, start, end);
    return (axis_plan){length,
                       groups,
                       axis,
                       start,
                       end,
                       {tiles->query[i], 0, groups},
                       {tiles->key[i], 0, groups},
                       tiles->dynamic};
}

typedef struct axis_room {
    int32_t *start, *end; // [longest axis]
    piece_visit *visits;  // [longest axis]: a visited piece has a token at least
} axis_room;

static void free_room(axis_room *room)
{
    free(room->start);
    free(room->end);
    free(room->visits);
}

static hd_status make_room(axis_room *room, const hd_grid *grid)
{
    const size_t length = (size_t)most(most(grid->size[0], grid->size[1]), grid->size[2]);
    room->start = malloc(length * sizeof *room->start);
    room->end = malloc(length * sizeof *room->end);
    room->visits = malloc(length * sizeof *room->visits);
    if (room->start && room->end && room->visits) return HD_OK;
    free_room(room);
    return hd_fail(HD_ERR_NOMEM, "gna: no memory to plan axes of %zu tokens", length);
}

hd_status hd_gna_predict(hd_gna_prediction *out, const hd_grid *grid, const hd_gna_axis axis[3],
                         const hd_gna_tiles *tiles)
{
    axis_room room;
    HD_TRY(make_room(&room, grid));
    hd_gna_prediction p = {
        .pairs = 1, .query_tiles = 1, .key_tiles = 1, .visited = 1, .full = 1, .worst = 1};
    double tokens = 1, tile_pairs = 1;
    for (int i = 0; i < 3; i++) {
        const int64_t length = grid->size[i], d = axis[i].dilation;
        const axis_plan a = axis_of(&axis[i], length, d, tiles, i, room.start, room.end);
        const axis_sums s = sum_axis(&a, room.visits);
        int64_t seen = 0;
        for (int64_t x = 0; x < length; x++)
            seen += (room.end[x] - room.start[x] + d - 1) / d;
        const int64_t group = (length + d - 1) / d; // the longest: others are padded to it
        p.pairs *= (double)seen;
        const int64_t query_pieces = (group + tiles->query[i] - 1) / tiles->query[i];
        const int64_t key_pieces = (group + tiles->key[i] - 1) / tiles->key[i];
        p.query_tiles *= (double)(query_pieces * d);
        p.key_tiles *= (double)(key_pieces * d);
        p.visited *= s.visited;
        p.full *= s.full;
        p.worst *= s.worst;
        tokens *= (double)length;
        tile_pairs *= (double)(tiles->query[i] * tiles->key[i]);
    }
    free_room(&room);
    p.speed_flop = tokens * tokens / p.pairs;
    p.speed_sim = p.key_tiles / p.worst;
    p.speed_avg = p.query_tiles * p.key_tiles / p.visited;
    p.full_share = p.full / p.visited;
    p.waste = p.visited * tile_pairs / p.pairs;
    *out = p;
    return HD_OK;
}

double hd_gna_end_to_end(double share, double sparse, double speed)
{
    return 1.0 / (1.0 - share * sparse + share * sparse / speed);
}

static int64_t product(const int64_t x[3])
{
    return x[0] * x[1] * x[2];
}

// The kernel takes a tile of queries in blocks of 64 ranks, which share the keys that one of them
// has loaded. Extents of a block; false if the ranks do not fall into equal boxes.
static bool block_extents(int64_t block[3], const int64_t query[3])
{
    int64_t left = 64;
    bool boxes = true;
    for (int i = 2; i >= 0; i--) {
        block[i] = least(query[i], left);
        boxes = boxes && query[i] % block[i] == 0;
        left /= block[i];
    }
    return boxes && (product(query) <= 64 || product(block) == 64);
}

// In units of a query's products with a key of a full entry: what more a masked key costs it; what
// a block pays to look at a partial key, at an entry, at a run of keys (one line of a free box);
// and what a tile pays to fetch a key from memory.
static const double masked_cost = 0.07, look_cost = 2.5, entry_cost = 40.0, run_cost = 50.0,
                    fetch_cost = 4.0;

// What a kernel of 16 lanes and 4 vectors pays for a block of queries, in queries: fewer vectors
// have less to do per key that is loaded.
static double query_cost(int64_t queries)
{
    static const double of_vectors[5] = {0, 24, 36, 50, 64};
    return of_vectors[least((queries + 15) / 16, 4)];
}

// tile, block: the axes' sums over the tiles and over their blocks.
static double cost_of(const axis_sums *const tile[3], const axis_sums *const block[3],
                      int64_t queries, int64_t block_queries, bool dynamic)
{
    const double seen = block[0]->keys * block[1]->keys * block[2]->keys;
    const double whole = block[0]->full_keys * block[1]->full_keys * block[2]->full_keys;
    const double keys = tile[0]->keys * tile[1]->keys * tile[2]->keys;
    const double full = tile[0]->full_keys * tile[1]->full_keys * tile[2]->full_keys;
    const double entries = tile[0]->visited * tile[1]->visited * tile[2]->visited;
    const double runs = dynamic ? tile[0]->keys * tile[1]->keys * tile[2]->visited : 0.0;
    const int64_t blocks = (queries + block_queries - 1) / block_queries;
    return query_cost(block_queries) * (seen + masked_cost * (seen - whole)) +
           (double)blocks * (look_cost * (keys - full) + entry_cost * entries + run_cost * runs) +
           fetch_cost * keys;
}

// How many heads rule r serves.
static double heads_of(const hd_gna_problem *p, int64_t r)
{
    if (p->rules == 1) return 1.0;
    double count = 0;
    for (int64_t h = 0; h < p->heads; h++)
        count += p->rule_of[h] == r;
    return count;
}

hd_status hd_gna_cost(double *out, const hd_gna_problem *problem, const hd_gna_tiles *tiles)
{
    axis_room room;
    int64_t groups[3];
    hd_gna_tiles blocks = *tiles;
    double cost = 0;
    HD_TRY(make_room(&room, &problem->grid));
    order_groups(groups, problem);
    (void)block_extents(blocks.query, tiles->query);
    for (int64_t r = 0; r < problem->rules; r++) {
        axis_sums sums[2][3];
        for (int i = 0; i < 6; i++) {
            const axis_plan a =
                axis_of(&problem->rule[r][i % 3], problem->grid.size[i % 3], groups[i % 3],
                        i < 3 ? tiles : &blocks, i % 3, room.start, room.end);
            sums[i / 3][i % 3] = sum_axis(&a, room.visits);
        }
        const axis_sums *const tile[3] = {&sums[0][0], &sums[0][1], &sums[0][2]};
        const axis_sums *const block[3] = {&sums[1][0], &sums[1][1], &sums[1][2]};
        cost += heads_of(problem, r) *
                cost_of(tile, block, product(tiles->query), product(blocks.query), tiles->dynamic);
    }
    free_room(&room);
    *out = cost;
    return HD_OK;
}

/* --- choosing tiles */

enum { EXTENTS = 12, QUERY_LEAST = 32, KEY_LEAST = 64, KEY_BEST = 256 };

// The sums of an axis for every pair of extents, made when first asked for.
typedef struct axis_table {
    bool made[2][EXTENTS][EXTENTS]; // [dynamic][query][key]
    axis_sums sums[2][EXTENTS][EXTENTS];
} axis_table;

typedef struct choosing {
    const hd_gna_problem *problem;
    axis_room room;
    int64_t groups[3];
    int64_t query[3][EXTENTS], key[3][EXTENTS], queries[3], keys[3];
    axis_table *table; // [rules][3]
    hd_gna_tiles *out;
    double *cost;
    int64_t most, count;
} choosing;

// Powers of two up to the length, the length itself and `extra`, none above `bound`.
static int64_t list_extents(int64_t out[EXTENTS], int64_t length, int64_t bound, int64_t extra)
{
    int64_t count = 0;
    for (int64_t e = 1; e <= least(length, bound); e *= 2)
        out[count++] = e;
    if (length <= bound && out[count - 1] != length) out[count++] = length;
    if (extra < length && extra <= bound && (extra & (extra - 1)) != 0) out[count++] = extra;
    return count;
}

static const axis_sums *table_sums(choosing *c, int64_t rule, int i, bool dynamic, int64_t q,
                                   int64_t k)
{
    axis_table *t = &c->table[rule * 3 + i];
    axis_sums *s = &t->sums[dynamic][q][k];
    if (t->made[dynamic][q][k]) return s;
    hd_gna_tiles tiles = {.dynamic = dynamic};
    tiles.query[i] = c->query[i][q];
    tiles.key[i] = c->key[i][k];
    const axis_plan a = axis_of(&c->problem->rule[rule][i], c->problem->grid.size[i], c->groups[i],
                                &tiles, i, c->room.start, c->room.end);
    *s = sum_axis(&a, c->room.visits);
    t->made[dynamic][q][k] = true;
    return s;
}

// Keeps the `most` cheapest; of equals the longer last axes.
static void offer(choosing *c, const hd_gna_tiles *tiles, double cost)
{
    int64_t at = c->count;
    while (at > 0 &&
           (cost < c->cost[at - 1] ||
            (cost <= c->cost[at - 1] &&
             tiles->query[2] + tiles->key[2] > c->out[at - 1].query[2] + c->out[at - 1].key[2])))
        at--;
    if (at >= c->most) return;
    const int64_t kept = least(c->count, c->most - 1) - at;
    memmove(c->out + at + 1, c->out + at, (size_t)kept * sizeof *c->out);
    memmove(c->cost + at + 1, c->cost + at, (size_t)kept * sizeof *c->cost);
    c->out[at] = *tiles;
    c->cost[at] = cost;
    c->count = least(c->count + 1, c->most);
}

// q, b: the extents of the tile and of its blocks, by their number.
static void try_keys(choosing *c, hd_gna_tiles tiles, const int64_t q[3], const int64_t b[3])
{
    int64_t largest = 1;
    for (int i = 0; i < 3; i++)
        largest *= c->key[i][c->keys[i] - 1];
    const int64_t lowest = least(KEY_LEAST, largest), queries = product(tiles.query);
    const int64_t block_queries = c->query[0][b[0]] * c->query[1][b[1]] * c->query[2][b[2]];
    for (int64_t n = 0; n < c->keys[0] * c->keys[1] * c->keys[2]; n++) {
        const int64_t k[3] = {n / (c->keys[1] * c->keys[2]), n / c->keys[2] % c->keys[1],
                              n % c->keys[2]};
        for (int i = 0; i < 3; i++)
            tiles.key[i] = c->key[i][k[i]];
        if (product(tiles.key) < lowest || product(tiles.key) > KEY_BEST) continue;
        double cost = 0;
        for (int64_t r = 0; r < c->problem->rules; r++) {
            const axis_sums *tile[3], *block[3];
            for (int i = 0; i < 3; i++) {
                tile[i] = table_sums(c, r, i, tiles.dynamic, q[i], k[i]);
                block[i] = table_sums(c, r, i, tiles.dynamic, b[i], k[i]);
            }
            cost += heads_of(c->problem, r) *
                    cost_of(tile, block, queries, block_queries, tiles.dynamic);
        }
        offer(c, &tiles, cost);
    }
}

static void try_queries(choosing *c, bool dynamic)
{
    int64_t largest = 1;
    for (int i = 0; i < 3; i++)
        largest *= c->query[i][c->queries[i] - 1];
    const int64_t lowest = least(QUERY_LEAST, largest);
    for (int64_t n = 0; n < c->queries[0] * c->queries[1] * c->queries[2]; n++) {
        const int64_t q[3] = {n / (c->queries[1] * c->queries[2]),
                              n / c->queries[2] % c->queries[1], n % c->queries[2]};
        hd_gna_tiles tiles = {.dynamic = dynamic};
        for (int i = 0; i < 3; i++)
            tiles.query[i] = c->query[i][q[i]];
        int64_t block[3], b[3];
        if (product(tiles.query) < lowest || product(tiles.query) > HD_GNA_QUERY_MOST ||
            !block_extents(block, tiles.query))
            continue;
        for (int i = 0; i < 3; i++)
            for (b[i] = q[i]; c->query[i][b[i]] != block[i];)
                b[i]--; // a block is as long as its tile, or a lesser power of two
        try_keys(c, tiles, q, b);
    }
}

hd_status hd_gna_choose(hd_gna_tiles *out, int64_t *count, int64_t limit,
                        const hd_gna_problem *problem, hd_gna_kv kv)
{
    choosing c = {.problem = problem, .out = out, .most = limit};
    order_groups(c.groups, problem);
    for (int i = 0; i < 3; i++) {
        const int64_t length = (problem->grid.size[i] + c.groups[i] - 1) / c.groups[i];
        c.queries[i] = list_extents(c.query[i], length, HD_GNA_QUERY_MOST, length);
        c.keys[i] = list_extents(c.key[i], length, KEY_BEST, problem->rule[0][i].window);
    }
    HD_TRY(make_room(&c.room, &problem->grid));
    c.table = calloc((size_t)(problem->rules * 3), sizeof *c.table);
    c.cost = calloc((size_t)limit, sizeof *c.cost);
    hd_status status = HD_OK;
    if (!c.table || !c.cost)
        status = hd_fail(HD_ERR_NOMEM, "gna: no memory to choose tiles for %lld windows",
                         (long long)problem->rules);
    if (status == HD_OK && kv != HD_GNA_KV_DYNAMIC) try_queries(&c, false);
    if (status == HD_OK && kv != HD_GNA_KV_STATIC && !hd_gna_dilated(problem))
        try_queries(&c, true);
    free(c.table);
    free(c.cost);
    free_room(&c.room);
    *count = c.count;
    return status;
}

/* --- the plan */

// What the pieces of one axis visit under one rule: piece p (group by group) has
// item[first[p] .. first[p + 1]).
typedef struct axis_list {
    int64_t *first;
    piece_visit *item;
} axis_list;

typedef struct building {
    hd_plan_builder *b;
    hd_plan_builder scratch;
    const hd_gna_problem *problem;
    const hd_gna_tiles *tiles;
    int64_t groups[3];
    hd_cut query[3], key[3];
    int64_t *piece_base[3]; // [groups]: pieces of queries in the groups before
    int64_t *key_pieces[3]; // [groups]: pieces of keys
    int64_t *tile_base;     // [all groups]: key tiles in the groups before
    axis_list *list;        // [rules][3]
    hd_plan_axis *window;   // [rules][3]
} building;

// Goes through the query pieces of an axis; counts their visits, and writes them if there is room.
static int64_t walk_axis(const building *g, const axis_plan *a, int i, axis_list *list)
{
    piece_visits v = {0, list->item};
    int64_t piece = 0;
    for (int64_t group = 0; group < a->groups; group++) {
        const int64_t length = hd_cut_group_length(g->query[i], a->length, group);
        for (int64_t q = 0; q < hd_cut_pieces(g->query[i], length); q++) {
            const reach r = reach_of(a, group, hd_cut_piece(g->query[i], length, q));
            list->first[piece++] = v.count;
            visit_pieces(&v, a, &r);
        }
    }
    list->first[piece] = v.count;
    return v.count;
}

static hd_status list_axis(building *g, int64_t rule, int i)
{
    const int64_t length = g->problem->grid.size[i];
    int32_t *start = hd_plan_take(g->b, length, sizeof *start);
    int32_t *end = hd_plan_take(g->b, length, sizeof *end);
    int64_t pieces = 0;
    for (int64_t group = 0; group < g->groups[i]; group++)
        pieces += hd_cut_pieces(g->query[i], hd_cut_group_length(g->query[i], length, group));
    axis_list *list = &g->list[rule * 3 + i];
    list->first = hd_plan_take(&g->scratch, pieces + 1, sizeof *list->first);
    if (!start || !end || !list->first) return HD_ERR_NOMEM;
    const hd_gna_axis *axis = &g->problem->rule[rule][i];
    const axis_plan a = axis_of(axis, length, g->groups[i], g->tiles, i, start, end);
    g->window[rule * 3 + i] = (hd_plan_axis){axis->dilation, start, end};
    list->item = hd_plan_take(&g->scratch, walk_axis(g, &a, i, list), sizeof *list->item);
    if (!list->item) return HD_ERR_NOMEM;
    walk_axis(g, &a, i, list);
    return HD_OK;
}

static hd_status count_pieces(building *g)
{
    const hd_grid *grid = &g->problem->grid;
    for (int i = 0; i < 3; i++) {
        g->piece_base[i] = hd_plan_take(&g->scratch, g->groups[i], sizeof(int64_t));
        g->key_pieces[i] = hd_plan_take(&g->scratch, g->groups[i], sizeof(int64_t));
        if (!g->piece_base[i] || !g->key_pieces[i]) return HD_ERR_NOMEM;
        int64_t pieces = 0;
        for (int64_t group = 0; group < g->groups[i]; group++) {
            const int64_t length = hd_cut_group_length(g->query[i], grid->size[i], group);
            g->piece_base[i][group] = pieces;
            pieces += hd_cut_pieces(g->query[i], length);
            g->key_pieces[i][group] = hd_cut_pieces(g->key[i], length);
        }
    }
    const int64_t all = product(g->groups);
    g->tile_base = hd_plan_take(&g->scratch, all, sizeof(int64_t));
    if (!g->tile_base) return HD_ERR_NOMEM;
    int64_t tiles = 0;
    for (int64_t n = 0; n < all; n++) {
        g->tile_base[n] = tiles;
        tiles += g->key_pieces[0][n / (g->groups[1] * g->groups[2])] *
                 g->key_pieces[1][n / g->groups[2] % g->groups[1]] *
                 g->key_pieces[2][n % g->groups[2]];
    }
    return HD_OK;
}

// The plan's key of a product of visited pieces: a tile's number, or the token at a box's origin.
static int64_t key_of(const building *g, const piece_visit *const v[3])
{
    if (g->tiles->dynamic) {
        const int64_t *size = g->problem->grid.size;
        return g->problem->grid.token + (v[0]->index * size[1] + v[1]->index) * size[2] +
               v[2]->index;
    }
    const int64_t group = (v[0]->group * g->groups[1] + v[1]->group) * g->groups[2] + v[2]->group;
    return g->tile_base[group] +
           (v[0]->index * g->key_pieces[1][v[1]->group] + v[1]->index) *
               g->key_pieces[2][v[2]->group] +
           v[2]->index;
}

static int compare_visits(const void *a, const void *b)
{
    const hd_visit *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

static hd_status add_row(building *g, int64_t rule, const int64_t piece[3])
{
    hd_plan_builder *b = g->b;
    const axis_list *list = &g->list[rule * 3];
    const int64_t row = b->visits;
    bool sorted = true;
    int64_t last = -1;
    for (int64_t x = list[0].first[piece[0]]; x < list[0].first[piece[0] + 1]; x++)
        for (int64_t y = list[1].first[piece[1]]; y < list[1].first[piece[1] + 1]; y++)
            for (int64_t z = list[2].first[piece[2]]; z < list[2].first[piece[2] + 1]; z++) {
                const piece_visit *const v[3] = {&list[0].item[x], &list[1].item[y],
                                                 &list[2].item[z]};
                const bool full = v[0]->full && v[1]->full && v[2]->full;
                const int64_t key = key_of(g, v);
                HD_TRY(hd_plan_add(b, key, full ? HD_VISIT_FULL : HD_VISIT_PARTIAL));
                sorted = sorted && key > last;
                last = key;
            }
    if (!sorted) // several groups are visited
        qsort(b->visit + row, (size_t)(b->visits - row), sizeof *b->visit, compare_visits);
    hd_plan_close_row(b);
    return HD_OK;
}

static hd_status add_group(building *g, int64_t rule, const int64_t group[3])
{
    int64_t pieces[3];
    for (int i = 0; i < 3; i++)
        pieces[i] = hd_cut_pieces(
            g->query[i], hd_cut_group_length(g->query[i], g->problem->grid.size[i], group[i]));
    for (int64_t n = 0; n < product(pieces); n++) {
        const int64_t piece[3] = {
            g->piece_base[0][group[0]] + n / (pieces[1] * pieces[2]),
            g->piece_base[1][group[1]] + n / pieces[2] % pieces[1],
            g->piece_base[2][group[2]] + n % pieces[2],
        };
        HD_TRY(add_row(g, rule, piece));
    }
    return HD_OK;
}

static hd_status add_head(building *g, int64_t rule)
{
    int64_t group[3];
    for (group[0] = 0; group[0] < g->groups[0]; group[0]++)
        for (group[1] = 0; group[1] < g->groups[1]; group[1]++)
            for (group[2] = 0; group[2] < g->groups[2]; group[2]++)
                HD_TRY(add_group(g, rule, group));
    return HD_OK;
}

static bool is_identity(const int32_t *order, int64_t count)
{
    for (int64_t r = 0; r < count; r++)
        if (order[r] != r) return false;
    return true;
}

// Order and bounds of one side. An order that is the tokens' own is left out.
static hd_status take_order(building *g, const hd_cut cut[3], int64_t tokens, const int32_t **order,
                            const int32_t **bound, int64_t *tiles, int64_t *longest)
{
    const hd_grid *grid = &g->problem->grid;
    *tiles = hd_order_boxes(grid, cut);
    *longest = hd_order_longest_box(grid, cut);
    int32_t *o = hd_plan_take(g->b, tokens, sizeof *o);
    int32_t *first = hd_plan_take(g->b, *tiles + 1, sizeof *first);
    if (!o || !first) return HD_ERR_NOMEM;
    hd_order_windows(o, first, grid, cut);
    hd_order_tail(o, grid, tokens);
    *order = is_identity(o, tokens) ? NULL : o;
    *bound = first;
    return HD_OK;
}

static hd_status take_orders(building *g)
{
    hd_plan *p = &g->b->plan;
    const hd_gna_problem *problem = g->problem;
    p->orders = 1;
    p->query_ranks = p->key_ranks = hd_grid_tokens(&problem->grid);
    HD_TRY(take_order(g, g->query, problem->queries, &p->query_order, &p->query_bound,
                      &p->query_tiles, &p->query_tile));
    if (!g->tiles->dynamic)
        return take_order(g, g->key, problem->keys, &p->key_order, &p->key_bound, &p->key_tiles,
                          &p->key_tile);
    // free boxes are of tokens: the keys only have to have the tail behind them
    p->key_tile = product(g->tiles->key);
    p->key_tiles = (p->key_ranks + p->key_tile - 1) / p->key_tile;
    memcpy(p->box_extent, g->tiles->key, sizeof p->box_extent);
    if (problem->grid.token == 0) return HD_OK;
    int32_t *order = hd_plan_take(g->b, problem->keys, sizeof *order);
    if (!order) return HD_ERR_NOMEM;
    hd_order_axes(order, &problem->grid, 0);
    hd_order_tail(order, &problem->grid, problem->keys);
    p->key_order = order;
    return HD_OK;
}

// The window rule of all heads, or of each.
static hd_status take_windows(building *g)
{
    const hd_gna_problem *problem = g->problem;
    hd_plan *p = &g->b->plan;
    p->window = g->window;
    if (problem->rules == 1) return HD_OK;
    hd_plan_axis *window = hd_plan_take(g->b, p->heads * 3, sizeof *window);
    if (!window) return HD_ERR_NOMEM;
    for (int64_t h = 0; h < p->heads; h++)
        memcpy(window + h * 3, g->window + problem->rule_of[h] * 3, 3 * sizeof *window);
    p->window = window;
    p->windows = p->heads;
    return HD_OK;
}

static hd_status build(building *g)
{
    hd_plan *p = &g->b->plan;
    const hd_gna_problem *problem = g->problem;
    HD_TRY(take_orders(g));
    HD_TRY(count_pieces(g));
    g->list = hd_plan_take(&g->scratch, problem->rules * 3, sizeof *g->list);
    g->window = hd_plan_take(g->b, problem->rules * 3, sizeof *g->window);
    if (!g->list || !g->window) return HD_ERR_NOMEM;
    for (int64_t r = 0; r < problem->rules; r++)
        for (int i = 0; i < 3; i++)
            HD_TRY(list_axis(g, r, i));
    memcpy(p->grid, problem->grid.size, sizeof p->grid);
    p->grid_token = problem->grid.token;
    p->heads = problem->rules == 1 ? 1 : problem->heads;
    HD_TRY(take_windows(g));
    HD_TRY(hd_plan_begin(g->b, p->heads * p->query_tiles * 8, 0, 0));
    for (int64_t h = 0; h < p->heads; h++)
        HD_TRY(add_head(g, problem->rules == 1 ? 0 : problem->rule_of[h]));
    return hd_plan_end(g->b);
}

hd_status hd_gna_build(hd_plan_builder *b, const hd_gna_problem *problem, const hd_gna_tiles *tiles)
{
    building g = {.b = b, .problem = problem, .tiles = tiles};
    order_groups(g.groups, problem);
    for (int i = 0; i < 3; i++) {
        g.query[i] = (hd_cut){tiles->query[i], 0, g.groups[i]};
        g.key[i] = (hd_cut){tiles->key[i], 0, g.groups[i]};
    }
    hd_plan_builder_init(&g.scratch, NULL, 0);
    const hd_status status = build(&g);
    hd_plan_builder_free(&g.scratch);
    return status;
}
