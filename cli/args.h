/* cli/args.h: a command's options as one table, from which the line is parsed and the help printed.
 *
 * -W 64, -W64, --width 64 and --width=64 are the same; switches may be joined (-qv). What follows
 * an option that takes a value is its value, whatever it looks like: a prompt may begin with "-".
 * "--" ends the options. An option given twice counts the last time; nothing may be abbreviated. */
#ifndef HD_CLI_ARGS_H
#define HD_CLI_ARGS_H

#include <stdio.h>

#include "engine/options/param.h"

HD_BEGIN_DECLS

typedef struct hd_option {
    char letter;       // 0: none
    const char *name;  // without dashes; NULL: `help` is a heading
    const char *value; // what stands for its value in the help; NULL: a switch
    const char *field; // the field of a run that it sets, or NULL
    const char *help;  // NULL: the field's own
} hd_option;           // a table ends with a row of name and help NULL

/* One piece of a command line. */
typedef struct hd_arg {
    const hd_option *option; // NULL: no option but a word of its own
    const char *value;       // borrowed from argv; NULL for a switch
} hd_arg;

typedef struct hd_args {
    hd_arg *list; // in the order of the line; owned
    int count;
} hd_args;

/* argv [argc] without the names of program and command. HD_ERR_ARGUMENT: unknown option (with the
 * nearest one), missing value, a value for a switch. *out is written on success only. */
HD_CHECKED hd_status hd_args_parse(hd_args *out, const hd_option *options, int argc, char **argv);
void hd_args_free(hd_args *args);

/* Whether an option was given. */
bool hd_args_has(const hd_args *args, const char *name);
/* The value of the last one of that name, or NULL. */
const char *hd_args_value(const hd_args *args, const char *name);
/* The only word that is no option: HD_ERR_ARGUMENT when there is none or another; `what` says what
 * is wanted ("a preset or a picture"). */
HD_CHECKED hd_status hd_args_word(const hd_args *args, const char *what, const char **out);

/* The options, a line or more each, wrapped at `columns`. Options with a field and no help of their
 * own take help, range and default from `fields`, which may be NULL. */
void hd_options_print(const hd_option *options, const hd_param *fields, int columns, FILE *to);

HD_END_DECLS
#endif
