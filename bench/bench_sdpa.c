/* bench/bench_sdpa.c: dense attention alone, in GFLOP/s (4 L L D H), for the head sizes that
 * networks use.
 *
 * bench_sdpa [threads [length]]; the peer is bench/peers/sdpa.py. Best of several runs. Where the
 * processor has products in int8, both of them in int8 take turns with the type's own, and the last
 * column is how many times as fast they are: quantising is part of the time. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/arena.h"
#include "engine/ops/sdpa.h"

enum { HEADS = 8, REPEATS = 7 };

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
        float x = noise(&seed);
        if (dtype == HD_F32)
            ((float *)t.data)[i] = x;
        else
            ((hd_bf16 *)t.data)[i] = hd_bf16_from_f32(x);
    }
    return t;
}

// Seconds, the shortest of the runs; 1e9 where there is none.
typedef struct times {
    double native, int8;
} times;

static hd_status run_once(const hd_exec *ex, const hd_sdpa *a, double *best)
{
    const double start = seconds();
    HD_TRY(hd_sdpa_run(ex, a));
    const double took = seconds() - start;
    if (took < *best) *best = took;
    return HD_OK;
}

static void print_row(const hd_sdpa *a, const char *type, double best, double ratio)
{
    const double length = (double)a->q.dim[1], dim = (double)a->q.dim[3];
    printf("%5.0f %4d %4.0f  %-5s %8.2f ms %8.1f GFLOP/s", length, HEADS, dim, type, best * 1e3,
           4.0 * length * length * dim * HEADS / best * 1e-9);
    if (ratio > 0.0) printf("  %5.2f x", ratio);
    printf("\n");
}

static hd_status measure(const hd_exec *ex, hd_dtype dtype, int64_t length, int64_t dim)
{
    hd_sdpa a = {.q = tokens(dtype, length, dim, 1),
                 .k = tokens(dtype, length, dim, 2),
                 .v = tokens(dtype, length, dim, 3),
                 .out = tokens(dtype, length, dim, 4),
                 .scale = 1.0f / sqrtf((float)dim)};
    times best = {1e9, 1e9};
    hd_status status = HD_OK;
    for (int i = 0; i < REPEATS && status == HD_OK; i++) {
        a.qk = a.pv = HD_NUMBER_NATIVE;
        status = run_once(ex, &a, &best.native);
        a.qk = a.pv = HD_NUMBER_INT8;
        if (status == HD_OK && hd_exec_has(ex, HD_AVX512_VNNI))
            status = run_once(ex, &a, &best.int8);
    }
    if (status == HD_OK) print_row(&a, hd_dtype_name(dtype), best.native, 0.0);
    if (status == HD_OK && best.int8 < 1e9)
        print_row(&a, "int8", best.int8, best.native / best.int8);
    free(a.q.data), free(a.k.data), free(a.v.data), free(a.out.data);
    return status;
}

static hd_status measure_all(const hd_exec *ex, int64_t length)
{
    static const unsigned ceilings[] = {HD_CPU | HD_AVX2, HD_CPU | HD_AVX2 | HD_AVX512, ~0u};
    static const int64_t dims[] = {40, 64, 80, 128, 160};
    for (size_t c = 0; c < HD_COUNT(ceilings); c++) {
        hd_exec limited = *ex;
        limited.has &= ceilings[c];
        char text[100];
        printf("%s\n    L    H    D  type\n", hd_features_text(text, sizeof text, limited.has));
        for (size_t d = 0; d < HD_COUNT(dims); d++) {
            HD_TRY(measure(&limited, HD_F32, length, dims[d]));
            HD_TRY(measure(&limited, HD_BF16, length, dims[d]));
        }
    }
    return HD_OK;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : hd_pool_default_threads();
    const int64_t length = argc > 2 ? atoll(argv[2]) : 4096;
    hd_exec ex = {.has = hd_cpu_features()};
    hd_status status = hd_pool_create(&ex.pool, threads);
    if (status == HD_OK) status = hd_arena_create(&ex.arena, (size_t)1 << 30);
    if (status == HD_OK) status = measure_all(&ex, length);
    if (status != HD_OK) fprintf(stderr, "bench_sdpa: %s\n", hd_message());
    hd_pool_free(ex.pool);
    hd_arena_free(ex.arena);
    return status != HD_OK;
}
