/* codecs/vae_kl.c: the autoencoder: its weights, and whole pictures both ways. */
#include "codecs/vae_kl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/blocks/vae_kl_internal.h"
#include "engine/arena.h"
#include "engine/ops/elementwise.h"

static hd_status vae_kl_declare(hd_vae_kl *v, hd_binder *b)
{
    const hd_vae_kl_config *c = &v->config;
    int64_t latent = c->latent_channels;
    HD_TRY(hd_vae_encoder_declare(&v->encoder, b, c));
    HD_TRY(hd_vae_decoder_declare(&v->decoder, b, c));
    if (c->quant_conv) hd_bind_linear(b, &v->quant, "quant_conv", 2 * latent, 2 * latent, true);
    if (c->post_quant_conv)
        hd_bind_linear(b, &v->post_quant, "post_quant_conv", latent, latent, true);
    return HD_OK;
}

static hd_status vae_kl_skeleton(hd_vae_kl **v, hd_binder **b, const hd_vae_kl_config *c)
{
    *v = calloc(1, sizeof **v);
    if (!*v) return hd_fail(HD_ERR_NOMEM, "autoencoder: no memory for its record");
    (*v)->config = *c;
    HD_TRY(hd_binder_create(b));
    return vae_kl_declare(*v, *b);
}

bool hd_vae_kl_rename(const char *name, char *out, size_t bytes)
{
    static const char *const names[][2] = {
        {"query.", "to_q."}, {"key.", "to_k."}, {"value.", "to_v."}, {"proj_attn.", "to_out.0."}};
    const char *in = ".mid_block.attentions.0.";
    const char *at = strstr(name, in);
    if (!at) return false;
    at += strlen(in);
    for (size_t i = 0; i < HD_COUNT(names); i++) {
        if (strncmp(at, names[i][0], strlen(names[i][0])) != 0) continue;
        snprintf(out, bytes, "%.*s%s%s", (int)(at - name), name, names[i][1],
                 at + strlen(names[i][0]));
        return true;
    }
    return false;
}

hd_status hd_vae_kl_create(hd_vae_kl **out, const hd_exec *ex, const hd_vae_kl_config *c,
                           hd_weights *weights, hd_dtype compute,
                           int (*progress)(void *arg, int64_t done, int64_t all),
                           void *progress_arg)
{
    hd_vae_kl *v = NULL;
    hd_binder *b = NULL;
    hd_status status = vae_kl_skeleton(&v, &b, c);
    if (status == HD_OK) status = hd_weights_rename(weights, hd_vae_kl_rename);
    if (status == HD_OK) status = hd_binder_load(b, ex, weights, compute, progress, progress_arg);
    hd_binder_free(b);
    if (status != HD_OK) {
        hd_vae_kl_free(v);
        return hd_note(status, "while loading the autoencoder");
    }
    v->compute = compute;
    *out = v;
    return HD_OK;
}

void hd_vae_kl_free(hd_vae_kl *v)
{
    if (!v) return;
    hd_vae_stack_free(&v->encoder);
    hd_vae_stack_free(&v->decoder);
    hd_linear_free(v->quant);
    hd_linear_free(v->post_quant);
    free(v);
}

const hd_vae_kl_config *hd_vae_kl_configuration(const hd_vae_kl *v)
{
    return &v->config;
}

hd_dtype hd_vae_kl_compute(const hd_vae_kl *v)
{
    return v->compute;
}

hd_status hd_vae_kl_check(const hd_vae_kl_config *c, const char *what, int64_t count,
                          const hd_weight_info *infos)
{
    hd_vae_kl *v = NULL;
    hd_binder *b = NULL;
    hd_status status = vae_kl_skeleton(&v, &b, c);
    if (status == HD_OK) status = hd_binder_check(b, what, count, infos);
    hd_binder_free(b);
    hd_vae_kl_free(v);
    return status;
}

hd_status hd_vae_kl_decode_one(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                               hd_tensor image, hd_tensor latent)
{
    size_t mark = hd_arena_mark(ex->arena);
    if (v->post_quant) {
        hd_shape shape = hd_tensor_shape(latent);
        hd_tensor own = hd_arena_tensor(ex->arena, v->compute, shape);
        hd_tensor quantised = hd_arena_tensor(ex->arena, HD_F32, shape);
        HD_TRY(hd_copy(ex, own, latent));
        HD_TRY(hd_linear_run(ex, v->post_quant, quantised, own, hd_tensor_none()));
        latent = quantised;
    }
    HD_TRY(hd_vae_stack_run(ex, &v->decoder, forward, image, latent));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}

hd_status hd_vae_kl_encode_one(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                               hd_tensor moments, hd_tensor image)
{
    if (!v->quant) return hd_vae_stack_run(ex, &v->encoder, forward, moments, image);
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor own = hd_arena_tensor(ex->arena, v->compute, hd_tensor_shape(moments));
    HD_TRY(hd_vae_stack_run(ex, &v->encoder, forward, own, image));
    HD_TRY(hd_linear_run(ex, v->quant, moments, own, hd_tensor_none()));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}

// moments [..., 2 C] to mean and logvar [..., C] each, as diffusers bounds the variance.
void hd_vae_kl_split(const hd_exec *ex, hd_tensor mean, hd_tensor logvar, hd_tensor moments)
{
    if (ex->recording) return;
    int64_t channels = mean.dim[3], pixels = hd_tensor_count(mean) / channels;
    const float *from = moments.data;
    float *m = mean.data, *v = logvar.data;
    for (int64_t i = 0; i < pixels; i++, from += 2 * channels) {
        for (int64_t c = 0; c < channels; c++) {
            m[i * channels + c] = from[c];
            v[i * channels + c] = fminf(fmaxf(from[channels + c], -30.0f), 20.0f);
        }
    }
}

hd_status hd_vae_kl_decode_check(const hd_vae_kl *v, hd_tensor image, hd_tensor latent)
{
    const hd_vae_kl_config *c = &v->config;
    int64_t factor = hd_vae_kl_factor(c);
    HD_TRY(hd_expect_rank("autoencoder: latent", latent, 4));
    hd_shape shape = hd_tensor_shape(latent);
    shape.dim[3] = c->latent_channels;
    HD_TRY(hd_expect_shape("autoencoder: latent", latent, HD_F32, shape));
    shape = hd_shape4(shape.dim[0], shape.dim[1] * factor, shape.dim[2] * factor, c->out_channels);
    return hd_expect_shape("autoencoder: picture", image, HD_F32, shape);
}

hd_status hd_vae_kl_encode_check(const hd_vae_kl *v, hd_tensor mean, hd_tensor logvar,
                                 hd_tensor image)
{
    const hd_vae_kl_config *c = &v->config;
    int64_t factor = hd_vae_kl_factor(c);
    HD_TRY(hd_expect_rank("autoencoder: picture", image, 4));
    hd_shape shape = hd_tensor_shape(image);
    if (shape.dim[1] % factor != 0 || shape.dim[2] % factor != 0)
        return hd_fail(HD_ERR_SHAPE,
                       "autoencoder: a picture of %lld x %lld (width x height), both must be "
                       "multiples of %lld",
                       (long long)shape.dim[2], (long long)shape.dim[1], (long long)factor);
    shape.dim[3] = c->in_channels;
    HD_TRY(hd_expect_shape("autoencoder: picture", image, HD_F32, shape));
    shape =
        hd_shape4(shape.dim[0], shape.dim[1] / factor, shape.dim[2] / factor, c->latent_channels);
    HD_TRY(hd_expect_shape("autoencoder: mean", mean, HD_F32, shape));
    return hd_expect_shape("autoencoder: logvar", logvar, HD_F32, shape);
}

hd_status hd_vae_kl_decode(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                           hd_tensor image, hd_tensor latent)
{
    HD_TRY(hd_vae_kl_decode_check(v, image, latent));
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = HD_OK;
    for (int64_t i = 0; status == HD_OK && i < latent.dim[0]; i++)
        status = hd_vae_kl_decode_one(ex, v, forward, hd_tensor_slice(image, 0, i, 1),
                                      hd_tensor_slice(latent, 0, i, 1));
    hd_arena_rewind(ex->arena, mark);
    return hd_note(status, "while decoding a picture");
}

static hd_status vae_kl_encode_row(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                                   hd_tensor mean, hd_tensor logvar, hd_tensor image)
{
    hd_shape shape = hd_tensor_shape(mean);
    shape.dim[3] *= 2;
    hd_tensor moments = hd_arena_tensor(ex->arena, HD_F32, shape);
    HD_TRY(hd_vae_kl_encode_one(ex, v, forward, moments, image));
    hd_vae_kl_split(ex, mean, logvar, moments);
    return HD_OK;
}

hd_status hd_vae_kl_encode(const hd_exec *ex, const hd_vae_kl *v, const hd_forward *forward,
                           hd_tensor mean, hd_tensor logvar, hd_tensor image)
{
    HD_TRY(hd_vae_kl_encode_check(v, mean, logvar, image));
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = HD_OK;
    for (int64_t i = 0; status == HD_OK && i < image.dim[0]; i++) {
        status =
            vae_kl_encode_row(ex, v, forward, hd_tensor_slice(mean, 0, i, 1),
                              hd_tensor_slice(logvar, 0, i, 1), hd_tensor_slice(image, 0, i, 1));
        hd_arena_rewind(ex->arena, mark);
    }
    return hd_note(status, "while encoding a picture");
}
