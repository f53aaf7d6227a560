/* cli/generate.c: heddle generate: a run described by options alone. */
#include <stdlib.h>
#include <string.h>

#include "cli/job.h"

static hd_status check_words(const hd_args *args)
{
    for (int i = 0; i < args->count; i++)
        if (!args->list[i].option)
            return hd_fail(HD_ERR_ARGUMENT,
                           "unexpected \"%.80s\"; a prompt is given with --prompt \"...\"",
                           args->list[i].value);
    if (!hd_args_has(args, "prompt"))
        return hd_fail(HD_ERR_ARGUMENT, "--prompt is missing: --prompt \"a red fish\"");
    return HD_OK;
}

static int generate_prompt(const hd_command *command, const hd_args *args)
{
    char *run = NULL;
    hd_status status = check_words(args);
    if (status == HD_OK && !(run = strdup("{}"))) status = hd_fail(HD_ERR_NOMEM, "no memory");
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    int code = hd_job_run(command, args, &run, "command line");
    free(run);
    return code;
}

static int generate(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, generate_prompt);
}

const hd_command hd_command_generate = {
    .name = "generate",
    .usage = "--prompt TEXT [options]",
    .summary = "draws pictures from a prompt",
    .details = "Prompts are literal: nothing in them is special. Sampler and size are the model's "
               "own unless\ngiven. Each picture carries its parameters; heddle run PICTURE repeats "
               "it. Ctrl-C stops\nwithin a step, and pictures finished before are kept.",
    .list = hd_job_list_samplers,
    .options = hd_job_options,
    .run = generate,
};
