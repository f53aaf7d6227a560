/* sparse/gna_window.h: which keys a query of a neighbourhood window sees: generalized neighborhood
 * attention's rule on one axis of the grid (Hassani et al., arXiv 2504.16922).
 *
 * Coordinates of one axis fall into `dilation` groups (x mod dilation); inside a group of L
 * coordinates, queries i come in stride groups that share the window of their leader. A window
 * that meets the axis's end is pushed back, never cut; a causal one ends at the query itself. */
#ifndef HD_SPARSE_GNA_WINDOW_H
#define HD_SPARSE_GNA_WINDOW_H

#include "engine/attention/planner/orders.h"

HD_BEGIN_DECLS

typedef struct hd_gna_axis {
    int64_t window;   // keys seen, 1 .. the group's length
    int64_t stride;   // queries that share a window, 1 .. window
    int64_t dilation; // >= 1
    bool causal;
} hd_gna_axis;

typedef struct hd_gna_interval {
    int64_t start, end; // start <= y < end
} hd_gna_interval;

/* What query i sees in a dilation group of `length` coordinates. Both ends never fall as i rises.
 */
hd_gna_interval hd_gna_window(const hd_gna_axis *axis, int64_t length, int64_t i);
/* The same for every coordinate of an axis, in the axis's own coordinates: start, end [length]. */
void hd_gna_windows(const hd_gna_axis *axis, int64_t length, int32_t *start, int32_t *end);
/* Does every query see every key? */
bool hd_gna_is_dense(const hd_gna_axis *axis, int64_t length);

/* A number for each axis of the grid, or one for all. */
typedef struct hd_gna_list {
    int64_t value[3];
    int64_t count; // 0: not given
    bool single;   // one number for all axes
} hd_gna_list;

typedef struct hd_gna_rule {
    hd_gna_list window, stride, dilation, causal; // window -1: the whole axis
} hd_gna_rule;

typedef struct hd_gna_limits {
    hd_gna_list base_size; // the grid that the rule is written for; -1: this one
    bool clamp;            // what is too large for a small grid becomes as large as fits
    bool strict;           // refuse axes and windows of 1, as NATTEN does
} hd_gna_limits;

/* Axes of the grid that lists speak of: a picture has two, a line one. */
int64_t hd_gna_axes(const hd_grid *grid);
/* `list` by axis of the grid: those it does not speak of get `other`. Fails (`name` is what the
 * message calls it) if it has another number of entries than the grid has axes. */
HD_CHECKED hd_status hd_gna_spread(int64_t out[3], const hd_gna_list *list, const char *name,
                                   const hd_grid *grid, int64_t other);
/* The rule on a grid: whole axes resolved, scaled from base_size, clamped, and then checked. */
HD_CHECKED hd_status hd_gna_resolve(hd_gna_axis out[3], const hd_gna_rule *rule,
                                    const hd_gna_limits *limits, const hd_grid *grid);

HD_END_DECLS
#endif
