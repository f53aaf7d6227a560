/* base/exec.c: what this machine's processor can do. */
#include "base/exec.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static unsigned ask_processor(void)
{
    unsigned has = HD_CPU;
#if defined(__x86_64__)
    __builtin_cpu_init();
    // GCC's and clang's checks include XGETBV: a kernel that does not save the registers counts as
    // not having them.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) has |= HD_AVX2;
    if ((has & HD_AVX2) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        has |= HD_AVX512;
    unsigned a = 0, b = 0, c = 0, d = 0; // leaf 7, 1: clang 14 has no name for AVX-VNNI
    if ((has & HD_AVX2) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1))
        has |= HD_AVX_VNNI;
    if (has & HD_AVX512) {
        if (__builtin_cpu_supports("avx512bf16")) has |= HD_AVX512_BF16;
        if (__builtin_cpu_supports("avx512vnni")) has |= HD_AVX512_VNNI;
    }
#endif
    return has;
}

// Conversions of single rows ask, too, and in a virtual machine the question is a trip outside.
unsigned hd_cpu_features(void)
{
    static atomic_uint answer; // 0: not asked yet; whoever asks gets the same
    unsigned has = atomic_load_explicit(&answer, memory_order_relaxed);
    if (has) return has;
    has = ask_processor();
    atomic_store_explicit(&answer, has, memory_order_relaxed);
    return has;
}

char *hd_features_text(char *text, size_t bytes, unsigned has)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{HD_CUDA, "cuda"},
                 {HD_AVX2, "avx2"},
                 {HD_AVX512, "avx512"},
                 {HD_AVX512_BF16, "avx512_bf16"},
                 {HD_AVX512_VNNI, "avx512_vnni"},
                 {HD_AVX_VNNI, "avx_vnni"},
                 {HD_AMX_BF16, "amx_bf16"}};
    size_t used = 0;
    if (bytes) text[0] = 0;
    for (size_t i = 0; i < HD_COUNT(names); i++)
        if ((has & names[i].bit) && used < bytes)
            used +=
                (size_t)snprintf(text + used, bytes - used, "%s%s", used ? "+" : "", names[i].name);
    if (bytes && !text[0]) snprintf(text, bytes, "baseline");
    return text;
}

hd_status hd_exec_check(const hd_exec *ex)
{
    if (!ex->cancelled || !ex->cancelled(ex->cancelled_arg)) return HD_OK;
    return hd_fail(HD_ERR_CANCELLED, "stopped");
}
