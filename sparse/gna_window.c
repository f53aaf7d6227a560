/* sparse/gna_window.c: the neighbourhood rule and its parameters on a given grid. */
#include "sparse/gna_window.h"

#include <stdio.h>

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

hd_gna_interval hd_gna_window(const hd_gna_axis *axis, int64_t length, int64_t i)
{
    const int64_t group = i / axis->stride * axis->stride;
    if (axis->causal) {
        const int64_t leader = least(group + axis->stride - 1, length - 1);
        return (hd_gna_interval){most(leader - axis->window + 1, 0), i + 1};
    }
    const int64_t leader = least(group + axis->stride / 2, length - 1);
    const int64_t start = leader - axis->window / 2;
    const int64_t pushed = most(least(start, length - axis->window), 0);
    return (hd_gna_interval){pushed, pushed + axis->window};
}

void hd_gna_windows(const hd_gna_axis *axis, int64_t length, int32_t *start, int32_t *end)
{
    const int64_t d = axis->dilation;
    for (int64_t x = 0; x < length; x++) {
        const int64_t group = x % d;
        const int64_t group_length = (length - group + d - 1) / d;
        const hd_gna_interval w = hd_gna_window(axis, group_length, x / d);
        start[x] = (int32_t)(w.start * d + group);
        end[x] = (int32_t)((w.end - 1) * d + group + 1);
    }
}

bool hd_gna_is_dense(const hd_gna_axis *axis, int64_t length)
{
    return axis->dilation == 1 && axis->window == length && (!axis->causal || length == 1);
}

int64_t hd_gna_axes(const hd_grid *grid)
{
    return grid->size[0] > 1 ? 3 : grid->size[1] > 1 ? 2 : 1;
}

hd_status hd_gna_spread(int64_t out[3], const hd_gna_list *list, const char *name,
                        const hd_grid *grid, int64_t other)
{
    const int64_t axes = hd_gna_axes(grid);
    const int64_t count = list->single || list->count == 0 ? axes : list->count;
    if (count < axes)
        return hd_fail(
            HD_ERR_SHAPE,
            "%s has %lld numbers, its grid of %lld x %lld x %lld has %lld axes: give one "
            "for each (%s), or a single number for all",
            name, (long long)count, (long long)grid->size[0], (long long)grid->size[1],
            (long long)grid->size[2], (long long)axes,
            axes == 3 ? "frames, height, width" : "height, width");
    for (int64_t i = 0; i < 3; i++) {
        const int64_t at = i - (3 - count);
        out[i] = list->count == 0 || at < 0 ? other : list->value[list->single ? 0 : at];
    }
    return HD_OK;
}

// a * b / c, halves to the even neighbour
static int64_t scaled(int64_t a, int64_t b, int64_t c)
{
    const int64_t whole = a * b / c, rest = a * b % c;
    return whole + (2 * rest > c || (2 * rest == c && whole % 2));
}

static void scale_axis(hd_gna_axis *a, int64_t length, int64_t base, bool whole)
{
    if (!whole) a->window = least(most(2, scaled(a->window, length, base)), length);
    a->stride = least(most(1, scaled(a->stride, length, base)), a->window);
    a->dilation = least(most(1, scaled(a->dilation, length, base)), length / a->window);
}

static void clamp_axis(hd_gna_axis *a, int64_t length)
{
    a->window = least(a->window, length);
    a->dilation = least(a->dilation, length / a->window);
    a->stride = least(a->stride, a->window);
}

// "window[2]", or "window" where one number is for all axes.
static const char *entry_name(char text[32], const char *name, const hd_gna_list *list, int axis)
{
    const int at = axis - (3 - (int)list->count);
    if (list->single || list->count == 0 || at < 0)
        snprintf(text, 32, "%s", name);
    else
        snprintf(text, 32, "%s[%d]", name, at);
    return text;
}

static hd_status check_axis(const hd_gna_axis *a, const hd_gna_rule *rule, int axis, int64_t length,
                            bool strict)
{
    char window[32], stride[32], dilation[32];
    entry_name(window, "window", &rule->window, axis);
    entry_name(stride, "stride", &rule->stride, axis);
    entry_name(dilation, "dilation", &rule->dilation, axis);
    if (a->window > length)
        return hd_fail(HD_ERR_SHAPE,
                       "%s is %lld but that axis of its grid has %lld tokens; use at most %lld, -1 "
                       "for the whole axis, or \"on_small\": \"clamp\"",
                       window, (long long)a->window, (long long)length, (long long)length);
    if (a->window * a->dilation > length)
        return hd_fail(
            HD_ERR_SHAPE,
            "%s is %lld and %s is %lld: a window over every %lldth token spans %lld, but "
            "that axis of its grid has %lld tokens; use a dilation of at most %lld, or "
            "\"on_small\": \"clamp\"",
            window, (long long)a->window, dilation, (long long)a->dilation, (long long)a->dilation,
            (long long)(a->window * a->dilation), (long long)length,
            (long long)(length / a->window));
    if (a->stride > a->window)
        return hd_fail(HD_ERR_SHAPE,
                       "%s is %lld but %s is %lld: a stride above the window would leave keys "
                       "unseen; use at most %lld",
                       stride, (long long)a->stride, window, (long long)a->window,
                       (long long)a->window);
    if (strict && (length < 2 || a->window < 2))
        return hd_fail(
            HD_ERR_ARGUMENT,
            "%s is %lld on an axis of %lld tokens: with \"strict\" both must be at least "
            "2; leave \"strict\" out",
            window, (long long)a->window, (long long)length);
    return HD_OK;
}

hd_status hd_gna_resolve(hd_gna_axis out[3], const hd_gna_rule *rule, const hd_gna_limits *limits,
                         const hd_grid *grid)
{
    int64_t window[3], stride[3], dilation[3], causal[3], base[3];
    HD_TRY(hd_gna_spread(window, &rule->window, "window", grid, 1));
    HD_TRY(hd_gna_spread(stride, &rule->stride, "stride", grid, 1));
    HD_TRY(hd_gna_spread(dilation, &rule->dilation, "dilation", grid, 1));
    HD_TRY(hd_gna_spread(causal, &rule->causal, "causal", grid, 0));
    HD_TRY(hd_gna_spread(base, &limits->base_size, "base_size", grid, -1));
    const int64_t first =
        3 - hd_gna_axes(grid); // a picture has no axis of frames to be strict with
    for (int i = 0; i < 3; i++) {
        const int64_t length = grid->size[i];
        out[i] = (hd_gna_axis){window[i] == -1 ? length : window[i], stride[i], dilation[i],
                               causal[i] != 0};
        if (base[i] > 0 && base[i] != length) scale_axis(&out[i], length, base[i], window[i] == -1);
        if (limits->clamp) clamp_axis(&out[i], length);
        HD_TRY(check_axis(&out[i], rule, i, length, limits->strict && i >= first));
    }
    return HD_OK;
}
