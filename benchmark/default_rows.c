/* benchmark/default_rows.c: windows as published (NATTEN's tables for HunyuanVideo and FLUX,
 * VMoBA's appendix for Wan), and every method with about a quarter of the keys, so that they
 * compare. */
#include "benchmark/default_rows.h"

#include <math.h>
#include <string.h>

#include "base/exec.h"
#include "engine/options/json_write.h"

typedef struct list {
    hd_json_writer w;
    const hd_bench_shape *shape;
    bool video;
} list;

static void begin(list *l, const char *name, const char *use)
{
    hd_json_write_object(&l->w, NULL);
    if (name) hd_json_write_string(&l->w, "name", name);
    hd_json_write_string(&l->w, "use", use);
    hd_json_write_array(&l->w, "sites"); // lower levels have other grids
    hd_json_write_string(&l->w, NULL, "** self factor<=1");
    hd_json_write_string(&l->w, NULL, "** joint");
    hd_json_write_end(&l->w, ']');
}

static void end(list *l)
{
    hd_json_write_end(&l->w, '}');
}

// The last `count` of three numbers, or all.
static void write_axes(list *l, const char *key, const int64_t values[3], int count)
{
    hd_json_write_array(&l->w, key);
    for (int a = 3 - count; a < 3; a++)
        hd_json_write_int(&l->w, NULL, values[a]);
    hd_json_write_end(&l->w, ']');
}

static void plain_row(list *l, const char *name, const char *use, const char *key,
                      const char *value)
{
    begin(l, name, use);
    if (key) hd_json_write_string(&l->w, key, value);
    end(l);
}

static void dense_rows(list *l)
{
    if (!(hd_cpu_features() & HD_AVX512_VNNI)) return;
    plain_row(l, "dense, int8 scores", "dense", "qk", "int8");
    begin(l, "dense, int8", "dense");
    hd_json_write_string(&l->w, "qk", "int8");
    hd_json_write_string(&l->w, "pv", "int8");
    end(l);
}

static void gna_row(list *l, const int64_t window[3], const int64_t stride[3], const char *rest)
{
    begin(l, NULL, "gna");
    write_axes(l, "window", window, l->video ? 3 : 2);
    if (stride) write_axes(l, "stride", stride, l->video ? 3 : 2);
    if (rest) hd_json_write_string(&l->w, "rest", rest);
    end(l);
}

typedef struct windows {
    const char *shape;
    int64_t window[3], stride[3];
} windows;

static const windows published[] = {
    {"hunyuan", {18, 24, 24}, {16, 8, 8}},
    {"flux-4k", {1, 80, 80}, {1, 16, 16}},
};

// Of every axis the share that keeps a quarter of all keys, in whole steps.
static void quarter(const list *l, const int64_t step[3], int64_t window[3])
{
    const double share = l->video ? 0.63 : 0.5;
    for (int a = 0; a < 3; a++) {
        const int64_t extent = l->shape->base[a], least = step[a] < extent ? step[a] : extent;
        window[a] = (int64_t)rint((double)extent * share / (double)least) * least;
        if (window[a] < least) window[a] = least;
        if (window[a] > extent) window[a] = extent;
    }
}

static void gna_rows(list *l)
{
    int64_t window[3], stride[3] = {l->video ? 4 : 1, 8, 8};
    quarter(l, stride, window);
    for (int a = 0; a < 3; a++)
        if (stride[a] > window[a]) stride[a] = window[a];
    for (size_t i = 0; i < HD_COUNT(published); i++)
        if (strcmp(published[i].shape, l->shape->name) == 0) {
            gna_row(l, published[i].window, published[i].stride, NULL);
            gna_row(l, published[i].window, NULL, NULL);
        }
    gna_row(l, window, stride, NULL);
    gna_row(l, window, NULL, NULL);
    gna_row(l, window, stride, "proxy");
}

static void swin_rows(list *l)
{
    int64_t window[3], step[3] = {l->video ? 4 : 1, 8, 8};
    quarter(l, step, window);
    for (int proxies = 0; proxies < 2; proxies++) {
        begin(l, NULL, "swin_windows");
        write_axes(l, "window", window, l->video ? 3 : 2);
        hd_json_write_string(&l->w, "rest", proxies ? "proxy" : "drop");
        end(l);
    }
}

static int64_t pieces(int64_t extent, int64_t piece)
{
    return (extent + piece - 1) / piece;
}

static void vmoba_row(list *l, const char *name, int kind, const int64_t block[3], int64_t keep)
{
    static const char *const blocks[] = {"block1", "block2", "block3"}, *const counts[] = {
                                                                            "k1", "k2", "k3"};
    begin(l, name, "vmoba");
    if (l->video) {
        hd_json_write_array(&l->w, "cycle");
        for (int i = 0; i < 3; i++)
            hd_json_write_int(&l->w, NULL, i == kind);
        hd_json_write_end(&l->w, ']');
    }
    if (kind == 0)
        hd_json_write_int(&l->w, blocks[0], block[0]);
    else
        write_axes(l, blocks[kind], block, kind + 1);
    hd_json_write_int(&l->w, counts[kind], keep > 0 ? keep : 1);
    end(l);
}

// A quarter of the blocks; Wan's as published, which keep 2 of 7, 6 of 24 and 18 of 72.
static void vmoba_rows(list *l)
{
    const int64_t *n = l->shape->base;
    const int64_t wan[3] = {7, 5, 13}, other[3] = {4, 8, 8}, picture[3] = {1, 8, 8};
    const int64_t *block = !l->video                                ? picture
                           : strncmp(l->shape->name, "wan", 3) == 0 ? wan
                                                                    : other;
    const int64_t high = pieces(n[1], block[1]), wide = pieces(n[2], block[2]);
    if (!l->video) {
        vmoba_row(l, "vmoba, 2-D blocks", 1, block, high * wide / 4);
        return;
    }
    const int64_t slab[3] = {3, 0, 0};
    vmoba_row(l, "vmoba, 1-D blocks", 0, slab, (pieces(n[0], 3) + 2) / 4);
    vmoba_row(l, "vmoba, 2-D blocks", 1, block, high * wide / 4);
    vmoba_row(l, "vmoba, 3-D blocks", 2, block, pieces(n[0], block[0]) * high * wide / 4);
}

// As published, and with tiles that are near in the grid, at most a quarter of them.
static void xattention_rows(list *l)
{
    const int64_t tile[3] = {l->video ? 2 : 1, 8, l->video ? 8 : 16};
    begin(l, "xattention as published", "xattention");
    end(l);
    for (int means = 0; means < 2; means++) {
        begin(l, means ? "xattention groupmean, 25 %" : "xattention antidiag, 25 %", "xattention");
        write_axes(l, "tile", tile, 3);
        hd_json_write_string(&l->w, "score", means ? "groupmean" : "antidiag");
        hd_json_write_double(&l->w, "rho_max", 0.25);
        end(l);
    }
}

static void proxy_rows(list *l)
{
    const double tokens = (double)(l->shape->base[0] * l->shape->base[1] * l->shape->base[2]) *
                          pow(l->shape->scale, l->video ? 3 : 2);
    begin(l, "proxy", "proxy");
    end(l);
    begin(l, "proxy, 25 % of windows", "proxy");
    hd_json_write_int(&l->w, "topk", (int64_t)(tokens / 64 / 4));
    end(l);
}

hd_status hd_bench_default_rows(char **json, const hd_bench_shape *shape)
{
    list l = {.shape = shape, .video = shape->base[0] > 1};
    hd_json_write_array(&l.w, NULL);
    dense_rows(&l);
    gna_rows(&l);
    swin_rows(&l);
    vmoba_rows(&l);
    xattention_rows(&l);
    plain_row(&l, "dynamic_mask, rest dropped", "dynamic_mask", "rest", "drop");
    plain_row(&l, "dynamic_mask + proxies", "dynamic_mask", "rest", "proxy");
    proxy_rows(&l);
    begin(&l, "paro, calibrated, 25 %", "paro");
    hd_json_write_double(&l.w, "density", 0.25);
    end(&l);
    if (!l.video && !shape->text) plain_row(&l, NULL, "agent", NULL, NULL);
    hd_json_write_end(&l.w, ']');
    return hd_json_writer_take(&l.w, json);
}
