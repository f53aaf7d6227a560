/* engine/attention/planner/static_plan.h: a site of a plan file as the plans that the kernel walks:
 * made once before the first step, one per mask, then only chosen.
 *
 * Each head's grid tokens are taken in that head's order of the axes, queries and keys alike; the
 * tokens beside the grid are the dense tail (or, with text_first, lie in the first tiles). */
#ifndef HD_ENGINE_ATTENTION_PLANNER_STATIC_PLAN_H
#define HD_ENGINE_ATTENTION_PLANNER_STATIC_PLAN_H

#include "base/plan.h"
#include "engine/attention/planner/orders.h"
#include "engine/attention/planner/plan_file.h"

HD_BEGIN_DECLS

typedef struct hd_static_plans hd_static_plans;

/* Tiles that are computed whatever the file says. */
typedef struct hd_static_forced {
    bool text;      // with text_first: the rows and columns of tiles that touch the text
    bool last;      // the last row and column of tiles
    bool not_empty; // that of heads with a tile in the file alone
} hd_static_forced;

/* `site` is of `file` and made for `grid` and `tokens` tokens in all; the caller has checked that.
 * The caller owns *out; hd_static_plans_free(NULL) does nothing. */
HD_CHECKED hd_status hd_static_plans_make(hd_static_plans **out, const hd_plan_file *file,
                                          const hd_plan_file_site *site, const hd_grid *grid,
                                          hd_static_forced forced);
void hd_static_plans_free(hd_static_plans *plans);
const hd_plan *hd_static_plans_at(const hd_static_plans *plans, int64_t mask); // borrowed

HD_END_DECLS
#endif
