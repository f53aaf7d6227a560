/* engine/ops/sdpa.h: the attention kernel: streaming softmax over a visit list of key tiles.
 *
 * out = softmax(scale * q k^T + bias, masked) v, one pass, memory linear in the tokens. Networks do
 * not call it: they call hd_attention (engine/attention), which runs the processors and ends here.
 */
#ifndef HD_ENGINE_OPS_SDPA_H
#define HD_ENGINE_OPS_SDPA_H

#include "base/exec.h"
#include "base/plan.h"
#include "base/tensor.h"

HD_BEGIN_DECLS

/* Edits of the scores by segments: queries and keys carry labels, and a table says what happens to
 * each pair of labels. */
typedef struct hd_sdpa_segments {
    const uint8_t *query_label; // [B, Lq] below query_labels
    const uint8_t *key_label;   // [B, Lk] below key_labels
    int64_t query_labels, key_labels;
    const float
        *bias; // [B, query_labels, key_labels] added to the scaled scores; -inf: not seen; NULL: 0
    const float *gain; // the same: factor of the value, not of the sum of the weights; NULL: 1
} hd_sdpa_segments;

typedef struct hd_sdpa {
    hd_tensor q;   // [B, Lq, H, D]   f32 or bf16, any strides, last axis contiguous
    hd_tensor k;   // [B, Lk, Hk, D]  like q; H divisible by Hk: head h reads key head h / (H / Hk)
    hd_tensor v;   // [B, Lk, Hk, Dv] like q; Dv may differ from D
    hd_tensor out; // [B, Lq, H, Dv]  like q
    const int64_t *
        query_len; // [B] queries of each row, 0 .. Lq; what is behind them is not written; NULL: Lq
    const int64_t *key_len; // [B] keys of each row, 1 .. Lk; NULL: all have Lk
    float scale;            // usually D^-1/2
    const float *row_scale; // [B, Lq] extra factor of each query's scores (temperature); NULL: 1
    hd_tensor column_bias;  // none, or f32 [B, H or 1, Lk] added to the scaled scores of a key
    hd_tensor bias;         // none, or f32 [B or 1, H or 1, Lq or 1, Lk] added to the scaled scores
    hd_tensor mask;         // none, or HD_BOOL [B or 1, H or 1, Lq or 1, Lk], false = not seen
    const hd_sdpa_segments *segments; // NULL: none
    bool causal;                      // query i sees keys 0 .. i
    hd_tensor
        lse; // none, or f32 [B, H, Lq]: log of the sum of exp of the scores (-inf: saw no key)
    hd_tensor indicator;        // none, or f32 [B, Lk, E]: E more value channels, for probes
    hd_tensor probed;           // with it: f32 [B, H, Lq, E], sum of the weights x the indicators
    const hd_plan *const *plan; // [B]; an entry, or plan itself, NULL: dense. On the dry pass: plan
                                // not NULL with empty entries says that any plan may come (of
                                // key tiles of 8 keys or more, on average)
    hd_attention_number qk,
        pv;           // number format of the two products; int8 is refused where the CPU has none
    int64_t *visited; // out, may be NULL: entries visited, over rows, heads and query tiles
} hd_sdpa;

/* A query that sees no key gets 0. Scratch comes from ex->arena and is given back. A row's bytes
 * depend on that row alone. */
HD_CHECKED hd_status hd_sdpa_run(const hd_exec *ex, const hd_sdpa *a);

/* Refuses what a call of so many heads and tokens could not index with. hd_sdpa_run does it for
 * every plan it is given. */
HD_CHECKED hd_status hd_plan_check(const hd_plan *plan, int64_t heads, int64_t queries,
                                   int64_t keys);

HD_END_DECLS
#endif
