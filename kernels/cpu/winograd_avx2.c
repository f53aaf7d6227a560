/* kernels/cpu/winograd_avx2.c: the transforms of F(4x4, 3x3) in AVX2. */
#include "kernels/cpu/winograd_lanes.h"

const hd_winograd_kernels hd_winograd_avx2 = {HD_CPU | HD_AVX2, filter, input, output};
