/* kernels/reference/attention_map.c: the plain version, and the two ends of a row that all versions
 * share. */
#include "kernels/attention_map.h"

#include <math.h>

void hd_map_row_begin(hd_map_row *row)
{
    for (int i = 0; i < HD_MAP_LANES; i++) {
        row->max[i] = -1e30f; // finite: lanes that saw no key vanish when they are joined
        row->sum[i] = 0.0f;
    }
}

float hd_map_row_end(const hd_map_row *row)
{
    float max = row->max[0];
    double sum = 0;
    for (int i = 1; i < HD_MAP_LANES; i++)
        max = fmaxf(max, row->max[i]);
    for (int i = 0; i < HD_MAP_LANES; i++)
        sum += (double)row->sum[i] * exp2((double)row->max[i] - (double)max);
    return (float)((double)max + log2(sum));
}

static void reference_scores(float *scores, const float *q, const float *k, int rows, int64_t dim)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < HD_MAP_SIDE; j++) {
            double sum = 0;
            for (int64_t d = 0; d < dim; d++)
                sum += (double)q[i * dim + d] * (double)k[d * HD_MAP_SIDE + j];
            scores[i * HD_MAP_SIDE + j] = (float)sum;
        }
}

static void reference_gather(hd_map_row *row, const float *scores, int rows, int keys)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < keys; j++) {
            float s = scores[i * HD_MAP_SIDE + j], max = fmaxf(row[i].max[0], s);
            row[i].sum[0] = row[i].sum[0] * exp2f(row[i].max[0] - max) + exp2f(s - max);
            row[i].max[0] = max;
        }
}

static hd_map_tile reference_measure(const float *scores, const float *lse, float eps, int rows,
                                     int keys)
{
    hd_map_tile tile = {0};
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < keys; j++) {
            float p = exp2f(scores[i * HD_MAP_SIDE + j] - lse[i]);
            tile.sum += (double)p;
            tile.large += p >= eps;
            tile.max = fmaxf(tile.max, p);
        }
    return tile;
}

const hd_map_kernel hd_map_reference = {reference_scores, reference_gather, reference_measure};
