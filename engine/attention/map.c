/* engine/attention/map.c: attention with its map in memory, for processors that read or edit the
 * probabilities: P = softmax of all scores, the map hooks, then P V.
 *
 * The last resort: memory grows with queries x keys. Everything that the streaming kernel adds to
 * scores and values is added here too. */
#include <math.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/call.h"
#include "engine/ops/elementwise.h"

enum { MAP_QUERIES = 16 }; // of an item of work

typedef struct map_run {
    const edited_call *e;
    int64_t rows, heads, key_heads, queries, keys, dim, value_dim;
    int64_t blocks;            // of a head's queries
    hd_tensor p;               // [B, H, Lq, Lk]
    hd_tensor keys_by_channel; // [B, Hk, D, Lk] f32: the inner loop runs along the keys
    hd_tensor values;          // [B, Lk, Hk, Dv] f32
    float *scratch;            // [threads][max(D, Dv)]
} map_run;

static float load(hd_tensor t, int64_t at)
{
    if (t.dtype == HD_F32) return ((const float *)t.data)[at];
    return hd_bf16_to_f32(((const uint16_t *)t.data)[at]);
}

static int64_t token_at(hd_tensor t, int64_t row, int64_t token, int64_t head)
{
    return row * t.stride[0] + token * t.stride[1] + head * t.stride[2];
}

// Item: the keys of one row and key head, channel by channel.
static hd_status turn_keys(void *arg, int64_t item, int thread)
{
    const map_run *m = arg;
    (void)thread;
    const int64_t row = item / m->key_heads, head = item % m->key_heads;
    const hd_tensor k = m->e->call.k;
    float *to = (float *)m->keys_by_channel.data + item * m->dim * m->keys;
    for (int64_t j = 0; j < m->e->key_len[row]; j++) {
        const int64_t from = token_at(k, row, j, head);
        for (int64_t d = 0; d < m->dim; d++)
            to[d * m->keys + j] = load(k, from + d);
    }
    return HD_OK;
}

static const float *edit_row(hd_tensor t, int64_t row, int64_t head, int64_t query)
{
    return (const float *)t.data + row * t.stride[0] + head * t.stride[1] + query * t.stride[2];
}

// What the forms add to the scores of one query; -infinity where it does not look.
static void add_forms(const map_run *m, int64_t row, int64_t head, int64_t query, float *score,
                      int64_t keys)
{
    const hd_logits *f = &m->e->forms;
    if (hd_tensor_given(f->column_bias)) {
        const float *bias = (const float *)f->column_bias.data + (row * m->heads + head) * m->keys;
        for (int64_t j = 0; j < keys; j++)
            score[j] += bias[j];
    }
    if (hd_tensor_given(f->bias)) {
        const float *bias = edit_row(f->bias, row, head, query);
        for (int64_t j = 0; j < keys; j++)
            score[j] += bias[j];
    }
    if (f->segments) {
        const hd_sdpa_segments_edit *s = f->segments;
        const float *bias =
            s->bias +
            (row * s->query_labels + s->query_label[row * m->queries + query]) * s->key_labels;
        for (int64_t j = 0; j < keys; j++)
            score[j] += bias[s->key_label[row * m->keys + j]];
    }
    if (hd_tensor_given(f->mask)) {
        const bool *seen = (const bool *)f->mask.data + row * f->mask.stride[0] +
                           head * f->mask.stride[1] + query * f->mask.stride[2];
        for (int64_t j = 0; j < keys; j++)
            if (!seen[j]) score[j] = -INFINITY;
    }
    for (int64_t j = query + 1; m->e->call.causal && j < keys; j++)
        score[j] = -INFINITY;
}

// Scores to probabilities; the row's log-sum-exp, -infinity if it sees no key: then all are 0.
static float softmax_row(float *p, int64_t keys)
{
    float most = -INFINITY;
    double sum = 0;
    for (int64_t j = 0; j < keys; j++)
        if (p[j] > most) most = p[j];
    for (int64_t j = 0; j < keys; j++) {
        p[j] = most == -INFINITY ? 0.0f : expf(p[j] - most);
        sum += (double)p[j];
    }
    const float factor = sum > 0 ? (float)(1.0 / sum) : 0.0f;
    for (int64_t j = 0; j < keys; j++)
        p[j] *= factor;
    return sum > 0 ? most + (float)log(sum) : -INFINITY;
}

static float *map_row(const map_run *m, int64_t row, int64_t head, int64_t query)
{
    return (float *)m->p.data + ((row * m->heads + head) * m->queries + query) * m->keys;
}

typedef struct map_item {
    int64_t row, head, key_head, first, end;
} map_item;

static map_item item_of(const map_run *m, int64_t item)
{
    map_item i = {.row = item / m->blocks / m->heads, .head = item / m->blocks % m->heads};
    i.key_head = i.head / (m->heads / m->key_heads);
    i.first = item % m->blocks * MAP_QUERIES;
    i.end = i.first + MAP_QUERIES;
    if (i.end > m->e->query_len[i.row]) i.end = m->e->query_len[i.row];
    return i;
}

// Item: some queries of one row and head: their rows of the map.
static hd_status make_map(void *arg, int64_t item, int thread)
{
    const map_run *m = arg;
    const edited_call *e = m->e;
    const map_item at = item_of(m, item);
    const int64_t keys = e->key_len[at.row];
    const int64_t width = m->dim > m->value_dim ? m->dim : m->value_dim;
    float *q = m->scratch + thread * width;
    for (int64_t i = at.first; i < at.end; i++) {
        float *p = map_row(m, at.row, at.head, i);
        float scale = e->call.scale;
        if (e->forms.row_scale) scale *= e->forms.row_scale[at.row * m->queries + i];
        for (int64_t d = 0; d < m->dim; d++)
            q[d] = scale * load(e->call.q, token_at(e->call.q, at.row, i, at.head) + d);
        memset(p, 0, (size_t)m->keys * sizeof *p);
        for (int64_t d = 0; d < m->dim; d++) {
            const float *k = (const float *)m->keys_by_channel.data +
                             ((at.row * m->key_heads + at.key_head) * m->dim + d) * m->keys;
            const float x = q[d];
            for (int64_t j = 0; j < keys; j++)
                p[j] += x * k[j];
        }
        add_forms(m, at.row, at.head, i, p, keys);
        const float lse = softmax_row(p, keys);
        if (hd_tensor_given(e->lse))
            ((float *)e->lse.data)[(at.row * m->heads + at.head) * m->queries + i] = lse;
    }
    return HD_OK;
}

static void add_value(float *sum, const float *value, float weight, int64_t count)
{
    for (int64_t d = 0; d < count; d++)
        sum[d] += weight * value[d];
}

static void probe_row(const map_run *m, const map_item *at, int64_t query, const float *p)
{
    const int64_t n = m->e->indicators;
    float *probed =
        (float *)m->e->probed.data + ((at->row * m->heads + at->head) * m->queries + query) * n;
    const float *indicator = (const float *)m->e->indicator.data + at->row * m->keys * n;
    memset(probed, 0, (size_t)n * sizeof *probed);
    for (int64_t j = 0; j < m->e->key_len[at->row]; j++)
        add_value(probed, indicator + j * n, p[j], n);
}

// Item: the same queries: what the edited map makes of the values.
static hd_status use_map(void *arg, int64_t item, int thread)
{
    const map_run *m = arg;
    const edited_call *e = m->e;
    const map_item at = item_of(m, item);
    const int64_t width = m->dim > m->value_dim ? m->dim : m->value_dim;
    const hd_sdpa_segments_edit *s = e->forms.segments;
    const hd_tensor out = e->call.out;
    float *sum = m->scratch + thread * width;
    for (int64_t i = at.first; i < at.end; i++) {
        const float *p = map_row(m, at.row, at.head, i);
        const float *gain = NULL;
        if (s)
            gain = s->gain + (at.row * s->query_labels + s->query_label[at.row * m->queries + i]) *
                                 s->key_labels;
        memset(sum, 0, (size_t)m->value_dim * sizeof *sum);
        for (int64_t j = 0; j < e->key_len[at.row]; j++) {
            const float factor = gain ? gain[s->key_label[at.row * m->keys + j]] : 1.0f;
            const float *value =
                (const float *)m->values.data +
                ((at.row * m->keys + j) * m->key_heads + at.key_head) * m->value_dim;
            add_value(sum, value, p[j] * factor, m->value_dim);
        }
        const int64_t to = token_at(out, at.row, i, at.head);
        for (int64_t d = 0; d < m->value_dim; d++) {
            if (out.dtype == HD_F32)
                ((float *)out.data)[to + d] = sum[d];
            else
                ((uint16_t *)out.data)[to + d] = hd_bf16_from_f32(sum[d]);
        }
        if (e->indicators) probe_row(m, &at, i, p);
    }
    return HD_OK;
}

static hd_status take_map(map_run *m)
{
    struct hd_arena *arena = m->e->ex->arena;
    const int64_t width = m->dim > m->value_dim ? m->dim : m->value_dim;
    const int64_t threads = hd_pool_threads(m->e->ex->pool);
    m->p = hd_arena_tensor(arena, HD_F32, hd_shape4(m->rows, m->heads, m->queries, m->keys));
    m->keys_by_channel =
        hd_arena_tensor(arena, HD_F32, hd_shape4(m->rows, m->key_heads, m->dim, m->keys));
    m->values =
        hd_arena_tensor(arena, HD_F32, hd_shape4(m->rows, m->keys, m->key_heads, m->value_dim));
    m->scratch = hd_arena_bytes(arena, (size_t)(threads * width) * sizeof(float));
    if (!m->p.data || !m->keys_by_channel.data || !m->values.data || !m->scratch)
        return hd_fail(HD_ERR_NOMEM,
                       "attention: no memory for a map of %lld x %lld tokens: the arena is full",
                       (long long)m->queries, (long long)m->keys);
    return HD_OK;
}

static hd_status check_type(const edited_call *e)
{
    if (e->call.q.dtype == HD_F32 || e->call.q.dtype == HD_BF16) return HD_OK;
    return hd_fail(HD_ERR_UNSUPPORTED, "attention: q is %s, must be f32 or bf16",
                   hd_dtype_name(e->call.q.dtype));
}

static hd_status run_map(edited_call *e, map_run *m)
{
    hd_pool *pool = e->ex->pool;
    const int64_t items = m->rows * m->heads * m->blocks;
    HD_TRY(hd_copy(e->ex, m->values, e->call.v));
    if (e->ex->recording) return HD_OK;
    HD_TRY(hd_parallel_for(pool, m->rows * m->key_heads, turn_keys, m));
    HD_TRY(hd_parallel_for(pool, items, make_map, m));
    hd_attention_map map = {m->p};
    for (int64_t i = 0; i < e->count; i++) {
        const hd_processor_class *class = hd_call_class(&e->active[i]);
        if (class->map) HD_TRY(class->map(&e->active[i].ctx, &map));
    }
    return hd_parallel_for(pool, items, use_map, m);
}

hd_status hd_call_map(edited_call *e)
{
    const hd_attention_call *c = &e->call;
    HD_TRY(check_type(e));
    map_run m = {.e = e,
                 .rows = c->q.dim[0],
                 .heads = c->q.dim[2],
                 .key_heads = c->k.dim[2],
                 .queries = c->q.dim[1],
                 .keys = c->k.dim[1],
                 .dim = c->q.dim[3],
                 .value_dim = c->v.dim[3]};
    m.blocks = (m.queries + MAP_QUERIES - 1) / MAP_QUERIES;
    const size_t mark = hd_arena_mark(e->ex->arena);
    hd_status status = take_map(&m);
    if (status == HD_OK) status = run_map(e, &m);
    hd_arena_rewind(e->ex->arena, mark);
    return status;
}
