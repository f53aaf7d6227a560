/* benchmark/inputs.h: queries, keys and values to measure attention with: random, a structured
 * field, or captured from a run.
 *
 * Random: every value normal and independent: every query looks at every key alike, the worst case
 * of all sparse attention. Structured: what attention sees in a picture or video. Per head a smooth
 * Gaussian field u over the grid, `head_dim` wide, made of 32 random waves whose lengths depend on
 * the head: one after the other heads that vary alike along all axes, fast in space and slowly in
 * time, fast in time and slowly in space, slowly in both. Then
 *
 *     q = RoPE(g * normed(u + noise)),  k = RoPE(normed(u + noise')),  v = (w + noise'') / sqrt(2)
 *
 * with white noises of deviation 0.5 (q, k) and 1 (v), w a smooth field of its own of the same
 * waves, norms such that a score is g times the cosine of q and k, and rotations by the token's
 * frame, row and column. Text tokens are random and not rotated. A larger gain g is a sharper
 * attention. The values of a head depend on seed, head and grid only: not on threads or on how
 * many heads there are. */
#ifndef HD_BENCHMARK_INPUTS_H
#define HD_BENCHMARK_INPUTS_H

#include "base/exec.h"
#include "benchmark/shape.h"

HD_BEGIN_DECLS

#define HD_BENCH_GAIN 10.0

typedef struct hd_bench_inputs {
    hd_tensor q, k, v; // [B, L, H, D], owned
    char text[200];    // "structured field, gain 16, seed 1"
} hd_bench_inputs;

/* One batch row. dtype f32 or bf16. Free with hd_bench_inputs_free. */
HD_CHECKED hd_status hd_bench_inputs_random(hd_bench_inputs *out, const hd_exec *ex,
                                            const hd_bench_shape *shape, hd_dtype dtype,
                                            uint64_t seed);
HD_CHECKED hd_status hd_bench_inputs_field(hd_bench_inputs *out, const hd_exec *ex,
                                           const hd_bench_shape *shape, hd_dtype dtype, double gain,
                                           uint64_t seed);
/* Tensors q, k, v [B, L, H, D] of a safetensors file, converted to dtype. The shape's heads and
 * head size become the file's; its grid and text must have as many tokens as the file, or its grid
 * is taken from the file's metadata when it has one ("grid": "F,H,W", "grid_start": "226"). */
HD_CHECKED hd_status hd_bench_inputs_file(hd_bench_inputs *out, hd_bench_shape *shape,
                                          hd_dtype dtype, const char *path);
void hd_bench_inputs_free(hd_bench_inputs *inputs);

/* exp of the mean entropy of the attention of 256 queries spread over tokens and heads of row 0:
 * over how many keys attention is spread. */
HD_CHECKED hd_status hd_bench_effective_keys(double *out, const hd_exec *ex,
                                             const hd_bench_inputs *inputs, double scale);

HD_END_DECLS
#endif
