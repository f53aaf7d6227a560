/* cli/report.c: prints the result of a run. */
#include "cli/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/options/json_write.h"

void hd_report_pictures(const hd_result *result)
{
    for (int i = 0; i < hd_result_count(result); i++) {
        const hd_picture *p = hd_result_picture(result, i);
        if (!p->path) continue;
        printf("%s  %dx%d  seed %" PRIu64 "\n", p->path, p->width, p->height, p->seed);
    }
    const hd_report *r = hd_result_report(result);
    if (r->latents_path) printf("%s  latents\n", r->latents_path);
    if (r->capture_path) printf("%s  attention\n", r->capture_path);
    for (int i = 0; i < r->file_count; i++)
        printf("%s\n", r->files[i]);
}

void hd_report_stopped(const hd_result *result)
{
    int kept = 0;
    for (int i = 0; i < hd_result_count(result); i++) {
        const char *path = hd_result_picture(result, i)->path;
        if (!path) continue;
        fprintf(stderr, "%s%s", kept ? ", " : "stopped; kept: ", path);
        kept++;
    }
    fprintf(stderr, "%s\n", kept ? "" : "stopped; nothing was written");
}

static void print_bytes(const char *what, uint64_t bytes)
{
    fprintf(stderr, "%-12s %9.1f MiB\n", what, (double)bytes / (1 << 20));
}

void hd_report_verbose(const hd_result *result)
{
    const hd_report *r = hd_result_report(result);
    fprintf(stderr, "model        %s (%s)%s\n", r->model, r->model_hash,
            r->model_kept ? ", kept from before" : "");
    fprintf(stderr, "sampler      %s, %d steps, guidance %g\n", r->sampler, r->steps, r->guidance);
    fprintf(stderr, "precision    %s (%s)\n", r->precision, r->precision_reason);
    fprintf(stderr, "threads      %d\n", r->threads);
    for (int i = 0; i < r->stage_count; i++) {
        const hd_stage *s = &r->stages[i];
        fprintf(stderr, "%-12s %9.3f s", s->name, s->seconds);
        if (s->steps > 1) fprintf(stderr, "  (%d x %.3f s)", s->steps, s->seconds / s->steps);
        fputc('\n', stderr);
    }
    fprintf(stderr, "%-12s %9.3f s\n", "in all", r->seconds);
    print_bytes("peak memory", r->peak_bytes);
    print_bytes("weights", r->weights_bytes);
    print_bytes("activations", r->arena_bytes);
}

static void write_pictures(hd_json_writer *w, const hd_result *result)
{
    hd_json_write_array(w, "outputs");
    for (int i = 0; i < hd_result_count(result); i++) {
        const hd_picture *p = hd_result_picture(result, i);
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "path", p->path);
        hd_json_write_u64(w, "seed", p->seed);
        hd_json_write_int(w, "width", p->width);
        hd_json_write_int(w, "height", p->height);
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

static void write_report(hd_json_writer *w, const hd_report *r)
{
    if (r->latents_path) hd_json_write_string(w, "latents", r->latents_path);
    if (r->capture_path) hd_json_write_string(w, "capture", r->capture_path);
    if (r->file_count) hd_json_write_array(w, "files");
    for (int i = 0; i < r->file_count; i++)
        hd_json_write_string(w, NULL, r->files[i]);
    if (r->file_count) hd_json_write_end(w, ']');
    hd_json_write_string(w, "model", r->model);
    hd_json_write_string(w, "model_hash", r->model_hash);
    hd_json_write_string(w, "sampler", r->sampler);
    hd_json_write_int(w, "steps", r->steps);
    hd_json_write_double(w, "guidance", r->guidance);
    hd_json_write_string(w, "precision", r->precision);
    hd_json_write_string(w, "precision_reason", r->precision_reason);
    hd_json_write_int(w, "threads", r->threads);
    hd_json_write_double(w, "seconds", r->seconds);
    hd_json_write_u64(w, "peak_bytes", r->peak_bytes);
    hd_json_write_u64(w, "weights_bytes", r->weights_bytes);
    hd_json_write_u64(w, "arena_bytes", r->arena_bytes);
    hd_json_write_array(w, "stages");
    for (int i = 0; i < r->stage_count; i++) {
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "name", r->stages[i].name);
        hd_json_write_double(w, "seconds", r->stages[i].seconds);
        hd_json_write_int(w, "steps", r->stages[i].steps);
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
    hd_json_write_array(w, "warnings");
    for (int i = 0; i < r->warning_count; i++)
        hd_json_write_string(w, NULL, r->warnings[i]);
    hd_json_write_end(w, ']');
}

void hd_report_json(hd_status status, const hd_result *result)
{
    hd_json_writer w = {0};
    char *text = NULL;
    hd_json_write_object(&w, NULL);
    if (status != HD_OK) {
        hd_json_write_object(&w, "error");
        hd_json_write_string(&w, "kind", hd_status_name(status));
        hd_json_write_string(&w, "message", "stopped");
        hd_json_write_end(&w, '}');
    }
    write_pictures(&w, result);
    if (result && status == HD_OK) write_report(&w, hd_result_report(result));
    hd_json_write_end(&w, '}');
    if (hd_json_writer_take(&w, &text) == HD_OK) printf("%s\n", text);
    free(text);
}
