/* pipelines/calibrate.h: heddle calibrate: runs a preset, watches its attention and writes the plan
 * file that "paro" needs.
 *
 * The preset's own "paro", if it has one, says where and how to calibrate (its sites, steps and the
 * fields whose help begins with "calibrate:"); it does not act in the runs, everything else does.
 * Only rows with the prompt (main/cond) are measured. */
#ifndef HD_PIPELINES_CALIBRATE_H
#define HD_PIPELINES_CALIBRATE_H

#include "engine/attention/planner/calibrate.h"
#include "heddle.h"

HD_BEGIN_DECLS

typedef struct hd_calibrate_options {
    const char *plan;    // file to write
    double density;      // 0: the preset's
    const char *prompts; // a prompt per line, the first of which are run one after the other; NULL:
                         // the preset's own
    const char *prompts_name; // what messages call them
} hd_calibrate_options;

typedef struct hd_calibrated {
    hd_plan_file *file; // as it was written
    hd_calibration_report report;
    int64_t prompts;
    double seconds;
} hd_calibrated;

/* preset_json, name and callbacks as for hd_context_run; no picture is written. Free *out with
 * hd_calibrated_free. */
HD_CHECKED hd_status hd_calibrate(hd_context *context, const char *preset_json, const char *name,
                                  const hd_calibrate_options *options,
                                  const hd_callbacks *callbacks, hd_calibrated *out);
void hd_calibrated_free(hd_calibrated *calibrated);

HD_END_DECLS
#endif
