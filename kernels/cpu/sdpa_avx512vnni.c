/* kernels/cpu/sdpa_avx512vnni.c: attention with both products in int8, four of them per lane and
 * step (vpdpbusd). */
#define TILE_INT8
#define TILE_VECTORS 4
#include "kernels/cpu/sdpa_tile.h"

const hd_sdpa_kernel hd_sdpa_avx512vnni = TILE_KERNEL;
