/* kernels/cpu/planner_avx2.c: the planners' loops, eight lanes at a time. */
#include "kernels/cpu/planner_lanes.h"

const hd_planner_kernels hd_planner_avx2 = {HD_CPU | HD_AVX2, sum_tokens, pack, product,
                                            max_rows,         exp_sum,    top};
