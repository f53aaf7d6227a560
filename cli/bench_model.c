/* cli/bench_model.c: heddle bench model: opens the model that the options name. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "benchmark/model.h"
#include "cli/bench.h"
#include "cli/defaults.h"
#include "cli/stop.h"

// --model, $HEDDLE_MODEL or the starter model, as heddle generate chooses.
static hd_status choose_model(const hd_bench_options *o, char **path)
{
    hd_json_doc *doc = NULL;
    const char *chosen;
    char *run = NULL;
    *path = NULL;
    if (o->model) {
        *path = strdup(o->model);
        return *path ? HD_OK : hd_fail(HD_ERR_NOMEM, "bench: no memory");
    }
    run = strdup("{\"output\": \"-\", \"seed\": 0}");
    if (!run) return hd_fail(HD_ERR_NOMEM, "bench: no memory");
    hd_status status = hd_defaults_put(&run, "bench");
    if (status == HD_OK) status = hd_json_parse(&doc, "bench", run, strlen(run));
    if (status == HD_OK)
        status = hd_json_to_string(hd_json_get(hd_json_root(doc), "model"), &chosen);
    if (status == HD_OK) *path = strdup(chosen);
    hd_json_free(doc);
    free(run);
    return status;
}

static int on_load(void *arg, int64_t done, int64_t all)
{
    hd_bench_job *j = arg;
    const hd_progress progress = {"load", (int)(done >> 20), (int)(all >> 20), 0, 0};
    hd_progress_bar_update(&j->bar, &progress);
    return hd_stop_asked();
}

static void describe(hd_bench_job *j, const hd_model *model, const hd_bench_shape *shape)
{
    hd_bench_report *r = &j->report;
    char features[100];
    snprintf(r->title, sizeof r->title,
             "%.150s: a guided step, %" PRId64 "x%" PRId64 " tokens at the first level",
             model->path, shape->grid[1], shape->grid[2]);
    snprintf(r->inputs, sizeof r->inputs, "\"%.160s\", seed %" PRIu64 ", the second of two steps",
             j->options.prompt, j->options.seed);
    if (j->options.pictures)
        snprintf(r->note, sizeof r->note,
                 "PSNR and SSIM: mean over %" PRId64 " pictures of %" PRId64 " steps",
                 j->options.pictures, j->options.steps);
    snprintf(r->machine, sizeof r->machine, "%d threads, %s, %s", hd_pool_threads(j->ex.pool),
             hd_dtype_name(model->compute), hd_features_text(features, sizeof features, j->ex.has));
}

static hd_status run_model(hd_bench_job *j, hd_model *model)
{
    const hd_bench_options *o = &j->options;
    hd_bench_shape shape;
    HD_TRY(hd_bench_model_shape(&shape, model, o->width, o->height));
    HD_TRY(hd_bench_rows_read(&j->rows, o->rows, &shape, true, &j->list));
    describe(j, model, &shape);
    return hd_bench_model(&j->report, &(hd_bench_model_options){.model = model,
                                                                .prompt = o->prompt,
                                                                .width = o->width,
                                                                .height = o->height,
                                                                .seed = o->seed,
                                                                .pictures = o->pictures,
                                                                .steps = o->steps,
                                                                .rows = &j->rows,
                                                                .list = &j->list,
                                                                .ex = &j->ex,
                                                                .repeats = (int)o->repeat,
                                                                .progress = hd_bench_job_progress,
                                                                .user = j});
}

hd_status hd_bench_job_model(hd_bench_job *j)
{
    char *path = NULL;
    hd_model *model = NULL;
    hd_status status = choose_model(&j->options, &path);
    if (status == HD_OK)
        status = hd_model_open(&model, &j->ex, path, j->options.precision, on_load, j);
    if (status == HD_OK) status = run_model(j, model);
    hd_model_free(model);
    free(path);
    return status;
}
