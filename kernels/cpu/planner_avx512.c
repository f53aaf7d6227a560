/* kernels/cpu/planner_avx512.c: the planners' loops, sixteen lanes at a time. */
#include "kernels/cpu/planner_lanes.h"

const hd_planner_kernels hd_planner_avx512 = {HD_CPU | HD_AVX512, sum_tokens, pack, product,
                                              max_rows,           exp_sum,    top};
