/* engine/attention/kernel.c: the end of a call: one streaming pass over all rows; one more for each
 * number format that some rows ask for; or the explicit map. */
#include "engine/attention/call.h"

static bool row_lengths_differ(const int64_t *length, int64_t rows, int64_t all)
{
    for (int64_t b = 0; b < rows; b++)
        if (length[b] != all) return true;
    return false;
}

// Names the processor that asked for numbers this machine has not.
static hd_status refuse_number(const edited_call *e, int number, hd_status status)
{
    for (int64_t i = 0; i < e->count; i++) {
        const run_processor *p = e->active[i].link->processor;
        if (status == HD_ERR_UNSUPPORTED && p->class->plan && number == hd_call_number(&p->plan))
            return hd_run_refuse(p, &e->call.site, status);
    }
    return status;
}

// The rows of one pair of number formats; the others have no queries in this pass.
static hd_status stream(edited_call *e, int number, const int64_t *query_len)
{
    const hd_attention_call *c = &e->call;
    const hd_logits *f = &e->forms;
    const int64_t rows = c->q.dim[0];
    const hd_sdpa_segments segments = {f->segments ? e->segments.query_label : NULL,
                                       e->segments.key_label,
                                       e->segments.query_labels,
                                       e->segments.key_labels,
                                       e->segments.bias,
                                       e->segments.gain};
    int64_t visited = 0;
    hd_sdpa args = {
        .q = c->q,
        .k = c->k,
        .v = c->v,
        .out = c->out,
        .query_len = row_lengths_differ(query_len, rows, c->q.dim[1]) ? query_len : NULL,
        .key_len = row_lengths_differ(e->key_len, rows, c->k.dim[1]) ? e->key_len : NULL,
        .scale = c->scale,
        .row_scale = f->row_scale,
        .column_bias = f->column_bias,
        .bias = f->bias,
        .mask = f->mask,
        .segments = f->segments ? &segments : NULL,
        .causal = c->causal,
        .lse = e->lse,
        .indicator = e->indicator,
        .probed = e->probed,
        .plan = e->planned ? e->plan : NULL,
        .qk = (hd_attention_number)(number % 2),
        .pv = (hd_attention_number)(number / 2),
        .visited = &visited};
    hd_status status = hd_sdpa_run(e->ex, &args);
    e->visited += visited;
    return number && status != HD_OK ? refuse_number(e, number, status) : status;
}

// On the dry pass nothing is known of the rows: every pair that a processor may ask for.
static hd_status stream_dry(edited_call *e)
{
    bool wanted[HD_CALL_NUMBERS] = {true};
    for (int64_t i = 0; i < e->count; i++) {
        const run_processor *p = e->active[i].link->processor;
        if (p->class->plan) wanted[hd_call_number(&p->plan)] = true;
    }
    for (int n = 0; n < HD_CALL_NUMBERS; n++)
        if (wanted[n]) HD_TRY(stream(e, n, e->query_len));
    return HD_OK;
}

static hd_status stream_all(edited_call *e)
{
    for (int n = 0; n < HD_CALL_NUMBERS; n++) {
        int64_t query_len[HD_MAX_ROWS] = {0};
        bool any = false;
        for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
            if (e->number[b] != n || e->left_out[b]) continue;
            query_len[b] = e->query_len[b];
            any = true;
        }
        if (any) HD_TRY(stream(e, n, query_len));
    }
    return HD_OK;
}

hd_status hd_call_like(const edited_call *e, const hd_pass *pass, const bool *rows)
{
    edited_call like = *e;
    like.call.q = pass->q, like.call.k = pass->k, like.call.v = pass->v;
    like.call.out = pass->out;
    like.call.scale = pass->scale;
    like.planned = e->planned && !pass->every_key;
    like.lse = pass->wants_lse ? pass->lse : hd_tensor_none();
    like.indicator = like.probed = hd_tensor_none();
    for (int64_t b = 0; b < e->call.q.dim[0]; b++)
        like.left_out[b] = !rows[b] || (pass->rows && !pass->rows[b]);
    return e->ex->recording ? stream_dry(&like) : stream_all(&like);
}

static hd_status tell(const edited_call *e, double begin)
{
    if (!e->run || !e->run->watch) return HD_OK;
    hd_attention_call call = e->call;
    call.key_len = e->key_len;
    const hd_attention_seen seen = {.ex = e->ex,
                                    .call = &call,
                                    .query_len = e->query_len,
                                    .key_len = e->key_len,
                                    .plan = e->plan,
                                    .planned = e->planned,
                                    .mapped = e->mapped,
                                    .visited = e->visited,
                                    .pass_pairs = e->pass_pairs,
                                    .plan_seconds = e->plan_seconds,
                                    .kernel_seconds = hd_call_seconds(e) - begin};
    return e->run->watch(e->run->watch_user, &seen);
}

hd_status hd_call_kernel(edited_call *e)
{
    double begin = hd_call_seconds(e);
    for (int64_t i = 0; i < e->count; i++)
        e->mapped |= hd_call_class(&e->active[i])->map != NULL;
    if (e->mapped) HD_TRY(hd_call_map(e));
    if (e->ex->recording) // those with a map may act at some steps only
        HD_TRY(stream_dry(e));
    else if (!e->mapped)
        HD_TRY(stream_all(e));
    return tell(e, begin);
}
