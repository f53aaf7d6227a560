/* cli/inspect_run.h: the parts of heddle inspect that look at a run: who acts where in it (chain),
 * and where its words are read (attention). */
#ifndef HD_CLI_INSPECT_RUN_H
#define HD_CLI_INSPECT_RUN_H

#include "cli/command.h"

HD_BEGIN_DECLS

extern const hd_command hd_command_inspect_chain, hd_command_inspect_attention;

HD_END_DECLS
#endif
