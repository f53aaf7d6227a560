/* kernels/cpu/sdpa_avx2.c: attention on f32 units, 16 queries at a time. bf16 tensors become f32
 * as they are packed and loaded. */
#define TILE_VECTORS 2
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx2 = {
    .max_queries = TILE_VECTORS * LANES,
    .lanes = LANES,
    .dim_unit = TILE_UNIT,
    .key_head = TILE_KEY_HEAD,
    .unit = TILE_UNIT,
    .pack_keys = tile_pack_keys,
    .pack_values = tile_pack_values,
    .begin = tile_begin,
    .scores = tile_scores,
    .edit = tile_edit,
    .softmax = tile_softmax,
    .accumulate = tile_accumulate,
    .finish = tile_finish,
};
