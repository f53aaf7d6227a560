/* engine/attention/run_internal.h: the insides of a run, for run.c (which resolves) and attention.c
 * (which acts). */
#ifndef HD_ENGINE_ATTENTION_RUN_INTERNAL_H
#define HD_ENGINE_ATTENTION_RUN_INTERNAL_H

#include "engine/attention/run.h"

/* A processor of the preset: its class and what was read for it. */
typedef struct run_processor {
    const hd_processor_class *class;
    const hd_json *node; // for messages
    void *params;
    hd_site_selector *site;
    int64_t sites; // 0: every site of the denoiser
    const char **branch;
    int64_t branches; // 0: every row
    int64_t first_step, end_step;
    bool met_site, met_row;
} run_processor;

/* State of one row's name at one site; rows of later steps find it by picture, branch and role. */
typedef struct run_state {
    hd_row row;
    void *bytes;
    struct run_state *next;
} run_state;

/* A processor at a site: what prepare asked for. */
typedef struct run_link {
    run_processor *processor;
    hd_prepare_ctx prepared;
    run_state *states;
} run_link;

typedef struct run_site {
    hd_site site;
    int64_t links;
    run_link *link;
    // keys and values of the text
    hd_tensor text_kv;
    bool text_kv_ready;
} run_site;

struct hd_attention_run {
    int64_t processors, site_count, site_room;
    run_processor *processor;
    run_site **site;
    int64_t steps;
};

/* The record of `site`, made if it is new. */
HD_CHECKED hd_status hd_run_find_site(hd_attention_run *run, const hd_site *site, run_site **out);
/* Resolves the chain of a site that is met for the first time: matches, prepares, allocates states.
 */
HD_CHECKED hd_status hd_run_resolve(hd_attention_run *run, const hd_attention_call *call,
                                    run_site **out);
/* The record of a site that was resolved on the dry pass; NULL if it was not. */
run_site *hd_run_site_of(hd_attention_run *run, const hd_site *site);
/* May this processor act at this step on any of these rows? Fills active [B] if so. */
bool hd_run_active(const run_processor *p, const hd_forward *forward, bool *active);

#endif
