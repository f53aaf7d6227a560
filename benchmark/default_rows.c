/* benchmark/default_rows.c: windows as published (NATTEN's tables for HunyuanVideo and FLUX,
 * VMoBA's appendix for Wan), else the nearest whole tiles to a quarter of the keys. */
#include "benchmark/default_rows.h"

#include <math.h>
#include <string.h>

#include "base/exec.h"
#include "engine/options/json_write.h"

typedef struct windows {
    const char *shape;
    int64_t window[3], stride[3];
} windows;

static const windows published[] = {
    {"hunyuan", {18, 24, 24}, {16, 8, 8}},
    {"flux-4k", {1, 80, 80}, {1, 16, 16}},
};

static void write_axes(hd_json_writer *w, const char *key, const hd_bench_shape *s,
                       const int64_t values[3])
{
    hd_json_write_array(w, key);
    for (int a = s->base[0] > 1 ? 0 : 1; a < 3; a++)
        hd_json_write_int(w, NULL, values[a]);
    hd_json_write_end(w, ']');
}

static void begin(hd_json_writer *w, const char *name, const char *use)
{
    hd_json_write_object(w, NULL);
    hd_json_write_string(w, "name", name);
    hd_json_write_string(w, "use", use);
}

static void end(hd_json_writer *w)
{
    hd_json_write_end(w, '}');
}

static void gna_row(hd_json_writer *w, const char *name, const hd_bench_shape *s,
                    const int64_t window[3], const int64_t stride[3], const char *rest)
{
    begin(w, name, "gna");
    write_axes(w, "window", s, window);
    if (stride) write_axes(w, "stride", s, stride);
    if (rest) hd_json_write_string(w, "rest", rest);
    end(w);
}

// Of every axis the share that keeps a quarter of all keys, in whole strides of 4 frames and 8 x 8.
static void gna_rows(hd_json_writer *w, const hd_bench_shape *s)
{
    int64_t window[3], stride[3] = {s->base[0] > 1 ? 4 : 1, 8, 8};
    const double share = s->base[0] > 1 ? 0.63 : 0.5;
    for (int a = 0; a < 3; a++) {
        if (stride[a] > s->base[a]) stride[a] = s->base[a];
        window[a] = (int64_t)rint((double)s->base[a] * share / (double)stride[a]) * stride[a];
        if (window[a] < stride[a]) window[a] = stride[a];
        if (window[a] > s->base[a]) window[a] = s->base[a];
    }
    for (size_t i = 0; i < HD_COUNT(published); i++)
        if (strcmp(published[i].shape, s->name) == 0) {
            gna_row(w, "gna published", s, published[i].window, published[i].stride, NULL);
            gna_row(w, "gna published, stride 1", s, published[i].window, NULL, NULL);
        }
    gna_row(w, "gna", s, window, stride, NULL);
    gna_row(w, "gna, stride 1", s, window, NULL, NULL);
    gna_row(w, "gna + proxies", s, window, stride, "proxy");
}

static void plain_row(hd_json_writer *w, const char *name, const char *use, const char *key,
                      const char *value)
{
    begin(w, name, use);
    if (key) hd_json_write_string(w, key, value);
    end(w);
}

hd_status hd_bench_default_rows(char **json, const hd_bench_shape *shape)
{
    hd_json_writer w = {0};
    hd_json_write_array(&w, NULL);
    if (hd_cpu_features() & HD_AVX512_VNNI) {
        plain_row(&w, "dense, int8 scores", "dense", "qk", "int8");
        begin(&w, "dense, int8", "dense");
        hd_json_write_string(&w, "qk", "int8");
        hd_json_write_string(&w, "pv", "int8");
        end(&w);
    }
    gna_rows(&w, shape);
    plain_row(&w, "swin_windows", "swin_windows", NULL, NULL);
    plain_row(&w, "vmoba", "vmoba", NULL, NULL);
    plain_row(&w, "xattention", "xattention", "score", "antidiag");
    plain_row(&w, "xattention, group means", "xattention", "score", "groupmean");
    plain_row(&w, "dynamic_mask", "dynamic_mask", "rest", "drop");
    plain_row(&w, "dynamic_mask + proxies", "dynamic_mask", "rest", "proxy");
    plain_row(&w, "proxy", "proxy", NULL, NULL);
    plain_row(&w, "agent", "agent", NULL, NULL);
    hd_json_write_end(&w, ']');
    return hd_json_writer_take(&w, json);
}
