/* kernels/cpu/winograd_avx512.c: the transforms of F(4x4, 3x3) in AVX-512. */
#include "kernels/cpu/winograd_lanes.h"

const hd_winograd_kernels hd_winograd_avx512 = {HD_CPU | HD_AVX512, filter, input, output};
