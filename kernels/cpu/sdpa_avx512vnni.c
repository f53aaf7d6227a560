/* kernels/cpu/sdpa_avx512vnni.c: attention with both products in int8, four of them per lane and
 * step (vpdpbusd). */
#define TILE_INT8
#define TILE_VECTORS 4
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx512vnni = {
    .max_queries = TILE_VECTORS * LANES,
    .lanes = LANES,
    .dim_unit = TILE_UNIT,
    .key_head = TILE_KEY_HEAD,
    .unit = TILE_UNIT,
    .measure = tile_quantise,
    .pack_keys = tile_pack_keys,
    .pack_values = tile_pack_values,
    .begin = tile_begin,
    .scores = tile_scores,
    .edit = tile_edit,
    .softmax = tile_softmax,
    .accumulate = tile_accumulate,
    .finish = tile_finish,
};
