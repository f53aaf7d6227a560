/* kernels/cpu/sdpa_avxvnni.c: attention with both products in int8, on processors that have
 * vpdpbusd without AVX-512. */
#define TILE_INT8
#define TILE_VECTORS 2
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avxvnni = TILE_KERNEL;
