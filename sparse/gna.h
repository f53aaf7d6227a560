/* sparse/gna.h: the parameters of "gna" and what it makes of a call, for those who want to say what
 * it will do before it does it. */
#ifndef HD_SPARSE_GNA_H
#define HD_SPARSE_GNA_H

#include "engine/attention/processor.h"
#include "sparse/gna_plan.h"

HD_BEGIN_DECLS

typedef struct hd_gna_heads { // heads with a rule of their own
    const hd_json *node;
    int64_t count;
    int32_t *head; // [count]
    hd_gna_rule rule;
} hd_gna_heads;

typedef struct hd_gna_options {
    const hd_json *window, *stride, *dilation, *causal, *base_size, *extra, *tile_q, *tile_kv,
        *heads;
    int on_small;
    hd_gna_kv kv_tiling;
    bool snap, snap_given, strict, scale_given;
    float scale;
    // what check reads of the above
    hd_gna_rule rule;
    hd_gna_limits limits;
    hd_gna_list query_tile, key_tile;
    hd_gna_heads *rows;
    int64_t row_count;
} hd_gna_options;

/* What the options mean at one site. */
typedef struct hd_gna_site {
    hd_gna_problem problem;
    hd_gna_tiles tiles;
    bool dense; // every query sees every key: no plan is made
    hd_gna_axis (*rule)[3];
    int32_t *rule_of;
} hd_gna_site;

/* Resolves checked options (rest: what the plan's dropped keys become) for a call; free frees what
 * `out` points to. Fails as the processor does. */
HD_CHECKED hd_status hd_gna_resolve_site(hd_gna_site *out, const hd_gna_options *options,
                                         const hd_attention_call *call, hd_plan_rest rest);
void hd_gna_site_free(hd_gna_site *site);

HD_END_DECLS
#endif
