/* benchmark/result.c: the figures as an aligned table, as JSON and as CSV. */
#include "benchmark/result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "engine/options/json_write.h"

const char *const hd_bench_figure_names[] = {
    "ms_min",         "ms_median",    "plan_ms", "setup_ms", "ratio",   "ideal_ratio",
    "executed_flops", "useful_flops", "bytes",   "gflops",   "density", "retained_mass",
    "rel_l1",         "cosine",       "psnr_db", "ssim",     NULL};

typedef struct column {
    hd_bench_figure figure;
    const char *title;
    int decimals;
    double unit; // the figure is divided by it
} column;

static const column columns[] = {
    {HD_BENCH_MS_MIN, "ms min", 2, 1},   {HD_BENCH_MS_MEDIAN, "median", 2, 1},
    {HD_BENCH_PLAN_MS, "plan ms", 2, 1}, {HD_BENCH_RATIO, "ratio", 2, 1},
    {HD_BENCH_IDEAL, "ideal", 2, 1},     {HD_BENCH_EXECUTED, "GFLOP", 1, 1e9},
    {HD_BENCH_USEFUL, "useful", 1, 1e9}, {HD_BENCH_BYTES, "MB", 0, 1e6},
    {HD_BENCH_GFLOPS, "GFLOP/s", 0, 1},  {HD_BENCH_DENSITY, "density", 4, 1},
    {HD_BENCH_MASS, "mass", 4, 1},       {HD_BENCH_REL_L1, "rel L1", 4, 1},
    {HD_BENCH_COSINE, "cosine", 5, 1},   {HD_BENCH_PSNR, "PSNR", 2, 1},
    {HD_BENCH_SSIM, "SSIM", 4, 1},
};

enum { CELL_BYTES = 32, LABEL_MOST = 40 };

void hd_bench_report_free(hd_bench_report *report)
{
    free(report->result);
    report->result = NULL;
    report->count = report->room = 0;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void hd_bench_set_times(hd_bench_result *result, double *seconds, double *plan_seconds, int repeats,
                        bool dense, double *dense_seconds)
{
    double *f = result->figure;
    qsort(seconds, (size_t)repeats, sizeof *seconds, by_value);
    qsort(plan_seconds, (size_t)repeats, sizeof *plan_seconds, by_value);
    f[HD_BENCH_MS_MIN] = seconds[0] * 1e3;
    f[HD_BENCH_MS_MEDIAN] = seconds[repeats / 2] * 1e3;
    f[HD_BENCH_PLAN_MS] = plan_seconds[repeats / 2] * 1e3;
    if (dense) *dense_seconds = seconds[0];
    f[HD_BENCH_RATIO] = *dense_seconds / seconds[0];
}

hd_bench_result *hd_bench_report_add(hd_bench_report *report, const char *label, const char *json)
{
    if (report->count == report->room) {
        int64_t room = report->room ? 2 * report->room : 16;
        hd_bench_result *grown = realloc(report->result, (size_t)room * sizeof *grown);
        if (!grown) return NULL;
        report->result = grown;
        report->room = room;
    }
    hd_bench_result *r = &report->result[report->count++];
    *r = (hd_bench_result){.label = label, .json = json};
    for (int i = 0; i < HD_BENCH_FIGURES; i++)
        r->figure[i] = NAN;
    return r;
}

/* --- the table */

static void cell_text(char text[CELL_BYTES], const hd_bench_result *r, const column *c)
{
    const double value = r->figure[c->figure] / c->unit;
    if (isnan(value))
        snprintf(text, CELL_BYTES, "-");
    else if (isinf(value))
        snprintf(text, CELL_BYTES, "inf");
    else
        snprintf(text, CELL_BYTES, "%.*f", c->decimals, value);
}

// 0: nothing to show.
static int column_width(const hd_bench_report *report, const column *c)
{
    int width = 0;
    for (int64_t i = 0; i < report->count; i++) {
        char text[CELL_BYTES];
        if (isnan(report->result[i].figure[c->figure])) continue;
        cell_text(text, &report->result[i], c);
        if ((int)strlen(text) > width) width = (int)strlen(text);
    }
    const int title = (int)strlen(c->title);
    return width && width < title ? title : width;
}

static int label_width(const hd_bench_report *report)
{
    int width = 0;
    for (int64_t i = 0; i < report->count; i++) {
        int length = (int)strlen(report->result[i].label);
        if (length > width) width = length;
    }
    return width > LABEL_MOST ? LABEL_MOST : width;
}

static void print_heading(const hd_bench_report *report, FILE *to)
{
    fprintf(to, "%s\n", report->title);
    if (report->note[0]) fprintf(to, "%s\n", report->note);
    fprintf(to, "inputs: %s", report->inputs);
    if (!isnan(report->effective_keys))
        fprintf(to, "; %.0f effective keys", report->effective_keys);
    fprintf(to, "\n%s, %d repeat%s\n\n", report->machine, report->repeats,
            report->repeats == 1 ? "" : "s");
}

void hd_bench_print_table(const hd_bench_report *report, FILE *to)
{
    const int labels = label_width(report);
    int width[HD_COUNT(columns)];
    print_heading(report, to);
    fprintf(to, "%-*s", labels, "");
    for (size_t c = 0; c < HD_COUNT(columns); c++) {
        width[c] = column_width(report, &columns[c]);
        if (width[c]) fprintf(to, "  %*s", width[c], columns[c].title);
    }
    fputc('\n', to);
    for (int64_t i = 0; i < report->count; i++) {
        const hd_bench_result *r = &report->result[i];
        fprintf(to, "%-*.*s", labels, labels, r->label);
        for (size_t c = 0; c < HD_COUNT(columns) && r->status == HD_OK; c++) {
            char text[CELL_BYTES];
            if (!width[c]) continue;
            cell_text(text, r, &columns[c]);
            fprintf(to, "  %*s", width[c], text);
        }
        fprintf(to, r->status == HD_OK ? "\n" : "  not measured\n");
    }
    for (int64_t i = 0; i < report->count; i++)
        if (report->result[i].status != HD_OK)
            fprintf(to, "\n%s: %s\n", report->result[i].label, report->result[i].why);
}

/* --- files */

static hd_status write_file(const char *path, const char *text)
{
    hd_output *file;
    HD_TRY(hd_output_open(&file, path));
    hd_status status = hd_output_write(file, text, strlen(text));
    if (status == HD_OK) return hd_output_commit(file);
    hd_output_discard(file);
    return status;
}

static void write_result(hd_json_writer *w, const hd_bench_result *r)
{
    hd_json_doc *doc = NULL;
    hd_json_write_object(w, NULL);
    hd_json_write_string(w, "name", r->label);
    if (r->json && hd_json_parse(&doc, "row", r->json, strlen(r->json)) == HD_OK)
        hd_json_write_node(w, "processors", hd_json_root(doc));
    hd_json_free(doc);
    if (r->status != HD_OK) {
        hd_json_write_object(w, "error");
        hd_json_write_string(w, "kind", hd_status_name(r->status));
        hd_json_write_string(w, "message", r->why);
        hd_json_write_end(w, '}');
    }
    for (int i = 0; i < HD_BENCH_FIGURES && r->status == HD_OK; i++)
        if (!isnan(r->figure[i])) hd_json_write_double(w, hd_bench_figure_names[i], r->figure[i]);
    hd_json_write_end(w, '}');
}

hd_status hd_bench_write_json(const hd_bench_report *report, const char *path)
{
    hd_json_writer w = {0};
    char *text = NULL;
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "bench", report->what);
    hd_json_write_string(&w, "version", hd_version());
    hd_json_write_string(&w, "title", report->title);
    if (report->note[0]) hd_json_write_string(&w, "note", report->note);
    hd_json_write_string(&w, "inputs", report->inputs);
    if (!isnan(report->effective_keys))
        hd_json_write_double(&w, "effective_keys", report->effective_keys);
    hd_json_write_string(&w, "machine", report->machine);
    hd_json_write_int(&w, "repeats", report->repeats);
    hd_json_write_array(&w, "rows");
    for (int64_t i = 0; i < report->count; i++)
        write_result(&w, &report->result[i]);
    hd_json_write_end(&w, ']');
    hd_json_write_end(&w, '}');
    HD_TRY(hd_json_writer_take(&w, &text));
    hd_status status = write_file(path, text);
    free(text);
    return status;
}

// RFC 4180: a text with a comma, a quote or a line's end stands in quotes.
static void print_csv_text(FILE *to, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++)
        fprintf(to, *text == '"' ? "\"\"" : "%c", *text);
    fputc('"', to);
}

static void print_csv(const hd_bench_report *report, FILE *to)
{
    fputs("name,error", to);
    for (int i = 0; i < HD_BENCH_FIGURES; i++)
        fprintf(to, ",%s", hd_bench_figure_names[i]);
    fputs(",processors\r\n", to);
    for (int64_t r = 0; r < report->count; r++) {
        const hd_bench_result *row = &report->result[r];
        print_csv_text(to, row->label);
        fputc(',', to);
        print_csv_text(to, row->why);
        for (int i = 0; i < HD_BENCH_FIGURES; i++) {
            fputc(',', to);
            if (!isnan(row->figure[i])) fprintf(to, "%.9g", row->figure[i]);
        }
        fputc(',', to);
        print_csv_text(to, row->json ? row->json : "");
        fputs("\r\n", to);
    }
}

hd_status hd_bench_write_csv(const hd_bench_report *report, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    if (!to) return hd_fail(HD_ERR_NOMEM, "bench: no memory for %s", path);
    print_csv(report, to);
    hd_status status =
        fclose(to) == 0 ? HD_OK : hd_fail(HD_ERR_NOMEM, "bench: no memory for %s", path);
    if (status == HD_OK) status = write_file(path, text);
    free(text);
    return status;
}
