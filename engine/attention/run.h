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
/* The texts that processors asked for, of `branches`, which is borrowed as `values` [texts, L,
 * channels] f32 is; set before the dry pass, filled before the first step. Their keys and values
 * are computed where those of the rows are, once. */
void hd_attention_run_set_texts(hd_attention_run *run, const hd_branches *branches,
                                hd_tensor values);
/* The text or the order of the rows has changed: the next call of each site computes anew. */
void hd_attention_run_forget_text(hd_attention_run *run);

int64_t hd_attention_run_sites(const hd_attention_run *run);
const hd_site *hd_attention_run_site(const hd_attention_run *run, int64_t index);
/* What happens at a site, for `inspect` and --verbose: processors in order with the steps they act
 * in, then the kernels: "temperature [0, 10), gna [4, 25): plan of gna [4, 25), else streaming
 * bf16". Known after the dry pass. Returns text. */
char *hd_attention_run_chain_text(const hd_attention_run *run, int64_t index, char *text,
                                  size_t bytes);

/* Range `number` (from 0) of a site's steps in which the same processors act: steps first .. end -
 * 1, their names in order ("" for none) and the kernel, in words. false past the last range. */
bool hd_attention_run_range(const hd_attention_run *run, int64_t index, int64_t number,
                            int64_t *first, int64_t *end, char *names, size_t names_bytes,
                            char *kernel, size_t kernel_bytes);

/* One call as it was in the end, for those who look on: capture, calibration, benchmarks. All is
 * borrowed until the watch returns. */
typedef struct hd_attention_seen {
    const hd_exec *ex; // recording: shapes only; then every processor of the site acts
    // q, k, v, lengths and layouts as the tokens hooks left them; out as the kernel left it
    const hd_attention_call *call;
    const int64_t *query_len, *key_len; // [B]
    const hd_plan *const *plan;         // [B], an entry NULL: dense
    bool planned, mapped;               // a plan-giving processor acts; the explicit-map kernel ran
    int64_t visited;                    // entries, over rows, heads and query tiles
    double pass_pairs; // queries x keys x heads of the extra passes before this kernel
    double plan_seconds, kernel_seconds;
} hd_attention_seen;

typedef hd_status (*hd_attention_watch)(void *user, const hd_attention_seen *seen);

/* `watch` is told of every call of the run that names its rows, after its kernel; a failure of its
 * own ends the run. It changes nothing. NULL: nobody. */
void hd_attention_run_watch(hd_attention_run *run, hd_attention_watch watch, void *user);

HD_END_DECLS
#endif
