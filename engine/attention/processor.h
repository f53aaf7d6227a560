/* engine/attention/processor.h: what an attention processor is: one const value with its parameters
 * and its hooks.
 *
 * Engine fields every processor has in a preset: "use" (its name), "sites" (selectors,
 * engine/attention/site.h), "steps" [a, b] as fractions of the run, "branches" (row selectors). A
 * hook edits what it was handed: it never projects, allocates or calls attention. It must leave
 * rows alone whose `active` flag is false.
 *
 * Order in a call: for each processor in preset order its "before" passes, then its tokens hook;
 * then all logits hooks; the kernel; then for each processor its "after" passes and its output
 * hook. */
#ifndef HD_ENGINE_ATTENTION_PROCESSOR_H
#define HD_ENGINE_ATTENTION_PROCESSOR_H

#include "engine/attention/attention.h"
#include "engine/options/param.h"

HD_BEGIN_DECLS

/* What a class declares so that the engine has it ready when the hook runs. */
enum {
    HD_EDITS_Q = 1u << 0, // tokens hook writes q: it gets a private contiguous copy
    HD_EDITS_K = 1u << 1,
    HD_EDITS_V = 1u << 2,
    HD_READS_X = 1u << 3,   // refused at sites that have no x
    HD_READS_LSE = 1u << 4, // output hook reads the row log-sum-exp
};

typedef enum hd_pass_when {
    HD_PASS_BEFORE, // its result is there in the tokens hook
    HD_PASS_AFTER,  // its result is there in the output hook
} hd_pass_when;

/* An attention of the processor's own beside the call's. The `pass` hook points q, k, v at tensors
 * of the call or at its scratch; the engine runs it into `out`. */
typedef struct hd_pass {
    hd_pass_when when;
    int64_t query_len, key_len; // tokens; 0: the call's
    hd_tensor q, k, v, out;     // [B, L, H, D]; out is the engine's
    float scale;                // 0: the call's
} hd_pass;

#define HD_MAX_PASSES 4

/* Once per site, on the dry pass. */
typedef struct hd_prepare_ctx {
    const void *params;
    const hd_attention_call *call; // shapes and layouts; no data
    // What the processor asks for; zero on entry.
    size_t state_bytes;   // per branch row, kept for the run, zeroed
    size_t scratch_bytes; // during the call
    int passes;
    hd_pass pass[HD_MAX_PASSES]; // when, query_len, key_len
} hd_prepare_ctx;

typedef struct hd_hook_ctx {
    const void *params;
    const hd_exec *ex; // for threads; the arena is the engine's
    const hd_attention_call *call;
    const bool *active; // [B]: the rows the preset's "branches" selects
    void *scratch;
    void *const *state; // [B]: the row's own state, shared by rows of the same picture, branch and
                        // role over the steps
    hd_pass *pass;      // those asked for in prepare, in that order
} hd_hook_ctx;

/* What a tokens hook may change. Tensors named in the class's `edits` are private copies in the
 * call's type. */
typedef struct hd_tokens {
    hd_tensor q, k, v;
} hd_tokens;

/* What a logits hook may change. */
typedef struct hd_logits {
    const hd_hook_ctx *ctx;
    float *row_scale; // [B, Lq], 1 on entry of the first hook
    int64_t rows, queries;
} hd_logits;

/* What an output hook may change. */
typedef struct hd_attention_output {
    hd_tensor out; // [B, Lq, H, Dv]
    hd_tensor lse; // [B, H, Lq] f32, given if the class reads it
} hd_attention_output;

typedef struct hd_processor_class {
    const char *name; // as in "use"; the file's name
    const char *summary;
    const hd_param *params;
    size_t params_size;
    unsigned edits;
    hd_status (*check)(const void *params);    // beyond single ranges; may be NULL
    hd_status (*prepare)(hd_prepare_ctx *ctx); // may be NULL
    hd_status (*pass)(const hd_hook_ctx *ctx, int index, hd_pass *pass);
    hd_status (*tokens)(const hd_hook_ctx *ctx, hd_tokens *tokens);
    hd_status (*logits)(const hd_hook_ctx *ctx, hd_logits *logits);
    hd_status (*output)(const hd_hook_ctx *ctx, hd_attention_output *output);
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
