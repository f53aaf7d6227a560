/* kernels/cpu/attention_map_avx512.c: attention_map_lanes.h, 16 keys at a time. */
#include "kernels/cpu/attention_map_lanes.h"

const hd_map_kernel hd_map_avx512 = {map_scores, map_gather, map_measure};
