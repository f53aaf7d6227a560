/* controls/masked_reference_boxes.c: boxes of masked reference attention, from JSON and as masks of
 * a grid.
 *
 * One box [left, top, right, bottom] in pixels for all frames; a list of one box per frame; or key
 * frames {"frame": 8, "box": [...]}, whose corners move linearly from one to the next (Wei et al.,
 * arXiv 2410.13830, section 4.1). Frames of a video autoencoder: the first alone, then the mean
 * over groups. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/masked_reference.h"

static hd_status read_box(masked_box *box, const hd_json *node)
{
    double side[4];
    int64_t count;
    HD_TRY(hd_json_to_doubles(node, -1e6, 1e6, 4, 4, side, &count));
    box->left = side[0], box->top = side[1], box->right = side[2], box->bottom = side[3];
    if (box->left < box->right && box->top < box->bottom) return HD_OK;
    return hd_json_fail(node, HD_ERR_ARGUMENT,
                        "is [%g, %g, %g, %g]: left must be less than right, top less than bottom",
                        side[0], side[1], side[2], side[3]);
}

static hd_status read_key(masked_reference *p, const hd_json *node)
{
    masked_box *box = &p->box[p->box_count];
    const hd_json *frame = hd_json_get(node, "frame"), *at = hd_json_get(node, "box");
    if (!frame || !at || hd_json_count(node) != 2)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "must be {\"frame\": NUMBER, \"box\": [left, top, right, bottom]}");
    HD_TRY(hd_json_to_int(frame, 0, 1 << 20, &box->frame));
    if (p->box_count > 0 && box->frame <= box[-1].frame)
        return hd_json_fail(frame, HD_ERR_ARGUMENT, "is %lld, must be more than the %lld before it",
                            (long long)box->frame, (long long)box[-1].frame);
    return read_box(box, at);
}

hd_status masked_read_boxes(masked_reference *p)
{
    const hd_json *node = p->boxes;
    if (!node) return HD_OK;
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    const int64_t count = hd_json_count(node);
    if (count < 1 || count > MASKED_MOST_BOXES)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "has %lld entries, must be 1 to %d",
                            (long long)count, MASKED_MOST_BOXES);
    const hd_json_type kind = hd_json_kind(hd_json_at(node, 0));
    if (kind == HD_JSON_NUMBER) { // one box
        p->box_count = 1;
        return read_box(&p->box[0], node);
    }
    p->keyed = kind == HD_JSON_OBJECT;
    for (int64_t i = 0; i < count; i++, p->box_count++) {
        const hd_json *item = hd_json_at(node, i);
        HD_TRY(hd_json_expect(item, p->keyed ? HD_JSON_OBJECT : HD_JSON_ARRAY));
        if (p->keyed)
            HD_TRY(read_key(p, item));
        else
            HD_TRY(read_box(&p->box[p->box_count], item));
    }
    return HD_OK;
}

hd_status masked_check_boxes(const masked_reference *p)
{
    const int64_t width = p->width * p->factor, height = p->height * p->factor;
    for (int64_t i = 0; i < p->box_count; i++) {
        const masked_box *b = &p->box[i];
        if (b->left >= 0 && b->top >= 0 && b->right <= (double)width && b->bottom <= (double)height)
            continue;
        const hd_json *node = hd_json_at(p->boxes, i);
        return hd_json_fail(hd_json_kind(node) == HD_JSON_NUMBER ? p->boxes : node, HD_ERR_ARGUMENT,
                            "is [%g, %g, %g, %g], which leaves the picture of %lld x %lld pixels",
                            b->left, b->top, b->right, b->bottom, (long long)width,
                            (long long)height);
    }
    return HD_OK;
}

masked_box masked_box_at(const masked_reference *p, int64_t frame)
{
    if (!p->keyed) return p->box[p->box_count == 1 ? 0 : frame];
    int64_t next = 0;
    while (next < p->box_count && p->box[next].frame <= frame)
        next++;
    if (next == 0) return p->box[0];
    if (next == p->box_count) return p->box[next - 1];
    const masked_box *a = &p->box[next - 1], *b = &p->box[next];
    const double share = (double)(frame - a->frame) / (double)(b->frame - a->frame);
    return (masked_box){.frame = frame,
                        .left = a->left + share * (b->left - a->left),
                        .top = a->top + share * (b->top - a->top),
                        .right = a->right + share * (b->right - a->right),
                        .bottom = a->bottom + share * (b->bottom - a->bottom)};
}

// The share of place `at` of `size` that lies in from .. to of `pixels`; nearest: of its first
// pixel.
static double covered(int64_t at, int64_t size, int64_t pixels, double from, double to,
                      bool nearest)
{
    if (nearest) {
        const double pixel = (double)(at * pixels / size) + 0.5;
        return pixel > from && pixel < to ? 1.0 : 0.0;
    }
    const double place = (double)pixels / (double)size;
    const double first = fmax(from, (double)at * place), end = fmin(to, (double)(at + 1) * place);
    return fmax(0.0, end - first) / place;
}

static void add_frame(const masked_reference *p, float *out, int64_t h, int64_t w, int64_t frame,
                      double share)
{
    const masked_box box = masked_box_at(p, frame);
    const bool nearest = p->mask_resize == MASKED_NEAREST;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++)
            out[y * w + x] +=
                (float)(share * covered(y, h, p->height * p->factor, box.top, box.bottom, nearest) *
                        covered(x, w, p->width * p->factor, box.left, box.right, nearest));
}

hd_status masked_inside(const masked_reference *p, float *out, int64_t frames, int64_t h, int64_t w)
{
    const int64_t all = 1 + (frames - 1) * p->frame_group;
    const bool each = !p->keyed && p->box_count > 1;
    if (each && p->box_count != frames && p->box_count != all)
        return hd_json_fail(p->boxes, HD_ERR_ARGUMENT,
                            "has %lld boxes; this run has %lld frames of the latent, %lld of the "
                            "video",
                            (long long)p->box_count, (long long)frames, (long long)all);
    const int64_t group = each && p->box_count == frames ? 1 : p->frame_group;
    for (int64_t f = 0; f < frames; f++) {
        float *to = out + f * h * w;
        memset(to, 0, (size_t)(h * w) * sizeof *to);
        const int64_t first = f == 0 ? 0 : 1 + (f - 1) * group, count = f == 0 ? 1 : group;
        for (int64_t i = 0; i < count; i++)
            add_frame(p, to, h, w, first + i, 1.0 / (double)count);
    }
    return HD_OK;
}
