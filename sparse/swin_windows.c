/* sparse/swin_windows.c: attention inside windows of the grid, shifted in every second layer, head
 * half or step (Liu et al., Swin, arXiv 2103.14030; Zhang et al., StyleSwin, arXiv 2112.10762; Wang
 * et al., PT-DiT, arXiv 2409.04005).
 *
 * { "use": "swin_windows", "window": [8, 8], "rest": "proxy", "sites": ["up.** self factor<=2"] }
 *
 * Needs the plan hook only. Tokens beside the grid see everything and are seen by everything. As a
 * replacement of global attention windows that drop the rest are poor: "rest": "proxy" keeps what
 * is far away counted. Grids that a window does not divide have short windows at their ends.
 * Relative position bias belongs to weights that were trained with it; there is none of these yet.
 */
#include "sparse/swin_windows.h"

#include <stdlib.h>
#include <string.h>

#include "sparse/all.h"
#include "sparse/gna_window.h"

enum { SCHEDULE_ALTERNATE, SCHEDULE_DOUBLE, SCHEDULE_BOTH, SCHEDULE_FIXED };
static const char *const schedule_names[] = {"alternate", "double", "both", "fixed", NULL};
enum { AXIS_BLOCK, AXIS_HEAD, AXIS_STEP };
static const char *const axis_names[] = {"block", "head", "step", NULL};
static const char *const bias_names[] = {"none", NULL};
static const char *const mask_names[] = {"exact", NULL};

typedef struct swin {
    const hd_json *window, *shift;
    int schedule, schedule_axis, bias, mask_value;
    bool wrap;
    int64_t ring;
    // what check reads of the above
    hd_gna_list size, moved;
    bool half;
} swin;

static const hd_param swin_params[] = {
    HD_PARAM_JSON(swin, window, .help = "tokens per axis; default [8, 8], of a video [4, 4, 4]"),
    HD_PARAM_JSON(swin, shift,
                  .help = "\"half\" of the window (default), \"none\", or tokens per axis"),
    HD_PARAM_ENUM(swin, schedule, .def_text = "alternate", .names = schedule_names,
                  .help = "shifted: at odd indices, by the second half of the heads, in the second "
                          "attention of a block, or always"),
    HD_PARAM_ENUM(swin, schedule_axis, .def_text = "block", .names = axis_names,
                  .help = "what alternates"),
    HD_PARAM_BOOL(swin, wrap, .help = "the picture is a torus: its ends meet in shifted windows"),
    HD_PARAM_INT(swin, ring, .def = 1, .min = 1, .max = 1 << 20,
                 .help = "windows seen around one's own; 1: it alone, 2: 3 x 3"),
    HD_PARAM_ENUM(swin, bias, .def_text = "none", .names = bias_names,
                  .help = "position bias; comes with trained weights only"),
    HD_PARAM_ENUM(swin, mask_value, .def_text = "exact", .names = mask_names,
                  .help = "score of a pair in different windows: excluded"),
    HD_PARAM_END,
};

static hd_status read_sizes(hd_gna_list *out, const hd_json *node, int64_t least)
{
    if (!node) return HD_OK;
    out->single = hd_json_kind(node) != HD_JSON_ARRAY;
    return hd_json_to_ints(node, least, INT32_MAX, 1, 3, out->value, &out->count);
}

static hd_status swin_check(void *params)
{
    swin *p = params;
    HD_TRY(read_sizes(&p->size, p->window, 1));
    p->half = !p->shift;
    if (p->shift && hd_json_kind(p->shift) == HD_JSON_STRING) {
        const char *text;
        HD_TRY(hd_json_to_string(p->shift, &text));
        p->half = strcmp(text, "half") == 0;
        if (!p->half && strcmp(text, "none") != 0)
            return hd_json_fail(
                p->shift, HD_ERR_ARGUMENT,
                "is \"%s\", must be \"half\", \"none\" or the tokens to shift by on "
                "each axis",
                text);
    } else {
        HD_TRY(read_sizes(&p->moved, p->shift, 0));
    }
    if (p->schedule_axis != AXIS_BLOCK && p->schedule != SCHEDULE_ALTERNATE)
        return hd_fail(HD_ERR_ARGUMENT,
                       "schedule_axis is \"%s\" but schedule is \"%s\": only \"alternate\" has an "
                       "index that alternates",
                       axis_names[p->schedule_axis], schedule_names[p->schedule]);
    return HD_OK;
}

static hd_status resolve_sizes(hd_swin_problem *s, const swin *p)
{
    const bool video = s->grid.size[0] > 1;
    const hd_gna_list by_default = {{video ? 4 : 8}, 1, true};
    const hd_gna_list *size = p->size.count ? &p->size : &by_default;
    HD_TRY(hd_gna_spread(s->window, size, "window", &s->grid, 1));
    HD_TRY(hd_gna_spread(s->shift, &p->moved, "shift", &s->grid, 0));
    for (int i = 0; i < 3; i++) {
        if (p->half) s->shift[i] = s->window[i] / 2;
        if (s->shift[i] >= s->window[i])
            return hd_fail(HD_ERR_ARGUMENT,
                           "shift is %lld on an axis whose windows have %lld tokens, must be below "
                           "that",
                           (long long)s->shift[i], (long long)s->window[i]);
    }
    hd_swin_fit(&s->grid, s->window, s->shift);
    return HD_OK;
}

// The last number of a site's path and how many numbers it has: "down.1.attn.0" has 0, and two.
static int64_t path_index(const char *path, int *numbers)
{
    int64_t last = 0;
    *numbers = 0;
    for (const char *part = path; part; part = strchr(part, '.')) {
        if (*part == '.') part++;
        if (*part < '0' || *part > '9') continue;
        last = strtol(part, NULL, 10);
        ++*numbers;
    }
    return last;
}

static hd_status resolve_schedule(hd_swin_problem *s, const swin *p, const hd_site *site)
{
    int numbers;
    const int64_t index = path_index(site->path, &numbers);
    bool halves = p->schedule == SCHEDULE_DOUBLE;
    halves = halves || (p->schedule == SCHEDULE_ALTERNATE && p->schedule_axis == AXIS_HEAD);
    if (halves && s->heads % 2)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "its %lld heads have no halves: windows that differ between halves of the "
                       "heads need an even number",
                       (long long)s->heads);
    if (p->schedule == SCHEDULE_BOTH && numbers < 3)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "schedule is \"both\" but its block has one attention: \"both\" shifts the "
                       "second of a block; use \"alternate\"");
    s->shifted = halves || p->schedule == SCHEDULE_FIXED || index % 2 == 1;
    s->plain = halves || !s->shifted;
    return HD_OK;
}

typedef struct swin_made {
    hd_plan_builder plan[2]; // of even and odd steps, or of all
    bool by_step;
} swin_made;

static void swin_release(void *made)
{
    swin_made *m = made;
    for (int i = 0; m && i < 2; i++)
        hd_plan_builder_free(&m->plan[i]);
    free(m);
}

static hd_status make_plans(swin_made *m, hd_swin_problem *s)
{
    if (!m->by_step) return hd_swin_build(&m->plan[0], s);
    for (int i = 0; i < 2; i++) {
        s->plain = i == 0;
        s->shifted = i == 1;
        HD_TRY(hd_swin_build(&m->plan[i], s));
    }
    return HD_OK;
}

static bool is_dense(const hd_swin_problem *s)
{
    for (int i = 0; i < 3; i++)
        if (s->window[i] < s->grid.size[i]) return false;
    return true;
}

static hd_status swin_prepare(hd_prepare_ctx *ctx)
{
    const swin *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    hd_swin_problem s = {.queries = call->q.dim[1],
                         .keys = call->k.dim[1],
                         .heads = call->q.dim[2],
                         .wrap = p->wrap,
                         .ring = p->ring};
    HD_TRY(hd_grid_of_call(&s.grid, call));
    HD_TRY(resolve_sizes(&s, p));
    HD_TRY(resolve_schedule(&s, p, &call->site));
    if (is_dense(&s)) return HD_OK;
    swin_made *m = calloc(1, sizeof *m);
    if (!m) return hd_fail(HD_ERR_NOMEM, "swin_windows: no memory for a plan");
    m->by_step = p->schedule == SCHEDULE_ALTERNATE && p->schedule_axis == AXIS_STEP;
    for (int i = 0; i < 2; i++)
        hd_plan_builder_init(&m->plan[i], NULL, 0);
    const hd_status status = make_plans(m, &s);
    if (status == HD_OK)
        ctx->made = m;
    else
        swin_release(m);
    return status;
}

static hd_status swin_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    const swin_made *m = ctx->made;
    const bool odd = m && m->by_step && ctx->call->forward->step.index % 2 == 1;
    for (int64_t row = 0; row < tokens->q.dim[0]; row++)
        if (ctx->active[row]) plan[row] = m ? &m->plan[odd].plan : NULL;
    return HD_OK;
}

const hd_processor_class hd_swin_windows = {
    .name = "swin_windows",
    .summary = "Attend inside windows of the grid, shifted by layer, heads or step.",
    .params = swin_params,
    .params_size = sizeof(swin),
    .check = swin_check,
    .prepare = swin_prepare,
    .plan = swin_plan,
    .release = swin_release,
    .static_plan = true,
    .rows_alike = true,
};
