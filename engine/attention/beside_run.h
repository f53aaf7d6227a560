/* engine/attention/beside_run.h: calls the hooks beside the attention call, for pipelines.
 *
 * Life: create beside the attention run; ask; (the pipeline makes the rows) begin; room; then per
 * group of pictures restart and the hooks of each call. */
#ifndef HD_ENGINE_ATTENTION_BESIDE_RUN_H
#define HD_ENGINE_ATTENTION_BESIDE_RUN_H

#include "engine/attention/features.h"
#include "engine/attention/run.h"

HD_BEGIN_DECLS

typedef struct hd_beside_run hd_beside_run;

/* The caller owns *out; hd_beside_run_free(NULL) does nothing. `run` is borrowed. */
HD_CHECKED hd_status hd_beside_run_create(hd_beside_run **out, hd_attention_run *run);
void hd_beside_run_free(hd_beside_run *beside);

/* Every processor's branches hook: ctx holds the sizes, guidance and calls; the rest is filled
 * here.
 */
HD_CHECKED hd_status hd_beside_run_ask(hd_beside_run *beside, hd_branches_ctx *ctx);
/* Every processor's begin hook: ctx holds all but params, node, steps and state_bytes. */
HD_CHECKED hd_status hd_beside_run_begin(hd_beside_run *beside, hd_begin_ctx *ctx);
/* State for so many pictures at once. */
HD_CHECKED hd_status hd_beside_run_room(hd_beside_run *beside, int64_t pictures);
/* The next pictures begin: all state is zero. */
void hd_beside_run_restart(hd_beside_run *beside);

/* Does any processor look at x0 at this step? */
bool hd_beside_run_wants_x0(const hd_beside_run *beside, int64_t step);

/* The hooks of every processor that is active at ctx->step, in preset order. ctx is filled but for
 * params, state, run and processor. */
HD_CHECKED hd_status hd_beside_run_latent(hd_beside_run *beside, hd_beside_ctx *ctx);
HD_CHECKED hd_status hd_beside_run_x0(hd_beside_run *beside, hd_beside_ctx *ctx);
/* For branch `number`: the guess of the processor that replaces it; *made is false when none does
 * so at this step. */
HD_CHECKED hd_status hd_beside_run_guess(hd_beside_run *beside, hd_beside_ctx *ctx, int number,
                                         bool *made);
/* Then the terms that the others add. */
HD_CHECKED hd_status hd_beside_run_add(hd_beside_run *beside, hd_beside_ctx *ctx, int number);

/* Has any processor something to show? */
bool hd_beside_run_shows(const hd_beside_run *beside);
/* Every show hook, for the branch that ctx->branch names; ctx as for the other hooks. */
HD_CHECKED hd_status hd_beside_run_show(hd_beside_run *beside, hd_beside_ctx *ctx,
                                        hd_shown_list *list);

/* The path of the site before which rows that equal others, twin[row], have to part from them: the
 * first, in the order the network met them, where a processor may do something else to a row than
 * to its twin, or the last one before the first feature tap that may. NULL: they never part, or
 * have to from the beginning. After a dry pass; features may be NULL. */
const char *hd_beside_run_fork(const hd_beside_run *beside, const hd_features *features,
                               const hd_rows *rows, const int64_t *twin);

/* Which hooks beside the call a processor has, for `inspect`: "branches, latent" into text; returns
 * text. name, first and end: the processor's name and the steps it acts in; false past the end. */
bool hd_beside_run_describe(const hd_beside_run *beside, int64_t processor, const char **name,
                            int64_t *first, int64_t *end, char *text, size_t bytes);

HD_END_DECLS
#endif
