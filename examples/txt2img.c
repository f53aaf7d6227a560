/* examples/txt2img.c: a picture from a prompt through libheddle: txt2img MODEL PROMPT OUT.png
 *
 * Built with an installed library:
 *     cc txt2img.c -o txt2img $(pkg-config --cflags --libs --static heddle) */
#include <heddle.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `text` as a JSON string, quotes included; the caller frees it. NULL: no memory. */
static char *json_string(const char *text)
{
    char *out = malloc(6 * strlen(text) + 3), *to = out;
    if (!out) return NULL;
    *to++ = '"';
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            to += sprintf(to, "\\%c", c);
        else if (c < 0x20)
            to += sprintf(to, "\\u%04x", c);
        else
            *to++ = (char)c;
    }
    *to++ = '"';
    *to = 0;
    return out;
}

/* The run as JSON; the caller frees it. NULL: no memory. */
static char *make_preset(const char *model, const char *prompt)
{
    char *preset = NULL, *model_json = json_string(model), *prompt_json = json_string(prompt);
    if (model_json && prompt_json) {
        const char *format = "{\"model\": %s, \"prompt\": %s, \"seed\": 7, \"steps\": 20, "
                             "\"guidance\": 5}";
        size_t bytes = strlen(format) + strlen(model_json) + strlen(prompt_json);
        preset = malloc(bytes);
        if (preset) snprintf(preset, bytes, format, model_json, prompt_json);
    }
    free(model_json);
    free(prompt_json);
    return preset;
}

static void show_progress(void *user, const hd_progress *progress)
{
    (void)user;
    if (strcmp(progress->stage, "sample") == 0)
        fprintf(stderr, "step %d of %d\n", progress->step, progress->count);
}

static hd_status draw(const char *preset, const char *path)
{
    hd_context *context = NULL;
    hd_result *result = NULL;
    hd_callbacks callbacks = {0};
    callbacks.progress = show_progress;
    hd_status status = hd_context_create(&context, NULL);
    if (status == HD_OK) status = hd_context_run(context, preset, "txt2img", &callbacks, &result);
    if (status == HD_OK) {
        const hd_picture *picture = hd_result_picture(result, 0);
        printf("%dx%d, precision %s\n", picture->width, picture->height,
               hd_result_report(result)->precision);
        status = hd_result_write_png(result, 0, path);
    }
    hd_result_free(result);
    hd_context_free(context);
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: txt2img MODEL PROMPT OUT.png\n");
        return 2;
    }
    char *preset = make_preset(argv[1], argv[2]);
    if (!preset) {
        fprintf(stderr, "no memory\n");
        return 1;
    }
    hd_status status = draw(preset, argv[3]);
    free(preset);
    if (status != HD_OK) fprintf(stderr, "txt2img: %s\n", hd_message());
    return status == HD_OK ? 0 : 1;
}
