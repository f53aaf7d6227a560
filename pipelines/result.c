/* pipelines/result.c: what a run leaves behind. */
#include "pipelines/result.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/png.h"

hd_status hd_result_create(hd_result **out, int pictures)
{
    hd_result *r = calloc(1, sizeof *r);
    if (r) r->picture = calloc((size_t)pictures, sizeof *r->picture);
    if (!r || !r->picture) {
        free(r);
        return hd_fail(HD_ERR_NOMEM, "result: no memory for %d pictures", pictures);
    }
    r->room = pictures;
    r->report.stages = r->stage;
    r->report.warnings = r->warning;
    *out = r;
    return HD_OK;
}

static void free_picture(hd_picture *p)
{
    free((void *)p->rgb);
    free((void *)p->metadata);
    free((void *)p->parameters);
    free((void *)p->path);
}

void hd_result_free(hd_result *r)
{
    if (!r) return;
    for (int i = 0; i < r->count; i++)
        free_picture(&r->picture[i]);
    for (int i = 0; i < r->text_count; i++)
        free(r->texts[i]);
    for (int i = 0; i < r->report.warning_count; i++)
        free((void *)r->warning[i]);
    for (int i = 0; i < r->report.file_count; i++)
        free(r->files[i]);
    free(r->files);
    free(r->picture);
    free(r);
}

const char *hd_result_keep(hd_result *r, const char *text)
{
    if (!text || r->text_count == (int)HD_COUNT(r->texts)) return NULL;
    char *copy = strdup(text);
    if (copy) r->texts[r->text_count++] = copy;
    return copy;
}

const char *hd_result_branch(hd_result *r, const char *name)
{
    for (int i = 0; i < r->branch_count; i++)
        if (strcmp(r->branch[i], name) == 0) return r->branch[i];
    if (r->branch_count == (int)HD_COUNT(r->branch)) return "";
    snprintf(r->branch[r->branch_count], sizeof r->branch[0], "%s", name);
    return r->branch[r->branch_count++];
}

void hd_result_stage(hd_result *r, const char *name, double seconds, int steps)
{
    int i = 0;
    while (i < r->report.stage_count && strcmp(r->stage[i].name, name) != 0)
        i++;
    if (i == HD_RESULT_MAX_STAGES) return;
    if (i == r->report.stage_count) r->stage[r->report.stage_count++] = (hd_stage){.name = name};
    r->stage[i].seconds += seconds;
    r->stage[i].steps += steps;
}

void hd_result_warn(hd_result *r, const hd_callbacks *callbacks, const char *text)
{
    if (callbacks && callbacks->log) callbacks->log(callbacks->user, HD_LOG_WARNING, text);
    char *copy = r->report.warning_count < HD_RESULT_MAX_WARNINGS ? strdup(text) : NULL;
    if (copy) r->warning[r->report.warning_count++] = copy;
}

hd_status hd_result_add(hd_result *r, hd_picture picture)
{
    if (r->count == r->room) {
        hd_picture *grown = realloc(r->picture, 2 * (size_t)r->room * sizeof *grown);
        if (!grown) {
            free_picture(&picture);
            return hd_fail(HD_ERR_NOMEM, "result: no memory for %d pictures", 2 * r->room);
        }
        r->picture = grown;
        r->room *= 2;
    }
    r->picture[r->count++] = picture;
    return HD_OK;
}

hd_status hd_result_wrote(hd_result *r, const char *path)
{
    hd_report *report = &r->report;
    if (report->file_count == r->file_room) {
        const int room = r->file_room ? 2 * r->file_room : 8;
        char **grown = realloc(r->files, (size_t)room * sizeof *grown);
        if (!grown) return hd_fail(HD_ERR_NOMEM, "result: no memory for %d files", room);
        r->files = grown;
        r->file_room = room;
    }
    char *copy = strdup(path);
    if (!copy) return hd_fail(HD_ERR_NOMEM, "result: no memory for a file's name");
    r->files[report->file_count++] = copy;
    report->files = (const char *const *)r->files;
    return HD_OK;
}

int hd_result_count(const hd_result *r)
{
    return r ? r->count : 0;
}

const hd_picture *hd_result_picture(const hd_result *r, int index)
{
    return r && index >= 0 && index < r->count ? &r->picture[index] : NULL;
}

const hd_report *hd_result_report(const hd_result *r)
{
    return &r->report;
}

hd_status hd_result_write_png(const hd_result *r, int index, const char *path)
{
    const hd_picture *p = hd_result_picture(r, index);
    if (!p)
        return hd_fail(HD_ERR_ARGUMENT, "result: there is no picture %d, there are %d", index,
                       hd_result_count(r));
    hd_png_text texts[] = {{"parameters", p->parameters}, {"heddle", p->metadata}};
    hd_image image = {p->width, p->height, (uint8_t *)p->rgb};
    return hd_png_write(path, &image, texts, 2);
}
