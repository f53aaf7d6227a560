/* engine/attention/planner/calibrate.h: makes a plan file from the attention of a run.
 *
 * During the run each observed call is measured in every order of the grid's axes, tile by tile
 * (its map is never whole): the tile's mass (sum over its rows), its share of small weights and its
 * peak over its mean. Afterwards each head gets the order whose tiles are the sparsest and the most
 * even, and one threshold of mass for the whole model decides which tiles are kept (Zhao et al.,
 * PAROAttention, arXiv 2506.16054; the paper's objective prefers the wrong order, ours is 1 - share
 * in its place).
 *
 * The maps measured are those of softmax(scale q k^T): edits of the scores are not seen. Memory:
 * per site, mask, head and order one f32 per tile. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_CALIBRATE_H
#define HD_ENGINE_ATTENTION_PLANNER_CALIBRATE_H

#include "engine/attention/planner/orders.h"
#include "engine/attention/planner/plan_file.h"

HD_BEGIN_DECLS

typedef struct hd_calibration hd_calibration;
typedef struct hd_calibration_site hd_calibration_site;

typedef struct hd_calibration_options {
    uint64_t model;               // key of the file
    int64_t tile;                 // 1 .. 64
    float eps_rel, sigma, alpha;  // a weight is small below eps_rel / tokens, a tile sparse with
                                  // a share sigma of them; alpha weighs sparse against even
    float density, density_min;   // target; least of a head
    bool force_last;              // the last row and column of tiles are kept
    int64_t steps, masks;         //
    const uint16_t *mask_of_step; // [steps], copied
} hd_calibration_options;

/* The caller owns *out; hd_calibration_free(NULL) does nothing. */
HD_CHECKED hd_status hd_calibration_create(hd_calibration **out,
                                           const hd_calibration_options *options);
void hd_calibration_free(hd_calibration *calibration);

/* The accumulators of a call's site, made when it is met first; for the dry pass. Borrowed. Refused
 * without one and the same grid of queries and keys, and for heads larger than 256. */
HD_CHECKED hd_status hd_calibration_meet(hd_calibration *calibration, const hd_attention_call *call,
                                         hd_calibration_site **out);

/* Bytes that hd_calibration_observe needs. */
size_t hd_calibration_scratch(const hd_calibration_site *site);

/* Measures row `row` of a call at step `step` of the run's. */
HD_CHECKED hd_status hd_calibration_observe(hd_calibration *calibration, hd_calibration_site *site,
                                            const hd_exec *ex, const hd_attention_call *call,
                                            int64_t row, int64_t step, void *scratch);

/* What was decided. */
typedef struct hd_calibration_report {
    double density;                  // of all executed pairs, weighted by the steps of each mask
    double theta;                    // a tile with this mass is kept
    double retained, retained_least; // mass: mean over heads, masks and sites; the least of them
    int64_t heads;                   // of all sites
    int64_t orders[HD_AXIS_ORDERS];  // how many heads take each
} hd_calibration_report;

/* The caller owns *out. Masks whose steps were not observed keep every tile. */
HD_CHECKED hd_status hd_calibration_finish(const hd_calibration *calibration, hd_plan_file **out,
                                           hd_calibration_report *report);

/* Scores of `count` orders, the lowest is the best: sparse [count] shares of sparse tiles, uneven
 * [count] means of peak over mean. */
void hd_calibration_score(double *score, const double *sparse, const double *uneven, int count,
                          double alpha);

HD_END_DECLS
#endif
