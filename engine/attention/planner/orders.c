/* engine/attention/planner/orders.c: window-major and axis orders of a token grid.
 *
 * Window-major orders: windowed attention's rolled partition without the roll (Liu et al.,
 * arXiv 2103.14030) and neighborhood attention's token permutation without its padding (Hassani et
 * al., arXiv 2504.16922). Axis orders: PAROAttention (arXiv 2506.16054). */
#include "engine/attention/planner/orders.h"

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static const hd_token_segment *only_grid(const hd_token_layout *layout)
{
    const hd_token_segment *found = NULL;
    for (int i = 0; i < layout->segments; i++) {
        if (layout->segment[i].kind != HD_TOKENS_GRID) continue;
        if (found) return NULL;
        found = &layout->segment[i];
    }
    return found;
}

hd_status hd_grid_of_call(hd_grid *out, const hd_attention_call *call)
{
    const hd_token_segment *q = only_grid(&call->q_layout), *k = only_grid(&call->k_layout);
    if (!q || !k)
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "%s are not one grid of tokens (and what stands beside it); choose \"sites\" "
            "of self or joint attention",
            q ? "its keys" : "its queries");
    if (q->frames != k->frames || q->height != k->height || q->width != k->width)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "its queries are a grid of %lld x %lld x %lld, its keys of %lld x %lld x "
                       "%lld: this is for self attention, where both are the same",
                       (long long)q->frames, (long long)q->height, (long long)q->width,
                       (long long)k->frames, (long long)k->height, (long long)k->width);
    if (q->start != k->start)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "its grid begins at query %lld and at key %lld: both must be the same",
                       (long long)q->start, (long long)k->start);
    *out = (hd_grid){{q->frames, q->height, q->width}, q->start};
    if (hd_grid_tokens(out) != q->count || call->q.dim[1] > INT32_MAX || call->k.dim[1] > INT32_MAX)
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "its grid of %lld x %lld x %lld does not have %lld tokens, or there are more "
            "than 2^31 - 1",
            (long long)q->frames, (long long)q->height, (long long)q->width, (long long)q->count);
    return HD_OK;
}

int64_t hd_grid_tokens(const hd_grid *grid)
{
    return grid->size[0] * grid->size[1] * grid->size[2];
}

static int64_t groups_of(hd_cut cut)
{
    return cut.dilation > 1 ? cut.dilation : 1;
}

int64_t hd_cut_group_length(hd_cut cut, int64_t length, int64_t group)
{
    int64_t groups = groups_of(cut);
    return group < length ? (length - group + groups - 1) / groups : 0;
}

int64_t hd_cut_pieces(hd_cut cut, int64_t length)
{
    int64_t first = least(cut.shift, length);
    return (first > 0) + (length - first + cut.extent - 1) / cut.extent;
}

hd_piece hd_cut_piece(hd_cut cut, int64_t length, int64_t index)
{
    int64_t first = cut.shift > 0 ? cut.shift + (index - 1) * cut.extent : index * cut.extent;
    int64_t end = first + cut.extent;
    if (first < 0 || index == 0) first = 0;
    return (hd_piece){first, least(end, length) - first};
}

int64_t hd_cut_piece_of(hd_cut cut, int64_t x)
{
    if (cut.shift <= 0) return x / cut.extent;
    return x < cut.shift ? 0 : 1 + (x - cut.shift) / cut.extent;
}

int64_t hd_order_boxes(const hd_grid *grid, const hd_cut cut[3])
{
    int64_t boxes = 1;
    for (int i = 0; i < 3; i++) {
        int64_t pieces = 0;
        for (int64_t g = 0; g < groups_of(cut[i]); g++)
            pieces += hd_cut_pieces(cut[i], hd_cut_group_length(cut[i], grid->size[i], g));
        boxes *= pieces;
    }
    return boxes;
}

int64_t hd_order_longest_box(const hd_grid *grid, const hd_cut cut[3])
{
    int64_t tokens = 1;
    for (int i = 0; i < 3; i++) {
        int64_t length = hd_cut_group_length(cut[i], grid->size[i], 0), longest = 0;
        for (int64_t p = 0; p < hd_cut_pieces(cut[i], length) && p < 2; p++) {
            int64_t count = hd_cut_piece(cut[i], length, p).count;
            if (count > longest) longest = count;
        }
        tokens *= longest;
    }
    return tokens;
}

// The tokens of one box of one group.
static int32_t *write_box(int32_t *to, const hd_grid *grid, const hd_cut cut[3],
                          const int64_t group[3], const hd_piece piece[3])
{
    int64_t step[3], at[3];
    for (int i = 0; i < 3; i++) {
        step[i] = groups_of(cut[i]);
        at[i] = piece[i].first * step[i] + group[i];
    }
    for (int64_t f = 0; f < piece[0].count; f++)
        for (int64_t y = 0; y < piece[1].count; y++) {
            int64_t line = (at[0] + f * step[0]) * grid->size[1] + at[1] + y * step[1];
            int64_t token = grid->token + line * grid->size[2] + at[2];
            for (int64_t x = 0; x < piece[2].count; x++)
                *to++ = (int32_t)(token + x * step[2]);
        }
    return to;
}

// All boxes of one group; *box counts them.
static int32_t *write_group(int32_t *to, int32_t *order, int32_t *bound, int64_t *box,
                            const hd_grid *grid, const hd_cut cut[3], const int64_t group[3])
{
    int64_t length[3], pieces[3];
    for (int i = 0; i < 3; i++) {
        length[i] = hd_cut_group_length(cut[i], grid->size[i], group[i]);
        pieces[i] = hd_cut_pieces(cut[i], length[i]);
    }
    for (int64_t f = 0; f < pieces[0]; f++)
        for (int64_t y = 0; y < pieces[1]; y++)
            for (int64_t x = 0; x < pieces[2]; x++) {
                hd_piece piece[3] = {hd_cut_piece(cut[0], length[0], f),
                                     hd_cut_piece(cut[1], length[1], y),
                                     hd_cut_piece(cut[2], length[2], x)};
                if (bound) bound[(*box)++] = (int32_t)(to - order);
                to = write_box(to, grid, cut, group, piece);
            }
    return to;
}

void hd_order_windows(int32_t *order, int32_t *bound, const hd_grid *grid, const hd_cut cut[3])
{
    int32_t *to = order;
    int64_t box = 0, group[3];
    for (group[0] = 0; group[0] < groups_of(cut[0]); group[0]++)
        for (group[1] = 0; group[1] < groups_of(cut[1]); group[1]++)
            for (group[2] = 0; group[2] < groups_of(cut[2]); group[2]++)
                to = write_group(to, order, bound, &box, grid, cut, group);
    if (bound) bound[box] = (int32_t)(to - order);
}

const char *const hd_axis_orders[] = {"FHW", "FWH", "HWF", "HFW", "WHF", "WFH", NULL};
const int hd_axis_order_axes[HD_AXIS_ORDERS][3] = {
    {0, 1, 2}, {0, 2, 1}, {1, 2, 0}, {1, 0, 2}, {2, 1, 0}, {2, 0, 1},
};

void hd_order_axes(int32_t *order, const hd_grid *grid, int which)
{
    const int *axis = hd_axis_order_axes[which];
    const int64_t step[3] = {grid->size[1] * grid->size[2], grid->size[2], 1};
    for (int64_t a = 0; a < grid->size[axis[0]]; a++)
        for (int64_t b = 0; b < grid->size[axis[1]]; b++)
            for (int64_t c = 0; c < grid->size[axis[2]]; c++)
                *order++ = (int32_t)(grid->token + a * step[axis[0]] + b * step[axis[1]] +
                                     c * step[axis[2]]);
}

void hd_order_tail(int32_t *order, const hd_grid *grid, int64_t tokens)
{
    int64_t inside = hd_grid_tokens(grid);
    order += inside;
    for (int64_t t = 0; t < grid->token; t++)
        *order++ = (int32_t)t;
    for (int64_t t = grid->token + inside; t < tokens; t++)
        *order++ = (int32_t)t;
}

void hd_order_invert(int32_t *inverse, const int32_t *order, int64_t count)
{
    for (int64_t rank = 0; rank < count; rank++)
        inverse[order[rank]] = (int32_t)rank;
}
