/* engine/attention/forms.c: what hooks add to a call beside its tensors: forms of the scores,
 * indicator channels, plans. */
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/call.h"

hd_status hd_call_take(const edited_call *e, void **out, size_t bytes)
{
    *out = hd_arena_bytes(e->ex->arena, bytes);
    return *out ? HD_OK : hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
}

static hd_status take_floats(const edited_call *e, float **out, int64_t count, float value)
{
    void *bytes;
    HD_TRY(hd_call_take(e, &bytes, (size_t)count * sizeof(float)));
    *out = bytes;
    for (int64_t i = 0; i < count && !e->ex->recording; i++)
        (*out)[i] = value;
    return HD_OK;
}

static hd_status take_tensor(const edited_call *e, hd_tensor *out, hd_dtype dtype, hd_shape shape,
                             int byte)
{
    *out = hd_arena_tensor(e->ex->arena, dtype, shape);
    if (!out->data) return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
    if (!e->ex->recording) memset(out->data, byte, (size_t)hd_tensor_bytes(*out));
    return HD_OK;
}

// Rows of two classes with segments do not meet: they share tables of the larger size.
static hd_status take_segments(edited_call *e)
{
    hd_sdpa_segments_edit *s = &e->segments;
    for (int64_t i = 0; i < e->count; i++) {
        const hd_prepare_ctx *asked = &e->active[i].link->prepared;
        if (!(hd_call_class(&e->active[i])->edits & HD_ADDS_SEGMENTS)) continue;
        if (asked->query_labels > s->query_labels) s->query_labels = asked->query_labels;
        if (asked->key_labels > s->key_labels) s->key_labels = asked->key_labels;
    }
    const size_t queries = (size_t)(e->forms.rows * e->forms.queries);
    const size_t keys = (size_t)(e->forms.rows * e->forms.keys);
    const int64_t pairs = e->forms.rows * s->query_labels * s->key_labels;
    void *query, *key;
    HD_TRY(hd_call_take(e, &query, queries));
    HD_TRY(hd_call_take(e, &key, keys));
    HD_TRY(take_floats(e, &s->bias, pairs, 0.0f));
    HD_TRY(take_floats(e, &s->gain, pairs, 1.0f));
    s->query_label = query, s->key_label = key;
    e->forms.segments = s;
    if (e->ex->recording) return HD_OK;
    memset(query, 0, queries);
    memset(key, 0, keys);
    return HD_OK;
}

// Memory only for what a class of the chain adds.
static hd_status take_forms(edited_call *e, const call_link *a)
{
    const unsigned adds = hd_call_class(a)->edits;
    hd_logits *f = &e->forms;
    const hd_shape map = hd_shape4(f->rows, e->call.q.dim[2], f->queries, f->keys);
    if (!f->row_scale) HD_TRY(take_floats(e, &f->row_scale, f->rows * f->queries, 1.0f));
    if ((adds & HD_ADDS_COLUMN_BIAS) && !hd_tensor_given(f->column_bias))
        HD_TRY(take_tensor(e, &f->column_bias, HD_F32,
                           hd_shape3(f->rows, e->call.q.dim[2], f->keys), 0));
    if ((adds & HD_ADDS_BIAS) && !hd_tensor_given(f->bias))
        HD_TRY(take_tensor(e, &f->bias, HD_F32, map, 0));
    if ((adds & HD_ADDS_MASK) && !hd_tensor_given(f->mask))
        HD_TRY(take_tensor(e, &f->mask, HD_BOOL, map, 1));
    if ((adds & HD_ADDS_SEGMENTS) && !f->segments) HD_TRY(take_segments(e));
    return HD_OK;
}

hd_status hd_call_logits(edited_call *e)
{
    e->forms.rows = e->call.q.dim[0], e->forms.queries = e->call.q.dim[1];
    e->forms.keys = e->call.k.dim[1];
    for (int64_t i = 0; i < e->count; i++)
        if (hd_call_class(&e->active[i])->logits) HD_TRY(take_forms(e, &e->active[i]));
    for (int64_t i = 0; i < e->count && !e->ex->recording; i++) {
        const hd_processor_class *class = hd_call_class(&e->active[i]);
        if (!class->logits) continue;
        // a class sees what it may add to
        hd_logits mine = e->forms;
        mine.ctx = &e->active[i].ctx;
        if (!(class->edits & HD_ADDS_COLUMN_BIAS)) mine.column_bias = hd_tensor_none();
        if (!(class->edits & HD_ADDS_BIAS)) mine.bias = hd_tensor_none();
        if (!(class->edits & HD_ADDS_MASK)) mine.mask = hd_tensor_none();
        if (!(class->edits & HD_ADDS_SEGMENTS)) mine.segments = NULL;
        HD_TRY(class->logits(&e->active[i].ctx, &mine));
    }
    return HD_OK;
}

hd_status hd_call_probes(edited_call *e)
{
    for (int64_t i = 0; i < e->count; i++) {
        e->active[i].first_indicator = e->indicators;
        e->indicators += e->active[i].link->prepared.indicators;
    }
    if (e->indicators == 0) return HD_OK;
    const int64_t rows = e->call.q.dim[0], heads = e->call.q.dim[2], queries = e->call.q.dim[1];
    HD_TRY(
        take_tensor(e, &e->indicator, HD_F32, hd_shape3(rows, e->call.k.dim[1], e->indicators), 0));
    HD_TRY(take_tensor(e, &e->probed, HD_F32, hd_shape4(rows, heads, queries, e->indicators), 0));
    for (int64_t i = 0; i < e->count && !e->ex->recording; i++) {
        const call_link *a = &e->active[i];
        if (a->link->prepared.indicators == 0) continue;
        HD_TRY(hd_call_class(a)->probe(&a->ctx, hd_tensor_slice(e->indicator, 2, a->first_indicator,
                                                                a->link->prepared.indicators)));
    }
    return HD_OK;
}

// Rows whose own keys are not what the network handed out.
static void mark_edited(const edited_call *e, bool *edited)
{
    for (int64_t i = 0; i < e->count; i++) {
        const call_link *a = &e->active[i];
        if (!(hd_call_class(a)->edits & (HD_EDITS_K | HD_EDITS_V | HD_MOVES_TOKENS))) continue;
        for (int64_t b = 0; b < e->call.q.dim[0]; b++)
            edited[b] |= a->active[b];
    }
}

// Does a plan of this class not know of keys that others have appended?
static bool lacks_appended(const edited_call *e, const hd_processor_class *class)
{
    return class->static_plan && e->call.k.dim[1] > e->own_keys;
}

// The plan's order of the network's keys, and the appended ones behind it: they are in no tile.
static hd_status append_order(const edited_call *e, hd_plan *plan)
{
    const int64_t own = e->own_keys, all = e->call.k.dim[1];
    const int64_t orders = plan->orders > 1 ? plan->orders : 1;
    void *bytes;
    HD_TRY(hd_call_take(e, &bytes, (size_t)(orders * all) * sizeof(int32_t)));
    int32_t *order = bytes;
    for (int64_t o = 0; o < orders; o++) {
        memcpy(order + o * all, plan->key_order + o * own, (size_t)own * sizeof *order);
        for (int64_t r = own; r < all; r++)
            order[o * all + r] = (int32_t)r;
    }
    plan->key_order = order;
    return HD_OK;
}

// The engine's copy of a plan that a class gave; rows that share an order go on sharing it.
static hd_status keep_plan(edited_call *e, const run_processor *p, const hd_plan **given, int64_t b)
{
    void *bytes;
    HD_TRY(hd_call_take(e, &bytes, sizeof(hd_plan)));
    hd_plan *copy = bytes;
    *copy = *given[b];
    copy->rest = p->plan.rest;
    e->plan[b] = copy;
    if (!copy->key_order || !lacks_appended(e, p->class)) return HD_OK;
    for (int64_t other = 0; other < b; other++) {
        if (!given[other] || given[other]->key_order != copy->key_order) continue;
        copy->key_order = e->plan[other]->key_order;
        return HD_OK;
    }
    return append_order(e, copy);
}

static hd_status ask_plan(edited_call *e, call_link *a, const bool *edited)
{
    const run_processor *p = a->link->processor;
    const hd_plan *plan[HD_MAX_ROWS] = {NULL};
    bool asked[HD_MAX_ROWS], any = false;
    for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
        asked[b] = a->active[b] && !(edited[b] && p->plan.on_edit == HD_ON_EDIT_DENSE);
        any |= asked[b];
        if (a->active[b]) e->number[b] = (uint8_t)(hd_call_number(&p->plan));
    }
    if (!any) return HD_OK;
    hd_hook_ctx ctx = a->ctx;
    ctx.active = asked;
    const hd_tokens tokens = {e->call.q, e->call.k, e->call.v, e->query_len, e->key_len};
    HD_TRY(p->class->plan(&ctx, &tokens, plan));
    for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
        if (!asked[b] || !plan[b]) continue;
        if (p->plan.rest == HD_REST_PROXY && plan[b]->box_extent[0])
            return hd_json_fail(p->node, HD_ERR_UNSUPPORTED,
                                "(%s) visits boxes of keys that start anywhere: no fixed tile is "
                                "left for a proxy to stand for; \"rest\" must be \"drop\"",
                                p->class->name);
        HD_TRY(keep_plan(e, p, plan, b));
    }
    return HD_OK;
}

// Room for what keep_plan takes.
static hd_status reserve_plans(const edited_call *e, const hd_processor_class *class)
{
    void *room;
    for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
        HD_TRY(hd_call_take(e, &room, sizeof(hd_plan)));
        if (lacks_appended(e, class))
            HD_TRY(hd_call_take(e, &room,
                                (size_t)(e->call.q.dim[2] * e->call.k.dim[1]) * sizeof(int32_t)));
    }
    return HD_OK;
}

hd_status hd_call_plans(edited_call *e)
{
    bool edited[HD_MAX_ROWS] = {false};
    double begin = hd_call_seconds(e);
    mark_edited(e, edited);
    for (int64_t i = 0; i < e->count; i++) {
        call_link *a = &e->active[i];
        if (!hd_call_class(a)->plan) continue;
        e->planned = true;
        if (e->ex->recording)
            HD_TRY(reserve_plans(e, hd_call_class(a)));
        else
            HD_TRY(ask_plan(e, a, edited));
    }
    e->plan_seconds = hd_call_seconds(e) - begin;
    return HD_OK;
}
