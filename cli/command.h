/* cli/command.h: what a command of the program is, and what they share.
 *
 * The program ends with 0 when all went well, 1 when something failed, 2 when what was asked is
 * wrong (an option, a field, a value), 130 when it was stopped. */
#ifndef HD_CLI_COMMAND_H
#define HD_CLI_COMMAND_H

#include "cli/args.h"

HD_BEGIN_DECLS

typedef struct hd_command {
    const char *name;
    const char *usage;      // behind "heddle NAME "
    const char *summary;    // one line, for the list of commands
    const char *details;    // paragraphs below the options; NULL: none
    void (*list)(FILE *to); // what else the help shows, below the options; NULL: nothing
    const hd_option *options;
    int (*run)(const struct hd_command *command, int argc, char **argv); // the exit status
} hd_command;

extern const hd_command hd_command_generate, hd_command_run, hd_command_inspect, hd_command_bench,
    hd_command_calibrate, hd_command_presets;

enum { HD_EXIT_OK = 0, HD_EXIT_FAILED = 1, HD_EXIT_USAGE = 2, HD_EXIT_STOPPED = 130 };

/* Says the last failure on stderr, or with `json` as an object on stdout, and returns the exit
 * status that belongs to it. */
int hd_command_fail(hd_status status, const hd_command *command, bool json);
/* The exit status of a command that has said what it had to: failed when stdout did not take it. */
int hd_command_done(void);
/* The body of a command's `run`: parses the line, shows the help if it is asked for, else returns
 * act's exit status. */
int hd_command_parsed(const hd_command *command, int argc, char **argv,
                      int (*act)(const hd_command *command, const hd_args *args));
void hd_command_help(const hd_command *command, FILE *to);

HD_END_DECLS
#endif
