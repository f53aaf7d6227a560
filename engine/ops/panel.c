/* engine/ops/panel.c: packing weights for panels, and the choice of the loops around them. */
#include "engine/ops/panel.h"

#include <stdlib.h>

#include "engine/arena.h"

const hd_panel_kernels *hd_panel_kernels_of(const hd_exec *ex)
{
    static const hd_panel_kernels *const variants[] = {
#if HD_WITH_AVX512
        &hd_panel_avx512,
#endif
#if HD_WITH_AVX2
        &hd_panel_avx2,
#endif
        &hd_panel_reference,
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i]->needs)) return variants[i];
    return NULL;
}

typedef struct pack_work {
    hd_dnn *dnn;
    hd_dtype compute;
    int parts;
    const hd_tensor *weight;
    int64_t row, block; // elements of one output, outputs of a block
    char *plain;        // [threads, block, row] in the compute type
    float *wide;        // [threads, row]
} pack_work;

static hd_status pack_row(const pack_work *w, char *to, hd_tensor from, int64_t out, float *wide)
{
    const char *at = (const char *)from.data + out * w->row * (int64_t)hd_dtype_size(from.dtype);
    if (from.dtype == w->compute) {
        memcpy(to, at, (size_t)w->row * hd_dtype_size(from.dtype));
        return HD_OK;
    }
    if (w->compute == HD_F32) return hd_convert_to_f32((float *)to, at, from.dtype, w->row);
    const float *values = (const float *)at;
    if (from.dtype != HD_F32) {
        HD_TRY(hd_convert_to_f32(wide, at, from.dtype, w->row));
        values = wide;
    }
    hd_convert_f32_to_bf16((hd_bf16 *)to, values, w->row);
    return HD_OK;
}

static hd_status pack_block(void *arg, int64_t block, int thread)
{
    const pack_work *w = arg;
    int64_t row_bytes = w->row * (int64_t)hd_dtype_size(w->compute);
    char *plain = w->plain + thread * w->block * row_bytes;
    int64_t out = block * w->block;
    int part = 0;
    for (; out >= w->weight[part].dim[0]; part++)
        out -= w->weight[part].dim[0];
    for (int64_t i = 0; i < hd_dnn_block_out(w->dnn, block); i++, out++) {
        for (; out == w->weight[part].dim[0]; part++)
            out = 0;
        HD_TRY(pack_row(w, plain + i * row_bytes, w->weight[part], out, w->wide + thread * w->row));
    }
    return hd_dnn_pack(w->dnn, block, plain);
}

hd_status hd_panel_pack(const hd_exec *ex, hd_dnn *dnn, hd_dtype compute, int parts,
                        const hd_tensor *weight)
{
    pack_work w = {.dnn = dnn, .compute = compute, .parts = parts, .weight = weight, .row = 1};
    for (int i = 1; i < weight[0].rank; i++)
        w.row *= weight[0].dim[i];
    w.block = hd_dnn_block_out(dnn, 0);
    size_t threads = (size_t)hd_pool_threads(ex->pool);
    w.plain = malloc(threads * (size_t)(w.block * w.row) * hd_dtype_size(compute));
    w.wide = malloc(threads * (size_t)w.row * sizeof *w.wide);
    hd_status status = HD_OK;
    if (!w.plain || !w.wide)
        status = hd_fail(HD_ERR_NOMEM, "weights: no memory to pack them");
    else
        status = hd_parallel_for(ex->pool, hd_dnn_blocks(dnn), pack_block, &w);
    free(w.plain);
    free(w.wide);
    return status;
}

hd_status hd_panel_bias(float **out, int parts, const int64_t *sizes, const hd_tensor *bias)
{
    int64_t all = 0, at = 0;
    for (int i = 0; i < parts; i++)
        all += sizes[i];
    float *vector = calloc((size_t)all, sizeof *vector);
    if (!vector) return hd_fail(HD_ERR_NOMEM, "bias: no memory");
    hd_status status = HD_OK;
    for (int i = 0; i < parts && status == HD_OK; at += sizes[i++])
        if (bias && hd_tensor_given(bias[i]))
            status = hd_convert_to_f32(vector + at, bias[i].data, bias[i].dtype, sizes[i]);
    if (status != HD_OK) {
        free(vector);
        return status;
    }
    *out = vector;
    return HD_OK;
}

void *hd_panel_scratch(const hd_exec *ex, size_t bytes, size_t *stride)
{
    *stride = (bytes + 63) & ~(size_t)63;
    return hd_arena_bytes(ex->arena, *stride * (size_t)hd_pool_threads(ex->pool));
}
