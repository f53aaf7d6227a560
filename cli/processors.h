/* cli/processors.h: heddle help processors. */
#ifndef HD_CLI_PROCESSORS_H
#define HD_CLI_PROCESSORS_H

#include <stdio.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* Every attention processor a run may name, with its fields, ranges and defaults. */
void hd_processors_print(FILE *to);
/* One of them. */
void hd_processor_print(const char *name, FILE *to);

HD_END_DECLS
#endif
