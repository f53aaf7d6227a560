/* engine/attention/kept.h: keys and values of branches aside.
 *
 * A branch whose grid is not the run's cannot be a row of the run's calls. It runs as a forward of
 * its own before each of them, and its keys and values are kept at the sites where a processor
 * asked for them (hd_prepare_ctx.keep). */
#ifndef HD_ENGINE_ATTENTION_KEPT_H
#define HD_ENGINE_ATTENTION_KEPT_H

#include "engine/attention/processor.h"
#include "engine/attention/run.h"

HD_BEGIN_DECLS

/* Of a row of that branch and picture at this call's site: k, v [1, tokens, H, D], borrowed. false:
 * nothing is kept of this step. */
bool hd_kept_keys(const hd_hook_ctx *ctx, const char *branch, int64_t picture, hd_tensor *k,
                  hd_tensor *v);

/* A watch (hd_attention_run_watch) for the run of the forwards aside: `run`, the run whose
 * processors have asked, keeps what they asked for. The memory is taken on the dry pass, where a
 * number of tokens other than the one asked for is refused. */
HD_CHECKED hd_status hd_attention_run_keep(void *run, const hd_attention_seen *seen);

HD_END_DECLS
#endif
