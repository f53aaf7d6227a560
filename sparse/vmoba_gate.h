/* sparse/vmoba_gate.h: which key blocks every query keeps: the private half of sparse/vmoba.c.
 *
 * gate[b][i] = mean key of block b . query i. A scope says which gates compete: those of one query
 * (local), of one head (global), of one block over heads, or all (VMoBA, Wu et al., arXiv
 * 2506.23858, section 3.3, and its source). A query's own block is always kept. */
#ifndef HD_SPARSE_VMOBA_GATE_H
#define HD_SPARSE_VMOBA_GATE_H

#include "engine/attention/planner/room.h"
#include "engine/attention/planner/select.h"
#include "kernels/planner.h"

HD_BEGIN_DECLS

typedef enum hd_vmoba_scope {
    HD_VMOBA_LOCAL,
    HD_VMOBA_GLOBAL,
    HD_VMOBA_BLOCK,
    HD_VMOBA_OVERALL,
} hd_vmoba_scope;

typedef struct hd_vmoba_rule {
    hd_vmoba_scope scope;
    int64_t top;     // blocks per query, its own counted; 0: by threshold
    double tau, eps; // of the threshold
    bool pool_rows;  // batch rows compete with each other
} hd_vmoba_rule;

/* Queries go in panels of 64 ranks; words hold a bit per query of a panel. */
typedef struct hd_vmoba_shape {
    int64_t heads, ranks, blocks, panels, dim;
    const int32_t *bound; // [blocks + 1] first rank of each block
} hd_vmoba_shape;

typedef struct hd_vmoba_gates {
    float *mean;              // [heads][blocks][dim]
    hd_bf16 *pairs;           // the same, rounded, where queries are bf16
    hd_planner_tokens *query; // [heads]
    hd_planner_tokens *key;   // [heads]
    float *gate;              // [heads][panels][blocks][64]; local: per share [blocks][64]
    float *panel;             // per share [dim][64]
    float *row;               // per share [blocks]
    int32_t *index;           // per share [blocks]
    uint64_t *sort;           // per share [2 blocks]
    uint64_t *words;          // [heads][panels][blocks]
} hd_vmoba_gates;

/* One batch row's memory. With a scope beyond a query all gates of a row are kept. */
hd_vmoba_gates hd_vmoba_gates_take(hd_room *room, const hd_vmoba_shape *shape, bool local);
/* Beside the rows, with such a scope. */
hd_radix *hd_vmoba_radix_take(hd_room *room);

/* Means and gates of one row; with the local scope also its words. query and key are set. */
HD_CHECKED hd_status hd_vmoba_gate(const hd_exec *ex, const hd_vmoba_shape *shape,
                                   const hd_vmoba_rule *rule, const hd_vmoba_gates *gates);
/* The words of `rows` rows with a wider scope, whose gates are there. */
HD_CHECKED hd_status hd_vmoba_select(const hd_exec *ex, const hd_vmoba_shape *shape,
                                     const hd_vmoba_rule *rule, const hd_vmoba_gates *const *row,
                                     int64_t rows, hd_radix *radix);

HD_END_DECLS
#endif
