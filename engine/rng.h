/* engine/rng.h: the noise of a picture, number for number as PyTorch draws it.
 *
 * One generator per picture: picture i of a batch is created with seed + i and sees what a run of
 * that seed alone sees. The numbers depend on the kind, the seed and the sequence of calls, never
 * on the instruction set of the machine or on threads.
 *
 * HD_RNG_CPU is torch.Generator("cpu"): MT19937 seeded with the low 32 bits of the seed (seeds that
 * differ by 2^32 are the same stream, as in torch), and torch.randn in f32, bit for bit:
 *   - 16 values or more: 24-bit uniforms fill the output; every block of 16 becomes normals by
 *     Box-Muller between its halves, log, sin and cos being single-precision polynomials with fused
 *     multiply-adds; when the count is not a multiple of 16, the last 16 values are drawn anew;
 *   - fewer than 16: Box-Muller in double precision, one pair of 53-bit uniforms for two values;
 *     the second one waits for the next such call, across calls.
 *
 * HD_RNG_CUDA is torch.Generator("cuda"): Philox4x32-10, key = the 64-bit seed. Value i of call c
 * uses the block with counter {c, c >> 32, i, i >> 32} (curand's offset 4 c and subsequence i), and
 * is the first of the normals that curand_normal4 makes of it. This is torch.randn on a GPU for a
 * tensor of at most (resident threads of the GPU) values: 2048 per multiprocessor on A100 and H100,
 * 1536 on RTX 30 and 40, for instance 125952 values on an RTX 3090 and 221184 on an A100, a
 * latent of 1024 x 1024 pixels being 65536. Beyond that torch's values depend on the GPU it runs
 * on; ours go on as defined above, which is also what other programs with a "GPU" noise option do.
 * Integers are exact; normals agree to 1e-6 (the GPU computes them in f32 with approximate sines).
 */
#ifndef HD_ENGINE_RNG_H
#define HD_ENGINE_RNG_H

#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_rng hd_rng;

typedef enum hd_rng_kind {
    HD_RNG_CPU,
    HD_RNG_CUDA,
} hd_rng_kind;

/* { "cpu", "cuda", NULL }, indexed by hd_rng_kind. */
extern const char *const hd_rng_kinds[];

/* The caller owns *out; hd_rng_free(NULL) does nothing. */
HD_CHECKED hd_status hd_rng_create(hd_rng **out, hd_rng_kind kind, uint64_t seed);
void hd_rng_free(hd_rng *rng);

/* One call of torch.randn for `count` values in f32: values [count]. A count <= 0 draws nothing.
 * Two calls of n values are not one call of 2 n. */
void hd_rng_normal(hd_rng *rng, float *values, int64_t count);

/* The Philox4x32-10 block of a counter and a key (Salmon et al., SC 2011): for tests and for
 * anything else that wants numbers without a state. */
void hd_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

HD_END_DECLS
#endif
