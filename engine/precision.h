/* engine/precision.h: the type that `--precision auto` computes in: timed here, chosen by a pure
 * function.
 *
 * Which of f32 and bf16 is faster is a matter of the machine: twice as fast on cores that multiply
 * bf16 at full width, half as fast on others that have the same instructions. */
#ifndef HD_ENGINE_PRECISION_H
#define HD_ENGINE_PRECISION_H

#include "base/exec.h"
#include "base/tensor.h"

HD_BEGIN_DECLS

/* What multiplying some tokens by a matrix [out, in] takes; tokens are the same in every row of a
 * table. INFINITY: the machine cannot. */
typedef struct hd_precision_row {
    int64_t in, out;
    double f32_ms, bf16_ms;
} hd_precision_row;

/* Times `count` shapes [in, out] on all threads of `ex`, some milliseconds in all. */
HD_CHECKED hd_status hd_precision_time(const hd_exec *ex, int count, const int64_t (*in_out)[2],
                                       hd_precision_row *table);

/* HD_BF16 when the whole table takes at least a tenth less time in it (large matrices weigh as much
 * as they cost), else HD_F32, which is exact. *ratio: bf16's time over f32's, 1 for an empty table;
 * may be NULL. Pure. */
hd_dtype hd_precision_choose(int count, const hd_precision_row *table, double *ratio);

HD_END_DECLS
#endif
