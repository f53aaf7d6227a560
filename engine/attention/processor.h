/* engine/attention/processor.h: what an attention processor is: one const value with its parameters
 * and its hooks.
 *
 * Engine fields every processor has in a preset: "use" (its name), "sites" (selectors,
 * engine/attention/site.h), "steps" [a, b] as fractions of the run, "branches" (row selectors). A
 * hook edits what it was handed: it never projects, allocates or calls attention. It must leave
 * rows alone whose `active` flag is false.
 *
 * A class that gives a plan has four more: hd_plan_options.
 *
 * Order in a call: for each processor in preset order its "before" passes, then its tokens hook;
 * then all logits hooks; all probe hooks; the plan hook; the kernel (the map hooks inside it); then
 * for each processor its "after" passes and its output hook, of classes that move tokens first: the
 * others see every token of the call in its place. */
#ifndef HD_ENGINE_ATTENTION_PROCESSOR_H
#define HD_ENGINE_ATTENTION_PROCESSOR_H

#include "base/plan.h"
#include "engine/attention/attention.h"
#include "engine/attention/beside.h"
#include "engine/ops/linear.h"
#include "engine/options/param.h"

HD_BEGIN_DECLS

/* What a class declares so that the engine has it ready when the hook runs. */
enum {
    HD_EDITS_Q = 1u << 0, // tokens hook writes q: it gets a private contiguous copy
    HD_EDITS_K = 1u << 1, // the call's own keys; those that only appends (extra_keys) does not say
    HD_EDITS_V = 1u << 2, // so, and goes with plans made from shapes
    HD_READS_X = 1u << 3, // refused at sites that have no x
    HD_READS_LSE = 1u << 4,    // output hook reads the row log-sum-exp
    HD_MOVES_TOKENS = 1u << 5, // tokens hook merges, drops or reorders tokens of q, k or v: what
                               // addresses tokens by position after it is refused
    HD_ADDS_COLUMN_BIAS = 1u << 6, // logits hook: hd_logits.column_bias
    HD_ADDS_SEGMENTS = 1u << 7,    // logits hook: hd_logits.segments
    HD_ADDS_BIAS = 1u << 8,        // logits hook: hd_logits.bias, dense
    HD_ADDS_MASK = 1u << 9,        // logits hook: hd_logits.mask, dense
};

typedef enum hd_pass_when {
    HD_PASS_BEFORE, // its result is there in the tokens hook
    HD_PASS_AFTER,  // its result is there in the output hook
} hd_pass_when;

/* An attention of the processor's own beside the call's. The `pass` hook points q, k, v at tensors
 * of the call or at its scratch; the engine runs it into `out`, for the active rows only. */
typedef struct hd_pass {
    hd_pass_when when;
    int64_t query_len, key_len; // tokens; 0: the call's, row by row
    hd_tensor q, k, v, out;     // [B, L, H, D]; out is the engine's
    float scale;                // 0: the call's
    const bool *rows;           // [B]: of the active rows these alone; NULL: all of them
    bool like_call; // after the kernel, at the call's own lengths: the call's forms of the scores,
                    // its plan and its number formats hold for this pass, too
    bool every_key; // of such a pass: without the plan
    bool wants_lse; // lse [B, H, query_len] f32 comes with the result
    hd_tensor lse;
} hd_pass;

#define HD_MAX_PASSES 4
#define HD_MAX_KEEPS  16

/* What the text_weights hook is handed: once per cross attention, on the dry pass. */
typedef struct hd_text_weights {
    const hd_exec *ex;
    const char *path;  // of the site
    int64_t in, out;   // channels of the text; keys and values, one after the other
    hd_dtype compute;  // what to pack in
    hd_linear *linear; // out: [out, in], then the engine's; NULL: the network's own
    bool adds;         // out: to what the network's own give
} hd_text_weights;

/* Once per site, on the dry pass, in preset order, classes that give a plan last. */
typedef struct hd_prepare_ctx {
    const void *params;
    // Shapes and layouts; no data. The room for keys that processors prepared before may append is
    // there: k and v are that much longer and k_layout has a reference segment. Static plans alone
    // are made for the network's own keys.
    const hd_attention_call *call;
    hd_plan_rest rest; // what the preset asks of a plan
    bool sites_given;  // the preset names sites; else a class may be idle where it is of no use
    bool texts;        // hd_hook_text has something here
    // What the processor asks for; zero on entry.
    size_t state_bytes;   // per branch row, kept for the run, zeroed
    size_t scratch_bytes; // during the call
    int passes;
    hd_pass pass[HD_MAX_PASSES]; // when, query_len, key_len
    // Branches aside (engine/attention/kept.h) whose keys and values the tokens hook looks at here,
    // and how many tokens they have.
    int keeps;
    struct {
        const char *branch; // borrowed until the run ends
        int64_t tokens;
    } keep[HD_MAX_KEEPS];
    int64_t extra_keys; // room behind the call's keys for those the tokens hook appends
    int64_t indicators; // probe: value channels
    int64_t query_labels, key_labels; // HD_ADDS_SEGMENTS
    void *made; // what prepare made for this site (a static plan, projected keys): release frees it
    bool idle;  // its parameters leave this site alone, as if "sites" did
    char note[80]; // what it does otherwise here than the preset says, for `inspect chain`
} hd_prepare_ctx;

typedef struct hd_hook_ctx {
    const void *params;
    const hd_exec *ex; // for threads; the arena is the engine's
    // As the tokens hooks have left it so far. Where a tokens hook has moved tokens, q_layout and
    // k_layout know them as one segment without a grid.
    const hd_attention_call *call;
    const hd_attention_call *given; // as the network handed it out: every token in its place
    const bool *active; // [B]: the rows the preset's "branches" selects, of those the class acts on
    void *scratch;
    void *made;         // prepare's
    void *const *state; // [B]: the row's own state, shared by rows of the same picture, branch and
                        // role over the steps
    void *const *picture_state; // [B]: the state of the row's picture (hd_branches_ctx.state_bytes)
    hd_pass *pass;              // those asked for in prepare, in that order
    hd_tensor text_kv; // [texts, L, 2 * Hk * D] of the processors' own texts; use hd_hook_text
} hd_hook_ctx;

/* Keys and values [1, L, Hk, D] of the text that hd_ask_text numbered. */
void hd_hook_text(const hd_hook_ctx *ctx, int number, hd_tensor *k, hd_tensor *v);

/* What a tokens hook may change. Tensors named in the class's `edits` are private copies in the
 * call's type. */
typedef struct hd_tokens {
    // k and v have extra_keys more tokens than the call, if an acting processor asked for them
    hd_tensor q, k, v;
    // [B], both. A hook that merges tokens leaves the first so many of its rows; appended keys are
    // written behind the first key_len, which is then raised.
    int64_t *query_len, *key_len;
} hd_tokens;

/* engine/ops/sdpa.h's hd_sdpa_segments, to be written. */
typedef struct hd_sdpa_segments_edit {
    uint8_t *query_label, *key_label; // [B, Lq], [B, Lk]
    int64_t query_labels, key_labels;
    float *bias, *gain; // [B, query_labels, key_labels]
} hd_sdpa_segments_edit;

/* What a logits hook may change. */
typedef struct hd_logits {
    const hd_hook_ctx *ctx;
    float *row_scale; // [B, Lq], 1 on entry of the first hook
    int64_t rows, queries, keys;
    hd_tensor column_bias; // f32 [B, H, Lk], 0 on entry; these four: none unless a class of the
                           // chain adds them
    hd_tensor bias;        // f32 [B, H, Lq, Lk], 0 on entry
    hd_tensor mask;        // HD_BOOL [B, H, Lq, Lk], true on entry
    hd_sdpa_segments_edit
        *segments; // labels 0, bias 0 and gain 1 on entry; at most one class of a chain
} hd_logits;

/* What an output hook may change. */
typedef struct hd_attention_output {
    hd_tensor out;    // [B, Lq, H, Dv]; a hook that merged tokens writes all Lq of the call back
    hd_tensor lse;    // [B, H, Lq] f32, given if the class reads it
    hd_tensor probed; // [B, H, Lq, indicators] f32: what this processor's own probe saw; else none
} hd_attention_output;

/* What a map hook may change: the probabilities. A class with a map hook forces the explicit-map
 * kernel on all rows of the call, so it may read any row. */
typedef struct hd_attention_map {
    hd_tensor p; // f32 [B, H, Lq, Lk], rows sum to 1; 0 from key_len on
} hd_attention_map;

/* After the dry pass: every site whose chain the processor is part of. */
typedef struct hd_sites_ctx {
    const void *params;
    const hd_json *node; // the processor in the preset, for messages
    int64_t count;
    const hd_site *const *site;
} hd_sites_ctx;

/* What the preset says of a class that gives a plan; read by the engine. */
typedef enum hd_on_edit {
    HD_ON_EDIT_REFUSE, // a static plan does not go with replaced keys
    HD_ON_EDIT_DENSE,  // rows whose own keys a processor replaces are dense
} hd_on_edit;

typedef struct hd_plan_options {
    hd_plan_rest rest;
    hd_attention_number qk, pv; // of the active rows, dense or not
    hd_on_edit on_edit;
} hd_plan_options;

extern const hd_param hd_plan_params[]; // of hd_plan_options

typedef struct hd_processor_class {
    const char *name; // as in "use"; the file's name
    const char *summary;
    const hd_param *params;
    size_t params_size;
    unsigned edits;
    // Beyond single ranges; reads HD_PARAM_JSON fields into fields of its own. May be NULL.
    hd_status (*check)(void *params);
    void (*clear)(void *params);                 // frees what check allocated; may be NULL
    hd_status (*prepare)(hd_prepare_ctx *ctx);   // may be NULL
    hd_status (*sites)(const hd_sites_ctx *ctx); // refuses what all its sites together do not give
    hd_status (*pass)(const hd_hook_ctx *ctx, int index, hd_pass *pass);
    hd_status (*tokens)(const hd_hook_ctx *ctx, hd_tokens *tokens);
    hd_status (*logits)(const hd_hook_ctx *ctx, hd_logits *logits);
    // Indicator channels f32 [B, Lk, indicators], 0 on entry: what the probe wants the weights of.
    hd_status (*probe)(const hd_hook_ctx *ctx, hd_tensor indicator);
    // plan[b] of each active row, from q and k as all tokens hooks left them; NULL: dense. The
    // engine sets its `rest`. At most one class acts on a row.
    hd_status (*plan)(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan);
    hd_status (*map)(const hd_hook_ctx *ctx, hd_attention_map *map); // the last resort
    hd_status (*output)(const hd_hook_ctx *ctx, hd_attention_output *output);
    void (*release)(void *made);
    // Which rows its hooks in the network act on at all; "branches" narrows them. NULL: every row.
    bool (*acts_on)(const void *params, const hd_row *row);
    // Its output hook writes the whole of this active row without a look at it: the kernel leaves
    // the row out if nobody else looks. May be NULL.
    bool (*replaces)(const hd_hook_ctx *ctx, int64_t row);
    hd_plan_rest rest; // of a class with a plan: what "rest" is if the preset does not say
    bool static_plan;  // made from shapes alone, those of the network's own call: keys that others
                       // append are dense beside it; refused with replaced keys unless "on_edit"
                       // says "dense"
    // Beside the call: engine/attention/beside.h. Any may be NULL.
    hd_status (*branches)(hd_branches_ctx *ctx);
    hd_status (*begin)(const hd_begin_ctx *ctx);
    hd_status (*latent)(const hd_beside_ctx *ctx);
    hd_status (*x0)(const hd_beside_ctx *ctx);
    hd_status (*guidance)(const hd_beside_ctx *ctx); // the branches it asked for: instead of the
                                                     // combination; else after it, to add a term
    hd_status (*feature)(const hd_feature_ctx *ctx, hd_tensor x);
    hd_status (*show)(const hd_show_ctx *ctx);
    hd_status (*text_weights)(void *params, hd_text_weights *weights); // of hd_ask_text
    bool
        rows_alike; // its hooks in the network do the same to active rows of one branch and picture
                    // whose prompt is the same (cond, perturbed, noref): if equal, they stay so
} hd_processor_class;

typedef struct hd_processor_list {
    size_t count;
    const hd_processor_class *const *item; // borrowed
} hd_processor_list;

/* Multiplies the scores of the active rows' query tokens of `kind` by `factor`. */
HD_CHECKED hd_status hd_logits_scale_rows(hd_logits *logits, const hd_token_layout *layout,
                                          hd_token_kind kind, float factor);

HD_END_DECLS
#endif
