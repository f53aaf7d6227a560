/* sparse/swin_plan.c: windows as plans.
 *
 * Where all heads have the same windows a tile is a window (a part of one if it is large) and every
 * entry is full: a shift is a cut with short pieces at the ends, never a mask. Where halves of the
 * heads differ they must still share their tiles' bounds. Shifted windows that divide the grid are
 * then taken on the rolled grid, where all are equally large, and parted by labels; in all other
 * cases tiles are of one size, whatever windows they hold, under each head's own rule. */
#include <stdlib.h>
#include <string.h>

#include "sparse/swin_windows.h"

enum { TILE_MOST = 128, TILE_MIXED = 64 };

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

void hd_swin_fit(const hd_grid *grid, int64_t window[3], int64_t shift[3])
{
    for (int i = 0; i < 3; i++) {
        if (grid->size[i] > window[i]) continue;
        window[i] = grid->size[i];
        shift[i] = 0;
    }
}

void hd_swin_order(int32_t *order, int32_t *bound, const hd_grid *grid, const hd_swin_cut *cut)
{
    const hd_grid plain = {{grid->size[0], grid->size[1], grid->size[2]}, 0};
    const int64_t *n = grid->size;
    hd_order_windows(order, bound, &plain, cut->cut);
    for (int64_t r = 0; r < hd_grid_tokens(grid); r++) {
        const int64_t t = order[r];
        const int64_t f = (t / (n[1] * n[2]) + cut->roll[0]) % n[0];
        const int64_t y = (t / n[2] % n[1] + cut->roll[1]) % n[1];
        const int64_t x = (t % n[2] + cut->roll[2]) % n[2];
        order[r] = (int32_t)(grid->token + (f * n[1] + y) * n[2] + x);
    }
}

void hd_swin_labels(uint8_t *label, const hd_grid *grid, const int64_t window[3],
                    const int64_t shift[3])
{
    const hd_grid plain = {{grid->size[0], grid->size[1], grid->size[2]}, 0};
    hd_cut cut[3];
    for (int i = 0; i < 3; i++)
        cut[i] = (hd_cut){window[i], 0, 0};
    int64_t rank = 0;
    hd_piece piece[3];
    for (int64_t f = 0; f < hd_cut_pieces(cut[0], plain.size[0]); f++)
        for (int64_t y = 0; y < hd_cut_pieces(cut[1], plain.size[1]); y++)
            for (int64_t x = 0; x < hd_cut_pieces(cut[2], plain.size[2]); x++) {
                piece[0] = hd_cut_piece(cut[0], plain.size[0], f);
                piece[1] = hd_cut_piece(cut[1], plain.size[1], y);
                piece[2] = hd_cut_piece(cut[2], plain.size[2], x);
                const int64_t tokens = piece[0].count * piece[1].count * piece[2].count;
                for (int64_t i = 0; i < tokens; i++) {
                    const int64_t p[3] = {piece[0].first + i / (piece[1].count * piece[2].count),
                                          piece[1].first + i / piece[2].count % piece[1].count,
                                          piece[2].first + i % piece[2].count};
                    int region = 0;
                    for (int a = 0; a < 3; a++) {
                        int part = 0;
                        if (shift[a] > 0)
                            part = (p[a] >= plain.size[a] - window[a]) +
                                   (p[a] >= plain.size[a] - shift[a]);
                        region = region * 3 + part;
                    }
                    label[rank++] = (uint8_t)region;
                }
            }
}

int64_t hd_swin_relative_index(int64_t height, int64_t width, int64_t query, int64_t key)
{
    const int64_t down = query / width - key / width + height - 1;
    return down * (2 * width - 1) + query % width - key % width + width - 1;
}

/* Windows of one kind with their ranks. */
typedef struct layout {
    hd_swin_cut cut;
    int64_t pieces[3], windows;
    int32_t *bound;       // [windows + 1]
    int32_t *window_of;   // [ranks]
    const uint8_t *label; // [ranks], or NULL
    bool torus;           // the first and last window of an axis are neighbours
} layout;

typedef struct building {
    hd_plan_builder *b;
    hd_plan_builder scratch;
    const hd_swin_problem *problem;
    layout layout[2];
    int layouts;
    uint8_t *seen; // [key tiles]
} building;

static hd_status take_layout(building *g, layout *l, const hd_swin_cut *cut, int32_t *order)
{
    const hd_grid *grid = &g->problem->grid;
    const int64_t tokens = hd_grid_tokens(grid);
    l->cut = *cut;
    l->windows = 1;
    for (int i = 0; i < 3; i++)
        l->windows *= l->pieces[i] = hd_cut_pieces(cut->cut[i], grid->size[i]);
    l->bound = hd_plan_take(&g->scratch, l->windows + 1, sizeof *l->bound);
    l->window_of = hd_plan_take(&g->scratch, tokens, sizeof *l->window_of);
    if (!l->bound || !l->window_of) return HD_ERR_NOMEM;
    hd_swin_order(order, l->bound, grid, cut);
    for (int64_t w = 0; w < l->windows; w++)
        for (int64_t r = l->bound[w]; r < l->bound[w + 1]; r++)
            l->window_of[r] = (int32_t)w;
    return HD_OK;
}

static void window_place(const layout *l, int64_t window, int64_t at[3])
{
    at[0] = window / (l->pieces[1] * l->pieces[2]);
    at[1] = window / l->pieces[2] % l->pieces[1];
    at[2] = window % l->pieces[2];
}

static bool are_near(const layout *l, int64_t ring, int64_t a, int64_t b)
{
    int64_t x[3], y[3];
    window_place(l, a, x);
    window_place(l, b, y);
    for (int i = 0; i < 3; i++) {
        int64_t distance = x[i] > y[i] ? x[i] - y[i] : y[i] - x[i];
        if (l->torus) distance = least(distance, l->pieces[i] - distance);
        if (distance >= ring) return false;
    }
    return true;
}

// Tile of a rank, tiles being bounded ascending.
static int64_t tile_of(const hd_plan *p, int64_t rank)
{
    int64_t low = 0, high = p->key_tiles - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (p->key_bound[middle] <= rank)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Marks the key tiles that hold windows near `window`.
static void mark_near(building *g, const layout *l, int64_t window)
{
    const int64_t reach = g->problem->ring - 1;
    int64_t at[3], from[3], to[3];
    window_place(l, window, at);
    for (int i = 0; i < 3; i++) {
        const bool all = l->torus && 2 * reach + 1 >= l->pieces[i];
        from[i] = all ? 0 : l->torus ? at[i] - reach : most(at[i] - reach, 0);
        to[i] = all || !l->torus ? least(at[i] + reach, l->pieces[i] - 1) : at[i] + reach;
        if (all) to[i] = l->pieces[i] - 1;
    }
    for (int64_t f = from[0]; f <= to[0]; f++)
        for (int64_t y = from[1]; y <= to[1]; y++)
            for (int64_t x = from[2]; x <= to[2]; x++) {
                const int64_t n = ((f + l->pieces[0]) % l->pieces[0] * l->pieces[1] +
                                   (y + l->pieces[1]) % l->pieces[1]) *
                                      l->pieces[2] +
                                  (x + l->pieces[2]) % l->pieces[2];
                const int64_t last = tile_of(&g->b->plan, l->bound[n + 1] - 1);
                for (int64_t t = tile_of(&g->b->plan, l->bound[n]); t <= last; t++)
                    g->seen[t] = 1;
            }
}

// Does every query of tile q see every key of tile k?
static bool sees_whole(const building *g, const layout *l, int64_t q, int64_t k)
{
    const int32_t *bound = g->b->plan.query_bound;
    if (l->label)
        for (int32_t i = bound[q]; i < bound[q + 1]; i++)
            for (int32_t j = bound[k]; j < bound[k + 1]; j++)
                if (l->label[i] != l->label[j]) return false;
    for (int64_t a = l->window_of[bound[q]]; a <= l->window_of[bound[q + 1] - 1]; a++)
        for (int64_t c = l->window_of[bound[k]]; c <= l->window_of[bound[k + 1] - 1]; c++)
            if (!are_near(l, g->problem->ring, a, c)) return false;
    return true;
}

static hd_status add_rows(building *g, const layout *l)
{
    const hd_plan *p = &g->b->plan;
    for (int64_t q = 0; q < p->query_tiles; q++) {
        memset(g->seen, 0, (size_t)p->key_tiles);
        const int64_t last = l->window_of[p->query_bound[q + 1] - 1];
        for (int64_t w = l->window_of[p->query_bound[q]]; w <= last; w++)
            mark_near(g, l, w);
        for (int64_t k = 0; k < p->key_tiles; k++)
            if (g->seen[k])
                HD_TRY(hd_plan_add(g->b, k,
                                   sees_whole(g, l, q, k) ? HD_VISIT_FULL : HD_VISIT_PARTIAL));
        hd_plan_close_row(g->b);
    }
    return HD_OK;
}

// Tiles are windows, or parts of them.
static hd_status take_window_tiles(building *g, const layout *l)
{
    hd_plan *p = &g->b->plan;
    int64_t tiles = 0, longest = 0;
    for (int64_t w = 0; w < l->windows; w++) {
        const int64_t tokens = l->bound[w + 1] - l->bound[w];
        tiles += (tokens + TILE_MOST - 1) / TILE_MOST;
        longest = most(longest, least(tokens, TILE_MOST));
    }
    int32_t *bound = hd_plan_take(g->b, tiles + 1, sizeof *bound);
    if (!bound) return HD_ERR_NOMEM;
    int64_t t = 0;
    for (int64_t w = 0; w < l->windows; w++)
        for (int32_t r = l->bound[w]; r < l->bound[w + 1]; r += TILE_MOST)
            bound[t++] = r;
    bound[t] = l->bound[l->windows];
    p->query_bound = p->key_bound = bound;
    p->query_tiles = p->key_tiles = tiles;
    p->query_tile = p->key_tile = longest;
    return HD_OK;
}

static hd_status take_mixed_tiles(building *g)
{
    hd_plan *p = &g->b->plan;
    const int64_t tiles = (p->query_ranks + TILE_MIXED - 1) / TILE_MIXED;
    int32_t *bound = hd_plan_take(g->b, tiles + 1, sizeof *bound);
    if (!bound) return HD_ERR_NOMEM;
    for (int64_t t = 0; t <= tiles; t++)
        bound[t] = (int32_t)least(t * TILE_MIXED, p->query_ranks);
    p->query_bound = p->key_bound = bound;
    p->query_tiles = p->key_tiles = tiles;
    p->query_tile = p->key_tile = TILE_MIXED;
    return HD_OK;
}

// The window rule of a layout that is not rolled: from its first near piece to its last.
static hd_status take_rule(building *g, const layout *l, hd_plan_axis window[3])
{
    const int64_t reach = g->problem->ring - 1;
    for (int i = 0; i < 3; i++) {
        const int64_t length = g->problem->grid.size[i];
        int32_t *start = hd_plan_take(g->b, length, sizeof *start);
        int32_t *end = hd_plan_take(g->b, length, sizeof *end);
        if (!start || !end) return HD_ERR_NOMEM;
        for (int64_t x = 0; x < length; x++) {
            const int64_t piece = hd_cut_piece_of(l->cut.cut[i], x);
            const hd_piece low = hd_cut_piece(l->cut.cut[i], length, most(piece - reach, 0));
            const hd_piece high =
                hd_cut_piece(l->cut.cut[i], length, least(piece + reach, l->pieces[i] - 1));
            start[x] = (int32_t)low.first;
            end[x] = (int32_t)(high.first + high.count);
        }
        window[i] = (hd_plan_axis){1, start, end};
    }
    return HD_OK;
}

static hd_status take_rules(building *g)
{
    const int64_t heads = g->problem->heads;
    hd_plan_axis rule[2][3];
    for (int i = 0; i < 2; i++)
        HD_TRY(take_rule(g, &g->layout[i], rule[i]));
    hd_plan_axis *window = hd_plan_take(g->b, heads * 3, sizeof *window);
    if (!window) return HD_ERR_NOMEM;
    for (int64_t h = 0; h < heads; h++)
        memcpy(window + h * 3, rule[h >= heads / 2], sizeof rule[0]);
    g->b->plan.window = window;
    g->b->plan.windows = heads;
    return HD_OK;
}

// Which layouts there are; labels part those that share windows of one size.
static hd_swin_cut cut_of(const hd_swin_problem *p, bool shifted, bool rolled)
{
    hd_swin_cut c = {.roll = {0}};
    for (int i = 0; i < 3; i++) {
        const int64_t shift = shifted ? p->shift[i] : 0;
        c.cut[i] = (hd_cut){p->window[i], rolled ? 0 : shift, 0};
        c.roll[i] = rolled ? shift : 0;
    }
    return c;
}

// `count` orders of the tokens: of the first half of the heads, and of the second.
static int32_t *take_orders(building *g, int64_t count, int64_t tokens)
{
    return hd_plan_take(g->b, count * tokens, sizeof(int32_t));
}

static hd_status one_layout(building *g)
{
    const hd_swin_problem *p = g->problem;
    hd_plan *plan = &g->b->plan;
    const hd_swin_cut cut = cut_of(p, p->shifted, p->wrap);
    int32_t *order = take_orders(g, 1, most(p->queries, p->keys));
    if (!order) return HD_ERR_NOMEM;
    g->layouts = 1;
    g->layout[0].torus = p->wrap;
    HD_TRY(take_layout(g, &g->layout[0], &cut, order));
    hd_order_tail(order, &p->grid, most(p->queries, p->keys));
    plan->query_order = plan->key_order = order;
    plan->orders = plan->heads = 1;
    return take_window_tiles(g, &g->layout[0]);
}

static hd_status take_labels(building *g, const uint8_t *label)
{
    const int64_t ranks = g->b->plan.query_ranks, heads = g->problem->heads;
    uint8_t *all = hd_plan_take(g->b, heads * ranks, sizeof *all);
    if (!all) return HD_ERR_NOMEM;
    for (int64_t h = heads / 2; h < heads; h++)
        memcpy(all + h * ranks, label, (size_t)ranks);
    g->b->plan.query_segment = g->b->plan.key_segment = all;
    return HD_OK;
}

// Orders of the two halves of the heads, for queries or for keys.
static hd_status spread_orders(building *g, const int32_t *half[2], int64_t tokens,
                               const int32_t **out)
{
    const hd_swin_problem *p = g->problem;
    int32_t *order = take_orders(g, p->heads, tokens);
    if (!order) return HD_ERR_NOMEM;
    for (int64_t h = 0; h < p->heads; h++) {
        int32_t *mine = order + h * tokens;
        memcpy(mine, half[h >= p->heads / 2], (size_t)hd_grid_tokens(&p->grid) * sizeof *order);
        hd_order_tail(mine, &p->grid, tokens);
    }
    *out = order;
    return HD_OK;
}

static hd_status two_layouts(building *g)
{
    const hd_swin_problem *p = g->problem;
    hd_plan *plan = &g->b->plan;
    const int64_t ranks = plan->query_ranks;
    bool divides = true;
    for (int i = 0; i < 3; i++)
        divides = divides && p->grid.size[i] % p->window[i] == 0;
    const bool rolled = p->wrap || (divides && p->ring == 1);
    int32_t *order[2];
    g->layouts = 2;
    for (int i = 0; i < 2; i++) {
        const hd_swin_cut cut = cut_of(p, i == 1, rolled);
        order[i] = hd_plan_take(&g->scratch, ranks, sizeof *order[i]);
        if (!order[i]) return HD_ERR_NOMEM;
        g->layout[i].torus = p->wrap;
        HD_TRY(take_layout(g, &g->layout[i], &cut, order[i]));
    }
    const int32_t *half[2] = {order[0], order[1]};
    HD_TRY(spread_orders(g, half, p->queries, &plan->query_order));
    HD_TRY(spread_orders(g, half, p->keys, &plan->key_order));
    plan->orders = plan->heads = p->heads;
    // rolled windows that do not divide the grid are still equal in both halves: cut from its start
    if (rolled) HD_TRY(take_window_tiles(g, &g->layout[0]));
    if (!rolled) HD_TRY(take_mixed_tiles(g));
    if (!rolled) return take_rules(g);
    if (p->wrap) return HD_OK;
    uint8_t *label = hd_plan_take(&g->scratch, ranks, sizeof *label);
    if (!label) return HD_ERR_NOMEM;
    hd_swin_labels(label, &p->grid, p->window, p->shift);
    g->layout[1].label = label;
    return take_labels(g, label);
}

static hd_status build(building *g)
{
    hd_plan *plan = &g->b->plan;
    const hd_swin_problem *p = g->problem;
    plan->query_ranks = plan->key_ranks = hd_grid_tokens(&p->grid);
    memcpy(plan->grid, p->grid.size, sizeof plan->grid);
    plan->grid_token = p->grid.token;
    const bool differ = p->shift[0] || p->shift[1] || p->shift[2];
    HD_TRY(p->plain && p->shifted && differ ? two_layouts(g) : one_layout(g));
    g->seen = hd_plan_take(&g->scratch, plan->key_tiles, sizeof *g->seen);
    if (!g->seen) return HD_ERR_NOMEM;
    HD_TRY(hd_plan_begin(g->b, plan->heads * plan->query_tiles * 2, 0, 0));
    for (int64_t h = 0; h < plan->heads; h++)
        HD_TRY(add_rows(g, &g->layout[g->layouts == 2 && h >= plan->heads / 2]));
    return hd_plan_end(g->b);
}

hd_status hd_swin_build(hd_plan_builder *b, const hd_swin_problem *problem)
{
    building g = {.b = b, .problem = problem};
    hd_plan_builder_init(&g.scratch, NULL, 0);
    const hd_status status = build(&g);
    hd_plan_builder_free(&g.scratch);
    return status;
}
