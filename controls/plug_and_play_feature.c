/* controls/plug_and_play_feature.c: a residual block's feature becomes the source's: what is where
 * in the picture, with little of how it looks (Tumanyan et al., section 3). */
#include <math.h>

#include "controls/plug_and_play.h"
#include "engine/attention/edit.h"

// Channels whose statistics are kept at a time, on the stack.
#define PNP_STRIPE 64

typedef struct stripe_statistics {
    double mean[PNP_STRIPE], deviation[PNP_STRIPE];
} stripe_statistics;

// Of `count` channels of one row of x [B, places, 1, channels], from `first`.
static void measure(stripe_statistics *s, hd_tensor x, int64_t row, int64_t first, int64_t count)
{
    const int64_t places = x.dim[1];
    double sum[PNP_STRIPE];
    *s = (stripe_statistics){0};
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t c = 0; c < count; c++)
            sum[c] = 0.0;
        for (int64_t i = 0; i < places; i++)
            for (int64_t c = 0; c < count; c++) {
                const double value =
                    (double)hd_edit_get(x, row * x.stride[0] + i * x.stride[1] + first + c);
                const double off = value - s->mean[c];
                sum[c] += pass == 0 ? value : off * off;
            }
        for (int64_t c = 0; c < count; c++) {
            const double mean = sum[c] / (double)places;
            if (pass == 0)
                s->mean[c] = mean;
            else
                s->deviation[c] = sqrt(mean);
        }
    }
}

static void restore(hd_tensor x, int64_t row, int64_t first, int64_t count,
                    const stripe_statistics *own, const stripe_statistics *now)
{
    for (int64_t i = 0; i < x.dim[1]; i++)
        for (int64_t c = 0; c < count; c++) {
            const int64_t at = row * x.stride[0] + i * x.stride[1] + first + c;
            const double scale = own->deviation[c] / fmax(now->deviation[c], 1e-6);
            const double value = (double)hd_edit_get(x, at) - now->mean[c];
            hd_edit_put(x, at, (float)(value * scale + own->mean[c]));
        }
}

// A stretch of channels of the source's feature into a row, place by place where a mask says so.
static void inject(const plug_and_play *p, hd_tensor x, int64_t row, int64_t source, int64_t width)
{
    if (!p->free_mask) {
        hd_edit_mix(x, row, x, source, x.dim[1], p->strength_feature, NULL);
        return;
    }
    const int64_t height = x.dim[1] / width;
    for (int64_t i = 0; i < x.dim[1]; i++) {
        const float inside = pnp_mask_at(p, height, width, i / width, i % width);
        const hd_tensor place = hd_tensor_slice(x, 1, i, 1);
        hd_edit_mix(place, row, place, source, 1, p->strength_feature * inside, NULL);
    }
}

hd_status pnp_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    const plug_and_play *p = ctx->params;
    const int64_t width = x.dim[2], channels = x.dim[3];
    if (ctx->step.index < p->feature_calls[0] || ctx->step.index >= p->feature_calls[1] ||
        p->strength_feature == 0.0f)
        return HD_OK;
    HD_ENSURE(hd_tensor_contiguous(x));
    const hd_tensor places =
        hd_tensor_reshape(x, hd_shape4(x.dim[0], x.dim[1] * width, 1, channels));
    for (int64_t row = 0; row < x.dim[0]; row++) {
        const int64_t source = pnp_source_row(p, ctx->rows, ctx->active, row);
        if (source < 0) continue;
        if (!p->feature_adain) {
            inject(p, places, row, source, width);
            continue;
        }
        for (int64_t first = 0; first < channels; first += PNP_STRIPE) {
            const int64_t count = channels - first < PNP_STRIPE ? channels - first : PNP_STRIPE;
            stripe_statistics own, now;
            measure(&own, places, row, first, count);
            inject(p, hd_tensor_slice(places, 3, first, count), row, source, width);
            measure(&now, places, row, first, count);
            restore(places, row, first, count, &own, &now);
        }
    }
    return HD_OK;
}
