/* kernels/cpu/sdpa_tile_int8_values.h: the second half of kernels/cpu/sdpa_tile_int8.h: rounded
 * probabilities and their product with the values' codes. */

// A key's rounded probabilities; a NaN among the scores stays in `check`.
LANES_INLINE lanes_int tile_code(int vectors, const hd_sdpa_block *b, const hd_sdpa_step *step,
                                 bool masked, int64_t j, int v, lanes factor, lanes max,
                                 lanes *check)
{
    lanes s = lanes_load(b->scores + (j * vectors + v) * LANES);
    lanes p = lanes_exp2_255(lanes_fms(s, factor, max));
    if (masked) p = lanes_select(tile_seen(step->word[j], v), p, lanes_zero());
    *check = lanes_add(*check, p);
    return lanes_to_int(p);
}

// A unit of `keys` keys from key j on, whose codes join the totals.
LANES_INLINE void tile_code_unit(int keys, int vectors, bool masked, const hd_sdpa_block *b,
                                 const hd_sdpa_step *step, int64_t j, const lanes *factor,
                                 const lanes *max, lanes *check, lanes *total)
{
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        lanes_int code[TILE_UNIT];
#pragma GCC unroll 4
        for (int i = 0; i < TILE_UNIT; i++)
            code[i] = i < keys ? tile_code(vectors, b, step, masked, j + i, v, factor[v], max[v],
                                           &check[v])
                               : lanes_int_zero();
        lanes unit = lanes_of_bits(lanes_int_units(code[0], code[1], code[2], code[3], false));
        total[v] = tile_dot(total[v], lanes_of_bits(lanes_int_set1(0x01010101)), unit);
        // over scores that have been read
        lanes_store(b->scores + (j / TILE_UNIT * vectors + v) * LANES, unit);
    }
}

// What a step counts beside the steps before it: 2^(its largest score - the largest so far), and 0
// where that is below 2^-24. max becomes what the step's scores are measured from.
LANES_INLINE void tile_weigh_step(int vectors, hd_sdpa_block *b, lanes *max, lanes *weight)
{
    const lanes lowest = lanes_set1(-INFINITY), faint = lanes_set1(0x1p-24f);
    lanes running[TILE_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
        running[v] = max[v];
    tile_raise_max(vectors, b, running);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        lanes beta = lanes_exp2(lanes_sub(max[v], running[v]));
        beta = lanes_select(lanes_below(beta, faint), lanes_zero(), beta);
        weight[v] = lanes_mul(beta, lanes_set1(1.0f / 255.0f));
        max[v] = lanes_select(lanes_equal(max[v], lowest), lanes_zero(), max[v]);
    }
}

LANES_INLINE void tile_softmax_codes(int vectors, int mode, hd_sdpa_block *b,
                                     const hd_sdpa_step *step)
{
    const bool masked = mode == TILE_MASKED;
    const int64_t whole = step->count / TILE_UNIT * TILE_UNIT;
    lanes factor[TILE_VECTORS], max[TILE_VECTORS], weight[TILE_VECTORS];
    lanes check[TILE_VECTORS], total[TILE_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        factor[v] = mode >= TILE_EDITED ? lanes_set1(1.0f) : lanes_load(b->factor + v * LANES);
        check[v] = total[v] = lanes_zero();
    }
    tile_step_max(vectors, b, step, mode, factor, max);
    tile_weigh_step(vectors, b, max, weight);
    for (int64_t j = 0; j < whole; j += TILE_UNIT)
        tile_code_unit(TILE_UNIT, vectors, masked, b, step, j, factor, max, check, total);
    switch (step->count - whole) {
    case 1:
        tile_code_unit(1, vectors, masked, b, step, whole, factor, max, check, total);
        break;
    case 2:
        tile_code_unit(2, vectors, masked, b, step, whole, factor, max, check, total);
        break;
    case 3:
        tile_code_unit(3, vectors, masked, b, step, whole, factor, max, check, total);
        break;
    }
    b->faint = true;
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        weight[v] = lanes_fma(check[v], lanes_zero(), weight[v]); // NaN if a score was
        b->faint &= lanes_all_zero(weight[v]);
        lanes_store(b->weight + v * LANES, weight[v]);
        lanes_store(b->sum + v * LANES, lanes_fma(lanes_from_int(lanes_bits(total[v])), weight[v],
                                                  lanes_load(b->sum + v * LANES)));
    }
}

static void tile_softmax(hd_sdpa_block *b, const hd_sdpa_step *step)
{
    if (step->edited)
        TILE_FOR_VECTORS(b->vectors, tile_softmax_codes, TILE_EDITED, b, step);
    else if (step->masked)
        TILE_FOR_VECTORS(b->vectors, tile_softmax_codes, TILE_MASKED, b, step);
    else
        TILE_FOR_VECTORS(b->vectors, tile_softmax_codes, TILE_PLAIN, b, step);
}
