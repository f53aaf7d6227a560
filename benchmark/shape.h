/* benchmark/shape.h: the attention shapes of well-known networks, by name, and smaller ones made
 * from them. */
#ifndef HD_BENCHMARK_SHAPE_H
#define HD_BENCHMARK_SHAPE_H

#include "engine/attention/attention.h"

HD_BEGIN_DECLS

typedef struct hd_bench_shape {
    char name[32];   // "" for one that was given as numbers
    char about[100]; // "HunyuanVideo, 720p, 121 frames"
    hd_network network;
    int64_t grid[3]; // frames, height, width
    int64_t base[3]; // the grid before scaling
    double scale;    // 1: as it is
    int64_t text;    // tokens of a joint sequence
    bool text_first;
    int64_t heads, head_dim;
} hd_bench_shape;

/* The shape of that name. HD_ERR_ARGUMENT with the nearest name. */
HD_CHECKED hd_status hd_bench_shape_find(hd_bench_shape *out, const char *name);
/* By number, for lists; false past the end. */
bool hd_bench_shape_at(hd_bench_shape *out, size_t index);

/* Every axis times `scale`, rounded half to even, at least 1 (text stays). */
void hd_bench_shape_scale(hd_bench_shape *shape, double scale);

int64_t hd_bench_shape_grid_tokens(const hd_bench_shape *shape);
int64_t hd_bench_shape_tokens(const hd_bench_shape *shape);
hd_token_layout hd_bench_shape_layout(const hd_bench_shape *shape);
/* "hunyuan 30x48x80 + 256 text, 24 heads of 128" into text; returns text. */
char *hd_bench_shape_text(char *text, size_t bytes, const hd_bench_shape *shape);

HD_END_DECLS
#endif
