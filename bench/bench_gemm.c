/* bench/bench_gemm.c: linear layers and convolutions at the shapes of Stable Diffusion 1.5, 512 x
 * 512, two rows, beside what oneDNN's own matmul reaches in the same run.
 *
 * bench_gemm [threads [repeats [f32|bf16]]]. Best of several runs, GFLOP/s of nominal work. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/arena.h"
#include "engine/ops/conv.h"
#include "engine/ops/linear.h"
#include "kernels/cpu/onednn.h"

enum { ROWS = 2 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static hd_tensor numbers(hd_dtype dtype, hd_shape shape)
{
    hd_tensor t = hd_tensor_of(NULL, dtype, shape);
    t.data = malloc((size_t)hd_tensor_bytes(t));
    uint64_t state = 1;
    for (int64_t i = 0; t.data && i < hd_tensor_count(t); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float x = (float)(state >> 40) * 0x1p-24f - 0.5f;
        if (dtype == HD_F32)
            ((float *)t.data)[i] = x;
        else
            ((hd_bf16 *)t.data)[i] = hd_bf16_from_f32(x);
    }
    return t;
}

static void report(const char *what, hd_dtype dtype, double flop, double best, double peak)
{
    printf("%-34s %-4s %8.2f ms %8.1f GFLOP/s %5.1f %%\n", what, hd_dtype_name(dtype), best * 1e3,
           flop / best * 1e-9, 100 * flop / best / peak);
    fflush(stdout);
}

typedef struct linear_shape {
    int64_t tokens, in, out;
} linear_shape;

static hd_status measure_linear(const hd_exec *ex, hd_dtype dtype, linear_shape s, int repeats,
                                double peak)
{
    hd_tensor w = numbers(dtype, hd_shape2(s.out, s.in)), b = numbers(HD_F32, hd_shape1(s.out));
    hd_tensor x = numbers(dtype, hd_shape3(ROWS, s.tokens, s.in));
    hd_tensor y = numbers(dtype, hd_shape3(ROWS, s.tokens, s.out));
    hd_linear *linear = NULL;
    hd_status status = hd_linear_create(&linear, ex, 1, &w, &b, dtype);
    double best = 1e30;
    for (int i = 0; i < repeats && status == HD_OK; i++) {
        double from = seconds();
        status = hd_linear_run(ex, linear, y, x, hd_tensor_none());
        double took = seconds() - from;
        if (took < best) best = took;
    }
    char what[64];
    snprintf(what, sizeof what, "linear %lldx%lldx%lld", (long long)s.tokens, (long long)s.in,
             (long long)s.out);
    if (status == HD_OK)
        report(what, dtype, 2.0 * ROWS * (double)(s.tokens * s.in * s.out), best, peak);
    hd_linear_free(linear);
    free(w.data), free(b.data), free(x.data), free(y.data);
    return status;
}

typedef struct conv_shape {
    int64_t size, in, out;
    int kernel, stride, batch;
} conv_shape;

static hd_status measure_conv(const hd_exec *ex, hd_dtype dtype, conv_shape s, int repeats,
                              double peak)
{
    hd_conv_spec spec = {s.stride, s.kernel / 2, s.kernel / 2, s.kernel / 2, s.kernel / 2};
    hd_tensor w = numbers(dtype, hd_shape4(s.out, s.in, s.kernel, s.kernel));
    hd_tensor ones = numbers(HD_F32, hd_shape1(s.in));
    hd_tensor x = numbers(dtype, hd_shape4(s.batch, s.size, s.size, s.in));
    int64_t out = s.size / s.stride;
    hd_tensor y = numbers(dtype, hd_shape4(s.batch, out, out, s.out));
    hd_conv_norm norm = {ones.data, ones.data, 32, 1e-5f, true};
    hd_conv_extra extra = {.norm = s.in % 32 == 0 && s.kernel == 3 ? &norm : NULL};
    hd_conv *conv = NULL;
    hd_status status = hd_conv_create(&conv, ex, spec, w, hd_tensor_none(), dtype);
    double best = 1e30;
    for (int i = 0; i < repeats && status == HD_OK; i++) {
        double from = seconds();
        status = hd_conv_run(ex, conv, y, x, &extra);
        double took = seconds() - from;
        if (took < best) best = took;
    }
    char what[64];
    snprintf(what, sizeof what, "conv %dx%d/%d %lldx%lld %lld->%lld%s", s.kernel, s.kernel,
             s.stride, (long long)s.size, (long long)s.size, (long long)s.in, (long long)s.out,
             extra.norm ? " norm" : "");
    double flop = 2.0 * s.batch * (double)(out * out * s.in * s.out * s.kernel * s.kernel);
    if (status == HD_OK) report(what, dtype, flop, best, peak);
    hd_conv_free(conv);
    free(w.data), free(ones.data), free(x.data), free(y.data);
    return status;
}

static hd_status measure_all(const hd_exec *ex, hd_dtype dtype, int repeats)
{
    static const linear_shape linears[] = {{4096, 320, 320},  {4096, 320, 960},  {4096, 320, 2560},
                                           {4096, 1280, 320}, {1024, 640, 640},  {1024, 640, 5120},
                                           {1024, 2560, 640}, {256, 1280, 1280}, {256, 1280, 10240},
                                           {256, 5120, 1280}, {64, 1280, 1280},  {77, 768, 1280},
                                           {1, 1280, 1280}};
    static const conv_shape convs[] = {
        {64, 4, 320, 3, 1, 2},     {64, 320, 320, 3, 1, 2},   {64, 960, 320, 3, 1, 2},
        {64, 320, 320, 3, 2, 2},   {32, 640, 640, 3, 1, 2},   {32, 960, 640, 3, 1, 2},
        {16, 1280, 1280, 3, 1, 2}, {16, 2560, 1280, 3, 1, 2}, {8, 1280, 1280, 3, 1, 2},
        {8, 2560, 1280, 3, 1, 2},  {64, 960, 320, 1, 1, 2},   {16, 2560, 1280, 1, 1, 2},
        {64, 512, 512, 3, 1, 1},   {128, 512, 512, 3, 1, 1},  {256, 512, 256, 3, 1, 1},
        {256, 256, 256, 3, 1, 1},  {512, 256, 128, 3, 1, 1},  {512, 128, 128, 3, 1, 1},
        {512, 128, 3, 3, 1, 1}};
    double best = 0;
    int threads = hd_pool_threads(ex->pool);
    double flop = 2.0 * 4096 * 1280 * 1280;
    HD_TRY(hd_dnn_matmul_seconds(&best, dtype, threads, 4096, 1280, 1280, 5 * repeats));
    report("oneDNN matmul 4096x1280x1280", dtype, flop, best, flop / best);
    double peak = flop / best;
    for (size_t i = 0; i < HD_COUNT(linears); i++)
        HD_TRY(measure_linear(ex, dtype, linears[i], repeats, peak));
    for (size_t i = 0; i < HD_COUNT(convs); i++)
        HD_TRY(measure_conv(ex, dtype, convs[i], repeats, peak));
    return HD_OK;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : hd_pool_default_threads();
    int repeats = argc > 2 ? atoi(argv[2]) : 7;
    const char *only = argc > 3 ? argv[3] : "";
    char text[200];
    hd_exec ex = {.has = hd_cpu_features()};
    hd_status status = hd_pool_create(&ex.pool, threads);
    if (status == HD_OK) status = hd_arena_create(&ex.arena, (size_t)1 << 30);
    printf("oneDNN %s, %d threads, %s\n", hd_dnn_version(text), threads,
           hd_features_text(text + 32, sizeof text - 32, ex.has));
    if (status == HD_OK && strcmp(only, "f32") != 0) status = measure_all(&ex, HD_BF16, repeats);
    if (status == HD_OK && strcmp(only, "bf16") != 0) status = measure_all(&ex, HD_F32, repeats);
    if (status != HD_OK) fprintf(stderr, "bench_gemm: %s\n", hd_message());
    hd_arena_free(ex.arena);
    hd_pool_free(ex.pool);
    return status != HD_OK;
}
