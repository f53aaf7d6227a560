/* cli/job.h: one run of the engine for a person or a program: options, progress, stop, report. */
#ifndef HD_CLI_JOB_H
#define HD_CLI_JOB_H

#include "cli/command.h"
#include "cli/progress.h"

HD_BEGIN_DECLS

/* The options of every command that draws: a run's fields, and what is said about it. */
extern const hd_option hd_job_options[];

/* For their help: the samplers there are. */
void hd_job_list_samplers(FILE *to);

/* Puts what the options say into the run *json (owned, replaced), draws it and reports. name: what
 * *json is called in messages. Returns the exit status; failures are said. */
int hd_job_run(const hd_command *command, const hd_args *args, char **json, const char *name);

/* The same for a run that is complete: nothing is put in. */
int hd_job_finish(const hd_command *command, const hd_args *args, char *json, const char *name);

/* What a long command tells a person while it works. */
typedef struct hd_job {
    hd_progress_bar bar;
    bool quiet, verbose;
} hd_job;

/* From --quiet and --verbose. */
hd_job hd_job_begin(const hd_args *args);
/* For the engine: progress line, log, and Ctrl-C, which is listened for from here on. */
hd_callbacks hd_job_callbacks(hd_job *job);

/* Puts the options that set fields, and --set, into *json (owned, replaced), in the order of the
 * line. */
HD_CHECKED hd_status hd_job_apply(const hd_args *args, char **json, const char *name);

HD_END_DECLS
#endif
