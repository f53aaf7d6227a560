/* engine/attention/attention.c: a call with its chain: passes and tokens hooks, logits hooks, the
 * kernel, output hooks. */
#include "engine/attention/attention.h"

#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run_internal.h"
#include "engine/ops/elementwise.h"
#include "engine/ops/sdpa.h"

/* One processor during one call. */
typedef struct active_link {
    run_link *link;
    hd_hook_ctx ctx;
    hd_pass pass[HD_MAX_PASSES];
} active_link;

/* The call as the hooks have left it. */
typedef struct edited_call {
    const hd_exec *ex;
    hd_attention_call call;
    active_link *active;
    int64_t count;
    float *row_scale;
    hd_tensor lse;
} edited_call;

static hd_status run_kernel(const hd_exec *ex, const hd_attention_call *call,
                            const float *row_scale, hd_tensor lse)
{
    hd_sdpa args = {.q = call->q,
                    .k = call->k,
                    .v = call->v,
                    .out = call->out,
                    .key_len = call->key_len,
                    .scale = call->scale,
                    .row_scale = row_scale,
                    .causal = call->causal,
                    .lse = lse};
    return hd_sdpa_run(ex, &args);
}

// States and scratch of a processor that acts in this call.
static hd_status enter(edited_call *e, active_link *a, run_link *link, bool *active)
{
    int64_t rows = e->call.q.dim[0];
    void **state = hd_arena_bytes(e->ex->arena, (size_t)rows * sizeof *state);
    bool *acts = hd_arena_bytes(e->ex->arena, (size_t)rows * sizeof *acts);
    size_t bytes = link->prepared.scratch_bytes;
    void *scratch = bytes ? hd_arena_bytes(e->ex->arena, bytes) : NULL;
    if (!state || !acts || (bytes && !scratch))
        return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
    a->link = link;
    memcpy(a->pass, link->prepared.pass, sizeof a->pass);
    a->ctx = (hd_hook_ctx){.params = link->processor->params,
                           .ex = e->ex,
                           .call = &e->call,
                           .active = acts,
                           .scratch = scratch,
                           .state = state,
                           .pass = a->pass};
    if (e->ex->recording) return HD_OK;
    memcpy(acts, active, (size_t)rows * sizeof *acts);
    for (int64_t b = 0; b < rows; b++) {
        state[b] = NULL;
        const hd_row *row = &e->call.forward->rows.row[b];
        for (run_state *s = link->states; s && !state[b]; s = s->next)
            if (s->row.picture == row->picture && strcmp(s->row.branch, row->branch) == 0 &&
                strcmp(s->row.role, row->role) == 0)
                state[b] = s->bytes;
    }
    return HD_OK;
}

// The result's memory of every pass of one kind, and (not on the dry pass) the pass itself.
static hd_status run_passes(edited_call *e, active_link *a, hd_pass_when when)
{
    const hd_attention_call *c = &e->call;
    for (int i = 0; i < a->link->prepared.passes; i++) {
        hd_pass *p = &a->pass[i];
        if (p->when != when) continue;
        int64_t lq = p->query_len ? p->query_len : c->q.dim[1],
                lk = p->key_len ? p->key_len : c->k.dim[1];
        p->out = hd_arena_tensor(e->ex->arena, c->q.dtype,
                                 hd_shape4(c->q.dim[0], lq, c->q.dim[2], c->v.dim[3]));
        if (!p->out.data) return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
        // the dry pass needs shapes only: those of the call, cut to the pass's lengths
        p->q = c->q, p->k = c->k, p->v = c->v;
        p->q.dim[1] = lq, p->k.dim[1] = p->v.dim[1] = lk;
        p->scale = p->scale != 0.0f ? p->scale : c->scale;
        if (!e->ex->recording) HD_TRY(a->link->processor->class->pass(&a->ctx, i, p));
        hd_attention_call pass = {
            .q = p->q, .k = p->k, .v = p->v, .out = p->out, .scale = p->scale};
        if (lq == c->q.dim[1] && lk == c->k.dim[1])
            pass.key_len = c->key_len, pass.causal = c->causal;
        HD_TRY(run_kernel(e->ex, &pass, NULL, hd_tensor_none()));
    }
    return HD_OK;
}

// A private contiguous copy of a tensor a hook is going to write.
static hd_status own(edited_call *e, hd_tensor *t)
{
    hd_tensor copy = hd_arena_tensor(e->ex->arena, t->dtype, hd_tensor_shape(*t));
    HD_TRY(hd_copy(e->ex, copy, *t));
    *t = copy;
    return HD_OK;
}

static hd_status tokens_hooks(edited_call *e)
{
    bool owned[3] = {false, false, false};
    for (int64_t i = 0; i < e->count; i++) {
        active_link *a = &e->active[i];
        const hd_processor_class *class = a->link->processor->class;
        HD_TRY(run_passes(e, a, HD_PASS_BEFORE));
        if (!class->tokens) continue;
        hd_tensor *part[3] = {&e->call.q, &e->call.k, &e->call.v};
        static const unsigned edits[3] = {HD_EDITS_Q, HD_EDITS_K, HD_EDITS_V};
        for (int j = 0; j < 3; j++) {
            if (!(class->edits & edits[j]) || owned[j]) continue;
            HD_TRY(own(e, part[j]));
            owned[j] = true;
        }
        if (e->ex->recording) continue;
        hd_tokens tokens = {.q = e->call.q, .k = e->call.k, .v = e->call.v};
        HD_TRY(class->tokens(&a->ctx, &tokens));
        e->call.q = tokens.q, e->call.k = tokens.k, e->call.v = tokens.v;
    }
    return HD_OK;
}

static hd_status logits_hooks(edited_call *e)
{
    int64_t rows = e->call.q.dim[0], queries = e->call.q.dim[1];
    for (int64_t i = 0; i < e->count; i++) {
        active_link *a = &e->active[i];
        if (!a->link->processor->class->logits) continue;
        if (!e->row_scale) {
            e->row_scale = hd_arena_bytes(e->ex->arena, (size_t)(rows * queries) * sizeof(float));
            if (!e->row_scale) return hd_fail(HD_ERR_NOMEM, "attention: the arena is full");
            if (!e->ex->recording)
                for (int64_t j = 0; j < rows * queries; j++)
                    e->row_scale[j] = 1.0f;
        }
        if (e->ex->recording) continue;
        hd_logits logits = {
            .ctx = &a->ctx, .row_scale = e->row_scale, .rows = rows, .queries = queries};
        HD_TRY(a->link->processor->class->logits(&a->ctx, &logits));
    }
    return HD_OK;
}

static hd_status output_hooks(edited_call *e)
{
    for (int64_t i = 0; i < e->count; i++) {
        active_link *a = &e->active[i];
        const hd_processor_class *class = a->link->processor->class;
        HD_TRY(run_passes(e, a, HD_PASS_AFTER));
        if (!class->output || e->ex->recording) continue;
        hd_attention_output output = {.out = e->call.out, .lse = e->lse};
        HD_TRY(class->output(&a->ctx, &output));
    }
    return HD_OK;
}

static hd_status run_chain(edited_call *e)
{
    bool wants_lse = false;
    for (int64_t i = 0; i < e->count; i++)
        wants_lse |= (e->active[i].link->processor->class->edits & HD_READS_LSE) != 0;
    HD_TRY(tokens_hooks(e));
    HD_TRY(logits_hooks(e));
    if (wants_lse)
        e->lse = hd_arena_tensor(e->ex->arena, HD_F32,
                                 hd_shape3(e->call.q.dim[0], e->call.q.dim[2], e->call.q.dim[1]));
    HD_TRY(run_kernel(e->ex, &e->call, e->row_scale, e->lse));
    return output_hooks(e);
}

hd_status hd_attention(const hd_exec *ex, const hd_attention_call *call)
{
    const hd_forward *forward = call->forward;
    run_site *site = NULL;
    HD_TRY(hd_exec_check(ex));
    if (forward && forward->run && forward->rows.count > 0) {
        HD_ENSURE(call->q.rank == 4 && forward->rows.count == call->q.dim[0] &&
                  forward->rows.count <= HD_MAX_ROWS);
        if (ex->recording)
            HD_TRY(hd_run_resolve(forward->run, call, &site));
        else
            site = hd_run_site_of(forward->run, &call->site);
    }
    if (!site || site->links == 0) return run_kernel(ex, call, NULL, hd_tensor_none());

    size_t mark = hd_arena_mark(ex->arena);
    edited_call e = {.ex = ex, .call = *call, .lse = hd_tensor_none()};
    active_link active[16];
    HD_ENSURE(site->links <= (int64_t)HD_COUNT(active));
    e.active = active;
    hd_status status = HD_OK;
    for (int64_t i = 0; i < site->links && status == HD_OK; i++) {
        bool acts[HD_MAX_ROWS];
        // on the dry pass everybody acts: the peak is that of the fullest step
        if (ex->recording || hd_run_active(site->link[i].processor, forward, acts))
            status = enter(&e, &active[e.count++], &site->link[i], acts);
    }
    if (status == HD_OK) status = run_chain(&e);
    hd_arena_rewind(ex->arena, mark);
    return status;
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
