/* base/exec.h: where and how an operator runs: device, instruction sets, threads, memory for
 * scratch.
 *
 * Passed to every operator as const hd_exec *. A test picks a variant of an operator by lowering
 * `isa`. */
#ifndef HD_BASE_EXEC_H
#define HD_BASE_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"

HD_BEGIN_DECLS

/* What an operator variant needs; what an executor has. */
enum {
    HD_CPU = 1u << 0,
    HD_CUDA = 1u << 1,
    HD_AVX2 = 1u << 8,         // AVX2 + FMA + F16C
    HD_AVX512 = 1u << 9,       // F, BW, DQ, VL
    HD_AVX512_BF16 = 1u << 10, // vdpbf16ps
    HD_AVX512_VNNI = 1u << 11,
    HD_AVX_VNNI = 1u << 13, // vpdpbusd on the vectors of AVX2
    HD_AMX_BF16 = 1u << 12,
};

struct hd_arena;

typedef struct hd_exec {
    unsigned has;           // HD_CPU or HD_CUDA, with the instruction sets that may be used
    hd_pool *pool;          // borrowed; NULL: the calling thread alone
    struct hd_arena *arena; // borrowed; scratch of operators and activations of networks
    bool recording; // the dry pass: check shapes, take memory, prepare primitives, touch no data
    bool (*cancelled)(void *arg); // asked by hd_exec_check; NULL: never
    void *cancelled_arg;
} hd_exec;

/* What this machine has: HD_CPU and instruction sets (checked with the operating system's support).
 * Pure. */
unsigned hd_cpu_features(void);
/* "avx512_bf16+vnni" etc. into text; returns text. */
char *hd_features_text(char *text, size_t bytes, unsigned has);

static inline bool hd_exec_has(const hd_exec *ex, unsigned needs)
{
    return (ex->has & needs) == needs;
}

/* HD_ERR_CANCELLED once the caller wants to stop. The long operators begin with it. */
HD_CHECKED hd_status hd_exec_check(const hd_exec *ex);

HD_END_DECLS
#endif
