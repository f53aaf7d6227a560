/* engine/attention/planner/calibrate.c: measures attention maps, tile by tile, in every order.
 *
 * Two passes over a call's scores: the rows' log-sum-exp, then per order the tiles. An item of work
 * is the queries of one tile of one head (and order): it alone writes their sums, so threads change
 * nothing. Scratch of an item is on its stack, which the limit of the head's size bounds. */
#include "engine/attention/planner/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "engine/attention/planner/calibrate_internal.h"
#include "kernels/attention_map.h"

hd_status hd_calibration_create(hd_calibration **out, const hd_calibration_options *options)
{
    HD_ENSURE(options->tile >= 1 && options->tile <= HD_MAP_SIDE);
    hd_calibration *c = calloc(1, sizeof *c);
    if (c) c->mask_of_step = malloc((size_t)options->steps * sizeof *c->mask_of_step);
    if (!c || !c->mask_of_step) {
        free(c);
        return hd_fail(HD_ERR_NOMEM, "calibrate: no memory for %lld steps",
                       (long long)options->steps);
    }
    c->options = *options;
    memcpy(c->mask_of_step, options->mask_of_step,
           (size_t)options->steps * sizeof *c->mask_of_step);
    c->options.mask_of_step = c->mask_of_step;
    *out = c;
    return HD_OK;
}

static void free_site(hd_calibration_site *s)
{
    if (!s) return;
    free(s->order);
    free(s->calls);
    free(s->mass);
    free(s->sparse);
    free(s->uneven);
    free(s);
}

void hd_calibration_free(hd_calibration *c)
{
    if (!c) return;
    for (int64_t i = 0; i < c->sites; i++)
        free_site(c->site[i]);
    free(c->site);
    free(c->mask_of_step);
    free(c);
}

/* --- sites */

// Orders that this grid tells apart, by the lowest number of each.
static void list_orders(hd_calibration_site *s)
{
    for (int which = 0; which < HD_AXIS_ORDERS; which++) {
        int32_t *order = s->order + s->orders * s->ranks;
        bool fresh = true;
        hd_order_axes(order, &s->grid, which);
        for (int i = 0; i < s->orders && fresh; i++)
            fresh = memcmp(order, s->order + i * s->ranks, (size_t)s->ranks * sizeof *order) != 0;
        if (fresh) s->number[s->orders++] = which;
    }
}

static hd_status allocate_site(hd_calibration_site *s, int64_t masks)
{
    // room for one order more than there are: the one that is compared
    s->order = malloc((size_t)((HD_AXIS_ORDERS + 1) * s->ranks) * sizeof *s->order);
    if (!s->order) return hd_fail(HD_ERR_NOMEM, "calibrate: no memory for %s", s->site.path);
    list_orders(s);
    const size_t lists = (size_t)(s->orders * s->site.heads),
                 maps = (size_t)masks * lists * (size_t)(s->tiles * s->tiles);
    s->calls = calloc((size_t)masks, sizeof *s->calls);
    s->mass = calloc(maps, sizeof *s->mass);
    s->sparse = calloc(lists * (size_t)s->tiles, sizeof *s->sparse);
    s->uneven = calloc(lists * (size_t)s->tiles, sizeof *s->uneven);
    if (s->calls && s->mass && s->sparse && s->uneven) return HD_OK;
    return hd_fail(HD_ERR_NOMEM,
                   "calibrate: no memory for the tiles of %s (%zu MiB); calibrate fewer sites or "
                   "buckets",
                   s->site.path, maps * sizeof *s->mass >> 20);
}

static hd_status make_site(hd_calibration *c, const hd_attention_call *call, const hd_grid *grid)
{
    if (c->sites == c->room) {
        int64_t room = c->room ? 2 * c->room : 32;
        hd_calibration_site **grown = realloc(c->site, (size_t)room * sizeof *grown);
        if (!grown)
            return hd_fail(HD_ERR_NOMEM, "calibrate: no memory for %lld sites", (long long)room);
        c->site = grown;
        c->room = room;
    }
    hd_calibration_site *s = calloc(1, sizeof *s);
    if (!s) return hd_fail(HD_ERR_NOMEM, "calibrate: no memory for a site");
    s->site = call->site;
    s->site.heads = call->q.dim[2];
    s->grid = *grid;
    s->tokens = call->q.dim[1];
    s->ranks = hd_grid_tokens(grid);
    s->tiles = (s->ranks + c->options.tile - 1) / c->options.tile;
    s->dim = call->q.dim[3];
    c->site[c->sites++] = s;
    return allocate_site(s, c->options.masks);
}

hd_status hd_calibration_meet(hd_calibration *c, const hd_attention_call *call,
                              hd_calibration_site **out)
{
    hd_grid grid;
    HD_TRY(hd_grid_of_call(&grid, call));
    if (call->k.dim[1] != call->q.dim[1])
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "it has %lld queries and %lld keys; calibrate without the processors that "
                       "add keys",
                       (long long)call->q.dim[1], (long long)call->k.dim[1]);
    if (call->q.dim[3] > HD_MAP_MOST_DIM)
        return hd_fail(HD_ERR_UNSUPPORTED, "heads of %lld channels, at most %d can be calibrated",
                       (long long)call->q.dim[3], HD_MAP_MOST_DIM);
    for (int64_t i = 0; i < c->sites; i++) {
        hd_calibration_site *s = c->site[i];
        if (s->site.network != call->site.network || s->site.kind != call->site.kind ||
            strcmp(s->site.path, call->site.path) != 0)
            continue;
        if (memcmp(&s->grid, &grid, sizeof grid) != 0 || s->tokens != call->q.dim[1] ||
            s->site.heads != call->q.dim[2] || s->dim != call->q.dim[3])
            return hd_fail(HD_ERR_ARGUMENT,
                           "it has another size than before; a plan is made for one size");
        *out = s;
        return HD_OK;
    }
    HD_TRY(make_site(c, call, &grid));
    *out = c->site[c->sites - 1];
    return HD_OK;
}

/* --- measuring */

typedef struct measuring {
    const hd_calibration *calibration;
    hd_calibration_site *site;
    const hd_attention_call *call;
    const hd_map_kernel *kernel;
    int64_t row, mask;
    float *lse; // [heads][tokens], in units of log 2
} measuring;

static const hd_map_kernel *kernel_for(const hd_exec *ex)
{
#if HD_WITH_AVX512
    if (hd_exec_has(ex, HD_AVX512)) return &hd_map_avx512;
#endif
#if HD_WITH_AVX2
    if (hd_exec_has(ex, HD_AVX2)) return &hd_map_avx2;
#endif
    (void)ex;
    return &hd_map_reference;
}

size_t hd_calibration_scratch(const hd_calibration_site *site)
{
    return (size_t)(site->site.heads * site->tokens) * sizeof(float);
}

static float element(const hd_tensor *t, int64_t at)
{
    if (t->dtype == HD_BF16) return hd_bf16_to_f32(((const uint16_t *)t->data)[at]);
    return ((const float *)t->data)[at];
}

// Queries of the ranks first .. first + count - 1 of an order (NULL: as they are), scaled.
static void load_queries(float *q, const measuring *m, int64_t head, const int32_t *order,
                         int64_t first, int64_t count)
{
    const hd_tensor *t = &m->call->q;
    const float scale = m->call->scale * (float)M_LOG2E;
    const int64_t base = m->row * t->stride[0] + head * t->stride[2];
    for (int64_t i = 0; i < HD_MAP_SIDE; i++) {
        int64_t at = i < count ? base + (order ? order[first + i] : first + i) * t->stride[1] : 0;
        for (int64_t d = 0; d < m->site->dim; d++)
            q[i * m->site->dim + d] = i < count ? element(t, at + d) * scale : 0.0f;
    }
}

// The same for keys, transposed.
static void load_keys(float *k, const measuring *m, int64_t head, const int32_t *order,
                      int64_t first, int64_t count)
{
    const hd_tensor *t = &m->call->k;
    const int64_t group = m->call->q.dim[2] / t->dim[2];
    const int64_t base = m->row * t->stride[0] + head / group * t->stride[2];
    memset(k, 0, (size_t)(m->site->dim * HD_MAP_SIDE) * sizeof *k);
    for (int64_t j = 0; j < count; j++) {
        int64_t at = base + (order ? order[first + j] : first + j) * t->stride[1];
        for (int64_t d = 0; d < m->site->dim; d++)
            k[d * HD_MAP_SIDE + j] = element(t, at + d);
    }
}

static int64_t part(int64_t all, int64_t first, int64_t most)
{
    return all - first < most ? all - first : most;
}

// The log-sum-exp of up to 64 queries of a head.
static hd_status sum_rows(void *arg, int64_t item, int thread)
{
    (void)thread;
    const measuring *m = arg;
    const hd_calibration_site *s = m->site;
    float q[HD_MAP_SIDE * HD_MAP_MOST_DIM], k[HD_MAP_SIDE * HD_MAP_MOST_DIM];
    float scores[HD_MAP_SIDE * HD_MAP_SIDE];
    hd_map_row row[HD_MAP_SIDE];
    const int64_t blocks = (s->tokens + HD_MAP_SIDE - 1) / HD_MAP_SIDE, head = item / blocks,
                  first = item % blocks * HD_MAP_SIDE, rows = part(s->tokens, first, HD_MAP_SIDE);
    load_queries(q, m, head, NULL, first, rows);
    for (int64_t i = 0; i < rows; i++)
        hd_map_row_begin(&row[i]);
    for (int64_t at = 0; at < s->tokens; at += HD_MAP_SIDE) {
        const int64_t keys = part(s->tokens, at, HD_MAP_SIDE);
        load_keys(k, m, head, NULL, at, keys);
        m->kernel->scores(scores, q, k, (int)rows, s->dim);
        m->kernel->gather(row, scores, (int)rows, (int)keys);
    }
    for (int64_t i = 0; i < rows; i++)
        m->lse[head * s->tokens + first + i] = hd_map_row_end(&row[i]);
    return HD_OK;
}

// One row of tiles of a head in one order.
static hd_status measure_tiles(void *arg, int64_t item, int thread)
{
    (void)thread;
    const measuring *m = arg;
    const hd_calibration_options *o = &m->calibration->options;
    const hd_calibration_site *s = m->site;
    float q[HD_MAP_SIDE * HD_MAP_MOST_DIM], k[HD_MAP_SIDE * HD_MAP_MOST_DIM];
    float scores[HD_MAP_SIDE * HD_MAP_SIDE], lse[HD_MAP_SIDE];
    const int64_t i = item % s->tiles, list = item / s->tiles, head = list % s->site.heads,
                  which = list / s->site.heads;
    const int64_t first = i * o->tile, rows = part(s->ranks, first, o->tile);
    const int32_t *order = s->order + which * s->ranks;
    const float eps = o->eps_rel / (float)s->tokens;
    float *mass = hd_calibration_mass(s, m->mask, which, head) + i * s->tiles;
    load_queries(q, m, head, order, first, rows);
    for (int64_t r = 0; r < rows; r++)
        lse[r] = m->lse[head * s->tokens + order[first + r]];
    for (int64_t j = 0; j < s->tiles; j++) {
        const int64_t keys = part(s->ranks, j * o->tile, o->tile), all = rows * keys;
        load_keys(k, m, head, order, j * o->tile, keys);
        m->kernel->scores(scores, q, k, (int)rows, s->dim);
        hd_map_tile tile = m->kernel->measure(scores, lse, eps, (int)rows, (int)keys);
        mass[j] += (float)(tile.sum / (double)rows);
        s->sparse[item] += (double)(all - tile.large) >= (double)o->sigma * (double)all;
        s->uneven[item] += tile.sum > 0 ? (double)tile.max * (double)all / tile.sum : 1.0;
    }
    return HD_OK;
}

hd_status hd_calibration_observe(hd_calibration *c, hd_calibration_site *site, const hd_exec *ex,
                                 const hd_attention_call *call, int64_t row, int64_t step,
                                 void *scratch)
{
    HD_ENSURE(step >= 0 && step < c->options.steps);
    const int64_t keys = call->key_len ? call->key_len[row] : call->k.dim[1];
    if (call->q.dim[1] != site->tokens || keys != site->tokens)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "calibrate: %s has %lld queries and %lld keys in step %lld, before the run "
                       "it had %lld; calibrate without the processors that change them",
                       site->site.path, (long long)call->q.dim[1], (long long)keys, (long long)step,
                       (long long)site->tokens);
    measuring m = {c, site, call, kernel_for(ex), row, c->mask_of_step[step], scratch};
    const int64_t blocks = (site->tokens + HD_MAP_SIDE - 1) / HD_MAP_SIDE;
    HD_TRY(hd_parallel_for(ex->pool, site->site.heads * blocks, sum_rows, &m));
    HD_TRY(hd_parallel_for(ex->pool, site->orders * site->site.heads * site->tiles, measure_tiles,
                           &m));
    site->calls[m.mask]++;
    return HD_OK;
}
