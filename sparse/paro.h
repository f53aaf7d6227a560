/* sparse/paro.h: the fields of "paro", for those who make its plans. */
#ifndef HD_SPARSE_PARO_H
#define HD_SPARSE_PARO_H

#include "engine/attention/planner/plan_file.h"
#include "engine/options/param.h"

HD_BEGIN_DECLS

typedef struct hd_paro_options {
    char *plan;
    // how `heddle calibrate` makes the plan
    float density, density_min;
    bool density_given;
    int64_t tile;
    float eps_rel, sigma, alpha;
    const hd_json *buckets;
    int64_t prompts;
    // what a run does with it
    bool force_text, force_last;
    int empty_heads;
    bool skip_text_quant, align_text_first, renormalise;
    hd_plan_file *file; // opened by the class's check
} hd_paro_options;

extern const hd_param hd_paro_fields[];

/* What one field's range cannot say, and what this build cannot do, by name. */
HD_CHECKED hd_status hd_paro_check(const hd_paro_options *p);

/* Which mask serves which step of a run of `steps`: "buckets" is a number of equal parts, or the
 * mask of every step; not given: each step of the first half has its own and the second half shares
 * one. mask_of_step [steps]. */
HD_CHECKED hd_status hd_paro_buckets(const hd_paro_options *p, int64_t steps,
                                     uint16_t *mask_of_step, int64_t *masks);

HD_END_DECLS
#endif
