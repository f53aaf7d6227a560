/* benchmark/attention_call.c: a layer of a network that is not there. */
#include "benchmark/attention_call.h"

#include <math.h>
#include <stdio.h>

hd_status hd_bench_call(const hd_bench_attention_options *o, const hd_bench_inputs *in,
                        hd_attention_run *run, const hd_row *who, hd_tensor out, const hd_exec *ex)
{
    const int64_t rows = in->q.dim[0], tokens = in->q.dim[1];
    const hd_forward forward = {
        .run = run, .rows = {rows, who}, .step = {.count = 1, .timestep = 500, .sigma = 1}};
    hd_attention_call call = {
        .forward = &forward,
        .site = {.network = o->shape->network,
                 .kind = o->shape->text ? HD_SITE_JOINT : HD_SITE_SELF,
                 .factor = 1,
                 .heads = in->q.dim[2],
                 .tokens = tokens},
        // the layer's input is not there: the keys of all heads stand for it
        .x = hd_tensor_reshape(in->k, hd_shape3(rows, tokens, in->k.dim[2] * in->k.dim[3])),
        .q = in->q,
        .k = in->k,
        .v = in->v,
        .out = out,
        .q_layout = hd_bench_shape_layout(o->shape),
        .k_layout = hd_bench_shape_layout(o->shape),
        .scale = 1.0f / sqrtf((float)in->q.dim[3])};
    snprintf(call.site.path, sizeof call.site.path, "block.%lld", (long long)o->block);
    return hd_attention(ex, &call);
}
