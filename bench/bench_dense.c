/* bench/bench_dense.c: one dense attention call, for bench/dense_before, which builds this file
 * beside an earlier Heddle, too: it uses no more than what has been there from the start.
 *
 * bench_dense THREADS LENGTH HEAD_SIZE TYPE REPEATS; prints the shortest time in milliseconds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/arena.h"
#include "engine/ops/sdpa.h"

enum { HEADS = 8 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Roughly normal: a sum of uniforms.
static float noise(uint64_t *state)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7320508f;
}

static hd_tensor tokens(hd_dtype dtype, int64_t length, int64_t dim, uint64_t seed)
{
    hd_tensor t = hd_tensor_of(NULL, dtype, hd_shape4(1, length, HEADS, dim));
    t.data = malloc((size_t)hd_tensor_bytes(t));
    for (int64_t i = 0; t.data && i < hd_tensor_count(t); i++) {
        if (dtype == HD_F32)
            ((float *)t.data)[i] = noise(&seed);
        else
            ((hd_bf16 *)t.data)[i] = hd_bf16_from_f32(noise(&seed));
    }
    return t;
}

static hd_status measure(const hd_exec *ex, hd_dtype dtype, int64_t length, int64_t dim,
                         int repeats)
{
    hd_sdpa a = {.q = tokens(dtype, length, dim, 1),
                 .k = tokens(dtype, length, dim, 2),
                 .v = tokens(dtype, length, dim, 3),
                 .out = tokens(dtype, length, dim, 4),
                 .scale = 1.0f / sqrtf((float)dim)};
    double best = 1e9;
    hd_status status = HD_OK;
    for (int i = 0; i <= repeats && status == HD_OK; i++) { // the first one warms up
        const double start = seconds();
        status = hd_sdpa_run(ex, &a);
        const double took = seconds() - start;
        if (i > 0 && took < best) best = took;
    }
    if (status == HD_OK) printf("%.3f\n", best * 1e3);
    free(a.q.data), free(a.k.data), free(a.v.data), free(a.out.data);
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: bench_dense THREADS LENGTH HEAD_SIZE f32|bf16 REPEATS\n");
        return 2;
    }
    const hd_dtype dtype = strcmp(argv[4], "bf16") == 0 ? HD_BF16 : HD_F32;
    hd_exec ex = {.has = hd_cpu_features()};
    hd_status status = hd_pool_create(&ex.pool, atoi(argv[1]));
    if (status == HD_OK) status = hd_arena_create(&ex.arena, (size_t)1 << 30);
    if (status == HD_OK)
        status = measure(&ex, dtype, atoll(argv[2]), atoll(argv[3]), atoi(argv[5]));
    if (status != HD_OK) fprintf(stderr, "bench_dense: %s\n", hd_message());
    hd_pool_free(ex.pool);
    hd_arena_free(ex.arena);
    return status != HD_OK;
}
