/* kernels/cpu/sdpa_avx2.c: attention on f32 units, 16 queries at a time. bf16 tensors become f32
 * as they are packed and loaded. */
#define TILE_VECTORS 2
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx2 = TILE_KERNEL;
