/* controls/attention_masks_maps.c: the arithmetic of heat maps: other sizes, scales, thresholds,
 * refinements. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/attention_masks.h"

/* --- sizes --- */

void masks_nearest(float *out, int64_t height, int64_t width, const float *in, int64_t h, int64_t w)
{
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            out[y * width + x] = in[y * h / height * w + x * w / width];
}

// Where an output place looks along one axis: the second of four inputs, and their weights.
static int64_t cubic_taps(int64_t at, int64_t to, int64_t from, double weight[4])
{
    const double a = -0.75;
    const double place = ((double)at + 0.5) * (double)from / (double)to - 0.5;
    const double below = floor(place), t = place - below;
    weight[0] = a * (t * t * t - 2 * t * t + t);
    weight[1] = (a + 2) * t * t * t - (a + 3) * t * t + 1;
    weight[3] = a * (t * t - t * t * t);
    weight[2] = 1 - weight[0] - weight[1] - weight[3]; // a constant stays what it is
    return (int64_t)below;
}

static int64_t inside(int64_t i, int64_t count)
{
    return i < 0 ? 0 : i >= count ? count - 1 : i;
}

void masks_bicubic(float *out, int64_t height, int64_t width, const float *in, int64_t h, int64_t w)
{
    for (int64_t y = 0; y < height; y++) {
        double down[4], across[4];
        const int64_t row = cubic_taps(y, height, h, down);
        for (int64_t x = 0; x < width; x++) {
            const int64_t column = cubic_taps(x, width, w, across);
            double sum = 0;
            for (int64_t i = 0; i < 4; i++) {
                const float *line = in + inside(row - 1 + i, h) * w;
                double part = 0;
                for (int64_t j = 0; j < 4; j++)
                    part += across[j] * (double)line[inside(column - 1 + j, w)];
                sum += down[i] * part;
            }
            out[y * width + x] = sum > 0 ? (float)sum : 0.0f;
        }
    }
}

/* --- scales and thresholds --- */

void masks_range(const float *x, int64_t count, float *least, float *most)
{
    *least = *most = x[0];
    for (int64_t i = 1; i < count; i++) {
        if (x[i] < *least) *least = x[i];
        if (x[i] > *most) *most = x[i];
    }
}

void masks_scale(float *x, int64_t count, float least, float most)
{
    const float range = most - least;
    for (int64_t i = 0; i < count; i++)
        x[i] = range > 0 ? (x[i] - least) / range : 0.0f;
}

enum { BINS = 256 };

static int bin_of(float x)
{
    const int bin = (int)(x * BINS);
    return bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin;
}

// Otsu (1979): the split whose two sides differ most.
static float otsu(const float *x, int64_t count)
{
    int64_t histogram[BINS] = {0};
    double all = 0, below = 0, sum = 0, best = -1, at = 0;
    for (int64_t i = 0; i < count; i++)
        histogram[bin_of(x[i])]++;
    for (int b = 0; b < BINS; b++)
        all += (double)b * (double)histogram[b];
    for (int b = 0; b + 1 < BINS; b++) {
        below += (double)histogram[b];
        sum += (double)b * (double)histogram[b];
        const double above = (double)count - below;
        if (below == 0 || above == 0) continue;
        const double difference = sum / below - (all - sum) / above;
        const double between = below * above * difference * difference;
        if (between > best) best = between, at = b + 1;
    }
    return (float)(at / BINS);
}

static double share_above(const float *x, int64_t count, double threshold)
{
    int64_t above = 0;
    for (int64_t i = 0; i < count; i++)
        above += (double)x[i] > threshold;
    return (double)above / (double)count;
}

// The least threshold of 0 .. 1 that at most `share` of the places are above, by halving.
static float quantile(const float *x, int64_t count, float share)
{
    double low = 0, high = 1;
    if (share_above(x, count, low) <= (double)share) return 0.0f;
    for (int i = 0; i < 30; i++) {
        const double middle = (low + high) / 2;
        if (share_above(x, count, middle) <= (double)share)
            high = middle;
        else
            low = middle;
    }
    return (float)high;
}

// DiffuMask: the most frequent value between .45 and .53; moved where hardly anything, or hardly
// nothing, is above it.
static float search(const float *x, int64_t count)
{
    enum { STEPS = 16 };
    const double first = 0.45, last = 0.53, move = 0.03, least = 0.06;
    int64_t histogram[STEPS] = {0};
    int mode = 0;
    for (int64_t i = 0; i < count; i++) {
        const double at = ((double)x[i] - first) / (last - first) * STEPS;
        if (at >= 0 && at < STEPS) histogram[(int)at]++;
    }
    for (int b = 1; b < STEPS; b++)
        if (histogram[b] > histogram[mode]) mode = b;
    double threshold = first + (mode + 0.5) * (last - first) / STEPS;
    while (threshold - move >= 0.3 && share_above(x, count, threshold) < least)
        threshold -= move;
    while (threshold + move <= 0.75 && share_above(x, count, threshold) > 1 - least)
        threshold += move;
    return (float)threshold;
}

float masks_threshold(const float *x, int64_t count, masks_rule rule, float share)
{
    switch (rule) {
    case MASKS_OTSU:
        return otsu(x, count);
    case MASKS_AREA:
        return quantile(x, count, share);
    case MASKS_SEARCH:
        return search(x, count);
    case MASKS_FIXED:
        break;
    }
    return share;
}

int masks_class(const float *value, int count, float margin)
{
    for (int i = 0; i < count; i++) {
        bool above = true;
        for (int j = 0; j < count; j++)
            above = above && (j == i || value[i] - value[j] > margin);
        if (above) return i;
    }
    return -1;
}

/* --- refinements --- */

void masks_pool(float *out, const float *in, int64_t h, int64_t w)
{
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            float most = in[y * w + x];
            for (int64_t b = y - 1; b <= y + 1; b++)
                for (int64_t a = x - 1; a <= x + 1; a++)
                    if (in[inside(b, h) * w + inside(a, w)] > most)
                        most = in[inside(b, h) * w + inside(a, w)];
            out[y * w + x] = most;
        }
}

// The mean over the places within `reach` that lie in the picture, by a table of sums from the top
// left corner. table [h + 1, w + 1].
static void box_mean(float *out, const float *in, double *table, int64_t h, int64_t w,
                     int64_t reach)
{
    const int64_t line = w + 1;
    for (int64_t y = 0; y <= h; y++)
        for (int64_t x = 0; x <= w; x++)
            table[y * line + x] = y == 0 || x == 0
                                      ? 0
                                      : table[(y - 1) * line + x] + table[y * line + x - 1] -
                                            table[(y - 1) * line + x - 1] +
                                            (double)in[(y - 1) * w + x - 1];
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            const int64_t top = y < reach ? 0 : y - reach, bottom = inside(y + reach, h) + 1;
            const int64_t left = x < reach ? 0 : x - reach, right = inside(x + reach, w) + 1;
            const double sum = table[bottom * line + right] - table[top * line + right] -
                               table[bottom * line + left] + table[top * line + left];
            out[y * w + x] = (float)(sum / (double)((bottom - top) * (right - left)));
        }
}

bool masks_guided(float *map, const uint8_t *rgb, int64_t h, int64_t w)
{
    const int64_t count = h * w, reach = 8;
    const float epsilon = 1e-4f;
    float *room = calloc(5 * (size_t)count, sizeof *room);
    double *table = malloc((size_t)((h + 1) * (w + 1)) * sizeof *table);
    if (!room || !table) {
        free(room);
        free(table);
        return false;
    }
    float *guide = room, *guide_mean = room + count, *map_mean = room + 2 * count;
    float *square = room + 3 * count, *product = room + 4 * count;
    for (int64_t i = 0; i < count; i++) {
        guide[i] = (float)(rgb[3 * i] + rgb[3 * i + 1] + rgb[3 * i + 2]) / 765.0f;
        square[i] = guide[i] * guide[i];
        product[i] = guide[i] * map[i];
    }
    box_mean(guide_mean, guide, table, h, w, reach);
    box_mean(map_mean, map, table, h, w, reach);
    box_mean(square, square, table, h, w, reach);
    box_mean(product, product, table, h, w, reach);
    for (int64_t i = 0; i < count; i++) {
        const float slope = (product[i] - guide_mean[i] * map_mean[i]) /
                            (square[i] - guide_mean[i] * guide_mean[i] + epsilon);
        square[i] = slope;
        product[i] = map_mean[i] - slope * guide_mean[i];
    }
    box_mean(square, square, table, h, w, reach);
    box_mean(product, product, table, h, w, reach);
    for (int64_t i = 0; i < count; i++) {
        const float value = square[i] * guide[i] + product[i];
        map[i] = value < 0 ? 0.0f : value > 1 ? 1.0f : value;
    }
    free(room);
    free(table);
    return true;
}

// Marks the part that `start` belongs to with 2 and lists its places; returns how many there are.
static int64_t collect_part(uint8_t *mask, int64_t h, int64_t w, int64_t start, int64_t *place)
{
    int64_t found = 1;
    place[0] = start;
    mask[start] = 2;
    for (int64_t i = 0; i < found; i++) {
        const int64_t at = place[i], y = at / w, x = at % w;
        const int64_t next[4] = {y > 0 ? at - w : at, y + 1 < h ? at + w : at, x > 0 ? at - 1 : at,
                                 x + 1 < w ? at + 1 : at};
        for (int k = 0; k < 4; k++)
            if (mask[next[k]] == 1) mask[next[k]] = 2, place[found++] = next[k];
    }
    return found;
}

bool masks_drop_small(uint8_t *mask, int64_t h, int64_t w, int64_t least)
{
    int64_t *place = malloc((size_t)(h * w) * sizeof *place);
    if (!place) return false;
    for (int64_t start = 0; start < h * w; start++) {
        if (mask[start] != 1) continue;
        const int64_t found = collect_part(mask, h, w, start, place);
        for (int64_t i = 0; i < found && found < least; i++)
            mask[place[i]] = 0;
    }
    for (int64_t i = 0; i < h * w; i++)
        mask[i] = mask[i] != 0;
    free(place);
    return true;
}
