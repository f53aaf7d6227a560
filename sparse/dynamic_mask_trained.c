/* sparse/dynamic_mask_trained.c: bias, kept keys and both plans of the learned form. */
#include "sparse/dynamic_mask_trained.h"

#include <math.h>
#include <string.h>

#include "engine/attention/planner/select.h"

void hd_dynamic_mask_bias(float *bias, const float *t, float a, int64_t keys, bool exponential)
{
    for (int64_t j = 0; j < keys; j++) {
        const double x = (double)t[j];
        const double softplus = (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
        bias[j] = (float)(exponential ? exp((double)a * softplus) : (double)a * softplus);
    }
}

static void smooth_blocks(uint64_t *kept, int64_t keys, int64_t block)
{
    for (int64_t first = 0; first < keys; first += block) {
        const int64_t end = first + block < keys ? first + block : keys;
        int64_t count = 0;
        for (int64_t j = first; j < end; j++)
            count += hd_bit(kept, j);
        for (int64_t j = first; j < end; j++) {
            kept[j / 64] &= ~((uint64_t)1 << j % 64);
            if (2 * count > end - first) hd_bit_set(kept, j);
        }
    }
}

void hd_dynamic_mask_select(uint64_t *kept, const float *bias, int64_t keys,
                            hd_dynamic_mask_keep rule, int32_t *index, uint64_t *scratch)
{
    memset(kept, 0, (size_t)hd_bit_words(keys) * sizeof *kept);
    hd_select_order(index, bias, keys, scratch);
    for (int64_t r = 0; r < keys; r++)
        if (rule.relu ? bias[index[r]] > 0 : r < rule.window) hd_bit_set(kept, index[r]);
    if (rule.smooth > 0) smooth_blocks(kept, keys, rule.smooth);
}

static int64_t tiles_met(const uint64_t *kept, int64_t keys, int64_t tile)
{
    int64_t met = 0;
    for (int64_t first = 0; first < keys; first += tile) {
        bool any = false;
        for (int64_t j = first; j < first + tile && j < keys; j++)
            any = any || hd_bit(kept, j);
        met += any;
    }
    return met;
}

// Entries of keys `at` .. of a tile that holds kept[] of them; none if it holds none.
static hd_status add_tile(hd_plan_builder *b, int64_t tile, int64_t first, int64_t count,
                          const uint64_t *kept)
{
    int64_t met = 0;
    for (int64_t j = 0; j < count; j++)
        met += hd_bit(kept, first + j);
    if (met == 0) return HD_OK;
    if (met == count) return hd_plan_add(b, tile, HD_VISIT_FULL);
    int32_t mask;
    uint64_t *row, *column;
    HD_TRY(hd_plan_mask(b, &mask, &row, &column));
    for (int64_t j = 0; j < count; j++)
        if (hd_bit(kept, first + j)) hd_bit_set(column, j);
    return hd_plan_add(b, tile, mask);
}

// Kept keys, then the others, both ascending.
static void gather_order(int32_t *order, const uint64_t *kept, int64_t keys)
{
    for (int pass = 1; pass >= 0; pass--)
        for (int64_t j = 0; j < keys; j++)
            if (hd_bit(kept, j) == (pass == 1)) *order++ = (int32_t)j;
}

// The first `met` keys of the order as bits of ranks.
static void first_bits(uint64_t *bits, int64_t keys, int64_t met)
{
    memset(bits, 0, (size_t)hd_bit_words(keys) * sizeof *bits);
    for (int64_t j = 0; j < met; j++)
        hd_bit_set(bits, j);
}

hd_status hd_dynamic_mask_plan(hd_plan_builder *b, const uint64_t *kept, int64_t heads,
                               int64_t queries, int64_t keys, int64_t key_tile,
                               hd_dynamic_mask_layout layout)
{
    const int64_t words = hd_bit_words(keys), tiles = (keys + key_tile - 1) / key_tile;
    int64_t all = 0, met = 0;
    for (int64_t h = 0; h < heads; h++) {
        all += hd_bits_count(kept + h * words, words);
        met += tiles_met(kept + h * words, keys, key_tile);
    }
    bool gather = layout == HD_DYNAMIC_MASK_GATHER;
    if (layout == HD_DYNAMIC_MASK_AUTO) gather = 2 * all < met * key_tile;
    b->plan = (hd_plan){.query_tile = queries,
                        .key_tile = key_tile,
                        .query_tiles = 1,
                        .key_tiles = tiles,
                        .query_ranks = queries,
                        .key_ranks = keys,
                        .orders = gather ? heads : 1,
                        .heads = heads};
    int32_t *order = gather ? hd_plan_take(b, heads * keys, sizeof *order) : NULL;
    uint64_t *bits = hd_plan_take(b, words, sizeof *bits);
    if (!bits || (gather && !order)) return HD_ERR_NOMEM;
    b->plan.key_order = order;
    HD_TRY(hd_plan_begin(b, heads * tiles, heads * tiles, HD_PLAN_COLUMN_MASKS));
    for (int64_t h = 0; h < heads; h++) {
        const uint64_t *of_head = kept + h * words;
        if (gather) {
            gather_order(order + h * keys, of_head, keys);
            first_bits(bits, keys, hd_bits_count(of_head, words));
        }
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t first = t * key_tile;
            const int64_t count = keys - first < key_tile ? keys - first : key_tile;
            HD_TRY(add_tile(b, t, first, count, gather ? bits : of_head));
        }
        hd_plan_close_row(b);
    }
    return hd_plan_end(b);
}
