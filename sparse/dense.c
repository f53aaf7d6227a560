/* sparse/dense.c: every query sees every key: no plan but that of the kernel itself.
 *
 * { "use": "dense", "qk": "int8", "pv": "int8", "sites": ["** self"] }
 *
 * It carries the engine's fields alone: the number formats of the two products. With the run's own
 * numbers it changes no bit. */
#include "sparse/all.h"

static const hd_param dense_params[] = {HD_PARAM_END};

static hd_status dense_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    (void)ctx;
    (void)tokens;
    (void)plan; // NULL in every row: every tile
    return HD_OK;
}

const hd_processor_class hd_dense = {
    .name = "dense",
    .summary = "Every key, in the number formats that are asked for.",
    .params = dense_params,
    .plan = dense_plan,
    .rows_alike = true,
};
