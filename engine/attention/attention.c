/* engine/attention/attention.c: a call with its chain: passes and tokens hooks, what is added to
 * scores and values, the kernel, output hooks. */
#include "engine/attention/attention.h"

#include <string.h>
#include <time.h>

#include "engine/arena.h"
#include "engine/attention/call.h"
#include "engine/blocks/heads.h"
#include "engine/ops/elementwise.h"

double hd_call_seconds(const edited_call *e)
{
    struct timespec t;
    if (!e->run || !e->run->watch) return 0;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// States and scratch of a processor that acts in this call.
static hd_status enter(edited_call *e, call_link *a)
{
    const run_link *link = a->link;
    void *scratch = NULL;
    if (link->prepared.scratch_bytes)
        HD_TRY(hd_call_take(e, &scratch, link->prepared.scratch_bytes));
    memcpy(a->pass, link->prepared.pass, sizeof a->pass);
    a->ctx = (hd_hook_ctx){.params = link->processor->params,
                           .ex = e->ex,
                           .call = &e->call,
                           .given = e->given,
                           .active = a->active,
                           .scratch = scratch,
                           .made = link->prepared.made,
                           .state = a->state,
                           .picture_state = a->picture_state,
                           .pass = a->pass,
                           .text_kv = e->text_kv};
    for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
        const hd_row *row = &e->call.forward->rows.row[b];
        a->state[b] = NULL;
        a->picture_state[b] = hd_run_picture_state(link->processor, row->picture);
        for (const run_state *s = link->states; s && !a->state[b]; s = s->next)
            if (s->row.picture == row->picture && strcmp(s->row.branch, row->branch) == 0 &&
                strcmp(s->row.role, row->role) == 0)
                a->state[b] = s->bytes;
    }
    return HD_OK;
}

static hd_status run_pass(edited_call *e, const call_link *a, const hd_pass *p)
{
    int64_t query_len[HD_MAX_ROWS], key_len[HD_MAX_ROWS];
    for (int64_t b = 0; b < e->call.q.dim[0]; b++) {
        const bool runs = a->active[b] && (!p->rows || p->rows[b]);
        query_len[b] = !runs ? 0 : p->query_len ? p->query_len : e->query_len[b];
        key_len[b] = p->key_len ? p->key_len : e->key_len[b];
        e->pass_pairs += (double)query_len[b] * (double)key_len[b] * (double)p->q.dim[2];
    }
    hd_sdpa args = {.q = p->q,
                    .k = p->k,
                    .v = p->v,
                    .out = p->out,
                    .query_len = query_len,
                    .key_len = key_len,
                    .scale = p->scale,
                    .causal = e->call.causal && !p->query_len && !p->key_len,
                    .lse = p->wants_lse ? p->lse : hd_tensor_none()};
    return hd_sdpa_run(e->ex, &args);
}

// The result's memory of every pass of one kind, and (not on the dry pass) the pass itself.
static hd_status run_passes(edited_call *e, call_link *a, hd_pass_when when)
{
    const hd_attention_call *c = &e->call;
    for (int i = 0; i < a->link->prepared.passes; i++) {
        hd_pass *p = &a->pass[i];
        if (p->when != when) continue;
        int64_t lq = p->query_len ? p->query_len : c->q.dim[1],
                lk = p->key_len ? p->key_len : c->k.dim[1];
        p->out = hd_arena_tensor(e->ex->arena, c->q.dtype,
                                 hd_shape4(c->q.dim[0], lq, c->q.dim[2], c->v.dim[3]));
        if (p->wants_lse)
            p->lse = hd_arena_tensor(e->ex->arena, HD_F32, hd_shape3(c->q.dim[0], c->q.dim[2], lq));
        if (!p->out.data || (p->wants_lse && !p->lse.data))
            return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
        // the dry pass needs shapes only: those of the call, cut to the pass's lengths
        p->q = c->q, p->k = c->k, p->v = c->v;
        p->q.dim[1] = lq, p->k.dim[1] = p->v.dim[1] = lk;
        p->scale = p->scale != 0.0f ? p->scale : c->scale;
        if (!e->ex->recording) HD_TRY(hd_call_class(a)->pass(&a->ctx, i, p));
        HD_TRY(p->like_call ? hd_call_like(e, p, a->active) : run_pass(e, a, p));
    }
    return HD_OK;
}

// A private contiguous copy of a tensor a hook is going to write, with room for more tokens.
static hd_status own(const edited_call *e, hd_tensor *t, int64_t tokens)
{
    hd_tensor copy =
        hd_arena_tensor(e->ex->arena, t->dtype, hd_shape4(t->dim[0], tokens, t->dim[2], t->dim[3]));
    HD_TRY(hd_copy(e->ex, copy.data ? hd_tensor_slice(copy, 1, 0, t->dim[1]) : copy, *t));
    *t = copy;
    return HD_OK;
}

// Keys and values with room for those that the acting processors append.
static hd_status make_room(edited_call *e, bool *owned)
{
    int64_t extra = 0;
    for (int64_t i = 0; i < e->count; i++)
        extra += e->active[i].link->prepared.extra_keys;
    if (extra == 0) return HD_OK;
    const hd_tensor k = e->call.k, v = e->call.v;
    HD_TRY(hd_call_append(&e->call, extra));
    e->call.k = k, e->call.v = v;
    HD_TRY(own(e, &e->call.k, k.dim[1] + extra));
    HD_TRY(own(e, &e->call.v, v.dim[1] + extra));
    owned[1] = owned[2] = true;
    return HD_OK;
}

// A tokens hook may belong to a program: what it leaves is checked.
static hd_status check_tokens(const edited_call *e, const call_link *a, const hd_tokens *t)
{
    const hd_attention_call *c = &e->call;
    HD_TRY(hd_expect_like("attention: q after a tokens hook", t->q, c->q));
    HD_TRY(hd_expect_like("attention: k after a tokens hook", t->k, c->k));
    HD_TRY(hd_expect_like("attention: v after a tokens hook", t->v, c->v));
    for (int64_t b = 0; b < c->q.dim[0]; b++)
        if (e->query_len[b] < 0 || e->query_len[b] > c->q.dim[1] || e->key_len[b] < 1 ||
            e->key_len[b] > c->k.dim[1])
            return hd_json_fail(a->link->processor->node, HD_ERR_INTERNAL,
                                "(%s) leaves %lld queries and %lld keys of %lld and %lld",
                                hd_call_class(a)->name, (long long)e->query_len[b],
                                (long long)e->key_len[b], (long long)c->q.dim[1],
                                (long long)c->k.dim[1]);
    return HD_OK;
}

// Tokens that have moved are a row of tokens without places.
static void forget_places(hd_token_layout *layout, int64_t tokens)
{
    hd_token_kind kind = layout->segments == 1 ? layout->segment[0].kind : HD_TOKENS_ALL;
    *layout = (hd_token_layout){.segments = 1};
    layout->segment[0] = (hd_token_segment){kind, 0, tokens, 0, 0, 0};
}

static hd_status tokens_hook(edited_call *e, call_link *a, bool *owned)
{
    const hd_processor_class *class = hd_call_class(a);
    hd_tensor *part[3] = {&e->call.q, &e->call.k, &e->call.v};
    static const unsigned edits[3] = {HD_EDITS_Q, HD_EDITS_K, HD_EDITS_V};
    for (int j = 0; j < 3; j++) {
        if (!(class->edits & edits[j]) || owned[j]) continue;
        HD_TRY(own(e, part[j], part[j]->dim[1]));
        owned[j] = true;
    }
    if (e->ex->recording) return HD_OK;
    hd_tokens tokens = {e->call.q, e->call.k, e->call.v, e->query_len, e->key_len};
    HD_TRY(class->tokens(&a->ctx, &tokens));
    HD_TRY(check_tokens(e, a, &tokens));
    e->call.q = tokens.q, e->call.k = tokens.k, e->call.v = tokens.v;
    if (class->edits & HD_MOVES_TOKENS) {
        if (class->edits & HD_EDITS_Q) forget_places(&e->call.q_layout, e->call.q.dim[1]);
        if (class->edits & HD_EDITS_K) forget_places(&e->call.k_layout, e->call.k.dim[1]);
    }
    return HD_OK;
}

static hd_status tokens_hooks(edited_call *e)
{
    bool owned[3] = {false, false, false};
    HD_TRY(make_room(e, owned));
    for (int64_t i = 0; i < e->count; i++) {
        HD_TRY(run_passes(e, &e->active[i], HD_PASS_BEFORE));
        if (hd_call_class(&e->active[i])->tokens) HD_TRY(tokens_hook(e, &e->active[i], owned));
    }
    return HD_OK;
}

static hd_status output_hook(edited_call *e, call_link *a)
{
    const hd_processor_class *class = hd_call_class(a);
    HD_TRY(run_passes(e, a, HD_PASS_AFTER));
    if (!class->output || e->ex->recording) return HD_OK;
    hd_attention_output output = {e->call.out, e->lse, hd_tensor_none()};
    if (a->link->prepared.indicators)
        output.probed =
            hd_tensor_slice(e->probed, 3, a->first_indicator, a->link->prepared.indicators);
    return class->output(&a->ctx, &output);
}

// Those that moved tokens put them back first.
static hd_status output_hooks(edited_call *e)
{
    for (int round = 0; round < 2; round++)
        for (int64_t i = 0; i < e->count; i++) {
            const bool moves = hd_call_class(&e->active[i])->edits & HD_MOVES_TOKENS;
            if (moves == (round == 0)) HD_TRY(output_hook(e, &e->active[i]));
        }
    return HD_OK;
}

// Rows whose result one processor writes anew and nobody else looks at.
static void leave_out(edited_call *e)
{
    for (int64_t b = 0; b < e->call.q.dim[0] && !e->ex->recording && !e->run->watch; b++) {
        bool replaced = false;
        int64_t lookers = 0;
        for (int64_t i = 0; i < e->count; i++) {
            const call_link *a = &e->active[i];
            const hd_processor_class *class = hd_call_class(a);
            if (!a->active[b]) continue;
            lookers += class->output || class->probe;
            replaced |= class->replaces && class->replaces(&a->ctx, b);
        }
        e->left_out[b] = replaced && lookers == 1;
    }
}

static hd_status run_chain(edited_call *e)
{
    bool wants_lse = false;
    const hd_attention_call *c = &e->call;
    for (int64_t b = 0; b < c->q.dim[0]; b++) {
        e->query_len[b] = c->q.dim[1];
        e->key_len[b] = c->key_len ? c->key_len[b] : c->k.dim[1];
    }
    for (int64_t i = 0; i < e->count; i++) {
        HD_TRY(enter(e, &e->active[i]));
        wants_lse |= (hd_call_class(&e->active[i])->edits & HD_READS_LSE) != 0;
    }
    HD_TRY(tokens_hooks(e));
    HD_TRY(hd_call_logits(e));
    HD_TRY(hd_call_probes(e));
    HD_TRY(hd_call_plans(e));
    if (wants_lse) {
        e->lse =
            hd_arena_tensor(e->ex->arena, HD_F32, hd_shape3(c->q.dim[0], c->q.dim[2], c->q.dim[1]));
        if (!e->lse.data) return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
    }
    leave_out(e);
    HD_TRY(hd_call_kernel(e));
    return output_hooks(e);
}

static hd_status run_plain(const hd_exec *ex, const hd_attention_call *call)
{
    hd_sdpa args = {.q = call->q,
                    .k = call->k,
                    .v = call->v,
                    .out = call->out,
                    .key_len = call->key_len,
                    .scale = call->scale,
                    .causal = call->causal};
    return hd_sdpa_run(ex, &args);
}

// The processors that act in this call, in preset order.
static void find_active(edited_call *e, const run_site *site)
{
    for (int64_t i = 0; i < site->links; i++) {
        call_link *a = &e->active[e->count];
        a->link = &site->link[i];
        memset(a->active, 0, (size_t)e->call.q.dim[0] * sizeof *a->active);
        // on the dry pass everybody acts: the peak is that of the fullest step
        if (hd_run_active(site->link[i].processor, e->call.forward, a->active) || e->ex->recording)
            e->count++;
    }
}

hd_status hd_attention(const hd_exec *ex, const hd_attention_call *call)
{
    const hd_forward *forward = call->forward;
    run_site *site = NULL;
    HD_TRY(hd_exec_check(ex));
    if (forward && forward->run && forward->rows.count > 0) {
        HD_ENSURE(call->q.rank == 4 && call->k.rank == 4 && call->v.rank == 4);
        HD_ENSURE(forward->rows.count == call->q.dim[0] && forward->rows.count <= HD_MAX_ROWS);
        if (ex->recording)
            HD_TRY(hd_run_resolve(forward->run, call, &site));
        else
            site = hd_run_site_of(forward->run, &call->site);
    }
    if (!site || (site->links == 0 && !forward->run->watch)) return run_plain(ex, call);

    size_t mark = hd_arena_mark(ex->arena);
    edited_call e = {.ex = ex,
                     .run = forward->run,
                     .call = *call,
                     .given = call,
                     .active = forward->run->active,
                     .own_keys = call->k.dim[1],
                     .text_kv = site->own_kv};
    find_active(&e, site);
    hd_status status = run_chain(&e);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

void hd_hook_text(const hd_hook_ctx *ctx, int number, hd_tensor *k, hd_tensor *v)
{
    const hd_tensor like = ctx->call->k, kv = hd_tensor_slice(ctx->text_kv, 0, number, 1);
    const int64_t heads = like.dim[2], size = like.dim[3];
    *k = hd_heads_view(kv, 0, heads, size);
    *v = hd_heads_view(kv, heads * size, heads, ctx->call->v.dim[3]);
}

hd_status hd_logits_scale_rows(hd_logits *logits, const hd_token_layout *layout, hd_token_kind kind,
                               float factor)
{
    for (int64_t b = 0; b < logits->rows; b++) {
        if (!logits->ctx->active[b]) continue;
        float *row = logits->row_scale + b * logits->queries;
        for (int s = 0; s < layout->segments; s++) {
            const hd_token_segment *segment = &layout->segment[s];
            if (kind != HD_TOKENS_ALL && kind != segment->kind) continue;
            for (int64_t i = segment->start; i < segment->start + segment->count; i++)
                row[i] *= factor;
        }
    }
    return HD_OK;
}
