/* engine/ops/sdpa_kernel.c: which kernel computes an attention call: the best of its type for the
 * processor, and for products in int8 what the processor has for those. */
#include "engine/ops/sdpa_internal.h"

typedef struct variant {
    unsigned needs;
    const hd_sdpa_kernel *f32, *bf16; // of the two types of tensors; NULL: the reference
    const hd_sdpa_kernel *int8;       // NULL: none; else of the same lanes
} variant;

// Best first.
static const variant variants[] = {
#if HD_WITH_AVX512_BF16 && HD_WITH_AVX512_VNNI
    {HD_CPU | HD_AVX512_BF16 | HD_AVX512_VNNI, &hd_sdpa_avx512, &hd_sdpa_avx512bf16,
     &hd_sdpa_avx512vnni},
#endif
#if HD_WITH_AVX512_BF16
    {HD_CPU | HD_AVX512_BF16, &hd_sdpa_avx512, &hd_sdpa_avx512bf16, NULL},
#endif
#if HD_WITH_AVX512_VNNI
    {HD_CPU | HD_AVX512 | HD_AVX512_VNNI, &hd_sdpa_avx512, &hd_sdpa_avx512, &hd_sdpa_avx512vnni},
#endif
#if HD_WITH_AVX512
    {HD_CPU | HD_AVX512, &hd_sdpa_avx512, &hd_sdpa_avx512, NULL},
#endif
#if HD_WITH_AVX_VNNI
    {HD_CPU | HD_AVX2 | HD_AVX_VNNI, &hd_sdpa_avx2, &hd_sdpa_avx2, &hd_sdpa_avxvnni},
#endif
#if HD_WITH_AVX2
    {HD_CPU | HD_AVX2, &hd_sdpa_avx2, &hd_sdpa_avx2, NULL},
#endif
    {HD_CPU, NULL, NULL, NULL},
};

hd_status sdpa_choose_kernel(const hd_exec *ex, sdpa_run *run)
{
    const hd_sdpa *a = run->a;
    const variant *v = variants;
    while (v->f32 && !hd_exec_has(ex, v->needs))
        v++;
    run->kernel = a->q.dtype == HD_BF16 ? v->bf16 : v->f32;
    const bool qk = a->qk == HD_NUMBER_INT8, pv = a->pv == HD_NUMBER_INT8;
    if (!run->kernel || (!qk && !pv)) return HD_OK;
    if (!v->int8) {
        char text[100];
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "sdpa: products in int8 need AVX-512 VNNI or AVX-VNNI, and this processor has %s; use "
            "\"qk\": \"bf16\" and \"pv\": \"bf16\"",
            hd_features_text(text, sizeof text, ex->has));
    }
    run->mixed = hd_sdpa_mixed(qk ? v->int8 : run->kernel, pv ? v->int8 : run->kernel);
    run->kernel = &run->mixed;
    return HD_OK;
}
