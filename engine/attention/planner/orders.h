/* engine/attention/planner/orders.h: the orders in which a plan takes the tokens of a grid.
 *
 * An order lists tokens by rank (order[rank] = token). Window-major orders put the tokens of a box
 * of the grid side by side, so that a box is a tile; ragged grids have shorter boxes at their ends
 * and nothing is padded: the ranks are exactly the tokens. Axis orders only exchange the axes.
 * Tokens outside the grid (text, references) are put behind: a plan's dense tail. Nothing here
 * allocates. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_ORDERS_H
#define HD_ENGINE_ATTENTION_PLANNER_ORDERS_H

#include "engine/attention/attention.h"

HD_BEGIN_DECLS

typedef struct hd_grid {
    int64_t size[3]; // frames (1: a picture), height, width; last axis fastest
    int64_t token;   // its first token
} hd_grid;

/* The one grid of the call's tokens. Fails unless queries and keys have one and the same grid:
 * self attention, and at most 2^31 - 1 tokens. */
HD_CHECKED hd_status hd_grid_of_call(hd_grid *out, const hd_attention_call *call);
int64_t hd_grid_tokens(const hd_grid *grid);

/* How one axis is cut: dilation group by dilation group (coordinates g, g + dilation, ...), each
 * group into pieces at {0, shift, shift + extent, ...} of its own coordinates; the last may be
 * short. */
typedef struct hd_cut {
    int64_t extent;   // >= 1
    int64_t shift;    // 0: none; else the length of the first piece
    int64_t dilation; // 0 or 1: none
} hd_cut;

typedef struct hd_piece {
    int64_t first, count; // in the group's coordinates
} hd_piece;

/* Coordinates of group `group` of an axis of `length`. */
int64_t hd_cut_group_length(hd_cut cut, int64_t length, int64_t group);
/* Pieces of a group of `length` coordinates, and one of them. */
int64_t hd_cut_pieces(hd_cut cut, int64_t length);
hd_piece hd_cut_piece(hd_cut cut, int64_t length, int64_t index);
/* The piece that coordinate x of a group is in. */
int64_t hd_cut_piece_of(hd_cut cut, int64_t x);

/* Boxes of the whole grid, and tokens of the largest. */
int64_t hd_order_boxes(const hd_grid *grid, const hd_cut cut[3]);
int64_t hd_order_longest_box(const hd_grid *grid, const hd_cut cut[3]);

/* order [grid tokens]: group by group, box by box, token by token, each row-major (last axis
 * fastest). bound [boxes + 1], may be NULL: the first rank of each box. */
void hd_order_windows(int32_t *order, int32_t *bound, const hd_grid *grid, const hd_cut cut[3]);

/* The orders of the axes, outermost first, by their number in a plan file: FHW, FWH, HWF, HFW, WHF,
 * WFH. */
#define HD_AXIS_ORDERS 6
extern const char *const hd_axis_orders[]; // names by number, NULL-ended
extern const int hd_axis_order_axes[HD_AXIS_ORDERS][3];
/* order [grid tokens] */
void hd_order_axes(int32_t *order, const hd_grid *grid, int which);

/* order [tokens], of which the grid's come first and are there: the tokens before and behind the
 * grid follow. */
void hd_order_tail(int32_t *order, const hd_grid *grid, int64_t tokens);

/* inverse[order[rank]] = rank; order is a permutation of 0 .. count - 1. */
void hd_order_invert(int32_t *inverse, const int32_t *order, int64_t count);

HD_END_DECLS
#endif
