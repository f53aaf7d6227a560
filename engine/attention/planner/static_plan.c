/* engine/attention/planner/static_plan.c: bitmaps to visit lists. */
#include "engine/attention/planner/static_plan.h"

#include <stdlib.h>
#include <string.h>

struct hd_static_plans {
    hd_plan *plan;      // [masks]
    int32_t *order;     // [heads or 1, tokens]
    int64_t *row_start; // [masks, heads * tiles + 1]
    hd_visit *visit;    // of all masks, one after the other
};

void hd_static_plans_free(hd_static_plans *plans)
{
    if (!plans) return;
    free(plans->plan);
    free(plans->order);
    free(plans->row_start);
    free(plans->visit);
    free(plans);
}

const hd_plan *hd_static_plans_at(const hd_static_plans *plans, int64_t mask)
{
    return &plans->plan[mask];
}

/* What the expansion of one site needs at hand. */
typedef struct expansion {
    const hd_plan_file_site *site;
    int64_t masks, text_tiles; // tiles that touch the text
    hd_static_forced forced;
} expansion;

// Has the head's map a tile, or does it not matter?
static bool forces_last(const expansion *e, const uint8_t *bits)
{
    const int64_t tiles = e->site->tiles;
    if (!e->forced.last || !e->forced.not_empty) return e->forced.last;
    for (int64_t i = 0; i < tiles * tiles; i++)
        if (hd_plan_bit(bits, i)) return true;
    return false;
}

static bool keeps(const expansion *e, const uint8_t *bits, bool last, int64_t i, int64_t j)
{
    const int64_t tiles = e->site->tiles;
    if (last && (i + 1 == tiles || j + 1 == tiles)) return true;
    if (e->forced.text && (i < e->text_tiles || j < e->text_tiles)) return true;
    return hd_plan_bit(bits, i * tiles + j);
}

// One mask's rows; visit NULL: only counts. Returns the number of entries.
static int64_t expand(const expansion *e, int64_t mask, int64_t *row_start, hd_visit *visit)
{
    const int64_t tiles = e->site->tiles, heads = e->site->site.heads;
    int64_t count = 0;
    for (int64_t h = 0; h < heads; h++) {
        const uint8_t *bits = hd_plan_file_bits(e->site, mask, h);
        const bool last = forces_last(e, bits);
        for (int64_t i = 0; i < tiles; i++) {
            if (visit) row_start[h * tiles + i] = count;
            for (int64_t j = 0; j < tiles; j++) {
                if (!keeps(e, bits, last, i, j)) continue;
                if (visit) visit[count] = (hd_visit){(int32_t)j, HD_VISIT_FULL};
                count++;
            }
        }
    }
    if (visit) row_start[heads * tiles] = count;
    return count;
}

// The tokens of one head by rank.
static void fill_order(int32_t *order, const hd_plan_file_site *site, const hd_grid *grid,
                       int which)
{
    const int64_t tokens = site->site.tokens, count = tokens - site->text;
    if (!site->text_first) {
        hd_order_axes(order, grid, which);
        hd_order_tail(order, grid, tokens);
        return;
    }
    int64_t rank = 0;
    for (int64_t t = 0; t < tokens; t++)
        if (t < grid->token || t >= grid->token + count) order[rank++] = (int32_t)t;
    hd_order_axes(order + rank, grid, which);
}

static bool all_equal(const uint8_t *order, int64_t heads)
{
    for (int64_t h = 1; h < heads; h++)
        if (order[h] != order[0]) return false;
    return true;
}

static bool identity(const int32_t *order, int64_t tokens)
{
    for (int64_t r = 0; r < tokens; r++)
        if (order[r] != r) return false;
    return true;
}

static hd_status make_orders(hd_static_plans *plans, const hd_plan_file_site *site,
                             const hd_grid *grid, int64_t *orders)
{
    const int64_t tokens = site->site.tokens;
    *orders = all_equal(site->order, site->site.heads) ? 1 : site->site.heads;
    plans->order = malloc((size_t)(*orders * tokens) * sizeof *plans->order);
    if (!plans->order)
        return hd_fail(HD_ERR_NOMEM, "plan: no memory for the orders of %s", site->site.path);
    for (int64_t o = 0; o < *orders; o++)
        fill_order(plans->order + o * tokens, site, grid, site->order[o]);
    if (*orders > 1 || !identity(plans->order, tokens)) return HD_OK;
    free(plans->order); // the kernel reads and writes in place
    plans->order = NULL;
    return HD_OK;
}

static hd_status allocate_lists(hd_static_plans *plans, const expansion *e, int64_t rows)
{
    int64_t entries = 0;
    for (int64_t m = 0; m < e->masks; m++)
        entries += expand(e, m, NULL, NULL);
    plans->plan = calloc((size_t)e->masks, sizeof *plans->plan);
    plans->row_start = malloc((size_t)(e->masks * (rows + 1)) * sizeof *plans->row_start);
    plans->visit = malloc((size_t)(entries + 1) * sizeof *plans->visit);
    if (plans->plan && plans->row_start && plans->visit) return HD_OK;
    return hd_fail(HD_ERR_NOMEM, "plan: no memory for the %lld tiles of %s", (long long)entries,
                   e->site->site.path);
}

static hd_status fill(hd_static_plans *plans, const expansion *e, const hd_grid *grid, int64_t tile)
{
    const hd_plan_file_site *site = e->site;
    const int64_t rows = site->site.heads * site->tiles;
    int64_t orders, entries = 0;
    HD_TRY(make_orders(plans, site, grid, &orders));
    HD_TRY(allocate_lists(plans, e, rows));
    const int64_t ranks = site->site.tokens - (site->text_first ? 0 : site->text);
    for (int64_t m = 0; m < e->masks; m++) {
        int64_t *row_start = plans->row_start + m * (rows + 1);
        plans->plan[m] = (hd_plan){.query_tile = tile,
                                   .key_tile = tile,
                                   .query_tiles = site->tiles,
                                   .key_tiles = site->tiles,
                                   .query_ranks = ranks,
                                   .key_ranks = ranks,
                                   .orders = orders,
                                   .query_order = plans->order,
                                   .key_order = plans->order,
                                   .heads = site->site.heads,
                                   .row_start = row_start,
                                   .visit = plans->visit + entries,
                                   .grid = {grid->size[0], grid->size[1], grid->size[2]},
                                   .grid_token = grid->token};
        entries += expand(e, m, row_start, plans->visit + entries);
    }
    return HD_OK;
}

hd_status hd_static_plans_make(hd_static_plans **out, const hd_plan_file *file,
                               const hd_plan_file_site *site, const hd_grid *grid,
                               hd_static_forced forced)
{
    hd_static_plans *plans = calloc(1, sizeof *plans);
    if (!plans) return hd_fail(HD_ERR_NOMEM, "plan: no memory for %s", site->site.path);
    expansion e = {.site = site, .masks = file->masks, .forced = forced};
    if (site->text_first) e.text_tiles = (site->text + file->tile - 1) / file->tile;
    hd_status status = fill(plans, &e, grid, file->tile);
    if (status != HD_OK) {
        hd_static_plans_free(plans);
        return status;
    }
    *out = plans;
    return HD_OK;
}
