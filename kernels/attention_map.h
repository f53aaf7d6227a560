/* kernels/attention_map.h: an attention map tile by tile, for those who measure it: nothing of it
 * is kept. Private to engine/attention/planner/calibrate.c, which has checked what it hands over.
 *
 * A tile has up to 64 queries and 64 keys. q [64][dim] is multiplied by scale * log2 e, so that all
 * exponentials are powers of 2; k [dim][64] is transposed. Rows and columns that do not exist are 0
 * in q and k. Scores [64][64] are a row per query. */
#ifndef HD_KERNELS_ATTENTION_MAP_H
#define HD_KERNELS_ATTENTION_MAP_H

#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

enum { HD_MAP_SIDE = 64, HD_MAP_LANES = 16, HD_MAP_MOST_DIM = 256 };

/* Sums over a map's row while its keys pass by, in several lanes that are joined at the end. */
typedef struct hd_map_row {
    float max[HD_MAP_LANES], sum[HD_MAP_LANES]; // of 2^(score - max)
} hd_map_row;

typedef struct hd_map_tile {
    double sum;    // of the weights
    int64_t large; // weights that are not below eps
    float max;
} hd_map_tile;

typedef struct hd_map_kernel {
    /* scores = q k */
    void (*scores)(float *scores, const float *q, const float *k, int rows, int64_t dim);
    /* Takes the scores of `keys` more keys into row [rows]. */
    void (*gather)(hd_map_row *row, const float *scores, int rows, int keys);
    /* The weights 2^(score - lse) of a tile; lse [rows] in units of log 2. */
    hd_map_tile (*measure)(const float *scores, const float *lse, float eps, int rows, int keys);
} hd_map_kernel;

extern const hd_map_kernel hd_map_reference, hd_map_avx2, hd_map_avx512;

/* Nothing seen yet. */
void hd_map_row_begin(hd_map_row *row);
/* The row's log-sum-exp in units of log 2. */
float hd_map_row_end(const hd_map_row *row);

HD_END_DECLS
#endif
