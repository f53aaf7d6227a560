/* bench/bench_load.c: loading a model's weights from the system's cache, against a loop that reads
 * and converts every byte once.
 *
 * bench_load [threads [MiB [folder]]]: writes a file of that size (2048) into the folder ($TMPDIR),
 * with the matrices of a Stable Diffusion UNet, and removes it. Best of several runs; the ratio is
 * what counts. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "engine/weights/binder.h"
#include "engine/weights/safetensors_write.h"

enum { REPEATS = 5, CHUNK = 1 << 20, TENSORS_MOST = 4096 };

typedef struct model {
    char path[600];
    hd_dtype dtype;
    int64_t bytes, count;
    int kind[TENSORS_MOST];
} model;

// [out, in, k, k]
static const int64_t shapes[][3] = {{1280, 1280, 3},  {1280, 1280, 1}, {640, 640, 3},
                                    {10240, 1280, 1}, {320, 320, 3},   {1280, 5120, 1},
                                    {1280, 2560, 3},  {320, 320, 1}};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static hd_shape shape_of(int kind)
{
    const int64_t *s = shapes[kind];
    return s[2] == 1 ? hd_shape2(s[0], s[1]) : hd_shape4(s[0], s[1], s[2], s[2]);
}

static hd_status write_model(model *m, int64_t bytes)
{
    static hd_named_tensor tensors[TENSORS_MOST];
    static char names[TENSORS_MOST][32];
    char *data = malloc((size_t)2560 * 1280 * 9 * sizeof(float));
    if (!data) return hd_fail(HD_ERR_NOMEM, "no memory for a tensor");
    memset(data, 0x3c, (size_t)2560 * 1280 * 9 * sizeof(float)); // 0.0117 as f32, 1.06 as f16
    m->bytes = m->count = 0;
    while (m->bytes < bytes && m->count < TENSORS_MOST) {
        int64_t i = m->count++;
        m->kind[i] = (int)(i % (int64_t)HD_COUNT(shapes));
        snprintf(names[i], sizeof names[i], "layer.%lld.weight", (long long)i);
        hd_tensor t = hd_tensor_of(data, m->dtype, shape_of(m->kind[i]));
        tensors[i] = (hd_named_tensor){names[i], t};
        m->bytes += hd_tensor_bytes(t);
    }
    hd_status status = hd_safetensors_write(m->path, m->count, tensors, NULL);
    free(data);
    return status;
}

// The plain loop: a chunk is read, converted, and put where it stays.
static hd_status read_and_convert(const model *m, hd_dtype compute, double *took)
{
    double start = seconds();
    int64_t count = m->bytes / (int64_t)hd_dtype_size(m->dtype);
    int64_t chunk = CHUNK / (int64_t)hd_dtype_size(m->dtype);
    char *all = malloc((size_t)count * hd_dtype_size(compute));
    char *raw = malloc(CHUNK);
    float *wide = malloc((size_t)chunk * sizeof *wide);
    int fd = -1;
    hd_status status = all && raw && wide ? hd_file_open(&fd, m->path) : HD_ERR_NOMEM;
    for (int64_t i = 0; i < count && status == HD_OK; i += chunk) {
        int64_t n = count - i < chunk ? count - i : chunk;
        int64_t size = (int64_t)hd_dtype_size(m->dtype);
        status = hd_file_read_at(fd, m->path, i * size, raw, n * size);
        float *to = compute == HD_F32 ? (float *)all + i : wide;
        if (status == HD_OK) status = hd_convert_to_f32(to, raw, m->dtype, n);
        if (compute == HD_BF16) hd_convert_f32_to_bf16((hd_bf16 *)all + i, wide, n);
    }
    if (fd >= 0) close(fd);
    free(wide);
    free(raw);
    *took = seconds() - start;
    free(all);
    return status;
}

static hd_status load_bound(const model *m, const hd_exec *ex, hd_binder *b, hd_dtype compute,
                            double *took)
{
    double start = seconds();
    hd_weights *w = NULL;
    HD_TRY(hd_weights_open(&w, m->path, NULL));
    hd_status status = hd_binder_load(b, ex, w, compute, NULL, NULL);
    hd_weights_free(w);
    *took = seconds() - start;
    return status;
}

static hd_status load(const model *m, const hd_exec *ex, hd_dtype compute, double *took)
{
    static union {
        hd_linear *linear;
        hd_conv *conv;
    } layer[TENSORS_MOST];
    hd_binder *b;
    HD_TRY(hd_binder_create(&b));
    for (int64_t i = 0; i < m->count; i++) {
        const int64_t *s = shapes[m->kind[i]];
        char name[32];
        snprintf(name, sizeof name, "layer.%lld", (long long)i);
        if (s[2] == 1)
            hd_bind_linear(b, &layer[i].linear, name, s[1], s[0], false);
        else
            hd_bind_conv(b, &layer[i].conv, name, s[1], s[0], s[2], (hd_conv_spec){1, 1, 1, 1, 1},
                         false);
    }
    hd_status status = load_bound(m, ex, b, compute, took);
    for (int64_t i = 0; i < m->count; i++)
        if (shapes[m->kind[i]][2] == 1)
            hd_linear_free(layer[i].linear);
        else
            hd_conv_free(layer[i].conv);
    hd_binder_free(b);
    return status;
}

static hd_status measure(const model *m, const hd_exec *ex, hd_dtype compute)
{
    double loop = 1e9, loaded = 1e9, took = 0;
    for (int i = 0; i < REPEATS; i++) {
        HD_TRY(read_and_convert(m, compute, &took));
        if (took < loop) loop = took;
        HD_TRY(load(m, ex, compute, &took));
        if (took < loaded) loaded = took;
    }
    printf("%-5s -> %-5s  loop %7.1f ms (%4.1f GB/s)   load %7.1f ms   ratio %.2f\n",
           hd_dtype_name(m->dtype), hd_dtype_name(compute), 1e3 * loop,
           (double)m->bytes / loop * 1e-9, 1e3 * loaded, loaded / loop);
    fflush(stdout);
    return HD_OK;
}

static hd_status measure_file(model *m, const hd_exec *ex, int64_t bytes)
{
    static const hd_dtype computes[] = {HD_F32, HD_BF16};
    HD_TRY(write_model(m, bytes));
    for (size_t i = 0; i < HD_COUNT(computes); i++)
        HD_TRY(measure(m, ex, computes[i]));
    return HD_OK;
}

int main(int argc, char **argv)
{
    static const hd_dtype dtypes[] = {HD_F32, HD_F16};
    static model m;
    int threads = argc > 1 ? atoi(argv[1]) : hd_pool_default_threads();
    int64_t bytes = (argc > 2 ? atoll(argv[2]) : 2048) << 20;
    const char *folder = argc > 3 ? argv[3] : getenv("TMPDIR");
    snprintf(m.path, sizeof m.path, "%s/heddle-bench-load.safetensors", folder ? folder : "/tmp");
    hd_exec ex = {.has = hd_cpu_features()};
    hd_status status = hd_pool_create(&ex.pool, threads);
    printf("load: %lld MiB, %d threads\n", (long long)(bytes >> 20), threads);
    for (size_t i = 0; i < HD_COUNT(dtypes) && status == HD_OK; i++) {
        m.dtype = dtypes[i];
        status = measure_file(&m, &ex, bytes);
    }
    if (status != HD_OK) fprintf(stderr, "%s\n", hd_message());
    unlink(m.path);
    hd_pool_free(ex.pool);
    return status != HD_OK;
}
