/* engine/attention/planner/plan_file_write.c: plan files out. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/output.h"
#include "engine/attention/planner/plan_file.h"
#include "engine/attention/planner/plan_file_layout.h"

/* Writes and sums up at once; a failure is kept, so that writing reads as one line per field. */
typedef struct plan_writer {
    hd_output *output;
    XXH64_state_t *sum;
    hd_status status;
} plan_writer;

static void put_bytes(plan_writer *w, const void *bytes, int64_t count)
{
    if (w->status != HD_OK) return;
    XXH64_update(w->sum, bytes, (size_t)count);
    w->status = hd_output_write(w->output, bytes, (size_t)count);
}

static void put(plan_writer *w, uint64_t value, int bytes)
{
    uint8_t text[8];
    for (int i = 0; i < bytes; i++)
        text[i] = (uint8_t)(value >> (8 * i));
    put_bytes(w, text, bytes);
}

static void put_floats(plan_writer *w, const float *value, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &value[i], sizeof bits);
        put(w, bits, 4);
    }
}

static void put_site(plan_writer *w, const hd_plan_file *file, const hd_plan_file_site *s)
{
    char path[HD_SITE_PATH_BYTES] = {0};
    memcpy(path, s->site.path, strnlen(s->site.path, sizeof path - 1));
    put_bytes(w, path, sizeof path);
    put(w, s->site.network, 4);
    put(w, s->site.kind, 4);
    put(w, (uint64_t)s->site.heads, 4);
    for (int i = 0; i < 3; i++)
        put(w, (uint64_t)s->grid[i], 4);
    put(w, (uint64_t)s->text, 4);
    put(w, s->text_first, 4);
    int64_t maps = file->masks * s->site.heads;
    put_bytes(w, s->order, s->site.heads);
    for (int64_t i = 0; i < maps; i++)
        s->density[i] = (float)hd_plan_file_density(s, file->tile, s->bits + i * s->bitmap_bytes);
    put_floats(w, s->density, maps);
    put_floats(w, s->retained, maps);
    put_bytes(w, s->bits, maps * s->bitmap_bytes);
}

static int64_t file_bytes(const hd_plan_file *file)
{
    int64_t bytes = PLAN_HEADER_BYTES + 2 * file->steps;
    for (int64_t i = 0; i < file->sites; i++) {
        const hd_plan_file_site *s = &file->site[i];
        int64_t maps = file->masks * s->site.heads;
        bytes += PLAN_SITE_BYTES + s->site.heads + maps * (8 + s->bitmap_bytes);
    }
    return bytes;
}

static void put_file(plan_writer *w, const hd_plan_file *file, int64_t bytes)
{
    put_bytes(w, hd_plan_magic, sizeof hd_plan_magic);
    put(w, PLAN_VERSION, 4);
    put(w, (uint64_t)file->tile, 4);
    put(w, (uint64_t)bytes, 8);
    put(w, file->model, 8);
    put(w, (uint64_t)file->steps, 4);
    put(w, (uint64_t)file->masks, 4);
    put(w, (uint64_t)file->sites, 4);
    put_floats(w, &file->target, 1);
    for (int64_t i = 0; i < file->steps; i++)
        put(w, file->mask_of_step[i], 2);
    for (int64_t i = 0; i < file->sites; i++)
        put_site(w, file, &file->site[i]);
    put(w, XXH64_digest(w->sum), PLAN_SUM_BYTES);
}

hd_status hd_plan_file_write(hd_plan_file *file, const char *path)
{
    int64_t bytes = file_bytes(file);
    if (bytes > (int64_t)PLAN_MOST_BYTES)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%s: would have %lld bytes, a plan file has at most %lld; calibrate fewer "
                       "sites or fewer masks (buckets)",
                       path, (long long)bytes, (long long)PLAN_MOST_BYTES);
    plan_writer w = {.sum = XXH64_createState()};
    if (!w.sum) return hd_fail(HD_ERR_NOMEM, "%s: no memory to write it", path);
    XXH64_reset(w.sum, 0);
    w.status = hd_output_open(&w.output, path);
    put_file(&w, file, bytes);
    XXH64_freeState(w.sum);
    if (w.status != HD_OK) {
        hd_output_discard(w.output);
        return w.status;
    }
    return hd_output_commit(w.output);
}
