/* base/dtype_loops.h: the loops behind hd_convert_*, one set per instruction set.
 *
 * Private to base/dtype.c and its test: everybody else calls hd_convert_*, which picks the best set
 * of this machine. All sets give the same bits. */
#ifndef HD_BASE_DTYPE_LOOPS_H
#define HD_BASE_DTYPE_LOOPS_H

#include "base/dtype.h"

HD_BEGIN_DECLS

typedef struct hd_dtype_loops {
    unsigned needs; // instruction sets, as in base/exec.h
    /* 16-bit types only: in is bf16 or f16, out is bf16 or f16. */
    void (*widen)(float *out, const uint16_t *in, hd_dtype dtype, int64_t count);
    void (*narrow)(uint16_t *out, hd_dtype dtype, const float *in, int64_t count);
} hd_dtype_loops;

extern const hd_dtype_loops hd_dtype_plain;  // base/dtype.c
extern const hd_dtype_loops hd_dtype_avx2;   // base/dtype_avx2.c
extern const hd_dtype_loops hd_dtype_avx512; // base/dtype_avx512.c

HD_END_DECLS
#endif
