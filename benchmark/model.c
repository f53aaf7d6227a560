/* benchmark/model.c: a network's step and its pictures with every row's processors. */
#include "benchmark/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmark/calibrated.h"
#include "benchmark/errors.h"
#include "benchmark/model_step.h"
#include "benchmark/watch.h"
#include "engine/arena.h"
#include "pipelines/clock.h"
#include "pipelines/text_to_image.h"

typedef struct comparison {
    const hd_bench_model_options *o;
    hd_bench_report *report;
    hd_model_step step;
    float *guess, *dense_guess; // [values]
    double *seconds, *plan_seconds;
    double dense_seconds;
    hd_result *dense_pictures;
} comparison;

typedef struct trial {
    comparison *c;
    const hd_json *chain; // NULL: dense
    hd_exec ex;
    hd_attention_run *run;
    hd_bench_watch watch;
    hd_bench_result *result;
} trial;

static void tell(const trial *t, int step)
{
    const hd_bench_model_options *o = t->c->o;
    const int pictures = o->pictures ? 1 : 0;
    if (o->progress) o->progress(o->user, t->result->label, step, o->repeats + 2 + pictures);
}

static hd_status prepare(trial *t)
{
    comparison *c = t->c;
    HD_TRY(hd_attention_run_create(&t->run, c->o->list, t->chain, 1));
    hd_bench_watch_begin(&t->watch, t->run);
    t->ex = *c->o->ex;
    t->ex.arena = NULL;
    hd_exec dry = t->ex;
    dry.recording = true;
    const double begin = hd_seconds();
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    hd_status status = hd_model_step_run(&c->step, &dry, t->run, NULL);
    const size_t bytes = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);
    if (status == HD_OK) status = hd_attention_run_finish(t->run);
    HD_TRY(status);
    if (t->chain) t->result->figure[HD_BENCH_SETUP_MS] = (hd_seconds() - begin) * 1e3;
    return hd_arena_create(&t->ex.arena, bytes);
}

static hd_status run_step(trial *t)
{
    hd_attention_run_restart(t->run);
    hd_bench_watch_reset(&t->watch);
    return hd_model_step_run(&t->c->step, &t->ex, t->run, t->c->guess);
}

static hd_status time_steps(trial *t)
{
    comparison *c = t->c;
    const int repeats = c->o->repeats;
    for (int i = -1; i < repeats; i++) {
        tell(t, i + 1);
        const double begin = hd_seconds();
        HD_TRY(run_step(t));
        if (i < 0) continue;
        c->seconds[i] = hd_seconds() - begin;
        c->plan_seconds[i] = t->watch.plan_seconds;
    }
    hd_bench_set_times(t->result, c->seconds, c->plan_seconds, repeats, !t->chain,
                       &c->dense_seconds);
    return HD_OK;
}

// What attention costs in the step, and how far its prediction is from dense's.
static hd_status count_step(trial *t)
{
    comparison *c = t->c;
    const int64_t values = c->step.size.latent_values;
    double *f = t->result->figure;
    t->watch.details = true;
    HD_TRY(run_step(t));
    f[HD_BENCH_EXECUTED] = t->watch.executed;
    f[HD_BENCH_USEFUL] = t->watch.useful;
    f[HD_BENCH_BYTES] = t->watch.bytes;
    const double all = c->report->result[0].figure[HD_BENCH_EXECUTED];
    f[HD_BENCH_DENSITY] = t->watch.executed / all;
    f[HD_BENCH_IDEAL] = all / t->watch.useful;
    if (!t->chain) memcpy(c->dense_guess, c->guess, (size_t)values * sizeof *c->guess);
    hd_bench_compare(hd_tensor_of(c->guess, HD_F32, hd_shape1(values)),
                     hd_tensor_of(c->dense_guess, HD_F32, hd_shape1(values)), &f[HD_BENCH_REL_L1],
                     &f[HD_BENCH_COSINE]);
    return HD_OK;
}

static hd_status draw_pictures(const trial *t, hd_result **out)
{
    const hd_bench_model_options *o = t->c->o;
    hd_preset preset;
    hd_json_doc *doc;
    hd_status status = hd_model_step_preset(&preset, &doc, o);
    preset.processors = t->chain;
    if (status == HD_OK) status = hd_result_create(out, (int)o->pictures);
    if (status == HD_OK)
        status = hd_text_to_image(&(hd_run_request){.preset = &preset,
                                                    .root = hd_json_root(doc),
                                                    .model = o->model,
                                                    .processors = o->list,
                                                    .ex = o->ex,
                                                    .result = *out});
    hd_preset_free(&preset);
    hd_json_free(doc);
    return status;
}

static hd_status compare_pictures(const trial *t, const hd_result *drawn)
{
    const hd_bench_model_options *o = t->c->o;
    double psnr = 0, ssim = 0;
    for (int i = 0; i < (int)o->pictures; i++) {
        const hd_picture *p = hd_result_picture(drawn, i),
                         *d = hd_result_picture(t->c->dense_pictures, i);
        const hd_image a = {p->width, p->height, (uint8_t *)(uintptr_t)p->rgb},
                       b = {d->width, d->height, (uint8_t *)(uintptr_t)d->rgb};
        double one;
        HD_TRY(hd_bench_ssim(&one, &a, &b));
        psnr += hd_bench_psnr(&a, &b) / (double)o->pictures;
        ssim += one / (double)o->pictures;
    }
    t->result->figure[HD_BENCH_PSNR] = psnr;
    t->result->figure[HD_BENCH_SSIM] = ssim;
    return HD_OK;
}

static hd_status measure_pictures(trial *t)
{
    if (!t->c->o->pictures) return HD_OK;
    hd_result *drawn = NULL;
    hd_status status = draw_pictures(t, &drawn);
    if (status == HD_OK && !t->chain) {
        t->c->dense_pictures = drawn;
        return compare_pictures(t, drawn);
    }
    if (status == HD_OK) status = compare_pictures(t, drawn);
    hd_result_free(drawn);
    return status;
}

static hd_status measure_row(trial *t)
{
    HD_TRY(prepare(t));
    HD_TRY(time_steps(t));
    tell(t, t->c->o->repeats + 1);
    HD_TRY(count_step(t));
    hd_arena_free(t->ex.arena); // the pictures have one of their own
    t->ex.arena = NULL;
    tell(t, t->c->o->repeats + 2);
    return measure_pictures(t);
}

static hd_status dense_step(void *user, const hd_exec *ex, hd_attention_run *run)
{
    return hd_model_step_run(user, ex, run, NULL);
}

// The step of another noise: a plan is not to be measured on what it was made from.
static hd_status calibrate(const comparison *c, hd_bench_row *row)
{
    hd_bench_model_options options = *c->o;
    hd_model_step other;
    options.seed++;
    hd_status status = hd_model_step_begin(&other, &options);
    if (status == HD_OK) status = hd_bench_calibrate(row, c->o->list, c->o->ex, dense_step, &other);
    hd_model_step_end(&other);
    return status;
}

static hd_status run_row(comparison *c, hd_bench_row *row)
{
    trial t = {.c = c};
    t.result = hd_bench_report_add(c->report, row->label, row->json);
    if (!t.result) return hd_fail(HD_ERR_NOMEM, "bench: no memory for a result");
    hd_status status = hd_bench_row_needs_calibration(row) ? calibrate(c, row) : HD_OK;
    const hd_json *chain = hd_json_root(row->doc);
    t.chain = hd_json_count(chain) ? chain : NULL;
    if (status == HD_OK) status = measure_row(&t);
    hd_arena_free(t.ex.arena);
    hd_attention_run_free(t.run);
    if (status == HD_ERR_CANCELLED || (status != HD_OK && c->report->count == 1)) {
        c->report->count--;
        return status;
    }
    t.result->status = status;
    if (status != HD_OK) snprintf(t.result->why, sizeof t.result->why, "%s", hd_message());
    return HD_OK;
}

static hd_status make_memory(comparison *c)
{
    const size_t values = (size_t)c->step.size.latent_values, repeats = (size_t)c->o->repeats;
    c->guess = calloc(values, sizeof *c->guess);
    c->dense_guess = calloc(values, sizeof *c->dense_guess);
    c->seconds = calloc(repeats, sizeof *c->seconds);
    c->plan_seconds = calloc(repeats, sizeof *c->plan_seconds);
    if (c->guess && c->dense_guess && c->seconds && c->plan_seconds) return HD_OK;
    return hd_fail(HD_ERR_NOMEM, "bench: no memory for the prediction");
}

hd_status hd_bench_model(hd_bench_report *report, const hd_bench_model_options *o)
{
    comparison c = {.o = o, .report = report};
    hd_status status = hd_model_step_begin(&c.step, o);
    if (status == HD_OK) status = make_memory(&c);
    for (int64_t i = 0; i < o->rows->count && status == HD_OK; i++)
        status = run_row(&c, &o->rows->row[i]);
    hd_model_step_end(&c.step);
    free(c.guess);
    free(c.dense_guess);
    free(c.seconds);
    free(c.plan_seconds);
    hd_result_free(c.dense_pictures);
    return status;
}

hd_status hd_bench_model_shape(hd_bench_shape *out, const hd_model *model, int64_t width,
                               int64_t height)
{
    const hd_unet2d_config *c = hd_unet2d_configuration(model->unet);
    const int64_t factor = hd_vae_kl_factor(hd_vae_kl_configuration(model->vae));
    *out = (hd_bench_shape){.network = HD_NETWORK_UNET, .scale = 1, .heads = 1, .head_dim = 1};
    out->grid[0] = out->base[0] = 1;
    out->grid[1] = out->base[1] = height ? height / factor : c->sample_height;
    out->grid[2] = out->base[2] = width ? width / factor : c->sample_width;
    if (out->grid[1] > 0 && out->grid[2] > 0) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "%s does not say its size: give --width and --height",
                   model->path);
}
