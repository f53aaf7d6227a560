/* bench/bench_run.c: the sampling steps of whole runs, one model in memory for all of them.
 *
 *     bench_run [--threads 2] [--steps 3] [--rounds 1] PRESET.json ...
 *
 * Runs the presets in turn, each up to one step of warm-up and `steps` more, and cancels it there.
 * Prints a line of JSON per preset: minimum and median seconds of those steps over all rounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heddle.h"

enum { BENCH_MOST_PRESETS = 64, BENCH_MOST_STEPS = 1000 };

typedef struct steps {
    int wanted, seen; // of this round
    int count;
    double seconds[BENCH_MOST_STEPS];
} steps;

static void progress(void *user, const hd_progress *p)
{
    steps *s = user;
    if (strcmp(p->stage, "sample") != 0) return;
    s->seen = p->step;
    if (p->step > 1 && s->count < BENCH_MOST_STEPS) s->seconds[s->count++] = p->step_seconds;
}

static bool cancel(void *user)
{
    const steps *s = user;
    return s->seen > s->wanted;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run(hd_context *context, const char *path, steps *s)
{
    char *json = NULL;
    hd_result *result = NULL;
    const hd_callbacks callbacks = {.user = s, .progress = progress, .cancel = cancel};
    hd_status status = hd_preset_read(path, &json);
    s->seen = 0;
    if (status == HD_OK) status = hd_context_run(context, json, path, &callbacks, &result);
    hd_result_free(result);
    hd_text_free(json);
    if (status == HD_ERR_CANCELLED && s->seen > s->wanted) return 0;
    if (status == HD_OK)
        fprintf(stderr, "%s: has fewer than %d steps\n", path, s->wanted + 2);
    else
        fprintf(stderr, "%s\n", hd_message());
    return 1;
}

static void report(const char *path, steps *s)
{
    qsort(s->seconds, (size_t)s->count, sizeof s->seconds[0], ascending);
    printf("{\"preset\": \"%s\", \"steps\": %d, \"min_s\": %.4f, \"median_s\": %.4f}\n", path,
           s->count, s->seconds[0], s->seconds[s->count / 2]);
}

int main(int argc, char **argv)
{
    static steps seen[BENCH_MOST_PRESETS];
    const char *preset[BENCH_MOST_PRESETS];
    int presets = 0, rounds = 1, wanted = 3;
    hd_context_options options = {.threads = 2};
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && strcmp(argv[i], "--threads") == 0)
            options.threads = atoi(argv[++i]);
        else if (i + 1 < argc && strcmp(argv[i], "--steps") == 0)
            wanted = atoi(argv[++i]);
        else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0)
            rounds = atoi(argv[++i]);
        else if (presets < BENCH_MOST_PRESETS)
            preset[presets++] = argv[i];
    }
    hd_context *context = NULL;
    if (presets == 0 || wanted < 1 || hd_context_create(&context, &options) != HD_OK) {
        fprintf(stderr, "bench_run [--threads N] [--steps N] [--rounds N] PRESET.json ...\n");
        return 2;
    }
    int failed = 0;
    for (int r = 0; r < rounds && !failed; r++)
        for (int i = 0; i < presets && !failed; i++) {
            seen[i].wanted = wanted;
            failed = run(context, preset[i], &seen[i]);
        }
    for (int i = 0; i < presets && !failed; i++)
        report(preset[i], &seen[i]);
    hd_context_free(context);
    return failed;
}
