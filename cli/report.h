/* cli/report.h: what is said after a run: for people on stdout and stderr, for programs as JSON. */
#ifndef HD_CLI_REPORT_H
#define HD_CLI_REPORT_H

#include "include/heddle.h"

HD_BEGIN_DECLS

/* A line per picture on stdout: where it is, its size and seed. */
void hd_report_pictures(const hd_result *result);
/* On stderr: the run was stopped, and what was kept. result may be NULL. */
void hd_report_stopped(const hd_result *result);
/* Times per stage, memory, what was decided, on stderr. */
void hd_report_verbose(const hd_result *result);
/* One object on stdout. status: HD_OK, or HD_ERR_CANCELLED with "error" and what was kept. result
 * may be NULL. */
void hd_report_json(hd_status status, const hd_result *result);

HD_END_DECLS
#endif
