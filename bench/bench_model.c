/* bench/bench_model.c: one guided step (two rows) of a model's UNet, and the decoding of one
 * picture.
 *
 *     bench_model FOLDER [--size 512] [--runs 3] [--threads 2] [--precision f32|bf16] [--part
 * step|decode|both]
 *
 * Prints a line of JSON per figure, like bench/peers/model.py: minimum and median seconds after one
 * warm-up, and the process's peak resident memory. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "codecs/vae_kl.h"
#include "engine/arena.h"
#include "engine/attention/run.h"
#include "pipelines/model_folder.h"
#include "unet/unet2d.h"

typedef struct bench {
    const char *folder;
    int64_t size;
    int runs, threads;
    hd_dtype compute;
    const char *part;
    hd_exec ex;
} bench;

/* One timed thing: the same call on the dry pass and for real. */
typedef struct job {
    const char *what;
    hd_status (*call)(const hd_exec *ex, const void *network, const bench *b);
    const void *network;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static hd_status call_unet(const hd_exec *ex, const void *network, const bench *b)
{
    const hd_unet2d *unet = network;
    const hd_unet2d_config *c = hd_unet2d_configuration(unet);
    int64_t side = b->size / 8;
    hd_tensor x = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(2, side, side, c->in_channels));
    hd_tensor y = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(2, side, side, c->out_channels));
    hd_tensor text = hd_arena_tensor(ex->arena, HD_F32, hd_shape3(2, 77, c->text_channels));
    float timestep[2] = {500.0f, 500.0f};
    if (!ex->recording) {
        for (int64_t i = 0; i < hd_tensor_count(x); i++)
            ((float *)x.data)[i] = (float)(i % 17) / 8.0f - 1.0f;
        for (int64_t i = 0; i < hd_tensor_count(text); i++)
            ((float *)text.data)[i] = (float)(i % 13) / 6.0f - 1.0f;
    }
    hd_unet2d_inputs in = {.timestep = timestep, .text = text};
    return hd_unet2d_forward(ex, unet, NULL, y, x, &in);
}

static hd_status call_decode(const hd_exec *ex, const void *network, const bench *b)
{
    const hd_vae_kl *vae = network;
    const hd_vae_kl_config *c = hd_vae_kl_configuration(vae);
    int64_t side = b->size / hd_vae_kl_factor(c);
    hd_tensor z = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(1, side, side, c->latent_channels));
    hd_tensor image = hd_arena_tensor(ex->arena, HD_F32, hd_shape4(1, b->size, b->size, 3));
    for (int64_t i = 0; i < hd_tensor_count(z) && !ex->recording; i++)
        ((float *)z.data)[i] = (float)(i % 17) / 8.0f - 1.0f;
    return hd_vae_kl_decode(ex, vae, NULL, image, z);
}

static hd_status time_job(const bench *b, const job *j)
{
    hd_exec dry = b->ex, ex = b->ex;
    dry.recording = true;
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    hd_status status = j->call(&dry, j->network, b);
    size_t bytes = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);
    HD_TRY(status);
    HD_TRY(hd_arena_create(&ex.arena, bytes));
    double seconds[64];
    for (int i = -1; i < b->runs && status == HD_OK; i++) {
        double begin = now();
        status = j->call(&ex, j->network, b);
        if (i >= 0) seconds[i] = now() - begin;
        hd_arena_rewind(ex.arena, 0);
    }
    hd_arena_free(ex.arena);
    HD_TRY(status);
    qsort(seconds, (size_t)b->runs, sizeof *seconds, by_value);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"what\": \"%s\", \"peer\": \"heddle\", \"type\": \"%s\", \"min_s\": %.3f, "
           "\"median_s\": %.3f, "
           "\"arena_mb\": %zu, \"peak_mb\": %ld}\n",
           j->what, hd_dtype_name(b->compute), seconds[0], seconds[b->runs / 2], bytes >> 20,
           usage.ru_maxrss / 1024);
    fflush(stdout);
    return HD_OK;
}

static hd_status open_part(const bench *b, const char *name, hd_json_doc **config,
                           hd_weights **weights)
{
    char path[PATH_MAX], file[PATH_MAX];
    hd_folder_join(path, b->folder, name);
    HD_TRY(hd_json_read(config, hd_folder_join(file, path, "config.json")));
    return hd_weights_open(weights, path, "diffusion_pytorch_model");
}

static hd_status bench_step(const bench *b)
{
    hd_json_doc *config = NULL;
    hd_weights *weights = NULL;
    hd_unet2d_config c;
    hd_unet2d *unet = NULL;
    hd_status status = open_part(b, "unet", &config, &weights);
    if (status == HD_OK) status = hd_unet2d_config_read(&c, hd_json_root(config));
    if (status == HD_OK)
        status = hd_unet2d_create(&unet, &b->ex, &c, weights, b->compute, NULL, NULL);
    hd_weights_free(weights);
    hd_json_free(config);
    if (status == HD_OK) status = time_job(b, &(job){"step", call_unet, unet});
    hd_unet2d_free(unet);
    return status;
}

static hd_status bench_decode(const bench *b)
{
    hd_json_doc *config = NULL;
    hd_weights *weights = NULL;
    hd_vae_kl_config c;
    hd_vae_kl *vae = NULL;
    hd_status status = open_part(b, "vae", &config, &weights);
    if (status == HD_OK) status = hd_vae_kl_config_read(&c, hd_json_root(config));
    if (status == HD_OK)
        status = hd_vae_kl_create(&vae, &b->ex, &c, weights, b->compute, NULL, NULL);
    hd_weights_free(weights);
    hd_json_free(config);
    if (status == HD_OK) status = time_job(b, &(job){"decode", call_decode, vae});
    hd_vae_kl_free(vae);
    return status;
}

int main(int argc, char **argv)
{
    bench b = {.folder = argc > 1 ? argv[1] : NULL,
               .size = 512,
               .runs = 3,
               .threads = 2,
               .compute = HD_F32,
               .part = "both"};
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--size") == 0) b.size = atoll(argv[i + 1]);
        if (strcmp(argv[i], "--runs") == 0) b.runs = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--threads") == 0) b.threads = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--precision") == 0)
            b.compute = strcmp(argv[i + 1], "bf16") == 0 ? HD_BF16 : HD_F32;
        if (strcmp(argv[i], "--part") == 0) b.part = argv[i + 1];
    }
    if (!b.folder || b.runs < 1 || b.runs > 64) {
        fprintf(stderr, "usage: bench_model FOLDER [--size N] [--runs N] [--threads N] "
                        "[--precision f32|bf16] [--part step|decode|both]\n");
        return 2;
    }
    b.ex.has = hd_cpu_features();
    hd_status status = hd_pool_create(&b.ex.pool, b.threads);
    if (status == HD_OK && strcmp(b.part, "decode") != 0) status = bench_step(&b);
    if (status == HD_OK && strcmp(b.part, "step") != 0) status = bench_decode(&b);
    if (status != HD_OK) fprintf(stderr, "bench_model: %s\n", hd_message());
    hd_pool_free(b.ex.pool);
    return status == HD_OK ? 0 : 1;
}
