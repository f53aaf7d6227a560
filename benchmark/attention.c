/* benchmark/attention.c: runs every row on the same inputs, times it, and compares it with dense.
 */
#include "benchmark/attention.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmark/attention_call.h"
#include "benchmark/calibrated.h"
#include "benchmark/errors.h"
#include "benchmark/watch.h"
#include "engine/arena.h"
#include "engine/attention/run.h"
#include "pipelines/clock.h"

/* What all rows share. */
typedef struct comparison {
    const hd_bench_attention_options *o;
    hd_row *who; // [B]
    hd_tensor out, dense_out, spare;
    float *lse, *dense_lse;         // [B, H, L]
    double *seconds, *plan_seconds; // [repeats]
    bool dense_known;
    double dense_seconds;
} comparison;

/* One row while it is measured. */
typedef struct trial {
    comparison *c;
    hd_exec ex;
    hd_attention_run *run;
    hd_bench_watch watch;
    hd_bench_result *result;
} trial;

static hd_status call_attention(trial *t, const hd_exec *ex)
{
    const comparison *c = t->c;
    return hd_bench_call(c->o, c->o->inputs, t->run, c->who, c->out, ex);
}

// The dry pass: resolves the processors, makes static plans, measures the memory.
static hd_status prepare(trial *t, const hd_bench_row *row)
{
    const hd_exec *shared = t->c->o->ex;
    const hd_json *chain = hd_json_root(row->doc);
    hd_exec dry = *shared;
    HD_TRY(hd_attention_run_create(&t->run, t->c->o->list, hd_json_count(chain) ? chain : NULL, 1));
    hd_bench_watch_begin(&t->watch, t->run);
    const double begin = hd_seconds();
    dry.recording = true;
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    hd_status status = call_attention(t, &dry);
    const size_t bytes = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);
    if (status == HD_OK) status = hd_attention_run_finish(t->run);
    HD_TRY(status);
    if (hd_json_count(chain)) t->result->figure[HD_BENCH_SETUP_MS] = (hd_seconds() - begin) * 1e3;
    t->ex = *shared;
    t->ex.arena = NULL;
    return hd_arena_create(&t->ex.arena, bytes);
}

static void tell(const trial *t, int step)
{
    const hd_bench_attention_options *o = t->c->o;
    if (o->progress) o->progress(o->user, t->result->label, step, o->repeats + 2);
}

// Every call plans anew: what a processor remembers of earlier steps is forgotten.
static hd_status call_afresh(trial *t)
{
    hd_attention_run_restart(t->run);
    hd_bench_watch_reset(&t->watch);
    return call_attention(t, &t->ex);
}

static hd_status time_calls(trial *t)
{
    comparison *c = t->c;
    const int repeats = c->o->repeats;
    for (int i = -1; i < repeats; i++) {
        tell(t, i + 1);
        HD_TRY(hd_exec_check(&t->ex));
        const double begin = hd_seconds();
        HD_TRY(call_afresh(t));
        if (i < 0) continue;
        c->seconds[i] = hd_seconds() - begin;
        c->plan_seconds[i] = t->watch.plan_seconds;
    }
    hd_bench_set_times(t->result, c->seconds, c->plan_seconds, repeats, !c->dense_known,
                       &c->dense_seconds);
    return HD_OK;
}

// A call with the counters on: costs, error, and the log-sum-exp of every query.
static hd_status count_call(trial *t)
{
    comparison *c = t->c;
    hd_bench_watch *w = &t->watch;
    double *f = t->result->figure;
    const double queries = (double)c->out.dim[0] * (double)c->out.dim[2] * (double)c->out.dim[1];
    const double all = queries * (double)c->out.dim[1] * 2 *
                       (double)(c->o->inputs->q.dim[3] + c->out.dim[3]); // FLOPs
    w->details = true;
    w->spare = c->spare;
    w->lse = c->dense_known ? c->lse : c->dense_lse;
    HD_TRY(call_afresh(t));
    f[HD_BENCH_EXECUTED] = w->executed;
    f[HD_BENCH_USEFUL] = w->useful;
    f[HD_BENCH_BYTES] = w->bytes;
    f[HD_BENCH_DENSITY] = w->executed / all;
    f[HD_BENCH_IDEAL] = all / w->useful;
    f[HD_BENCH_GFLOPS] = w->executed / f[HD_BENCH_MS_MIN] * 1e-6;
    if (!c->dense_known) memcpy(c->dense_out.data, c->out.data, (size_t)hd_tensor_bytes(c->out));
    hd_bench_compare(c->out, c->dense_out, &f[HD_BENCH_REL_L1], &f[HD_BENCH_COSINE]);
    if (w->lse_taken)
        f[HD_BENCH_MASS] = hd_bench_retained_mass(w->lse, c->dense_lse, (int64_t)queries);
    return HD_OK;
}

static hd_status measure_row(trial *t, const hd_bench_row *row)
{
    HD_TRY(prepare(t, row));
    HD_TRY(time_calls(t));
    tell(t, t->c->o->repeats + 1);
    HD_TRY(count_call(t));
    tell(t, t->c->o->repeats + 2);
    return HD_OK;
}

static hd_status run_row(comparison *c, hd_bench_report *report, hd_bench_row *row)
{
    trial t = {.c = c};
    t.result = hd_bench_report_add(report, row->label, row->json);
    if (!t.result) return hd_fail(HD_ERR_NOMEM, "bench: no memory for a result");
    hd_bench_other other = {c->o, c->who};
    hd_status status = hd_bench_calibrate(row, c->o->list, c->o->ex, hd_bench_dense_other, &other);
    if (status == HD_OK) status = measure_row(&t, row);
    hd_arena_free(t.ex.arena);
    hd_attention_run_free(t.run);
    if (status == HD_ERR_CANCELLED || (status != HD_OK && !c->dense_known)) {
        report->count--;
        return status;
    }
    t.result->status = status;
    if (status != HD_OK) snprintf(t.result->why, sizeof t.result->why, "%s", hd_message());
    c->dense_known = true;
    return HD_OK;
}

static hd_status make_memory(comparison *c)
{
    const hd_tensor q = c->o->inputs->q, v = c->o->inputs->v;
    const size_t rows = (size_t)q.dim[0], queries = rows * (size_t)(q.dim[1] * q.dim[2]);
    c->out = c->dense_out = c->spare = hd_tensor_of(NULL, q.dtype, hd_tensor_shape(v));
    const size_t bytes = ((size_t)hd_tensor_bytes(c->out) + 63) & ~(size_t)63;
    c->out.data = aligned_alloc(64, bytes);
    c->dense_out.data = aligned_alloc(64, bytes);
    c->spare.data = aligned_alloc(64, bytes);
    c->lse = calloc(queries, sizeof *c->lse);
    c->dense_lse = calloc(queries, sizeof *c->dense_lse);
    c->who = calloc(rows, sizeof *c->who);
    c->seconds = calloc((size_t)c->o->repeats, sizeof *c->seconds);
    c->plan_seconds = calloc((size_t)c->o->repeats, sizeof *c->plan_seconds);
    if (!c->out.data || !c->dense_out.data || !c->spare.data || !c->lse || !c->dense_lse ||
        !c->who || !c->seconds || !c->plan_seconds)
        return hd_fail(HD_ERR_NOMEM, "bench: no memory for the outputs of %lld tokens",
                       (long long)q.dim[1]);
    for (size_t b = 0; b < rows; b++)
        c->who[b] = (hd_row){.branch = "main", .role = "cond", .picture = (int64_t)b};
    return HD_OK;
}

hd_status hd_bench_attention(hd_bench_report *report, const hd_bench_attention_options *o)
{
    comparison c = {.o = o};
    hd_status status = make_memory(&c);
    for (int64_t i = 0; i < o->rows->count && status == HD_OK; i++)
        status = run_row(&c, report, &o->rows->row[i]);
    free(c.out.data);
    free(c.dense_out.data);
    free(c.spare.data);
    free(c.lse);
    free(c.dense_lse);
    free(c.who);
    free(c.seconds);
    free(c.plan_seconds);
    return status;
}
