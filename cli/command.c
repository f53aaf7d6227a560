/* cli/command.c: help and failures, the same for every command. */
#include "cli/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/options/json_write.h"
#include "pipelines/preset.h"

#define HELP_COLUMNS 90

void hd_command_help(const hd_command *command, FILE *to)
{
    fprintf(to, "heddle %s: %s\n\nusage: heddle %s %s\n", command->name, command->summary,
            command->name, command->usage);
    hd_options_print(command->options, hd_preset_params, HELP_COLUMNS, to);
    if (command->list) command->list(to);
    if (command->details) fprintf(to, "\n%s\n", command->details);
}

static int exit_status(hd_status status)
{
    switch (status) {
    case HD_OK:
        return HD_EXIT_OK;
    case HD_ERR_ARGUMENT:
        return HD_EXIT_USAGE;
    case HD_ERR_CANCELLED:
        return HD_EXIT_STOPPED;
    default:
        return HD_EXIT_FAILED;
    }
}

static void print_json_failure(hd_status status)
{
    hd_json_writer w = {0};
    char *text = NULL;
    hd_json_write_object(&w, NULL);
    hd_json_write_object(&w, "error");
    hd_json_write_string(&w, "kind", hd_status_name(status));
    hd_json_write_string(&w, "message", hd_message());
    hd_json_write_end(&w, '}');
    hd_json_write_end(&w, '}');
    if (hd_json_writer_take(&w, &text) == HD_OK) printf("%s\n", text);
    free(text);
}

int hd_command_fail(hd_status status, const hd_command *command, bool json)
{
    if (json)
        print_json_failure(status);
    else if (status == HD_ERR_ARGUMENT)
        fprintf(stderr, "heddle %s: %s\n(heddle help %s lists what it takes)\n", command->name,
                hd_message(), command->name);
    else
        fprintf(stderr, "heddle: %s\n", hd_message());
    return exit_status(status);
}

int hd_command_done(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return HD_EXIT_OK;
    fprintf(stderr, "heddle: cannot write to stdout: %s\n", strerror(errno));
    return HD_EXIT_FAILED;
}

// Whether the switch --json is on a line that could not be parsed.
static bool wants_json(const hd_command *command, int argc, char **argv)
{
    for (const hd_option *o = command->options; o->name || o->help; o++)
        if (o->name && o->value && strcmp(o->name, "json") == 0) return false; // it names a file
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0) return true;
    return false;
}

int hd_command_parsed(const hd_command *command, int argc, char **argv,
                      int (*act)(const hd_command *command, const hd_args *args))
{
    hd_args args = {0};
    hd_status status = hd_args_parse(&args, command->options, argc, argv);
    if (status != HD_OK) return hd_command_fail(status, command, wants_json(command, argc, argv));
    int code;
    if (hd_args_has(&args, "help")) {
        hd_command_help(command, stdout);
        code = hd_command_done();
    } else {
        code = act(command, &args);
    }
    hd_args_free(&args);
    return code;
}
