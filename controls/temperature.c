/* controls/temperature.c: sharpen or flatten attention by dividing its scores by tau.
 *
 * { "use": "temperature", "tau": 0.8, "rows": "grid",
 *   "sites": ["up.** self"], "steps": [0.0, 0.4], "branches": ["cond"] }
 *
 * Needs only the logits hook, so every kernel can run it and the map is never materialised. Keeps
 * no state. Composes with everything; two of them multiply. tau 1 changes no bit. */
#include "controls/all.h"

typedef struct temperature {
    float tau;          // scores are divided by this
    hd_token_kind rows; // the query tokens it acts on
} temperature;

static const hd_param temperature_params[] = {
    HD_PARAM_FLOAT(temperature, tau, .def = 1.0, .min = 0.05, .max = 20.0, .help = "score divisor"),
    HD_PARAM_ENUM(temperature, rows, .def_text = "all", .names = hd_token_kinds,
                  .help = "query tokens it acts on"),
    HD_PARAM_END,
};

static hd_status temperature_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const temperature *p = ctx->params;
    return hd_logits_scale_rows(logits, &ctx->call->q_layout, p->rows, 1.0f / p->tau);
}

const hd_processor_class hd_temperature = {
    .name = "temperature",
    .summary = "Sharpen (tau < 1) or flatten (tau > 1) attention.",
    .params = temperature_params,
    .params_size = sizeof(temperature),
    .logits = temperature_logits,
    .rows_alike = true,
};
