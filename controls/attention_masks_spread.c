/* controls/attention_masks_spread.c: maps of words multiplied by the picture's own self attention:
 * x <- S x gives a blurred map the borders of what it lies on (Shentu et al., AttenCraft, arXiv
 * 2405.17965; here S is a softmax whose rows sum to 1, applied in a pass of its own with x as
 * values, so that no map is made). x is what has been seen of the words so far. */
#include <string.h>

#include "controls/attention_masks.h"
#include "engine/attention/edit.h"

static int64_t grid(const attention_masks *p)
{
    return p->self_height * p->self_width;
}

int64_t masks_spread_values(const attention_masks *p)
{
    return 2 * p->channels * grid(p);
}

static float *seen(masks_spread *s)
{
    return (float *)(s + 1);
}

static float *spread(const attention_masks *p, masks_spread *s)
{
    return seen(s) + p->channels * grid(p);
}

void masks_spread_see(const attention_masks *p, masks_spread *to, hd_tensor probed, int64_t row,
                      int64_t start, int64_t h, int64_t w, float *scratch)
{
    float *small = scratch, *large = scratch + h * w;
    for (int64_t c = 0; c < p->channels; c++) {
        memset(small, 0, (size_t)(h * w) * sizeof *small);
        for (int64_t head = 0; head < probed.dim[1]; head++) {
            const float *from = (const float *)probed.data + row * probed.stride[0] +
                                head * probed.stride[1] + start * probed.stride[2] + c;
            for (int64_t i = 0; i < h * w; i++)
                small[i] += from[i * probed.stride[2]];
        }
        masks_bicubic(large, p->self_height, p->self_width, small, h, w);
        float *sum = seen(to) + c * grid(p);
        for (int64_t i = 0; i < grid(p); i++)
            sum[i] += large[i] / (float)probed.dim[1];
    }
    to->seen++;
}

// AttenCraft squares the map and brings it to 0 .. 1 first.
static void sharpen(float *x, int64_t count)
{
    float least, most;
    for (int64_t i = 0; i < count; i++)
        x[i] *= x[i];
    masks_range(x, count, &least, &most);
    masks_scale(x, count, least, most);
}

static void put_channel(hd_tensor v, int64_t row, int64_t channel, const float *x)
{
    for (int64_t i = 0; i < v.dim[1]; i++)
        for (int64_t h = 0; h < v.dim[2]; h++)
            hd_edit_put(v, ((row * v.dim[1] + i) * v.dim[2] + h) * v.dim[3] + channel, x[i]);
}

void masks_spread_values_of(const attention_masks *p, masks_spread *s, hd_tensor v, int64_t row,
                            float *scratch)
{
    for (int64_t c = 0; c < p->channels; c++) {
        const float *sum = seen(s) + c * grid(p);
        for (int64_t i = 0; i < grid(p); i++)
            scratch[i] = s->seen ? sum[i] / (float)s->seen : 0.0f;
        if (p->recipe == MASKS_ATTENCRAFT) sharpen(scratch, grid(p));
        put_channel(v, row, c, scratch);
    }
}

static float mean_of_heads(hd_tensor out, int64_t row, int64_t token, int64_t channel)
{
    float sum = 0;
    for (int64_t h = 0; h < out.dim[2]; h++)
        sum += hd_edit_get(out, row * out.stride[0] + token * out.stride[1] + h * out.stride[2] +
                                    channel);
    return sum / (float)out.dim[2];
}

void masks_spread_again(const attention_masks *p, hd_tensor v, hd_tensor out, int64_t row)
{
    for (int64_t i = 0; i < v.dim[1]; i++)
        for (int64_t c = 0; c < p->channels; c++) {
            const float x = mean_of_heads(out, row, i, c);
            for (int64_t h = 0; h < v.dim[2]; h++)
                hd_edit_put(v, ((row * v.dim[1] + i) * v.dim[2] + h) * v.dim[3] + c, x);
        }
}

void masks_spread_add(const attention_masks *p, masks_spread *to, hd_tensor out, int64_t row)
{
    if (to->seen == 0) return; // nothing was there to be spread
    float *sum = spread(p, to);
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t i = 0; i < grid(p); i++)
            sum[c * grid(p) + i] += mean_of_heads(out, row, i, c);
    to->spread++;
}
