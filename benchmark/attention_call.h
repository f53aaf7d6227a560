/* benchmark/attention_call.h: the call that `bench attention` measures. */
#ifndef HD_BENCHMARK_ATTENTION_CALL_H
#define HD_BENCHMARK_ATTENTION_CALL_H

#include "benchmark/attention.h"
#include "engine/attention/run.h"

HD_BEGIN_DECLS

/* Attention of the options' layer over `in`, in step 0 of 1; who [B] are the rows. */
HD_CHECKED hd_status hd_bench_call(const hd_bench_attention_options *options,
                                   const hd_bench_inputs *in, hd_attention_run *run,
                                   const hd_row *who, hd_tensor out, const hd_exec *ex);

HD_END_DECLS
#endif
