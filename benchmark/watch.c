/* benchmark/watch.c: counts the calls of a run from what the engine shows of them. */
#include "benchmark/watch.h"

#include "engine/attention/planner/builder.h"
#include "engine/ops/sdpa.h"

enum { DENSE_QUERY_TILE = 64 }; // what dense bytes are counted with

// One row of a call.
static hd_status count_row(hd_bench_watch *w, const hd_attention_seen *seen, int64_t row)
{
    const hd_attention_call *c = seen->call;
    const int64_t heads = c->q.dim[2], dim = c->q.dim[3], value_dim = c->v.dim[3];
    const int64_t queries = seen->query_len[row], keys = seen->key_len[row];
    const hd_plan *plan = seen->planned ? seen->plan[row] : NULL;
    const double size = (double)hd_dtype_size(c->q.dtype);
    hd_plan_stats s = {0};
    if (plan) {
        HD_TRY(hd_plan_measure(&s, plan, heads, queries, keys, dim, value_dim,
                               hd_dtype_size(c->q.dtype)));
    } else {
        const double tiles = (double)((queries + DENSE_QUERY_TILE - 1) / DENSE_QUERY_TILE);
        s.executed_flops = s.useful_flops =
            2.0 * (double)(dim + value_dim) * (double)heads * (double)queries * (double)keys;
        s.streamed_bytes = (double)heads * (double)(dim + value_dim) * size *
                           ((double)queries + tiles * (double)keys);
    }
    w->executed += s.executed_flops;
    w->useful += s.useful_flops;
    w->bytes += s.streamed_bytes;
    return HD_OK;
}

// What a processor has attended to beside the call: agents.
static void count_passes(hd_bench_watch *w, const hd_attention_seen *seen)
{
    const hd_attention_call *c = seen->call;
    const double per_pair = 2.0 * (double)(c->q.dim[3] + c->v.dim[3]);
    w->executed += seen->pass_pairs * per_pair;
    w->useful += seen->pass_pairs * per_pair;
}

// The log-sum-exp of every query over the keys it sees, in the call's own type: the same plans
// without their proxies once more.
static hd_status take_lse(hd_bench_watch *w, const hd_attention_seen *seen)
{
    const hd_attention_call *c = seen->call;
    const int64_t rows = c->q.dim[0];
    hd_plan copy[HD_MAX_ROWS];
    const hd_plan *plan[HD_MAX_ROWS];
    for (int64_t b = 0; b < rows; b++) {
        plan[b] = NULL;
        if (seen->query_len[b] != w->spare.dim[1]) return HD_OK; // tokens are gone: no such rows
        if (!seen->planned || !seen->plan[b]) continue;
        copy[b] = *seen->plan[b];
        copy[b].rest = HD_REST_DROP;
        plan[b] = &copy[b];
    }
    const hd_sdpa args = {
        .q = c->q,
        .k = c->k,
        .v = c->v,
        .out = w->spare,
        .key_len = seen->key_len,
        .scale = c->scale,
        .causal = c->causal,
        .lse = hd_tensor_of(w->lse, HD_F32, hd_shape3(rows, c->q.dim[2], c->q.dim[1])),
        .plan = plan};
    HD_TRY(hd_sdpa_run(seen->ex, &args));
    w->lse_taken = true;
    return HD_OK;
}

static hd_status on_call(void *user, const hd_attention_seen *seen)
{
    hd_bench_watch *w = user;
    if (seen->ex->recording) return HD_OK;
    w->plan_seconds += seen->plan_seconds;
    if (!w->details) return HD_OK;
    w->entries += seen->visited;
    count_passes(w, seen);
    for (int64_t b = 0; b < seen->call->q.dim[0]; b++)
        HD_TRY(count_row(w, seen, b));
    return w->lse && !seen->mapped ? take_lse(w, seen) : HD_OK;
}

void hd_bench_watch_begin(hd_bench_watch *watch, hd_attention_run *run)
{
    *watch = (hd_bench_watch){0};
    hd_attention_run_watch(run, on_call, watch);
}

void hd_bench_watch_reset(hd_bench_watch *w)
{
    w->plan_seconds = w->executed = w->useful = w->bytes = 0;
    w->entries = 0;
    w->lse_taken = false;
}
