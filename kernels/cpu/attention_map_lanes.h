/* kernels/cpu/attention_map_lanes.h: attention_map.h in vectors of keys, for each instruction set
 * that includes it. */
#include "kernels/attention_map.h"
#include "kernels/cpu/lanes.h"

enum {
    VECTORS = HD_MAP_SIDE / LANES,
    COLUMNS = 4,                // vectors of keys at a time
    ROWS = LANES == 16 ? 4 : 2, // queries at a time: what the registers hold
};

LANES_INLINE void scores_of(float *scores, const float *q, const float *k, int64_t dim)
{
    lanes sum[ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; c++)
            sum[i][c] = lanes_zero();
    for (int64_t d = 0; d < dim; d++) {
        lanes key[COLUMNS];
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; c++)
            key[c] = lanes_load(k + d * HD_MAP_SIDE + c * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            lanes x = lanes_set1(q[i * dim + d]);
#pragma GCC unroll 16
            for (int c = 0; c < COLUMNS; c++)
                sum[i][c] = lanes_fma(x, key[c], sum[i][c]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; c++)
            lanes_store(scores + i * HD_MAP_SIDE + c * LANES, sum[i][c]);
}

static void map_scores(float *scores, const float *q, const float *k, int rows, int64_t dim)
{
    for (int i = 0; i < rows; i += ROWS) // q has rows up to 64, so the last may do too many
        for (int c = 0; c < HD_MAP_SIDE; c += COLUMNS * LANES)
            scores_of(scores + i * HD_MAP_SIDE + c, q + i * dim, k + c, dim);
}

// Vector c of a row of scores, what is behind the last key as good as -infinity.
LANES_INLINE lanes keys_of(const float *scores, int c, int keys)
{
    int n = keys - c * LANES;
    lanes s = lanes_load(scores + c * LANES);
    if (n >= LANES) return s;
    return lanes_select(lanes_first(n > 0 ? n : 0), s, lanes_set1(-1e30f));
}

static void map_gather(hd_map_row *row, const float *scores, int rows, int keys)
{
    for (int i = 0; i < rows; i++) {
        lanes before = lanes_load(row[i].max), max = before, sum = lanes_zero(), s[VECTORS];
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c++) {
            s[c] = keys_of(scores + i * HD_MAP_SIDE, c, keys);
            max = lanes_max(max, s[c]);
        }
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c++)
            sum = lanes_add(sum, lanes_exp2(lanes_sub(s[c], max)));
        lanes scale = lanes_exp2(lanes_sub(before, max));
        lanes_store(row[i].max, max);
        lanes_store(row[i].sum, lanes_fma(lanes_load(row[i].sum), scale, sum));
    }
}

static hd_map_tile map_measure(const float *scores, const float *lse, float eps, int rows, int keys)
{
    hd_map_tile tile = {0};
    lanes large = lanes_zero(), max = lanes_zero();
    const lanes least = lanes_set1(eps), one = lanes_set1(1.0f);
    float lane[LANES];
    for (int i = 0; i < rows; i++) {
        lanes sum = lanes_zero();
#pragma GCC unroll 16
        for (int c = 0; c < VECTORS; c++) {
            lanes s = keys_of(scores + i * HD_MAP_SIDE, c, keys);
            lanes p = lanes_exp2(lanes_sub(s, lanes_set1(lse[i])));
            sum = lanes_add(sum, p);
            max = lanes_max(max, p);
            lanes_mask above = lanes_equal(lanes_max(p, least), p);
            large = lanes_add(large, lanes_select(above, one, lanes_zero()));
        }
        lanes_store(lane, sum);
        for (int l = 0; l < LANES; l++)
            tile.sum += (double)lane[l];
    }
    lanes_store(lane, large);
    for (int l = 0; l < LANES; l++)
        tile.large += (int64_t)lane[l];
    lanes_store(lane, max);
    for (int l = 0; l < LANES; l++)
        tile.max = lane[l] > tile.max ? lane[l] : tile.max;
    return tile;
}
