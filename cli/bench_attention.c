/* cli/bench_attention.c: heddle bench attention: shape and inputs from the options. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "benchmark/attention.h"
#include "benchmark/calibrated.h"
#include "cli/bench.h"

// "21,30,52"; "64,64" is one frame.
static hd_status read_grid(int64_t grid[3], const char *text)
{
    int64_t n[3], count = 0;
    const char *at = text;
    for (char *end; count < 3; at = end + 1) {
        const long long value = strtoll(at, &end, 10);
        const bool last = !*end;
        if (end == at || (!last && *end != ',' && *end != 'x') || value < 1 || value > 65536) break;
        n[count++] = value;
        if (!last) continue;
        if (count == 1) break;
        grid[0] = count == 3 ? n[0] : 1;
        grid[1] = n[count - 2], grid[2] = n[count - 1];
        return HD_OK;
    }
    return hd_fail(HD_ERR_ARGUMENT,
                   "--grid is \"%.60s\", must be F,H,W or H,W, each from 1 to 65536", text);
}

static hd_status choose_shape(const hd_bench_options *o, hd_bench_shape *shape)
{
    if (o->shape && o->grid) return hd_fail(HD_ERR_ARGUMENT, "give --shape or --grid, not both");
    if (o->grid) {
        *shape =
            (hd_bench_shape){.network = HD_NETWORK_DIT, .heads = 8, .head_dim = 64, .scale = 1};
        HD_TRY(read_grid(shape->base, o->grid));
        memcpy(shape->grid, shape->base, sizeof shape->grid);
    } else {
        HD_TRY(hd_bench_shape_find(shape, o->shape ? o->shape : "sd15-512"));
    }
    if (o->heads) shape->heads = o->heads;
    if (o->head_dim) shape->head_dim = o->head_dim;
    if (o->text >= 0) shape->text = o->text;
    if (o->scale != 1.0f) hd_bench_shape_scale(shape, (double)o->scale);
    if (hd_bench_shape_tokens(shape) > INT32_MAX / 2)
        return hd_fail(HD_ERR_ARGUMENT, "%" PRId64 " tokens are too many",
                       hd_bench_shape_tokens(shape));
    return HD_OK;
}

static hd_status make_inputs(const hd_bench_job *j, hd_bench_shape *shape, hd_dtype dtype,
                             uint64_t seed, hd_bench_inputs *inputs)
{
    const hd_bench_options *o = &j->options;
    const char *what = o->input ? o->input : "structured";
    if (strcmp(what, "random") == 0)
        return hd_bench_inputs_random(inputs, &j->ex, shape, dtype, seed);
    if (strcmp(what, "structured") == 0)
        return hd_bench_inputs_field(inputs, &j->ex, shape, dtype, (double)o->gain, seed);
    if (!strchr(what, '.') && !strchr(what, '/'))
        return hd_fail(HD_ERR_ARGUMENT,
                       "--input is \"%.80s\", must be random, structured or a safetensors file",
                       what);
    return hd_bench_inputs_file(inputs, shape, dtype, what);
}

static void describe(hd_bench_job *j, const hd_bench_shape *shape, const hd_bench_inputs *inputs)
{
    hd_bench_report *r = &j->report;
    char features[100];
    hd_bench_shape_text(r->title, sizeof r->title, shape);
    if (shape->scale != 1)
        snprintf(r->note, sizeof r->note,
                 "scaled by %g: %" PRId64 "x%" PRId64 "x%" PRId64
                 " was the grid; windows and strides follow it (base_size)",
                 shape->scale, shape->base[0], shape->base[1], shape->base[2]);
    snprintf(r->inputs, sizeof r->inputs, "%s", inputs->text);
    snprintf(r->machine, sizeof r->machine, "%d threads, %s, %s", hd_pool_threads(j->ex.pool),
             hd_dtype_name(inputs->q.dtype),
             hd_features_text(features, sizeof features, j->ex.has));
}

hd_status hd_bench_job_attention(hd_bench_job *j)
{
    const hd_bench_options *o = &j->options;
    hd_bench_shape shape;
    hd_bench_inputs inputs = {0}, other = {0};
    const bool half = o->precision == HD_PRECISION_AUTO ? (j->ex.has & HD_AVX512_BF16) != 0
                                                        : o->precision == HD_PRECISION_BF16;
    HD_TRY(choose_shape(o, &shape));
    HD_TRY(hd_bench_rows_read(&j->rows, o->rows, &shape, false, &j->list));
    const hd_dtype dtype = half ? HD_BF16 : HD_F32;
    hd_status status = make_inputs(j, &shape, dtype, o->seed, &inputs);
    // a plan that was made from what it is measured with would be too good
    const bool two = hd_bench_needs_calibration(&j->rows);
    if (status == HD_OK && two) status = make_inputs(j, &shape, dtype, o->seed + 1, &other);
    if (status == HD_OK)
        status = hd_bench_effective_keys(&j->report.effective_keys, &j->ex, &inputs,
                                         1.0 / sqrt((double)shape.head_dim));
    if (status == HD_OK) {
        describe(j, &shape, &inputs);
        status = hd_bench_attention(&j->report,
                                    &(hd_bench_attention_options){.shape = &shape,
                                                                  .inputs = &inputs,
                                                                  .other = two ? &other : NULL,
                                                                  .rows = &j->rows,
                                                                  .list = &j->list,
                                                                  .ex = &j->ex,
                                                                  .block = o->block,
                                                                  .repeats = (int)o->repeat,
                                                                  .progress = hd_bench_job_progress,
                                                                  .user = j});
    }
    hd_bench_inputs_free(&inputs);
    hd_bench_inputs_free(&other);
    return status;
}
