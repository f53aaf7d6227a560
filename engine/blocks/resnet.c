/* engine/blocks/resnet.c: see resnet.h. */
#include "engine/blocks/resnet.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"

void hd_resnet_declare(hd_resnet *r, hd_binder *b, const char *prefix, const hd_resnet_spec *spec)
{
    const hd_conv_spec same = {.stride = 1, 1, 1, 1, 1};
    char name[160];
    r->spec = *spec;
    snprintf(name, sizeof name, "%s.norm1", prefix);
    hd_bind_norm(b, &r->gamma1, &r->beta1, name, spec->in);
    snprintf(name, sizeof name, "%s.conv1", prefix);
    hd_bind_conv(b, &r->conv1, name, spec->in, spec->out, 3, same, true);
    if (spec->time_channels > 0) {
        snprintf(name, sizeof name, "%s.time_emb_proj", prefix);
        hd_bind_linear(b, &r->time, name, spec->time_channels,
                       spec->scale_shift ? 2 * spec->out : spec->out, true);
    }
    snprintf(name, sizeof name, "%s.norm2", prefix);
    hd_bind_norm(b, &r->gamma2, &r->beta2, name, spec->out);
    snprintf(name, sizeof name, "%s.conv2", prefix);
    hd_bind_conv(b, &r->conv2, name, spec->out, spec->out, 3, same, true);
    if (spec->in != spec->out) {
        snprintf(name, sizeof name, "%s.conv_shortcut", prefix);
        hd_bind_linear(b, &r->shortcut, name, spec->in, spec->out, true);
    }
}

void hd_resnet_free(hd_resnet *r)
{
    free(r->gamma1);
    free(r->beta1);
    free(r->gamma2);
    free(r->beta2);
    hd_conv_free(r->conv1);
    hd_conv_free(r->conv2);
    hd_linear_free(r->time);
    hd_linear_free(r->shortcut);
    *r = (hd_resnet){0};
}

// act(norm(x)) through the convolution. Only SiLU can be applied while gathering; another
// activation takes a pass of its own.
static hd_status resnet_conv(const hd_exec *ex, const hd_resnet *r, const hd_conv *conv,
                             hd_tensor y, hd_tensor x, const float *gamma, const float *beta,
                             hd_conv_extra extra)
{
    const hd_resnet_spec *s = &r->spec;
    hd_conv_norm norm = {gamma, beta, s->groups, s->eps, true};
    if (s->act == HD_ACT_SILU) {
        extra.norm = &norm;
        return hd_conv_run(ex, conv, y, x, &extra);
    }
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor normed = hd_arena_tensor(ex->arena, x.dtype, hd_tensor_shape(x));
    HD_TRY(hd_group_norm(ex, normed, x, gamma, beta, s->groups, s->eps, s->act));
    HD_TRY(hd_conv_run(ex, conv, y, normed, &extra));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}

// norm2(h) * (1 + scale) + shift is norm2 with gamma (1 + scale) and beta (1 + scale) + shift,
// which differ from row to row: one call a row.
static hd_status resnet_scale_shift(const hd_exec *ex, const hd_resnet *r, hd_tensor y, hd_tensor h,
                                    hd_tensor residual, hd_tensor time)
{
    int64_t out = r->spec.out;
    hd_tensor gamma = hd_arena_tensor(ex->arena, HD_F32, hd_shape1(out));
    hd_tensor beta = hd_arena_tensor(ex->arena, HD_F32, hd_shape1(out));
    HD_TRY(hd_expect_rank("resnet scale", gamma, 1));
    HD_TRY(hd_expect_rank("resnet shift", beta, 1));
    for (int64_t b = 0; b < h.dim[0]; b++) {
        float *g = gamma.data, *s = beta.data;
        if (!ex->recording) {
            const float *scale = (const float *)time.data + 2 * out * b, *shift = scale + out;
            for (int64_t c = 0; c < out; c++) {
                g[c] = r->gamma2[c] * (1.0f + scale[c]);
                s[c] = r->beta2[c] * (1.0f + scale[c]) + shift[c];
            }
        }
        hd_conv_extra extra = {.residual = hd_tensor_given(residual)
                                               ? hd_tensor_slice(residual, 0, b, 1)
                                               : hd_tensor_none()};
        HD_TRY(resnet_conv(ex, r, r->conv2, hd_tensor_slice(y, 0, b, 1),
                           hd_tensor_slice(h, 0, b, 1), g, s, extra));
    }
    return HD_OK;
}

// conv2 and the sum in one, or with somebody looking in between.
static hd_status resnet_second(const hd_exec *ex, const hd_resnet *r, hd_tensor y, hd_tensor h,
                               hd_tensor residual, hd_tensor time)
{
    if (r->spec.scale_shift && r->time) return resnet_scale_shift(ex, r, y, h, residual, time);
    hd_conv_extra second = {.residual = residual};
    return resnet_conv(ex, r, r->conv2, y, h, r->gamma2, r->beta2, second);
}

static hd_status resnet_second_tapped(const hd_exec *ex, const hd_resnet *r, hd_tensor y,
                                      hd_tensor h, hd_tensor residual, hd_tensor time,
                                      hd_resnet_tap tap, void *arg)
{
    hd_tensor open = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(y));
    hd_tensor wide = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(y));
    HD_TRY(resnet_second(ex, r, open, h, hd_tensor_none(), time));
    HD_TRY(tap(arg, open));
    // rounded once, behind the sum, as the convolution itself does it
    HD_TRY(hd_copy(ex, wide, residual));
    HD_TRY(hd_add(ex, wide, open, wide));
    return hd_copy(ex, y, wide);
}

hd_status hd_resnet_run_tapped(const hd_exec *ex, const hd_resnet *r, hd_tensor y, hd_tensor x,
                               hd_tensor time, hd_resnet_tap tap, void *arg)
{
    const hd_resnet_spec *s = &r->spec;
    HD_TRY(hd_expect_rank("resnet input", x, 4));
    hd_shape shape = hd_shape4(x.dim[0], x.dim[1], x.dim[2], s->out);
    HD_TRY(hd_expect_shape("resnet output", y, x.dtype, shape));
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor h = hd_arena_tensor(ex->arena, x.dtype, shape);
    hd_tensor row = hd_tensor_none();
    if (r->time) {
        row = hd_arena_tensor(ex->arena, HD_F32, hd_shape2(x.dim[0], hd_linear_out(r->time)));
        HD_TRY(hd_linear_run(ex, r->time, row, time, hd_tensor_none()));
    }
    hd_conv_extra first = {.row_bias = s->scale_shift ? hd_tensor_none() : row};
    HD_TRY(resnet_conv(ex, r, r->conv1, h, x, r->gamma1, r->beta1, first));

    hd_tensor residual = x;
    if (r->shortcut) {
        int64_t pixels = x.dim[1] * x.dim[2];
        HD_TRY(hd_linear_run(
            ex, r->shortcut, hd_tensor_reshape(y, hd_shape3(x.dim[0], pixels, s->out)),
            hd_tensor_reshape(x, hd_shape3(x.dim[0], pixels, s->in)), hd_tensor_none()));
        residual = y;
    }
    HD_TRY(tap ? resnet_second_tapped(ex, r, y, h, residual, row, tap, arg)
               : resnet_second(ex, r, y, h, residual, row));
    if (s->out_scale != 1.0f) HD_TRY(hd_affine(ex, y, y, 1.0f / s->out_scale, 0.0f));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}

hd_status hd_resnet_run(const hd_exec *ex, const hd_resnet *r, hd_tensor y, hd_tensor x,
                        hd_tensor time)
{
    return hd_resnet_run_tapped(ex, r, y, x, time, NULL, NULL);
}
