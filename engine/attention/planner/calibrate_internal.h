/* engine/attention/planner/calibrate_internal.h: what the measuring (calibrate.c) leaves for the
 * deciding (calibrate_plan.c). */
#ifndef HD_ENGINE_ATTENTION_PLANNER_CALIBRATE_INTERNAL_H
#define HD_ENGINE_ATTENTION_PLANNER_CALIBRATE_INTERNAL_H

#include "engine/attention/planner/calibrate.h"

struct hd_calibration_site {
    hd_site site;
    hd_grid grid;
    int64_t tokens, ranks; // of the call; of the grid
    int64_t tiles, dim;
    int orders;                 // those that differ on this grid
    int number[HD_AXIS_ORDERS]; // theirs in a plan file
    int32_t *order;             // [orders][ranks] token of a rank
    int64_t *calls;             // [masks] measured rows of calls
    float *mass;                // [masks][orders][heads][tiles][tiles]: sums over calls
    double *sparse, *uneven;    // [orders][heads][query tiles]: sums over calls and key tiles
};

struct hd_calibration {
    hd_calibration_options options;
    uint16_t *mask_of_step;
    int64_t sites, room;
    hd_calibration_site **site;
};

static inline float *hd_calibration_mass(const hd_calibration_site *s, int64_t mask, int64_t order,
                                         int64_t head)
{
    return s->mass + ((mask * s->orders + order) * s->site.heads + head) * s->tiles * s->tiles;
}

#endif
