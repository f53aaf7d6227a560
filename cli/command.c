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

bool hd_command_wants_json(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0) return true;
    return false;
}
