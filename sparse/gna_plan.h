/* sparse/gna_plan.h: neighbourhood windows as a sparsity plan: its tiles, what they cost, and the
 * plan itself (Hassani et al., arXiv 2504.16922, for the static tiles and the prediction).
 *
 * The grid is cut into boxes of queries, dilation group by dilation group. Each visits either the
 * boxes of one fixed cut of the keys ("static"), or boxes counted from the first key that it needs
 * ("dynamic"). Boxes that every query sees whole are full, the others partial under the window
 * rule. */
#ifndef HD_SPARSE_GNA_PLAN_H
#define HD_SPARSE_GNA_PLAN_H

#include "engine/attention/planner/builder.h"
#include "sparse/gna_window.h"

HD_BEGIN_DECLS

/* Boxes of queries and of keys; in the coordinates of a dilation group. */
typedef struct hd_gna_tiles {
    int64_t query[3], key[3];
    bool dynamic; // key boxes begin anywhere
} hd_gna_tiles;

typedef struct hd_gna_problem {
    hd_grid grid;
    int64_t queries, keys;        // tokens of the call, with those beside the grid
    int64_t rules;                // 1: one for all heads; else heads share several
    const hd_gna_axis (*rule)[3]; // [rules]
    int64_t heads;                // of the list: 1 if rules is 1
    const int32_t *rule_of;       // [heads]
} hd_gna_problem;

/* What a window costs under a choice of tiles, per head. Tiles are counted whole, also where they
 * reach beyond the grid. */
typedef struct hd_gna_prediction {
    double pairs; // query-key pairs that are seen
    double query_tiles, key_tiles;
    double visited, full; // key boxes over all query boxes; of these seen whole
    double worst;         // visited by the query box that visits most
    double speed_flop;    // dense pairs / pairs: what no kernel can pass
    double speed_sim;     // key tiles / worst: the published simulator's number
    double speed_avg;     // all pairs of tiles / visited
    double full_share;    // full / visited
    double waste;         // pairs of the visited boxes / pairs
} hd_gna_prediction;

HD_CHECKED hd_status hd_gna_predict(hd_gna_prediction *out, const hd_grid *grid,
                                    const hd_gna_axis axis[3], const hd_gna_tiles *tiles);
/* Speed of a run of which attention is `share` of the time, `sparse` of the steps run `speed` times
 * as fast. */
double hd_gna_end_to_end(double share, double sparse, double speed);

/* The largest boxes that may be asked for, in tokens. */
enum { HD_GNA_QUERY_MOST = 256, HD_GNA_KEY_MOST = 512 };
typedef enum hd_gna_kv { HD_GNA_KV_AUTO, HD_GNA_KV_STATIC, HD_GNA_KV_DYNAMIC } hd_gna_kv;
/* The boxes of least predicted cost on our kernel, best first: up to `limit`, how many into *count.
 */
HD_CHECKED hd_status hd_gna_choose(hd_gna_tiles *out, int64_t *count, int64_t limit,
                                   const hd_gna_problem *problem, hd_gna_kv kv);
/* The predicted cost of given boxes, in the unit of that choice. */
HD_CHECKED hd_status hd_gna_cost(double *out, const hd_gna_problem *problem,
                                 const hd_gna_tiles *tiles);
/* Is any axis dilated? Key boxes with free origins cannot follow its groups. */
bool hd_gna_dilated(const hd_gna_problem *problem);

/* The plan into b (empty, over malloc). */
HD_CHECKED hd_status hd_gna_build(hd_plan_builder *b, const hd_gna_problem *problem,
                                  const hd_gna_tiles *tiles);

HD_END_DECLS
#endif
