/* cli/inspect_chain.h: heddle inspect chain: who acts where in a run. */
#ifndef HD_CLI_INSPECT_CHAIN_H
#define HD_CLI_INSPECT_CHAIN_H

#include "cli/command.h"

HD_BEGIN_DECLS

extern const hd_command hd_command_inspect_chain;

HD_END_DECLS
#endif
