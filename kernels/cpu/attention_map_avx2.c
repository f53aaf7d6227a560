/* kernels/cpu/attention_map_avx2.c: attention_map_lanes.h, 8 keys at a time. */
#include "kernels/cpu/attention_map_lanes.h"

const hd_map_kernel hd_map_avx2 = {map_scores, map_gather, map_measure};
