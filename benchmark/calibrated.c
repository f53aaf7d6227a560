/* benchmark/calibrated.c: calibration of what a row is going to be measured on. */
#include "benchmark/calibrated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "benchmark/attention_call.h"
#include "engine/arena.h"
#include "engine/options/json_write.h"
#include "pipelines/calibrate_watch.h"

// The row's "paro" that names no plan; NULL: none.
static const hd_json *find_paro(const hd_bench_row *row)
{
    const hd_json *chain = hd_json_root(row->doc);
    for (int64_t i = 0; i < hd_json_count(chain); i++) {
        const hd_json *node = hd_json_at(chain, i), *use = hd_json_get(node, "use");
        const char *name;
        if (use && hd_json_to_string(use, &name) == HD_OK && strcmp(name, "paro") == 0 &&
            !hd_json_get(node, "plan"))
            return node;
    }
    return NULL;
}

bool hd_bench_row_needs_calibration(const hd_bench_row *row)
{
    return find_paro(row) != NULL;
}

bool hd_bench_needs_calibration(const hd_bench_rows *rows)
{
    for (int64_t i = 0; i < rows->count; i++)
        if (hd_bench_row_needs_calibration(&rows->row[i])) return true;
    return false;
}

hd_status hd_bench_dense_other(void *user, const hd_exec *ex, hd_attention_run *run)
{
    const hd_bench_other *other = user;
    const hd_bench_attention_options *o = other->options;
    const hd_bench_inputs *in = o->other ? o->other : o->inputs;
    hd_tensor out = hd_tensor_of(NULL, in->v.dtype, hd_tensor_shape(in->v));
    out.data = aligned_alloc(64, ((size_t)hd_tensor_bytes(out) + 63) & ~(size_t)63);
    if (!out.data) return hd_fail(HD_ERR_NOMEM, "bench: no memory for a calibration");
    hd_status status = hd_bench_call(o, in, run, other->who, out, ex);
    free(out.data);
    return status;
}

static hd_status look_on(hd_calibrate_watch *watch, const hd_processor_list *list,
                         const hd_exec *shared, hd_bench_dense dense, void *user)
{
    hd_attention_run *run = NULL;
    hd_exec ex = *shared;
    ex.arena = NULL;
    hd_status status = hd_attention_run_create(&run, list, NULL, 1);
    if (status == HD_OK) hd_attention_run_watch(run, hd_calibrate_watch_see, watch);
    if (status == HD_OK) status = hd_arena_create_measuring(&ex.arena);
    ex.recording = true;
    if (status == HD_OK) status = dense(user, &ex, run);
    const size_t bytes = status == HD_OK ? hd_arena_peak_bytes(ex.arena) : 0;
    hd_arena_free(ex.arena);
    ex.arena = NULL;
    ex.recording = false;
    if (status == HD_OK) status = hd_arena_create(&ex.arena, bytes);
    if (status == HD_OK) status = dense(user, &ex, run);
    hd_arena_free(ex.arena);
    hd_attention_run_free(run);
    return status;
}

// The row's processors with "plan" in `paro`.
static hd_status put_plan(hd_bench_row *row, const hd_json *paro, const char *path)
{
    const hd_json *chain = hd_json_root(row->doc);
    hd_json_writer w = {0};
    hd_json_doc *doc;
    char *text;
    hd_json_write_array(&w, NULL);
    for (int64_t i = 0; i < hd_json_count(chain); i++) {
        const hd_json *node = hd_json_at(chain, i);
        if (node != paro) {
            hd_json_write_node(&w, NULL, node);
            continue;
        }
        hd_json_write_object(&w, NULL);
        for (int64_t f = 0; f < hd_json_count(node); f++)
            hd_json_write_node(&w, hd_json_key(hd_json_at(node, f)), hd_json_at(node, f));
        hd_json_write_string(&w, "plan", path);
        hd_json_write_end(&w, '}');
    }
    hd_json_write_end(&w, ']');
    HD_TRY(hd_json_writer_take(&w, &text));
    hd_status status = hd_json_parse(&doc, hd_json_name(chain), text, strlen(text));
    free(text);
    if (status != HD_OK) return status;
    hd_json_free(row->doc);
    row->doc = doc;
    return HD_OK;
}

static hd_status write_plan(hd_bench_row *row, const hd_json *paro, hd_plan_file *file)
{
    char path[40];
    const int fd = memfd_create("plan", MFD_CLOEXEC);
    if (fd < 0) return hd_fail(HD_ERR_IO, "bench: the system gives no file for a plan");
    row->plan_fd = fd; // closed with the rows
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    HD_TRY(hd_plan_file_write(file, path));
    return put_plan(row, paro, path);
}

hd_status hd_bench_calibrate(hd_bench_row *row, const hd_processor_list *list, const hd_exec *ex,
                             hd_bench_dense dense, void *user)
{
    const hd_json *paro = find_paro(row);
    hd_calibrate_watch *watch = NULL;
    hd_plan_file *file = NULL;
    hd_calibration_report report;
    if (!paro) return HD_OK;
    hd_status status = hd_calibrate_watch_create(&watch, paro, 0);
    if (status == HD_OK) status = look_on(watch, list, ex, dense, user);
    if (status == HD_OK) status = hd_calibrate_watch_finish(watch, &file, &report);
    if (status == HD_OK) status = write_plan(row, paro, file);
    hd_plan_file_free(file);
    hd_calibrate_watch_free(watch);
    return status;
}
