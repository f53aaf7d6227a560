/* cli/bench_model.c: heddle bench model. */
#include "cli/bench.h"

hd_status hd_bench_job_model(hd_bench_job *j)
{
    (void)j;
    return hd_fail(HD_ERR_UNSUPPORTED, "bench model is not there yet");
}
