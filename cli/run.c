/* cli/run.c: heddle run: a run from a preset or from a picture, with options on top. */
#include <stdlib.h>

#include "cli/job.h"
#include "cli/presets_folder.h"

static int run_file(const hd_command *command, const hd_args *args)
{
    const char *path = NULL;
    char *preset = NULL;
    hd_status status = hd_args_word(args, "a preset or a picture", &path);
    if (status == HD_OK) status = hd_presets_read(&preset, path);
    if (status != HD_OK) return hd_command_fail(status, command, hd_args_has(args, "json"));
    int code = hd_job_run(command, args, &preset, path);
    hd_text_free(preset);
    return code;
}

static int run(const hd_command *command, int argc, char **argv)
{
    return hd_command_parsed(command, argc, argv, run_file);
}

const hd_command hd_command_run = {
    .name = "run",
    .usage = "PRESET.json|PICTURE.png|NAME [options]",
    .summary = "draws what a preset describes, or repeats a picture",
    .details = "A preset is one JSON object (presets/schema.json). Options come on top of it, in "
               "their order.\nheddle presets lists those that are there by NAME.\nWhere a picture "
               "was written is never taken from it: name it with "
               "--output.",
    .list = hd_job_list_samplers,
    .options = hd_job_options,
    .run = run,
};
