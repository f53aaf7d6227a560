/* cli/main.c: the heddle program: picks the command. */
#include <string.h>

#include "cli/command.h"
#include "cli/processors.h"

static const hd_command *const commands[] = {&hd_command_generate,  &hd_command_run,
                                             &hd_command_inspect,   &hd_command_bench,
                                             &hd_command_calibrate, &hd_command_presets};

static const hd_command *find_command(const char *name)
{
    for (size_t i = 0; i < HD_COUNT(commands); i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static void print_overview(FILE *to)
{
    fprintf(to, "heddle %s: a diffusion engine\n\nusage: heddle COMMAND [options]\n\n",
            hd_version());
    for (size_t i = 0; i < HD_COUNT(commands); i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "  %-10s %s\n", "help",
            "lists a command's options (heddle help generate), or the processors");
    fprintf(to, "  %-10s %s\n\n", "version", "says which version this is");
    fprintf(to, "heddle generate --prompt \"a big red fish on a blue background\" -o fish.png\n");
}

static int unknown_command(const char *name)
{
    const char *names[HD_COUNT(commands) + 2] = {"help", "version"};
    for (size_t i = 0; i < HD_COUNT(commands); i++)
        names[i + 2] = commands[i]->name;
    const char *near = hd_nearest_name(name, names, HD_COUNT(names));
    fprintf(stderr, "heddle: unknown command \"%.80s\"%s%s%s\n(heddle help lists the commands)\n",
            name, near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    return HD_EXIT_USAGE;
}

static int help(const char *topic)
{
    if (!topic) {
        print_overview(stdout);
        return hd_command_done();
    }
    if (strcmp(topic, "processors") == 0) {
        hd_processors_print(stdout);
        return hd_command_done();
    }
    const hd_command *command = find_command(topic);
    if (!command) return unknown_command(topic);
    hd_command_help(command, stdout);
    return hd_command_done();
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_overview(stderr);
        return HD_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help(argc > 2 ? argv[2] : NULL);
    if (strcmp(name, "version") == 0 || strcmp(name, "--version") == 0) {
        printf("heddle %s\n", hd_version());
        return HD_EXIT_OK;
    }
    const hd_command *command = find_command(name);
    return command ? command->run(command, argc - 2, argv + 2) : unknown_command(name);
}
