/* sparse/paro.c: static block sparsity in an order of the grid's axes that was chosen per head
 * (Zhao et al., PAROAttention, arXiv 2506.16054).
 *
 * { "use": "paro", "plan": "starter.hdplan", "sites": ["** self"] }
 *
 * Nothing is predicted during a run: the orders and the tiles come from a plan file that `heddle
 * calibrate` made for this model at this size, and are expanded before the first step. Text tokens
 * are the dense tail. Tiles of a plan are 64 by 64; what is left out is renormalised over. With
 * "renormalise": false the weights stay those of dense attention, as in the authors' checker: for
 * comparisons, it computes dense attention as well. */
#include "sparse/paro.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/edit.h"
#include "engine/attention/planner/static_plan.h"
#include "sparse/all.h"

enum { TILE = 64, MOST_MASKS = 10000 };
typedef enum paro_empty { EMPTY_OFF, EMPTY_ZERO, EMPTY_UNIFORM } paro_empty;

static const char *const empty_names[] = {"off", "zero", "uniform", NULL};

const hd_param hd_paro_fields[] = {
    HD_PARAM_STRING(hd_paro_options, plan, .help = "plan file; heddle calibrate makes it"),
    HD_PARAM_FLOAT(hd_paro_options, density, .def = 0.3, .min = 1e-6, .max = 1.0,
                   .given_flag = true, .given_offset = offsetof(hd_paro_options, density_given),
                   .help = "calibrate: share of the query-key pairs that is computed"),
    HD_PARAM_FLOAT(hd_paro_options, density_min, .def = 0.0, .min = 0.0, .max = 1.0,
                   .help = "calibrate: least density of a head"),
    HD_PARAM_INT(hd_paro_options, tile, .def = TILE, .min = 1, .max = 4096,
                 .help = "tokens per side of a tile; 64 only"),
    HD_PARAM_FLOAT(hd_paro_options, eps_rel, .def = 17.8, .min = 0.0, .max = 1e6,
                   .help = "calibrate: a weight below eps_rel / tokens is small"),
    HD_PARAM_FLOAT(hd_paro_options, sigma, .def = 0.9, .min = 0.0, .max = 1.0,
                   .help = "calibrate: a tile with this share of small weights is sparse"),
    HD_PARAM_FLOAT(hd_paro_options, alpha, .def = 0.5, .min = 0.0, .max = 1.0,
                   .help = "calibrate: weight of sparsity against evenness in choosing an order"),
    HD_PARAM_JSON(hd_paro_options, buckets,
                  .help = "calibrate: masks over the run: a number, or the mask of every step; not "
                          "given: one per step, and one for the second half"),
    HD_PARAM_INT(hd_paro_options, prompts, .def = 2, .min = 1, .max = 64,
                 .help = "calibrate: prompts taken from --prompts"),
    HD_PARAM_BOOL(hd_paro_options, force_text, .def = 1,
                  .help = "compute every tile that touches text"),
    HD_PARAM_BOOL(hd_paro_options, force_last, .def = 1,
                  .help = "compute the last row and column of tiles"),
    HD_PARAM_ENUM(
        hd_paro_options, empty_heads, .def_text = "off", .names = empty_names,
        .help = "heads of which the plan keeps no tile: zero leaves out the last row and column "
                "of tiles, too"),
    HD_PARAM_BOOL(hd_paro_options, skip_text_quant, .def = 0,
                  .help = "keep text out of the 8-bit products; false only"),
    HD_PARAM_BOOL(hd_paro_options, align_text_first, .def = 0,
                  .help = "tiles are cut from the text's first token on; for imported masks"),
    HD_PARAM_BOOL(hd_paro_options, renormalise, .def = 1,
                  .help =
                      "weights of what is computed add up to 1; false, at dense's cost: they are "
                      "dense attention's"),
    HD_PARAM_END,
};

hd_status hd_paro_check(const hd_paro_options *p)
{
    if (p->tile != TILE)
        return hd_fail(HD_ERR_UNSUPPORTED, "tile is %lld, this build's tiles are %d by %d",
                       (long long)p->tile, TILE, TILE);
    if (p->density_min > p->density)
        return hd_fail(HD_ERR_ARGUMENT, "density_min is %g, must be 0 to density, which is %g",
                       (double)p->density_min, (double)p->density);
    if (p->empty_heads == EMPTY_UNIFORM)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "empty_heads is \"uniform\", which spreads the weight that a head gives to "
                       "the grid, and only computing the head tells it; \"rest\": \"proxy\" has a "
                       "mean for every tile that is left out");
    if (p->skip_text_quant)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "skip_text_quant is true, but a call has one number type for all of its "
                       "tokens; \"qk\" and \"pv\" of \"bf16\" quantise none");
    if (!p->force_text && !p->align_text_first)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "force_text is false, but text is the dense tail here; only plans with "
                       "align_text_first have tiles of text");
    return HD_OK;
}

static hd_status default_buckets(int64_t steps, uint16_t *mask_of_step, int64_t *masks)
{
    int64_t own = steps / 2; // steps with a mask of their own
    for (int64_t s = 0; s < steps; s++)
        mask_of_step[s] = (uint16_t)(s < own ? s : own);
    *masks = own + 1;
    return HD_OK;
}

static hd_status listed_buckets(const hd_json *node, int64_t steps, uint16_t *mask_of_step,
                                int64_t *masks)
{
    if (hd_json_count(node) != steps)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "names the masks of %lld steps, the run has %lld",
                            (long long)hd_json_count(node), (long long)steps);
    *masks = 0;
    for (int64_t s = 0; s < steps; s++) {
        // a number is new or was there before, so that no mask is without a step
        int64_t mask;
        HD_TRY(hd_json_to_int(hd_json_at(node, s), 0, *masks, &mask));
        mask_of_step[s] = (uint16_t)mask;
        if (mask == *masks) ++*masks;
    }
    return HD_OK;
}

hd_status hd_paro_buckets(const hd_paro_options *p, int64_t steps, uint16_t *mask_of_step,
                          int64_t *masks)
{
    if (!p->buckets) return default_buckets(steps, mask_of_step, masks);
    if (hd_json_kind(p->buckets) == HD_JSON_ARRAY)
        return listed_buckets(p->buckets, steps, mask_of_step, masks);
    HD_TRY(hd_json_to_int(p->buckets, 1, steps < MOST_MASKS ? steps : MOST_MASKS, masks));
    for (int64_t s = 0; s < steps; s++)
        mask_of_step[s] = (uint16_t)(s * *masks / steps);
    return HD_OK;
}

static hd_status paro_check(void *params)
{
    hd_paro_options *p = params;
    HD_TRY(hd_paro_check(p));
    if (!p->plan)
        return hd_fail(HD_ERR_ARGUMENT,
                       "lacks \"plan\": the file that heddle calibrate made for this model and "
                       "size");
    HD_TRY(hd_plan_file_open(&p->file, p->plan));
    if (p->file->tile != p->tile)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%s: its tiles are %lld by %lld, this build's are %d by %d", p->plan,
                       (long long)p->file->tile, (long long)p->file->tile, TILE, TILE);
    if (p->density_given && p->file->target != p->density)
        return hd_fail(HD_ERR_ARGUMENT,
                       "density is %g, %s was made for %g; calibrate again, or leave density out",
                       (double)p->density, p->plan, (double)p->file->target);
    return HD_OK;
}

static void paro_clear(void *params)
{
    hd_paro_options *p = params;
    hd_plan_file_free(p->file);
    p->file = NULL;
}

// Says which of model, place and size the file lacks.
static hd_status find_entry(const hd_paro_options *p, const hd_attention_call *call,
                            const hd_grid *grid, const hd_plan_file_site **out)
{
    const uint64_t model = call->forward ? call->forward->model_key : 0;
    if (p->file->model != model)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s was made for another model (key %016llx, this one's is %016llx); make "
                       "one for this model with heddle calibrate",
                       p->plan, (unsigned long long)p->file->model, (unsigned long long)model);
    const hd_plan_file_site *other;
    const int64_t text = call->q.dim[1] - hd_grid_tokens(grid);
    *out = hd_plan_file_find(p->file, &call->site, grid->size, text, &other);
    if (!*out && other)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s was made for a grid of %lldx%lldx%lld with %lld tokens of text, this "
                       "run's is %lldx%lldx%lld with %lld; make one for this size with heddle "
                       "calibrate",
                       p->plan, (long long)other->grid[0], (long long)other->grid[1],
                       (long long)other->grid[2], (long long)other->text, (long long)grid->size[0],
                       (long long)grid->size[1], (long long)grid->size[2], (long long)text);
    if (!*out)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s has no plan for this place; leave it out of \"sites\", or calibrate it",
                       p->plan);
    if ((*out)->site.heads != call->q.dim[2])
        return hd_fail(HD_ERR_ARGUMENT, "%s was made for %lld heads, there are %lld here", p->plan,
                       (long long)(*out)->site.heads, (long long)call->q.dim[2]);
    if (text > 0 && (*out)->text_first != p->align_text_first)
        return hd_fail(HD_ERR_ARGUMENT, "%s needs align_text_first to be %s", p->plan,
                       (*out)->text_first ? "true" : "false");
    return HD_OK;
}

static hd_status paro_prepare(hd_prepare_ctx *ctx)
{
    const hd_paro_options *p = ctx->params;
    hd_grid grid;
    HD_TRY(hd_grid_of_call(&grid, ctx->call));
    if (ctx->call->k.dim[1] != ctx->call->q.dim[1])
        return hd_fail(HD_ERR_UNSUPPORTED, "it has %lld queries and %lld keys, must be the same",
                       (long long)ctx->call->q.dim[1], (long long)ctx->call->k.dim[1]);
    const hd_plan_file_site *entry = NULL;
    HD_TRY(find_entry(p, ctx->call, &grid, &entry));
    hd_static_plans *plans;
    HD_TRY(hd_static_plans_make(&plans, p->file, entry, &grid,
                                (hd_static_forced){.text = p->force_text,
                                                   .last = p->force_last,
                                                   .not_empty = p->empty_heads == EMPTY_ZERO}));
    if (!p->renormalise) {
        ctx->passes = 1;
        ctx->pass[0] = (hd_pass){
            .when = HD_PASS_AFTER, .like_call = true, .every_key = true, .wants_lse = true};
    }
    ctx->made = plans;
    return HD_OK;
}

static void paro_release(void *made)
{
    hd_static_plans_free(made);
}

static hd_status paro_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    (void)tokens;
    const hd_paro_options *p = ctx->params;
    const hd_step *step = &ctx->call->forward->step;
    const int64_t mask = hd_plan_file_mask(p->file, step->index, step->count);
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++)
        if (ctx->active[b]) plan[b] = hd_static_plans_at(ctx->made, mask);
    return HD_OK;
}

// The call itself, with every key.
static hd_status paro_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    (void)ctx, (void)index, (void)pass;
    return HD_OK;
}

// Weights that add up to what dense attention gives to those keys.
static hd_status paro_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const hd_paro_options *p = ctx->params;
    const hd_tensor out = output->out;
    if (p->renormalise) return HD_OK;
    const hd_tensor all = ctx->pass[0].lse;
    for (int64_t b = 0; b < out.dim[0]; b++)
        for (int64_t i = 0; ctx->active[b] && i < out.dim[1]; i++)
            for (int64_t h = 0; h < out.dim[2]; h++) {
                const int64_t query = (b * out.dim[2] + h) * out.dim[1] + i;
                const int64_t at = b * out.stride[0] + i * out.stride[1] + h * out.stride[2];
                const float share = expf(((const float *)output->lse.data)[query] -
                                         ((const float *)all.data)[query]);
                for (int64_t d = 0; d < out.dim[3]; d++)
                    hd_edit_put(out, at + d, hd_edit_get(out, at + d) * share);
            }
    return HD_OK;
}

const hd_processor_class hd_paro = {
    .name = "paro",
    .summary = "Static tiles in an order of the axes chosen per head, from a calibrated plan file.",
    .params = hd_paro_fields,
    .params_size = sizeof(hd_paro_options),
    .edits = HD_READS_LSE,
    .check = paro_check,
    .clear = paro_clear,
    .prepare = paro_prepare,
    .pass = paro_pass,
    .plan = paro_plan,
    .output = paro_output,
    .release = paro_release,
    .static_plan = true,
    .rows_alike = true,
};
