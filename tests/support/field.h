/* tests/support/field.h: attention inputs with structure: smooth fields over a grid, normalised
 * per token, turned by RoPE along its axes, so that a query's keys are near and alike. */
#ifndef HD_TESTS_SUPPORT_FIELD_H
#define HD_TESTS_SUPPORT_FIELD_H

#include "support/planning.h"

/* Fills q, k and v of every row and head of a call without text. `sharpness` multiplies q: the
 * larger, the fewer keys matter (on 32 x 32 with 64 channels 0.75: about 220 keys, 2: about 12). */
void fill_field(PlanInput &input, uint64_t seed, double sharpness);

/* Mean over the queries of a dense map of e to the entropy of their weights. */
double effective_keys(const std::vector<std::vector<double>> &map);

#endif
