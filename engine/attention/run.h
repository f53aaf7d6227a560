/* engine/attention/run.h: the processors of one run, resolved site by site, and what the run keeps
 * for them.
 *
 * Life: create from the preset's list; run the dry pass (every site meets the run and its chain is
 * resolved); finish (a processor that matched no site is refused); sample; free. */
#ifndef HD_ENGINE_ATTENTION_RUN_H
#define HD_ENGINE_ATTENTION_RUN_H

#include "engine/attention/processor.h"
#include "engine/ops/linear.h"

HD_BEGIN_DECLS

/* `processors`: the preset's array, NULL for none. `list`: the classes that exist; borrowed, as
 * `processors` is, until the run is freed. steps: sampler steps of the run. Unknown names, fields
 * and values out of range are refused here with their path. The caller owns *out.
 * hd_attention_run_free(NULL) does nothing. */
HD_CHECKED hd_status hd_attention_run_create(hd_attention_run **out, const hd_processor_list *list,
                                             const hd_json *processors, int64_t steps);
void hd_attention_run_free(hd_attention_run *run);

/* After the dry pass: HD_ERR_ARGUMENT for a processor whose sites or branches match nothing. */
HD_CHECKED hd_status hd_attention_run_finish(hd_attention_run *run);

/* The next pictures begin: every processor's state is zero again, as prepared. */
void hd_attention_run_restart(hd_attention_run *run);

/* Keys and values of a text that stays the same for the whole run: x W^T, computed at the first
 * call of each site and kept. `path` is the site's. text [B, L, in], out: [B, L, out] in the
 * compute type, borrowed from the run until hd_attention_run_forget_text. */
HD_CHECKED hd_status hd_attention_run_text_kv(const hd_exec *ex, hd_attention_run *run,
                                              const char *path, const hd_linear *linear,
                                              hd_tensor text, hd_tensor *out);
/* The text or the order of the rows has changed: the next call of each site computes anew. */
void hd_attention_run_forget_text(hd_attention_run *run);

/* What the chain of a site is, for `inspect` and --verbose: processor names in order, "" for none.
 */
int64_t hd_attention_run_sites(const hd_attention_run *run);
const hd_site *hd_attention_run_site(const hd_attention_run *run, int64_t index);
char *hd_attention_run_chain_text(const hd_attention_run *run, int64_t index, char *text,
                                  size_t bytes);

HD_END_DECLS
#endif
