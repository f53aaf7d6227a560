/* engine/ops/sdpa_check.c: what an attention call and its plans must be. A plan comes from a file
 * or from a planner: nothing that the kernel indexes with is taken on trust but the numbers of
 * masks, whose count a plan does not tell, and that an order is a permutation. */
#include <stdlib.h>

#include "engine/ops/sdpa_internal.h"

static hd_status check_tokens(const char *what, hd_tensor t, hd_dtype dtype, hd_shape shape)
{
    HD_TRY(hd_expect_shape(what, t, dtype, shape));
    const int last = t.rank - 1;
    if (t.dim[last] > 1 && t.stride[last] != 1)
        return hd_fail(HD_ERR_SHAPE, "%s: the stride of its last axis is %lld, must be 1", what,
                       (long long)t.stride[last]);
    return HD_OK;
}

// [B or 1, H or 1, Lq or 1, Lk]
static hd_status check_edit(const char *what, hd_tensor t, hd_dtype dtype, hd_shape full)
{
    if (!hd_tensor_given(t)) return HD_OK;
    bool fits = t.rank == full.rank && t.dtype == dtype;
    for (int i = 0; fits && i < full.rank; i++)
        fits = t.dim[i] == full.dim[i] || (t.dim[i] == 1 && i + 1 < full.rank);
    if (!fits) {
        char found[200], expected[160];
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: %s is %s, expected %s %s, where any axis but the last may be 1", what,
                       hd_tensor_text(found, sizeof found, t),
                       hd_shape_text(expected, sizeof expected, full), hd_dtype_name(dtype));
    }
    return check_tokens(what, t, dtype, hd_tensor_shape(t));
}

static hd_status check_probe(const hd_sdpa *a)
{
    if (hd_tensor_given(a->indicator) != hd_tensor_given(a->probed))
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: indicator and probed must be given together");
    if (!hd_tensor_given(a->indicator)) return HD_OK;
    const int64_t channels = a->indicator.rank == 3 ? a->indicator.dim[2] : 1;
    HD_TRY(check_tokens("sdpa: indicator", a->indicator, HD_F32,
                        hd_shape3(a->q.dim[0], a->k.dim[1], channels)));
    return check_tokens("sdpa: probed", a->probed, HD_F32,
                        hd_shape4(a->q.dim[0], a->q.dim[2], a->q.dim[1], channels));
}

static hd_status check_tensors(const hd_sdpa *a)
{
    if (a->q.rank != 4 || a->k.rank != 4 || a->v.rank != 4) {
        char q[200], k[200], v[200];
        return hd_fail(HD_ERR_SHAPE, "sdpa: q is %s, k %s, v %s, expected 4 axes [B, L, H, D] each",
                       hd_tensor_text(q, sizeof q, a->q), hd_tensor_text(k, sizeof k, a->k),
                       hd_tensor_text(v, sizeof v, a->v));
    }
    const int64_t rows = a->q.dim[0], queries = a->q.dim[1], heads = a->q.dim[2], dim = a->q.dim[3];
    const int64_t keys = a->k.dim[1], key_heads = a->k.dim[2], value_dim = a->v.dim[3];
    const hd_dtype dtype = a->q.dtype;
    if (dtype != HD_F32 && dtype != HD_BF16)
        return hd_fail(HD_ERR_UNSUPPORTED, "sdpa: q is %s, must be f32 or bf16",
                       hd_dtype_name(dtype));
    HD_TRY(check_tokens("sdpa: q", a->q, dtype, hd_shape4(rows, queries, heads, dim)));
    HD_TRY(check_tokens("sdpa: k", a->k, dtype, hd_shape4(rows, keys, key_heads, dim)));
    HD_TRY(check_tokens("sdpa: v", a->v, dtype, hd_shape4(rows, keys, key_heads, value_dim)));
    HD_TRY(check_tokens("sdpa: out", a->out, dtype, hd_shape4(rows, queries, heads, value_dim)));
    if (keys < 1 || dim < 1 || value_dim < 1 || key_heads < 1)
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: %lld keys in %lld heads of %lld and %lld channels; "
                       "none may be 0",
                       (long long)keys, (long long)key_heads, (long long)dim, (long long)value_dim);
    if (keys > INT32_MAX / 2 || queries > INT32_MAX / 2)
        return hd_fail(HD_ERR_SHAPE, "sdpa: %lld queries and %lld keys, must be below 2^30",
                       (long long)queries, (long long)keys);
    if (heads % key_heads)
        return hd_fail(HD_ERR_SHAPE, "sdpa: %lld query heads cannot share %lld key heads evenly",
                       (long long)heads, (long long)key_heads);
    const hd_shape map = hd_shape4(rows, heads, queries, keys);
    HD_TRY(check_edit("bias", a->bias, HD_F32, map));
    HD_TRY(check_edit("mask", a->mask, HD_BOOL, map));
    HD_TRY(check_edit("column_bias", a->column_bias, HD_F32, hd_shape3(rows, heads, keys)));
    if (hd_tensor_given(a->lse))
        HD_TRY(hd_expect_shape("sdpa: lse", a->lse, HD_F32, hd_shape3(rows, heads, queries)));
    return check_probe(a);
}

static hd_status check_lengths(const hd_sdpa *a)
{
    const int64_t rows = a->q.dim[0], queries = a->q.dim[1], keys = a->k.dim[1];
    for (int64_t b = 0; a->key_len && b < rows; b++)
        if (a->key_len[b] < 1 || a->key_len[b] > keys)
            return hd_fail(HD_ERR_ARGUMENT, "sdpa: key_len[%lld] is %lld, must be 1 to %lld",
                           (long long)b, (long long)a->key_len[b], (long long)keys);
    for (int64_t b = 0; a->query_len && b < rows; b++)
        if (a->query_len[b] < 0 || a->query_len[b] > queries)
            return hd_fail(HD_ERR_ARGUMENT, "sdpa: query_len[%lld] is %lld, must be 0 to %lld",
                           (long long)b, (long long)a->query_len[b], (long long)queries);
    return HD_OK;
}

static hd_status check_labels(const char *what, const uint8_t *label, int64_t count, int64_t labels)
{
    if (labels < 1 || labels > 256 || !label)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: segments have %lld %s labels, must be 1 to 256",
                       (long long)labels, what);
    for (int64_t i = 0; i < count; i++)
        if (label[i] >= labels)
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: %s %lld has segment label %d, must be below %lld", what,
                           (long long)i, label[i], (long long)labels);
    return HD_OK;
}

static hd_status check_tile_count(const char *what, const int32_t *bound, int64_t tile,
                                  int64_t tiles, int64_t ranks)
{
    if (bound ? tiles >= 0 && tiles <= ranks + 1 : tiles == sdpa_parts(ranks, tile)) return HD_OK;
    return hd_fail(HD_ERR_SHAPE, "sdpa: the plan has %lld %s tiles of %lld for %lld ranks",
                   (long long)tiles, what, (long long)tile, (long long)ranks);
}

static hd_status check_bounds(const char *what, const int32_t *bound, int64_t tile, int64_t tiles,
                              int64_t ranks, int64_t shortest)
{
    if (!bound) return HD_OK;
    if (bound[0] != 0 || bound[tiles] != ranks)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan's %lld %s tiles do not cover %lld ranks",
                       (long long)tiles, what, (long long)ranks);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t length = (int64_t)bound[t + 1] - bound[t];
        if (length < shortest || length > tile)
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: %s tile %lld of the plan has %lld ranks, must be %lld to %lld",
                           what, (long long)t, (long long)length, (long long)shortest,
                           (long long)tile);
    }
    return HD_OK;
}

static hd_status check_order(const char *what, const int32_t *order, int64_t orders, int64_t tokens)
{
    for (int64_t i = 0; order && i < orders * tokens; i++)
        if (order[i] < 0 || order[i] >= tokens)
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: rank %lld of the plan's %s order is token %d, must be 0 to %lld",
                           (long long)(i % tokens), what, order[i], (long long)tokens - 1);
    return HD_OK;
}

// Every token of the first `ranks` ranks lies on the grid.
static hd_status check_on_grid(const char *what, const hd_plan *p, const int32_t *order,
                               int64_t orders, int64_t tokens, int64_t ranks, int64_t volume)
{
    const int64_t end = p->grid_token + volume;
    if (!order && ranks > 0 && (p->grid_token > 0 || ranks > end))
        return hd_fail(HD_ERR_ARGUMENT,
                       "sdpa: %s ranks 0 to %lld of the plan are not tokens of its grid, %lld to "
                       "%lld",
                       what, (long long)ranks - 1, (long long)p->grid_token, (long long)end - 1);
    for (int64_t o = 0; order && o < orders; o++)
        for (int64_t r = 0; r < ranks; r++) {
            const int32_t token = order[o * tokens + r];
            if (token < p->grid_token || token >= end)
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: %s rank %lld of the plan is token %d, not of its grid, %lld "
                               "to %lld",
                               what, (long long)r, token, (long long)p->grid_token,
                               (long long)end - 1);
        }
    return HD_OK;
}

static hd_status check_boxes(const hd_plan *p, int64_t keys, int64_t volume)
{
    const int64_t *e = p->box_extent;
    if (e[0] < 1 || e[1] < 1 || e[2] < 1 || e[0] > INT32_MAX || e[1] > INT32_MAX ||
        e[2] > INT32_MAX)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan's boxes are %lld x %lld x %lld",
                       (long long)e[0], (long long)e[1], (long long)e[2]);
    if (p->rest == HD_REST_PROXY)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "sdpa: key boxes have no tiles that proxies could stand for; use \"rest\": "
                       "\"drop\"");
    if (!p->row_start || p->key_ranks != volume)
        return hd_fail(HD_ERR_ARGUMENT,
                       "sdpa: a plan of key boxes needs a list, and its grid of %lld tokens as its "
                       "key ranks; they are %lld",
                       (long long)volume, (long long)p->key_ranks);
    if (p->column_mask && (e[0] > p->key_tile || e[0] * e[1] > p->key_tile ||
                           (double)e[0] * (double)e[1] * (double)e[2] > (double)p->key_tile))
        return hd_fail(HD_ERR_ARGUMENT,
                       "sdpa: the plan's column masks are of %lld keys, its boxes longer",
                       (long long)p->key_tile);
    // the grid's lines are packed as they lie
    for (int64_t o = 0; p->key_order && o < (p->orders > 1 ? p->orders : 1); o++)
        for (int64_t r = 0; r < volume; r++)
            if (p->key_order[o * keys + r] != p->grid_token + r)
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: key rank %lld of a plan of boxes is token %d, must be %lld",
                               (long long)r, p->key_order[o * keys + r],
                               (long long)(p->grid_token + r));
    return HD_OK;
}

// Of a plan of boxes or windows; no list is read.
static hd_status check_grid_numbers(const hd_plan *p, int64_t keys)
{
    int64_t volume = 1;
    for (int i = 0; i < 3; i++) {
        if (p->grid[i] < 1 || p->grid[i] > keys / volume)
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: the plan's grid is %lld x %lld x %lld, not within %lld keys",
                           (long long)p->grid[0], (long long)p->grid[1], (long long)p->grid[2],
                           (long long)keys);
        volume *= p->grid[i];
    }
    if (p->grid_token < 0 || p->grid_token > keys - volume)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan's grid begins at token %lld of %lld",
                       (long long)p->grid_token, (long long)keys);
    return HD_OK;
}

static hd_status check_grid(const hd_plan *p, int64_t queries, int64_t keys)
{
    const int64_t volume = p->grid[0] * p->grid[1] * p->grid[2];
    const int64_t orders = p->orders > 1 ? p->orders : 1;
    HD_TRY(check_on_grid("key", p, p->key_order, orders, keys, p->key_ranks, volume));
    if (sdpa_boxes(p)) HD_TRY(check_boxes(p, keys, volume));
    if (!p->window) return HD_OK;
    const int64_t windows = p->windows > 1 ? p->windows : 1;
    for (int64_t i = 0; i < 3 * windows; i++)
        if (p->window[i].dilation < 1 || !p->window[i].start || !p->window[i].end)
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: axis %lld of the plan's window %lld has a dilation of %lld%s",
                           (long long)(i % 3), (long long)(i / 3), (long long)p->window[i].dilation,
                           p->window[i].start && p->window[i].end ? ", must be positive"
                                                                  : " and no lists");
    return check_on_grid("query", p, p->query_order, orders, queries, p->query_ranks, volume);
}

static bool overlap(const hd_plan *p, int32_t a, int32_t b)
{
    int64_t x = a - p->grid_token, y = b - p->grid_token;
    for (int i = 2; i >= 0; i--, x /= p->grid[i + 1], y /= p->grid[i + 1])
        if (llabs(x % p->grid[i] - y % p->grid[i]) >= p->box_extent[i]) return false;
    return true;
}

// A key that two boxes of a row bring would count twice; masks may part them.
static hd_status check_apart(const hd_plan *p, int64_t row, int64_t entry)
{
    const int64_t frame = p->grid[1] * p->grid[2];
    const hd_visit e = p->visit[entry];
    for (int64_t i = entry - 1; i >= p->row_start[row] && e.mask < 0; i--) {
        const hd_visit other = p->visit[i];
        if ((e.key - p->grid_token) / frame - (other.key - p->grid_token) / frame >=
            p->box_extent[0])
            break;
        if (other.mask < 0 && overlap(p, other.key, e.key))
            return hd_fail(HD_ERR_ARGUMENT,
                           "sdpa: row %lld of the plan visits boxes %d and %d, which share keys",
                           (long long)row, other.key, e.key);
    }
    return HD_OK;
}

static hd_status check_list(const hd_plan *p, int64_t heads)
{
    if (p->heads != 1 && p->heads != heads)
        return hd_fail(HD_ERR_SHAPE, "sdpa: the plan is for %lld heads, expected %lld or 1",
                       (long long)p->heads, (long long)heads);
    int64_t lowest = 0, end = p->key_tiles;
    if (sdpa_boxes(p)) lowest = p->grid_token, end = lowest + p->grid[0] * p->grid[1] * p->grid[2];
    const bool masks = p->row_mask || p->column_mask;
    for (int64_t r = 0; r < p->heads * p->query_tiles; r++) {
        int64_t last = lowest - 1;
        if (p->row_start[r] < 0 || p->row_start[r + 1] < p->row_start[r])
            return hd_fail(HD_ERR_ARGUMENT, "sdpa: row %lld of the plan has entries %lld to %lld",
                           (long long)r, (long long)p->row_start[r],
                           (long long)p->row_start[r + 1]);
        for (int64_t i = p->row_start[r]; i < p->row_start[r + 1]; i++) {
            const hd_visit e = p->visit[i];
            if (e.key <= last || e.key >= end)
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: row %lld of the plan visits key %s %d after %lld; must "
                               "ascend and stay below %lld",
                               (long long)r, sdpa_boxes(p) ? "box" : "tile", e.key, (long long)last,
                               (long long)end);
            if (e.mask < HD_VISIT_PARTIAL || (e.mask >= 0 && !masks))
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: row %lld of the plan visits key %d by mask %d, which the "
                               "plan lacks",
                               (long long)r, e.key, e.mask);
            if (sdpa_boxes(p)) HD_TRY(check_apart(p, r, i));
            last = e.key;
        }
    }
    return HD_OK;
}

// What the dry pass lays out by; no list is read.
static hd_status check_numbers(const hd_plan *p, int64_t heads, int64_t queries, int64_t keys)
{
    if (p->query_tile < 1 || (p->key_tile < 1 && !sdpa_boxes(p)))
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan's tiles are %lld x %lld, must be positive",
                       (long long)p->query_tile, (long long)p->key_tile);
    if (p->query_ranks < 0 || p->query_ranks > queries || p->key_ranks < 0 || p->key_ranks > keys)
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: the plan is for %lld x %lld ranks, the call has %lld x %lld tokens",
                       (long long)p->query_ranks, (long long)p->key_ranks, (long long)queries,
                       (long long)keys);
    HD_TRY(
        check_tile_count("query", p->query_bound, p->query_tile, p->query_tiles, p->query_ranks));
    if (!sdpa_boxes(p))
        HD_TRY(check_tile_count("key", p->key_bound, p->key_tile, p->key_tiles, p->key_ranks));
    const bool ordered = p->query_order || p->key_order || p->query_segment || p->key_segment;
    if (ordered && p->orders != 1 && p->orders != heads)
        return hd_fail(HD_ERR_SHAPE, "sdpa: the plan has %lld orders, expected 1 or %lld",
                       (long long)p->orders, (long long)heads);
    if (!p->query_segment != !p->key_segment)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan has segments of %s alone",
                       p->query_segment ? "queries" : "keys");
    if (p->window && p->windows > 1 && p->windows != heads)
        return hd_fail(HD_ERR_SHAPE, "sdpa: the plan has %lld windows, expected %lld or 1",
                       (long long)p->windows, (long long)heads);
    return sdpa_boxes(p) || p->window ? check_grid_numbers(p, keys) : HD_OK;
}

static hd_status check_proxy(const char *what, const hd_plan *p, const int32_t *rank)
{
    for (int64_t o = 0; rank && o < (p->orders > 1 ? p->orders : 1); o++)
        for (int64_t t = 0; t < p->key_tiles; t++) {
            const int64_t first = hd_plan_key_start(p, t), end = hd_plan_key_start(p, t + 1);
            const int64_t at = rank[o * p->key_tiles + t];
            if (at < first || at >= end)
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: the %s of rank %lld stands for key tile %lld of the plan, "
                               "which has ranks %lld to %lld",
                               what, (long long)at, (long long)t, (long long)first,
                               (long long)end - 1);
        }
    return HD_OK;
}

hd_status hd_plan_check(const hd_plan *p, int64_t heads, int64_t queries, int64_t keys)
{
    HD_TRY(check_numbers(p, heads, queries, keys));
    HD_TRY(check_bounds("query", p->query_bound, p->query_tile, p->query_tiles, p->query_ranks, 0));
    if (!sdpa_boxes(p))
        HD_TRY(check_bounds("key", p->key_bound, p->key_tile, p->key_tiles, p->key_ranks, 1));
    HD_TRY(check_order("query", p->query_order, p->orders, queries));
    HD_TRY(check_order("key", p->key_order, p->orders, keys));
    if (sdpa_boxes(p) || p->window) HD_TRY(check_grid(p, queries, keys));
    if (sdpa_proxies(p)) HD_TRY(check_proxy("key", p, p->proxy.key));
    if (sdpa_proxies(p)) HD_TRY(check_proxy("value", p, p->proxy.value));
    return p->row_start ? check_list(p, heads) : HD_OK;
}

static hd_status check_plan(const hd_sdpa *a, int64_t row)
{
    for (int64_t b = 0; b < row; b++) // once each
        if (a->plan[b] == a->plan[row]) return HD_OK;
    const hd_plan *p = a->plan[row];
    HD_TRY(hd_plan_check(p, a->q.dim[2], a->q.dim[1], a->k.dim[1]));
    if (sdpa_proxies(p) && (hd_tensor_given(a->bias) || a->segments))
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "sdpa: a proxy has one score for all of its keys: a call whose queries have "
            "biases of their own, or segments, cannot have them; use \"rest\": \"drop\"");
    return HD_OK;
}

// Rounded probabilities sum to 1 together with values in int8; what else they multiply has no
// codes.
static hd_status check_products(const hd_sdpa *a)
{
    if (a->pv != HD_NUMBER_INT8) return HD_OK;
    if (hd_tensor_given(a->indicator))
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "sdpa: probes need exact weights, and \"pv\": \"int8\" rounds them; use "
                       "\"pv\": \"bf16\"");
    if (a->segments && a->segments->gain)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "sdpa: gains of segments change the weights, which \"pv\": \"int8\" has as "
                       "bytes; use \"pv\": \"bf16\"");
    return HD_OK;
}

hd_status sdpa_check_call(const hd_exec *ex, const hd_sdpa *a)
{
    HD_TRY(check_tensors(a));
    HD_TRY(check_products(a));
    for (int64_t b = 0; a->plan && b < a->q.dim[0]; b++)
        if (a->plan[b]) HD_TRY(check_numbers(a->plan[b], a->q.dim[2], a->q.dim[1], a->k.dim[1]));
    if (ex->recording) return HD_OK; // the rest reads what may not be there yet
    HD_TRY(check_lengths(a));
    const hd_sdpa_segments *s = a->segments;
    if (s)
        HD_TRY(check_labels("query", s->query_label, a->q.dim[0] * a->q.dim[1], s->query_labels));
    if (s) HD_TRY(check_labels("key", s->key_label, a->k.dim[0] * a->k.dim[1], s->key_labels));
    for (int64_t b = 0; a->plan && b < a->q.dim[0]; b++)
        if (a->plan[b]) HD_TRY(check_plan(a, b));
    return HD_OK;
}
