/* engine/attention/planner/tiling.c: orders and tile bounds of a grid. */
#include "engine/attention/planner/tiling.h"

#include <stdlib.h>

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

// Ranks from `from` to `to` as tiles of at most `tile` (0: one).
static void cut_run(hd_tiling *t, int64_t from, int64_t to, int64_t tile)
{
    while (from < to) {
        int64_t count = tile > 0 && to - from > tile ? tile : to - from;
        t->bound[t->tiles++] = (int32_t)from;
        t->tile = larger(t->tile, count);
        from += count;
    }
    t->bound[t->tiles] = (int32_t)to;
}

// An upper bound of the number of tiles.
static int64_t tiling_most(const hd_tiling *t, const hd_tiling_options *o, int64_t boxes)
{
    return boxes + (o->tile > 0 ? t->ranks / o->tile : 0) + 2;
}

static void tiling_fill(hd_tiling *t, const hd_tiling_options *o, const int32_t *box, int64_t boxes)
{
    const int64_t inside = hd_grid_tokens(&t->grid);
    if (!box) {
        cut_run(t, 0, t->ranks, o->tile);
        return;
    }
    for (int64_t b = 0; b < boxes; b++)
        cut_run(t, box[b], box[b + 1], o->tile);
    if (t->ranks > inside) cut_run(t, inside, t->ranks, o->tile);
}

static hd_status tiling_make(hd_tiling *t, const hd_attention_call *call, hd_tiling_options o)
{
    HD_TRY(hd_grid_of_call(&t->grid, call));
    const int64_t inside = hd_grid_tokens(&t->grid), most = larger(call->q.dim[1], call->k.dim[1]);
    const hd_cut cut[3] = {{.extent = o.box[0]}, {.extent = o.box[1]}, {.extent = o.box[2]}};
    const int64_t boxes = o.box[0] ? hd_order_boxes(&t->grid, cut) : 0;
    int32_t *box = o.box[0] ? malloc(((size_t)boxes + 1) * sizeof *box) : NULL;
    for (int i = 0; i < 3 && box; i++)
        t->boxes[i] = hd_cut_pieces(cut[i], t->grid.size[i]);
    t->ranks = o.text ? most : inside;
    t->order_room = 2 * most + 4096;
    t->order = malloc((size_t)t->order_room * sizeof *t->order);
    t->bound = malloc(((size_t)tiling_most(t, &o, boxes) + 1) * sizeof *t->bound);
    if ((o.box[0] && !box) || !t->order || !t->bound) {
        free(box);
        return hd_fail(HD_ERR_NOMEM, "planner: no memory for the order of %lld tokens",
                       (long long)most);
    }
    if (box)
        hd_order_windows(t->order, box, &t->grid, cut);
    else
        for (int64_t r = 0; r < inside; r++)
            t->order[r] = (int32_t)(t->grid.token + r);
    hd_order_tail(t->order, &t->grid, t->order_room);
    tiling_fill(t, &o, box, boxes);
    free(box);
    return HD_OK;
}

hd_status hd_tiling_create(hd_tiling **out, const hd_attention_call *call, hd_tiling_options o)
{
    hd_tiling *t = calloc(1, sizeof *t);
    if (!t) return hd_fail(HD_ERR_NOMEM, "planner: no memory");
    hd_status status = tiling_make(t, call, o);
    if (status != HD_OK) {
        hd_tiling_free(t);
        return status;
    }
    *out = t;
    return HD_OK;
}

void hd_tiling_free(hd_tiling *tiling)
{
    if (!tiling) return;
    free(tiling->order);
    free(tiling->bound);
    free(tiling);
}

hd_status hd_tiling_plan(const hd_tiling *t, int64_t queries, int64_t keys, hd_plan *plan)
{
    if (queries < t->ranks || keys < t->ranks || larger(queries, keys) > t->order_room)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "planner: made for a grid of %lld tokens and at most %lld in all, found "
                       "%lld queries and %lld keys",
                       (long long)t->ranks, (long long)t->order_room, (long long)queries,
                       (long long)keys);
    *plan = (hd_plan){.query_tile = t->tile,
                      .key_tile = t->tile,
                      .query_tiles = t->tiles,
                      .key_tiles = t->tiles,
                      .query_ranks = t->ranks,
                      .key_ranks = t->ranks,
                      .query_bound = t->bound,
                      .key_bound = t->bound,
                      .orders = 1,
                      .query_order = t->order,
                      .key_order = t->order,
                      .grid = {t->grid.size[0], t->grid.size[1], t->grid.size[2]},
                      .grid_token = t->grid.token};
    return HD_OK;
}

int64_t hd_tiling_apart(const hd_tiling *t, int64_t a, int64_t b)
{
    int64_t most = 0;
    for (int i = 2; i >= 0; i--) {
        most = larger(most, llabs(a % t->boxes[i] - b % t->boxes[i]));
        a /= t->boxes[i];
        b /= t->boxes[i];
    }
    return most;
}

hd_planner_tokens hd_tiling_tokens(const hd_tiling *t, hd_tensor x, int64_t row, int64_t head,
                                   int64_t heads)
{
    const int64_t at =
        (x.dim[0] > 1 ? row * x.stride[0] : 0) + head / (heads / x.dim[2]) * x.stride[2];
    return (hd_planner_tokens){.data = (const char *)x.data + at * (int64_t)hd_dtype_size(x.dtype),
                               .dtype = x.dtype,
                               .stride = x.stride[1],
                               .dim = x.dim[3],
                               .order = t->order};
}
