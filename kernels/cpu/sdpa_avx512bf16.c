/* kernels/cpu/sdpa_avx512bf16.c: attention on bf16 tensors with vdpbf16ps: two bf16 products per
 * lane and step, summed in f32; probabilities are rounded to bf16 for the second product. */
#define TILE_BF16_PAIRS
#define TILE_VECTORS 4
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx512bf16 = TILE_KERNEL;
