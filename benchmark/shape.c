/* benchmark/shape.c: token grids of networks as their model cards and configurations give them. */
#include "benchmark/shape.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/options/json.h"

static const hd_bench_shape shapes[] = {
    {.name = "sd15-512",
     .about = "Stable Diffusion 1.5, 512 x 512, first self-attention",
     .network = HD_NETWORK_UNET,
     .grid = {1, 64, 64},
     .heads = 8,
     .head_dim = 40},
    {.name = "sd15-1024",
     .about = "Stable Diffusion 1.5, 1024 x 1024, first self-attention",
     .network = HD_NETWORK_UNET,
     .grid = {1, 128, 128},
     .heads = 8,
     .head_dim = 40},
    {.name = "sd15-2048",
     .about = "Stable Diffusion 1.5, 2048 x 2048, first self-attention",
     .network = HD_NETWORK_UNET,
     .grid = {1, 256, 256},
     .heads = 8,
     .head_dim = 40},
    {.name = "wan-480p",
     .about = "Wan 2.1 1.3B, 832 x 480, 81 frames (14B: --heads 40)",
     .network = HD_NETWORK_DIT,
     .grid = {21, 30, 52},
     .heads = 12,
     .head_dim = 128},
    {.name = "wan-720p",
     .about = "Wan 2.1 1.3B, 1280 x 720, 81 frames (14B: --heads 40)",
     .network = HD_NETWORK_DIT,
     .grid = {21, 45, 80},
     .heads = 12,
     .head_dim = 128},
    {.name = "cogvideox",
     .about = "CogVideoX 5B, 720 x 480, 49 frames",
     .network = HD_NETWORK_DIT,
     .grid = {13, 30, 45},
     .text = 226,
     .text_first = true,
     .heads = 48,
     .head_dim = 64},
    {.name = "hunyuan",
     .about = "HunyuanVideo, 1280 x 768, 117 frames",
     .network = HD_NETWORK_DIT,
     .grid = {30, 48, 80},
     .text = 256,
     .heads = 24,
     .head_dim = 128},
    {.name = "flux-1k",
     .about = "FLUX.1, 1024 x 1024",
     .network = HD_NETWORK_DIT,
     .grid = {1, 64, 64},
     .text = 512,
     .text_first = true,
     .heads = 24,
     .head_dim = 128},
    {.name = "flux-4k",
     .about = "FLUX.1, 4096 x 4096",
     .network = HD_NETWORK_DIT,
     .grid = {1, 256, 256},
     .text = 512,
     .text_first = true,
     .heads = 24,
     .head_dim = 128},
};

bool hd_bench_shape_at(hd_bench_shape *out, size_t index)
{
    if (index >= HD_COUNT(shapes)) return false;
    *out = shapes[index];
    memcpy(out->base, out->grid, sizeof out->base);
    out->scale = 1;
    return true;
}

hd_status hd_bench_shape_find(hd_bench_shape *out, const char *name)
{
    const char *names[HD_COUNT(shapes)];
    for (size_t i = 0; i < HD_COUNT(shapes); i++) {
        names[i] = shapes[i].name;
        if (strcmp(names[i], name) == 0) {
            hd_bench_shape_at(out, i);
            return HD_OK;
        }
    }
    const char *near = hd_nearest_name(name, names, HD_COUNT(names));
    char all[300] = "";
    for (size_t i = 0, used = 0; i < HD_COUNT(shapes); i++)
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", names[i]);
    return hd_fail(HD_ERR_ARGUMENT, "there is no shape \"%.80s\"%s%s%s; there are: %s", name,
                   near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "", all);
}

void hd_bench_shape_scale(hd_bench_shape *shape, double scale)
{
    shape->scale = scale;
    for (int a = 0; a < 3; a++) {
        double scaled = rint((double)shape->base[a] * scale);
        shape->grid[a] = scaled > 1 ? (int64_t)scaled : 1;
    }
}

int64_t hd_bench_shape_grid_tokens(const hd_bench_shape *shape)
{
    return shape->grid[0] * shape->grid[1] * shape->grid[2];
}

int64_t hd_bench_shape_tokens(const hd_bench_shape *shape)
{
    return hd_bench_shape_grid_tokens(shape) + shape->text;
}

hd_token_layout hd_bench_shape_layout(const hd_bench_shape *shape)
{
    hd_token_layout layout = hd_layout_grid(shape->grid[0], shape->grid[1], shape->grid[2]);
    if (shape->text == 0) return layout;
    hd_token_segment text = {.kind = HD_TOKENS_TEXT, .count = shape->text};
    layout.segments = 2;
    if (shape->text_first) {
        layout.segment[1] = layout.segment[0];
        layout.segment[1].start = shape->text;
        layout.segment[0] = text;
    } else {
        text.start = hd_bench_shape_grid_tokens(shape);
        layout.segment[1] = text;
    }
    return layout;
}

char *hd_bench_shape_text(char *text, size_t bytes, const hd_bench_shape *s)
{
    size_t used =
        (size_t)snprintf(text, bytes, "%s%s%lldx%lldx%lld", s->name, s->name[0] ? " " : "",
                         (long long)s->grid[0], (long long)s->grid[1], (long long)s->grid[2]);
    if (s->text && used < bytes)
        used += (size_t)snprintf(text + used, bytes - used, " + %lld text", (long long)s->text);
    if (used < bytes)
        snprintf(text + used, bytes - used, ", %lld head%s of %lld", (long long)s->heads,
                 s->heads == 1 ? "" : "s", (long long)s->head_dim);
    return text;
}
