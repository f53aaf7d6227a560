/* engine/attention/call.h: the insides of one call, for attention.c (the order of the hooks),
 * forms.c (scores, probes, plans) and kernel.c and map.c (what they end in).
 *
 * Dry pass: the arena's addresses must not be touched then, so what hooks are handed is filled in
 * only when it is real, and no hook but prepare runs. */
#ifndef HD_ENGINE_ATTENTION_CALL_H
#define HD_ENGINE_ATTENTION_CALL_H

#include "engine/attention/run_internal.h"
#include "engine/ops/sdpa.h"

/* One processor during one call. */
typedef struct call_link {
    const run_link *link;
    hd_hook_ctx ctx;
    hd_pass pass[HD_MAX_PASSES];
    bool active[HD_MAX_ROWS];
    void *state[HD_MAX_ROWS], *picture_state[HD_MAX_ROWS];
    int64_t first_indicator;
} call_link;

/* The call as the hooks have left it. */
typedef struct edited_call {
    const hd_exec *ex;
    const hd_attention_run *run;
    hd_attention_call call;
    const hd_attention_call *given; // the network's
    call_link *active;
    int64_t count;
    int64_t own_keys; // of the network's call, before others are appended
    int64_t query_len[HD_MAX_ROWS], key_len[HD_MAX_ROWS];
    hd_logits forms;
    hd_sdpa_segments_edit segments;
    int64_t indicators;
    hd_tensor indicator, probed;
    const hd_plan *plan[HD_MAX_ROWS];
    bool planned, mapped;
    bool left_out[HD_MAX_ROWS];  // of the streaming kernel
    hd_tensor text_kv;           // of the processors' own texts
    uint8_t number[HD_MAX_ROWS]; // which of HD_CALL_NUMBERS
    hd_tensor lse;
    double plan_seconds;
    int64_t visited;
    double pass_pairs; // of extra passes before the kernel: queries x keys x heads
} edited_call;

/* The pairs of number formats: qk + 2 pv. */
enum { HD_CALL_NUMBERS = 4 };

static inline const hd_processor_class *hd_call_class(const call_link *a)
{
    return a->link->processor->class;
}

static inline int hd_call_number(const hd_plan_options *o)
{
    return (int)o->qk + 2 * (int)o->pv;
}

/* Room behind the call's keys, and the segment of the layout that says so. Shapes only. */
HD_CHECKED hd_status hd_call_append(hd_attention_call *call, int64_t keys);

/* The hooks that add to the call without changing its tensors: each takes its memory from the arena
 * and runs its hooks in order. */
HD_CHECKED hd_status hd_call_logits(edited_call *e);
HD_CHECKED hd_status hd_call_probes(edited_call *e);
HD_CHECKED hd_status hd_call_plans(edited_call *e);

/* e->call.out from all that the hooks left: by the streaming kernel or by the explicit map. */
HD_CHECKED hd_status hd_call_kernel(edited_call *e);
HD_CHECKED hd_status hd_call_map(edited_call *e);
/* A pass of these rows [B] after it, with all that the call has beside its tensors. */
HD_CHECKED hd_status hd_call_like(const edited_call *e, const hd_pass *pass, const bool *rows);

/* Memory of the arena for `count` elements, filled by the caller unless it is the dry pass. */
HD_CHECKED hd_status hd_call_take(const edited_call *e, void **out, size_t bytes);

double hd_call_seconds(const edited_call *e); // 0 unless somebody watches

#endif
