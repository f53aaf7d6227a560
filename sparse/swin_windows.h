/* sparse/swin_windows.h: window attention's parts, for models that were trained with it and for
 * tests. */
#ifndef HD_SPARSE_SWIN_WINDOWS_H
#define HD_SPARSE_SWIN_WINDOWS_H

#include "engine/attention/planner/builder.h"
#include "engine/attention/planner/orders.h"

HD_BEGIN_DECLS

/* Windows of one kind: a cut of the grid, or of the grid rolled towards lower coordinates, which
 * has position p where (p + roll) mod length was. */
typedef struct hd_swin_cut {
    hd_cut cut[3];   // no dilation
    int64_t roll[3]; // 0: not rolled
} hd_swin_cut;

/* Sizes are fitted first: where an axis is no longer than the window, one window and no shift. */
void hd_swin_fit(const hd_grid *grid, int64_t window[3], int64_t shift[3]);

/* order [grid tokens] by window, row-major in and among them; bound [windows + 1]. */
void hd_swin_order(int32_t *order, int32_t *bound, const hd_grid *grid, const hd_swin_cut *cut);
/* For ranks of a rolled order: which region of the unrolled grid, 0 .. 26. Tokens of a window may
 * attend if theirs are equal. label [grid tokens]. */
void hd_swin_labels(uint8_t *label, const hd_grid *grid, const int64_t window[3],
                    const int64_t shift[3]);

/* Trained relative position bias: the row of a head's table [(2 h - 1) (2 w - 1)] that is added to
 * the score of query and key, both by their number in a window of h x w. */
int64_t hd_swin_relative_index(int64_t height, int64_t width, int64_t query, int64_t key);

typedef struct hd_swin_problem {
    hd_grid grid;
    int64_t queries, keys;       // tokens of the call
    int64_t heads;               // of the call
    int64_t window[3], shift[3]; // fitted
    bool plain, shifted;         // which windows; both: the first half of the heads has plain ones
    bool wrap;                   // the grid's ends meet: windows that are cut by them are one
    int64_t ring;                // windows at a distance below this are seen; 1: one's own
} hd_swin_problem;

/* The plan into b (empty, over malloc). */
HD_CHECKED hd_status hd_swin_build(hd_plan_builder *b, const hd_swin_problem *problem);

HD_END_DECLS
#endif
