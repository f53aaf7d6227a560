/* kernels/cpu/sdpa_avxvnni.c: attention with both products in int8, on processors that have
 * vpdpbusd without AVX-512. */
#define TILE_INT8
#define TILE_VECTORS 2
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avxvnni = {
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
