/* benchmark/plot.c: a comparison as a picture: to the right what is faster, below what is nearer to
 * dense. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "benchmark/result.h"
#include "codecs/canvas.h"

enum { WIDTH = 1120, HEIGHT = 600, LEFT = 90, RIGHT = 640, TOP = 70, BOTTOM = 530 };

static const hd_color black = {30, 30, 30}, grey = {110, 110, 110}, pale = {222, 222, 222};
static const hd_color colors[] = {{31, 119, 180}, {214, 39, 40},  {44, 160, 44}, {148, 103, 189},
                                  {255, 127, 14}, {23, 190, 207}, {140, 86, 75}, {227, 119, 194},
                                  {127, 127, 0},  {0, 100, 110},  {90, 60, 200}, {120, 120, 120}};

/* What the axes show. */
typedef struct axes {
    double ratio;     // the right end; the left one is 0
    double low, high; // exponents of ten of the error
} axes;

static bool has_point(const hd_bench_result *r)
{
    return r->status == HD_OK && isfinite(r->figure[HD_BENCH_RATIO]) &&
           !isnan(r->figure[HD_BENCH_REL_L1]) && r->figure[HD_BENCH_REL_L1] > 0;
}

static axes choose_axes(const hd_bench_report *report)
{
    axes a = {.ratio = 2, .low = -2, .high = 0};
    for (int64_t i = 0; i < report->count; i++) {
        const hd_bench_result *r = &report->result[i];
        if (!has_point(r)) continue;
        const double error = log10(fmin(fmax(r->figure[HD_BENCH_REL_L1], 1e-6), 1e3));
        a.ratio = fmax(a.ratio, r->figure[HD_BENCH_RATIO] * 1.05);
        a.low = fmin(a.low, floor(error));
        a.high = fmax(a.high, ceil(error));
    }
    return a;
}

static double x_of(const axes *a, double ratio)
{
    return LEFT + (RIGHT - LEFT) * ratio / a->ratio;
}

static double y_of(const axes *a, double error)
{
    const double at = (log10(fmax(error, 1e-6)) - a->low) / (a->high - a->low);
    return BOTTOM - (BOTTOM - TOP) * fmin(fmax(at, 0), 1);
}

// A step of 1, 2 or 5 times a power of ten that gives at most eight lines.
static double nice_step(double range)
{
    double step = pow(10, floor(log10(range / 8)));
    static const double factors[] = {1, 2, 5, 10};
    for (size_t i = 0; i < HD_COUNT(factors); i++)
        if (range / (step * factors[i]) <= 8) return step * factors[i];
    return range;
}

static void draw_axes(hd_canvas *c, const axes *a)
{
    char text[40];
    const double step = nice_step(a->ratio);
    for (double ratio = 0; ratio <= a->ratio; ratio += step) {
        hd_canvas_line(c, x_of(a, ratio), TOP, x_of(a, ratio), BOTTOM, 1, pale);
        snprintf(text, sizeof text, "%g", ratio);
        hd_canvas_text(c, x_of(a, ratio), BOTTOM + 22, 15, HD_TEXT_MIDDLE, grey, text);
    }
    for (double e = a->low; e <= a->high; e++) {
        const double error = pow(10, e);
        hd_canvas_line(c, LEFT, y_of(a, error), RIGHT, y_of(a, error), 1, pale);
        snprintf(text, sizeof text, "%g", error);
        hd_canvas_text(c, LEFT - 10, y_of(a, error) + 5, 15, HD_TEXT_RIGHT, grey, text);
    }
    hd_canvas_line(c, x_of(a, 1), TOP, x_of(a, 1), BOTTOM, 1.5, grey);
    hd_canvas_text(c, x_of(a, 1) + 4, TOP + 14, 13, HD_TEXT_LEFT, grey, "dense");
    hd_canvas_line(c, LEFT, BOTTOM, RIGHT, BOTTOM, 1.5, black);
    hd_canvas_line(c, LEFT, TOP, LEFT, BOTTOM, 1.5, black);
    hd_canvas_text(c, (LEFT + RIGHT) / 2.0, BOTTOM + 50, 16, HD_TEXT_MIDDLE, black,
                   "times as fast as dense, planning included");
    hd_canvas_text(c, LEFT - 60, TOP - 14, 16, HD_TEXT_LEFT, black, "relative L1 error to dense");
}

static void draw_point(hd_canvas *c, const axes *a, const hd_bench_result *r, int number)
{
    const hd_color color = colors[(size_t)(number - 1) % HD_COUNT(colors)];
    const double x = x_of(a, r->figure[HD_BENCH_RATIO]), y = y_of(a, r->figure[HD_BENCH_REL_L1]);
    const double legend = TOP + 8 + 22.0 * (number - 1);
    char text[80];
    hd_canvas_disc(c, x, y, 6, color);
    snprintf(text, sizeof text, "%d", number);
    hd_canvas_text(c, x + 9, y + 5, 14, HD_TEXT_LEFT, black, text);
    hd_canvas_disc(c, RIGHT + 26, legend, 6, color);
    snprintf(text, sizeof text, "%d %.46s", number, r->label);
    hd_canvas_text(c, RIGHT + 38, legend + 5, 14, HD_TEXT_LEFT, black, text);
}

static bool ends_in(const char *path, const char *end)
{
    const size_t length = strlen(path), tail = strlen(end);
    return length > tail && strcmp(path + length - tail, end) == 0;
}

hd_status hd_bench_plot_check(const char *path)
{
    if (ends_in(path, ".svg") || ends_in(path, ".png")) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "--plot is \"%.200s\", must end in .png or .svg", path);
}

hd_status hd_bench_write_plot(const hd_bench_report *report, const char *path)
{
    HD_TRY(hd_bench_plot_check(path));
    int64_t points = 0;
    for (int64_t i = 0; i < report->count; i++)
        points += has_point(&report->result[i]);
    hd_canvas *c;
    const int legend = TOP + 40 + 22 * (int)(points < 200 ? points : 200);
    HD_TRY(hd_canvas_create(&c, WIDTH, legend > HEIGHT ? legend : HEIGHT, ends_in(path, ".svg")));
    const axes a = choose_axes(report);
    hd_canvas_text(c, 30, 28, 17, HD_TEXT_LEFT, black, report->title);
    draw_axes(c, &a);
    for (int64_t i = 0, number = 1; i < report->count && number <= 200; i++)
        if (has_point(&report->result[i])) draw_point(c, &a, &report->result[i], (int)number++);
    hd_status status = hd_canvas_write(c, path);
    hd_canvas_free(c);
    return status;
}
