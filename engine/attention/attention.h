/* engine/attention/attention.h: the one attention call of every layer of every network.
 *
 * A network projects q, k, v and calls hd_attention; the processors that the run resolved for that
 * site edit what they asked to edit; the streaming kernel of engine/ops/sdpa.h does the rest. A
 * network never names a processor. */
#ifndef HD_ENGINE_ATTENTION_ATTENTION_H
#define HD_ENGINE_ATTENTION_ATTENTION_H

#include "base/exec.h"
#include "base/tensor.h"
#include "engine/attention/rows.h"
#include "engine/attention/site.h"

HD_BEGIN_DECLS

typedef struct hd_attention_run hd_attention_run; // engine/attention/run.h
typedef struct hd_features hd_features;           // engine/attention/features.h

/* Rows that are equal to others until the first site that tells them apart: they are computed from
 * there on only. */
typedef struct hd_fork {
    const char *path;    // of the attention site, without the depth inside a transformer
    hd_rows before;      // the rows that run from the beginning
    const int64_t *from; // [rows]: the number among those that each row of the call equals
} hd_fork;

/* What a network hands on to its attention calls unchanged. */
typedef struct hd_forward {
    hd_attention_run *run; // borrowed; NULL: no processors, no cached text keys
    hd_rows rows;          // who the batch rows are; count 0: nobody (text encoders, VAEs)
    hd_step step;
    uint64_t model_key; // of the network's configuration and tensor shapes: whose plans are these?
    hd_features *features; // borrowed; NULL: nobody looks at any
    const hd_fork *fork;   // borrowed; NULL: every row runs from the beginning
} hd_forward;

typedef struct hd_attention_call {
    const hd_forward *forward; // may be NULL: plain attention
    hd_site site;
    hd_tensor x; // the layer's input [B, Lq, C] after its norm; none if the layer has no use for it
    hd_tensor q; // [B, Lq, H, D], any strides, last axis contiguous
    hd_tensor k; // [B, Lk, Hk, D], H divisible by Hk
    hd_tensor v; // [B, Lk, Hk, Dv]
    hd_tensor out; // [B, Lq, H, Dv]
    hd_token_layout q_layout, k_layout;
    const int64_t *key_len; // [B], 1 .. Lk; NULL: all have Lk
    float scale;
    bool causal;
} hd_attention_call;

/* The network owns every tensor; k and v may be shared between calls and are not written. Scratch
 * comes from ex->arena and is given back. On the dry pass (ex->recording) the site is registered
 * and its chain resolved: a processor that cannot act there refuses with its JSON path. */
HD_CHECKED hd_status hd_attention(const hd_exec *ex, const hd_attention_call *call);

HD_END_DECLS
#endif
