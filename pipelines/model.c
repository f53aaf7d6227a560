/* pipelines/model.c: loads the components of a model folder, in the compute type that suits the
 * machine. */
#include "pipelines/model.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "engine/precision.h"
#include "engine/samplers/sampler.h"
#include "pipelines/model_folder.h"
#include "pipelines/model_key.h"

/* Progress over several files: what is done before the current one. */
typedef struct load_progress {
    hd_model_progress report;
    void *arg;
    int64_t before, all;
} load_progress;

static int report_part(void *arg, int64_t done, int64_t all)
{
    (void)all;
    load_progress *p = arg;
    return p->report ? p->report(p->arg, p->before + done, p->all) : 0;
}

/* The files of one component. */
typedef struct component {
    hd_json_doc *config;
    hd_weights *weights;
    int64_t bytes;
} component;

static hd_status open_component(component *c, const char *folder, const char *name,
                                const char *stem)
{
    char path[PATH_MAX], config[PATH_MAX];
    hd_folder_join(path, folder, name);
    HD_TRY(hd_json_read(&c->config, hd_folder_join(config, path, "config.json")));
    HD_TRY(hd_weights_open(&c->weights, path, stem));
    for (int64_t i = 0; i < hd_weights_count(c->weights); i++)
        c->bytes += hd_weights_info(c->weights, i).bytes;
    return HD_OK;
}

static void close_component(component *c)
{
    hd_json_free(c->config);
    hd_weights_free(c->weights);
}

// Elements of all tensors, as they are once packed.
static int64_t packed_bytes(const component *c, hd_dtype compute)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < hd_weights_count(c->weights); i++)
        bytes +=
            hd_shape_count(hd_weights_info(c->weights, i).shape) * (int64_t)hd_dtype_size(compute);
    return bytes;
}

static hd_status choose_precision(hd_model *m, const hd_exec *ex, const hd_unet2d_config *unet)
{
    if (m->asked != HD_PRECISION_AUTO) {
        m->compute = m->asked == HD_PRECISION_BF16 ? HD_BF16 : HD_F32;
        snprintf(m->reason, sizeof m->reason, "asked for");
        return HD_OK;
    }
    enum { SHAPES = 4 };
    int64_t shapes[SHAPES][2];
    hd_precision_row table[SHAPES];
    int count;
    double ratio;
    HD_TRY(hd_unet2d_shapes(unet, SHAPES, shapes, &count));
    HD_TRY(hd_precision_time(ex, count, (const int64_t(*)[2])shapes, table));
    m->compute = hd_precision_choose(count, table, &ratio);
    snprintf(m->reason, sizeof m->reason, "auto: bf16 takes %.2f of f32's time", ratio);
    return HD_OK;
}

static hd_status hash_model(hd_model *m, const component *part, int count)
{
    uint64_t hash;
    HD_TRY(hd_model_folder_hash(m->path, &hash));
    for (int i = 0; i < count; i++) {
        char text[17];
        HD_TRY(hd_weights_hash(part[i].weights, text));
        hash = XXH64(text, strlen(text), hash);
    }
    snprintf(m->hash, sizeof m->hash, "%016" PRIx64, hash);
    return HD_OK;
}

static hd_status load_networks(hd_model *m, const hd_exec *ex, component *part,
                               load_progress *progress)
{
    hd_text_clip_config text;
    hd_unet2d_config unet;
    hd_vae_kl_config vae;
    HD_TRY(hd_text_clip_config_read(&text, hd_json_root(part[0].config)));
    HD_TRY(hd_unet2d_config_read(&unet, hd_json_root(part[1].config)));
    HD_TRY(hd_vae_kl_config_read(&vae, hd_json_root(part[2].config)));
    if (unet.text_channels > 0 && unet.text_channels != text.channels)
        return hd_fail(HD_ERR_SHAPE,
                       "%s: the text encoder gives %" PRId64
                       " channels, the UNet's cross_attention_dim is %" PRId64,
                       m->path, text.channels, unet.text_channels);
    if (unet.in_channels != vae.latent_channels || unet.out_channels != vae.latent_channels)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%s: the UNet has %" PRId64 " channels in and %" PRId64
                       " out, the autoencoder's latents have %" PRId64
                       "; inpainting and similar models are not supported",
                       m->path, unet.in_channels, unet.out_channels, vae.latent_channels);
    HD_TRY(choose_precision(m, ex, &unet));
    HD_TRY(hd_text_clip_create(&m->text, ex, &text, part[0].weights, m->compute, report_part,
                               progress));
    progress->before += part[0].bytes;
    HD_TRY(
        hd_unet2d_create(&m->unet, ex, &unet, part[1].weights, m->compute, report_part, progress));
    progress->before += part[1].bytes;
    HD_TRY(hd_vae_kl_create(&m->vae, ex, &vae, part[2].weights, m->compute, report_part, progress));
    for (int i = 0; i < 3; i++)
        m->weights_bytes += packed_bytes(&part[i], m->compute);
    return HD_OK;
}

static hd_status load(hd_model *m, const hd_exec *ex, component *part, load_progress *progress)
{
    char path[PATH_MAX];
    struct stat st;
    HD_TRY(hd_model_folder_check(m->path));
    m->stamp = hd_model_folder_stamp(m->path);
    HD_TRY(hd_tokenizer_open(&m->tokenizer, hd_folder_join(path, m->path, "tokenizer")));
    if (stat(hd_folder_join(path, m->path, "scheduler/scheduler_config.json"), &st) == 0)
        HD_TRY(hd_sampler_config_open(&m->scheduler, path));
    HD_TRY(open_component(&part[0], m->path, "text_encoder", "model"));
    HD_TRY(open_component(&part[1], m->path, "unet", "diffusion_pytorch_model"));
    HD_TRY(open_component(&part[2], m->path, "vae", "diffusion_pytorch_model"));
    for (int i = 0; i < 3; i++)
        progress->all += part[i].bytes;
    HD_TRY(hd_model_key(&m->key, hd_json_root(part[1].config), part[1].weights));
    HD_TRY(load_networks(m, ex, part, progress));
    return hash_model(m, part, 3);
}

hd_status hd_model_open(hd_model **out, const hd_exec *ex, const char *path,
                        hd_precision_option precision, hd_model_progress report, void *arg)
{
    hd_model *m = calloc(1, sizeof *m);
    if (m) m->path = strdup(path);
    if (!m || !m->path) {
        free(m);
        return hd_fail(HD_ERR_NOMEM, "model: no memory for %s", path);
    }
    m->asked = precision;
    component part[3] = {{0}};
    load_progress progress = {.report = report, .arg = arg};
    hd_status status = load(m, ex, part, &progress);
    for (int i = 0; i < 3; i++)
        close_component(&part[i]);
    if (status != HD_OK) {
        hd_model_free(m);
        return status;
    }
    *out = m;
    return HD_OK;
}

void hd_model_free(hd_model *m)
{
    if (!m) return;
    hd_tokenizer_free(m->tokenizer);
    hd_text_clip_free(m->text);
    hd_unet2d_free(m->unet);
    hd_vae_kl_free(m->vae);
    hd_json_free(m->scheduler);
    free(m->path);
    free(m);
}

bool hd_model_current(const hd_model *m, const char *path, hd_precision_option precision)
{
    return m && m->asked == precision && strcmp(m->path, path) == 0 &&
           m->stamp == hd_model_folder_stamp(path);
}
