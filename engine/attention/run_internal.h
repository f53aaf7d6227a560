/* engine/attention/run_internal.h: the insides of a run, for read.c (which reads a preset),
 * resolve.c (which decides who acts where), run.c (which keeps) and the call. */
#ifndef HD_ENGINE_ATTENTION_RUN_INTERNAL_H
#define HD_ENGINE_ATTENTION_RUN_INTERNAL_H

#include "engine/attention/run.h"

/* Processors that match one site. */
#define HD_MAX_LINKS 32

/* A processor of the preset: its class and what was read for it. */
typedef struct run_processor {
    const hd_processor_class *class;
    const hd_json *node; // for messages
    void *params;
    hd_plan_options plan; // of a class that gives one; else the defaults
    hd_site_selector *site;
    int64_t sites; // 0: every site of the denoiser
    const char **branch;
    int64_t branches; // 0: every row
    int64_t first_step, end_step;
    bool met_site, met_row;
    size_t picture_bytes; // state beside the call: of each picture
    unsigned char *picture_state;
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

/* A processor's own weights for the texts it asked for, at one site. */
typedef struct run_text_weights {
    bool asked, adds;
    hd_linear *linear; // NULL: the network's
} run_text_weights;

/* Keys and values of a branch aside. */
typedef struct run_kept {
    hd_row row;
    hd_tensor k, v; // [1, tokens, H, D], owned
    int64_t step;   // of the call that they are of
    struct run_kept *next;
} run_kept;

typedef struct run_site {
    hd_site site;
    hd_dtype dtype; // of its calls
    int64_t links;
    run_link *link;
    run_kept *kept;
    // keys and values of the text
    hd_tensor text_kv;
    bool text_kv_ready;
    // likewise of the processors' own texts
    hd_tensor own_kv; // [texts, L, 2 * Hk * D]
    bool own_kv_ready;
    run_text_weights *text_weights; // [processors]
} run_site;

struct hd_attention_run {
    int64_t processors, site_count, site_room;
    run_processor *processor;
    run_site **site;
    int64_t steps;
    struct call_link *active; // [active_room] of the call that is under way
    int64_t active_room;
    const hd_branches *texts; // whose texts they are; NULL: none
    hd_tensor text;           // [texts, L, channels] f32
    hd_attention_watch watch;
    void *watch_user;
};

/* Reads p->node into *p. hd_run_clear_processor is needed whether it succeeds or not. */
HD_CHECKED hd_status hd_run_read_processor(run_processor *p, const hd_processor_list *list,
                                           int64_t steps);
void hd_run_clear_processor(run_processor *p);

/* The record of `site`, made if it is new. */
HD_CHECKED hd_status hd_run_find_site(hd_attention_run *run, const hd_site *site, run_site **out);
/* Resolves the chain of a site that is met for the first time: matches, prepares, refuses what does
 * not go together, allocates states. */
HD_CHECKED hd_status hd_run_resolve(hd_attention_run *run, const hd_attention_call *call,
                                    run_site **out);
/* The record of a site that was resolved on the dry pass; NULL if it was not. */
run_site *hd_run_site_of(hd_attention_run *run, const hd_site *site);
/* May this processor act at this step on any of these rows? Fills active [B] if so. */
bool hd_run_active(const run_processor *p, const hd_forward *forward, bool *active);
/* Fails unless the processors of a chain can act together on these rows. */
HD_CHECKED hd_status hd_run_check_chain(const run_site *site, const hd_rows *rows);
/* Is there a step, and a row among `rows`, in which both act? rows NULL: any row. */
bool hd_run_meet(const run_processor *a, const run_processor *b, const hd_rows *rows);
/* The state of a picture, by its number; NULL: it has none. */
static inline void *hd_run_picture_state(const run_processor *p, int64_t picture)
{
    return p->picture_state ? p->picture_state + p->picture_bytes * (size_t)picture : NULL;
}
/* Has the class hooks of the attention call, and not only beside it? */
bool hd_run_has_call_hooks(const hd_processor_class *class);
bool hd_run_selects_row(const run_processor *p, const hd_row *row);
/* A hook's refusal with the place of its processor, unless the hook has named one itself. */
hd_status hd_run_place(const run_processor *p, hd_status status);
/* Fails with "NAME: processors[1] (name) cannot act at SITE: <the last failure's message>". */
hd_status hd_run_refuse(const run_processor *p, const hd_site *site, hd_status status);

#endif
