/* cli/job.h: one run of the engine for a person or a program: options, progress, stop, report. */
#ifndef HD_CLI_JOB_H
#define HD_CLI_JOB_H

#include "cli/command.h"

HD_BEGIN_DECLS

/* The options of every command that draws: a run's fields, and what is said about it. */
extern const hd_option hd_job_options[];

/* For their help: the samplers there are. */
void hd_job_list_samplers(FILE *to);

/* Puts what the options say into the run *json (owned, replaced), draws it and reports. name: what
 * *json is called in messages. Returns the exit status; failures are said. */
int hd_job_run(const hd_command *command, const hd_args *args, char **json, const char *name);

HD_END_DECLS
#endif
