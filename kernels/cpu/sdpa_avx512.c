/* kernels/cpu/sdpa_avx512.c: attention on f32 units, 64 queries at a time. bf16 tensors become f32
 * as they are packed and loaded: for machines with AVX-512 but without vdpbf16ps. */
#define TILE_VECTORS 4
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx512 = TILE_KERNEL;
