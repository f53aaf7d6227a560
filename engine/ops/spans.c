/* engine/ops/spans.c: see spans.h. */
#include "engine/ops/spans.h"

typedef struct span_work {
    hd_span_run *run;
    const void *arg;
    int64_t units, piece;
} span_work;

static hd_status span_item(void *arg, int64_t item, int thread)
{
    const span_work *w = arg;
    (void)thread;
    int64_t from = item * w->piece, left = w->units - from;
    return w->run(w->arg, from, left < w->piece ? left : w->piece);
}

hd_status hd_for_spans(const hd_exec *ex, int64_t units, int64_t elements, hd_span_run *run,
                       const void *arg)
{
    if (units <= 0 || elements <= 0) return HD_OK;
    span_work w = {run, arg, units, (HD_SPAN_ELEMENTS + elements - 1) / elements};
    return hd_parallel_for(ex->pool, (units + w.piece - 1) / w.piece, span_item, &w);
}
