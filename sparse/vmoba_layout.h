/* sparse/vmoba_layout.h: a query-by-query selection of key blocks as a plan of tiles: the private
 * half of sparse/vmoba.c.
 *
 * Layout A: query tiles in the partition's order; an entry per key tile of every block that some
 * query of the tile keeps, with a row mask where not all do. Layout C: per head the queries sorted
 * by their own block and then by their set of blocks, so that the queries of a tile agree; then
 * as A. Both are exact. */
#ifndef HD_SPARSE_VMOBA_LAYOUT_H
#define HD_SPARSE_VMOBA_LAYOUT_H

#include "base/plan.h"
#include "engine/attention/planner/room.h"
#include "engine/attention/planner/tiling.h"
#include "sparse/vmoba_gate.h"

HD_BEGIN_DECLS

/* Key tiles: blocks, cut where they are long. */
typedef struct hd_vmoba_tiles {
    int64_t tiles, tile;  // how many; the longest
    int32_t *bound;       // [tiles + 1]
    int32_t *block_start; // [blocks + 1] first tile of each block
} hd_vmoba_tiles;

HD_CHECKED hd_status hd_vmoba_tiles_make(hd_vmoba_tiles *out, const hd_vmoba_shape *shape);
void hd_vmoba_tiles_free(hd_vmoba_tiles *tiles); // what it points to

typedef struct hd_vmoba_layout {
    int64_t *row_start; // [heads * panels + 1]
    hd_visit *visit;    // [heads * panels * tiles]
    // of layout C
    uint64_t *words;      // [heads][panels][blocks] in the sorted order
    uint64_t *set;        // [heads][ceil(blocks / 64)][panels * 64] blocks of each query
    uint64_t *sort;       // [heads][2][ranks]: sort keys
    int32_t *rank;        // [heads][2][ranks]
    int32_t *query_order; // [heads][queries]
    int32_t *key_order;   // [heads][keys]
} hd_vmoba_layout;

hd_vmoba_layout hd_vmoba_layout_take(hd_room *room, const hd_vmoba_shape *shape,
                                     const hd_vmoba_tiles *tiles, bool sorted, int64_t queries,
                                     int64_t keys);

/* Whether sorting can change what a tile of queries keeps: some block lies in several. */
bool hd_vmoba_sortable(const hd_vmoba_shape *shape);

/* Pairs of query and key that these words make the kernel compute, whole tiles of queries counted;
 * with `exactly` the pairs that are kept. */
int64_t hd_vmoba_pairs(const hd_vmoba_shape *shape, const uint64_t *words, bool exactly);

/* Layout C's orders and words from the words of layout A. */
HD_CHECKED hd_status hd_vmoba_sort(const hd_exec *ex, const hd_vmoba_shape *shape,
                                   const hd_tiling *tiling, const uint64_t *words,
                                   const hd_vmoba_layout *layout, int64_t queries, int64_t keys);

/* The plan's tiles, lists and masks. `words` become its masks. */
HD_CHECKED hd_status hd_vmoba_list(const hd_exec *ex, const hd_vmoba_shape *shape,
                                   const hd_vmoba_tiles *tiles, const uint64_t *words,
                                   const hd_vmoba_layout *layout, hd_plan *plan);

HD_END_DECLS
#endif
