/* pipelines/calibrate_watch.h: looks on at runs (engine/attention/run.h) and measures the calls
 * that a "paro" of a preset would act in; what it has seen becomes a plan file. */
#ifndef HD_PIPELINES_CALIBRATE_WATCH_H
#define HD_PIPELINES_CALIBRATE_WATCH_H

#include "engine/attention/planner/calibrate.h"
#include "engine/attention/run.h"

HD_BEGIN_DECLS

typedef struct hd_calibrate_watch hd_calibrate_watch;

/* `paro` is the processor's object, borrowed; NULL: all of its fields by default, at every self and
 * joint site. density 0: its own. The caller owns *out; hd_calibrate_watch_free(NULL) does nothing.
 */
HD_CHECKED hd_status hd_calibrate_watch_create(hd_calibrate_watch **out, const hd_json *paro,
                                               double density);
void hd_calibrate_watch_free(hd_calibrate_watch *watch);

/* For hd_attention_run_watch; user is the hd_calibrate_watch. Dry passes too must be seen. */
HD_CHECKED hd_status hd_calibrate_watch_see(void *user, const hd_attention_seen *seen);

/* How many prompts the preset wants measured. */
int64_t hd_calibrate_watch_prompts(const hd_calibrate_watch *watch);

/* The caller owns *out. HD_ERR_ARGUMENT when no call was selected. */
HD_CHECKED hd_status hd_calibrate_watch_finish(const hd_calibrate_watch *watch, hd_plan_file **out,
                                               hd_calibration_report *report);

HD_END_DECLS
#endif
