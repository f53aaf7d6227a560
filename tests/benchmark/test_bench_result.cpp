// Shapes, rows, errors, and what is written: table, JSON, CSV, SVG, PNG.
#include <cJSON.h>
#include <cmath>
#include <cstring>

#include "benchmark/errors.h"
#include "benchmark/result.h"
#include "benchmark/rows.h"
#include "codecs/png.h"
#include "sparse/all.h"
#include "support/catch.h"
#include "support/folder.h"
#include "support/values.h"

namespace
{

bool holds(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

struct Rows : hd_bench_rows {
    Rows() : hd_bench_rows{}
    {
    }
    ~Rows()
    {
        hd_bench_rows_free(this);
    }
};

/* Classes by name only: rows do not look inside. */
struct Classes {
    hd_processor_class gna{}, vmoba{};
    const hd_processor_class *item[2];
    hd_processor_list list;
    Classes() : item{&gna, &vmoba}, list{2, item}
    {
        gna.name = "gna";
        vmoba.name = "vmoba";
    }
};

hd_bench_report report_of_two()
{
    hd_bench_report r{};
    r.what = "attention";
    r.effective_keys = 321.5;
    r.repeats = 3;
    strcpy(r.title, "some <shape> & more");
    strcpy(r.inputs, "random, seed 1");
    strcpy(r.machine, "2 threads");
    hd_bench_result *dense = hd_bench_report_add(&r, "dense", "[]");
    dense->figure[HD_BENCH_MS_MIN] = 10, dense->figure[HD_BENCH_RATIO] = 1;
    dense->figure[HD_BENCH_REL_L1] = 0;
    hd_bench_result *fast = hd_bench_report_add(&r, "fast, \"one\"", "[{\"use\": \"gna\"}]");
    fast->figure[HD_BENCH_MS_MIN] = 2.5, fast->figure[HD_BENCH_RATIO] = 4;
    fast->figure[HD_BENCH_REL_L1] = 0.031;
    hd_bench_result *no = hd_bench_report_add(&r, "no", "[]");
    no->status = HD_ERR_ARGUMENT;
    strcpy(no->why, "window is 9, must be 1 to 8");
    return r;
}

} // namespace

TEST_CASE("bench shape: names, scale, layout", "[bench]")
{
    hd_bench_shape s;
    REQUIRE_OK(hd_bench_shape_find(&s, "hunyuan"));
    CHECK(hd_bench_shape_tokens(&s) == 30 * 48 * 80 + 256);
    hd_bench_shape_scale(&s, 0.5);
    CHECK(s.grid[0] == 15);
    CHECK(s.grid[2] == 40);
    CHECK(s.base[2] == 80);
    REQUIRE_OK(hd_bench_shape_find(&s, "flux-4k"));
    hd_bench_shape_scale(&s, 0.25);
    CHECK(s.grid[0] == 1); // a picture stays one
    hd_token_layout layout = hd_bench_shape_layout(&s);
    REQUIRE(layout.segments == 2);
    CHECK(layout.segment[0].kind == HD_TOKENS_TEXT);
    CHECK(layout.segment[1].start == 512);
    CHECK(layout.segment[1].count == 64 * 64);
    CHECK_FAILS(hd_bench_shape_find(&s, "hunyaun"), HD_ERR_ARGUMENT, "did you mean \"hunyuan\"?");
    for (size_t i = 0; hd_bench_shape_at(&s, i); i++)
        CHECK(s.heads > 0);
}

TEST_CASE("bench rows: names, JSON, files; what is not a row's is left out", "[bench]")
{
    Classes c;
    hd_bench_shape s;
    REQUIRE_OK(hd_bench_shape_find(&s, "hunyuan"));
    Rows names, json, file, nothing;
    REQUIRE_OK(hd_bench_rows_read(&names, "gna,vmoba", &s, false, &c.list));
    CHECK(names.count > 2);
    CHECK(std::string(names.row[0].label) == "dense");
    REQUIRE_OK(hd_bench_rows_read(
        &json,
        R"([{"use": "gna", "window": [18, 24, 24], "sites": ["**"], "steps": [0.2, 1]},
            {"use": "vmoba", "name": "mine"}, [{"use": "gna"}, {"use": "vmoba"}]])",
        &s, false, &c.list));
    REQUIRE(json.count == 4);
    CHECK(std::string(json.row[1].label) == "gna window=18x24x24");
    CHECK(!holds(json.row[1].json, "steps"));
    CHECK(!holds(json.row[1].json, "sites"));
    CHECK(std::string(json.row[2].label) == "mine");
    CHECK(!holds(json.row[2].json, "mine"));
    CHECK(std::string(json.row[3].label) == "gna + vmoba");
    Folder f;
    std::string path =
        f.write("p.json", R"({"prompt": "x", "processors": [{"use": "gna", "sites": ["**"]}]})");
    REQUIRE_OK(hd_bench_rows_read(&file, path.c_str(), &s, true, &c.list));
    REQUIRE(file.count == 2);
    CHECK(holds(file.row[1].json, "sites"));
    REQUIRE_OK(hd_bench_rows_read(&nothing, "[]", &s, false, &c.list));
    CHECK(nothing.count == 1);
    Rows no;
    CHECK_FAILS(hd_bench_rows_read(&no, "gma", &s, false, &c.list), HD_ERR_ARGUMENT,
                "\"gma\" is no accelerator; did you mean \"gna\"?");
    CHECK_FAILS(hd_bench_rows_read(&no, "[3]", &s, false, &c.list), HD_ERR_ARGUMENT, "--rows");
    CHECK_FAILS(hd_bench_rows_read(&no, "[{", &s, false, &c.list), HD_ERR_FORMAT, "--rows");
    CHECK_FAILS(hd_bench_rows_read(&no, "absent.json", &s, false, &c.list), HD_ERR_IO,
                "absent.json");
}

TEST_CASE("bench rows: windows follow a scaled grid", "[bench]")
{
    Classes c;
    hd_bench_shape s;
    Rows rows;
    REQUIRE_OK(hd_bench_shape_find(&s, "wan-480p"));
    hd_bench_shape_scale(&s, 0.5); // 21x30x52 to 10x15x26
    REQUIRE_OK(hd_bench_rows_read(&rows,
                                  R"([{"use": "gna", "window": [12, 16, 16]},
            {"use": "vmoba", "block1": 3, "block2": [5, 13], "block3": [7, 5, 13]}])",
                                  &s, false, &c.list));
    CHECK(holds(rows.row[1].json, "\"base_size\": [21, 30, 52]"));
    CHECK(holds(rows.row[1].json, "\"window\": [12, 16, 16]")); // it scales them itself
    CHECK(holds(rows.row[2].json, "\"block1\": 1"));            // 1.43
    CHECK(holds(rows.row[2].json, "\"block2\": [2, 6]"));       // 2.5 and 6.5, to even
    CHECK(holds(rows.row[2].json, "\"block3\": [3, 2, 6]"));    // 3.33, 2.5, 6.5
}

TEST_CASE("bench rows: the list of every shape is JSON of processors", "[bench]")
{
    hd_bench_shape s;
    for (size_t i = 0; hd_bench_shape_at(&s, i); i++) {
        Rows rows;
        INFO(s.name);
        REQUIRE_OK(hd_bench_rows_read(&rows, nullptr, &s, false, &hd_all_accelerators));
        CHECK(rows.count >= 1);
    }
}

TEST_CASE("bench errors: relative L1, cosine, mass", "[bench]")
{
    Values a(HD_F32, hd_shape1(3)), b(HD_F32, hd_shape1(3));
    const float x[] = {1, 2, -2}, y[] = {1, -2, -1};
    std::memcpy(a.t.data, x, sizeof x);
    std::memcpy(b.t.data, y, sizeof y);
    double rel, cosine;
    hd_bench_compare(a.t, b.t, &rel, &cosine);
    CHECK(rel == Approx(5.0 / 4));
    CHECK(cosine == Approx(-1 / (3 * std::sqrt(6.0))));
    const float dense[] = {0, 1, -INFINITY}, seen[] = {std::log(0.25f), -INFINITY, 0};
    CHECK(hd_bench_retained_mass(seen, dense, 3) == Approx(0.125));
}

TEST_CASE("bench errors: PSNR and SSIM", "[bench]")
{
    enum { SIDE = 24 };
    std::vector<uint8_t> a(SIDE * SIDE * 3), b;
    uint32_t state = 1;
    for (uint8_t &v : a) {
        state = state * 1664525u + 1013904223u;
        v = (uint8_t)(state >> 24);
    }
    b = a;
    for (uint8_t &v : b)
        v = (uint8_t)(v / 2 + 30);
    hd_image p = {SIDE, SIDE, a.data()}, q = {SIDE, SIDE, b.data()};
    double squares = 0, same, different, expected = 0;
    for (size_t i = 0; i < a.size(); i++)
        squares += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    CHECK(std::isinf(hd_bench_psnr(&p, &p)));
    CHECK(hd_bench_psnr(&p, &q) ==
          Approx(10 * std::log10(255.0 * 255 * (double)a.size() / squares)));
    REQUIRE_OK(hd_bench_ssim(&same, &p, &p));
    CHECK(same == Approx(1));
    REQUIRE_OK(hd_bench_ssim(&different, &p, &q));
    // the formula with whole windows, not separated
    for (int c = 0; c < 3; c++)
        for (int y = 0; y + 11 <= SIDE; y++)
            for (int x = 0; x + 11 <= SIDE; x++) {
                double w = 0, m1 = 0, m2 = 0, s11 = 0, s22 = 0, s12 = 0;
                for (int v = 0; v < 11; v++)
                    for (int u = 0; u < 11; u++) {
                        const double g =
                            std::exp(-((v - 5) * (v - 5) + (u - 5) * (u - 5)) / (2 * 1.5 * 1.5));
                        const size_t i = (size_t)(((y + v) * SIDE + x + u) * 3 + c);
                        w += g, m1 += g * a[i], m2 += g * b[i];
                        s11 += g * a[i] * a[i], s22 += g * b[i] * b[i], s12 += g * a[i] * b[i];
                    }
                m1 /= w, m2 /= w;
                const double v1 = s11 / w - m1 * m1, v2 = s22 / w - m2 * m2,
                             cov = s12 / w - m1 * m2;
                expected += (2 * m1 * m2 + 6.5025) * (2 * cov + 58.5225) /
                            ((m1 * m1 + m2 * m2 + 6.5025) * (v1 + v2 + 58.5225));
            }
    CHECK(different == Approx(expected / (3 * 14 * 14)).epsilon(1e-9));
    double tiny;
    hd_image small = {5, 24, a.data()};
    REQUIRE_OK(hd_bench_ssim(&tiny, &small, &small));
    CHECK(std::isnan(tiny));
}

TEST_CASE("bench result: table, JSON and CSV say the same", "[bench]")
{
    Folder f;
    hd_bench_report r = report_of_two();
    char *text = nullptr;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    hd_bench_print_table(&r, to);
    fclose(to);
    std::string table = text;
    free(text);
    CHECK(holds(table, "322 effective keys"));
    CHECK(holds(table, "0.0310"));
    CHECK(holds(table, "no: window is 9, must be 1 to 8"));
    CHECK(!holds(table, "PSNR")); // nothing has one
    REQUIRE_OK(hd_bench_write_json(&r, f.path("a.json").c_str()));
    cJSON *root = cJSON_Parse(f.read("a.json").c_str());
    REQUIRE(root);
    cJSON *rows = cJSON_GetObjectItem(root, "rows"), *fast = cJSON_GetArrayItem(rows, 1);
    CHECK(cJSON_GetArraySize(rows) == 3);
    CHECK(cJSON_GetObjectItem(fast, "ratio")->valuedouble == 4);
    CHECK(!cJSON_GetObjectItem(fast, "psnr_db"));
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(fast, "processors")) == 1);
    CHECK(cJSON_GetObjectItem(cJSON_GetArrayItem(rows, 2), "error"));
    cJSON_Delete(root);
    REQUIRE_OK(hd_bench_write_csv(&r, f.path("a.csv").c_str()));
    std::string csv = f.read("a.csv");
    CHECK(holds(csv, "name,error,ms_min,"));
    CHECK(holds(csv, "\r\n\"fast, \"\"one\"\"\",,2.5,"));
    CHECK_FAILS(hd_bench_write_csv(&r, f.path("no/a.csv").c_str()), HD_ERR_IO, "a.csv");
    hd_bench_report_free(&r);
}

TEST_CASE("bench result: the plot is SVG or PNG", "[bench]")
{
    Folder f;
    hd_bench_report r = report_of_two();
    REQUIRE_OK(hd_bench_write_plot(&r, f.path("a.svg").c_str()));
    std::string svg = f.read("a.svg");
    CHECK(holds(svg, "some &lt;shape&gt; &amp; more"));
    CHECK(holds(svg, "fast, \"one\""));
    CHECK(holds(svg, "</svg>"));
    REQUIRE_OK(hd_bench_write_plot(&r, f.path("a.png").c_str()));
    hd_png png = {};
    REQUIRE_OK(hd_png_read(&png, f.path("a.png").c_str()));
    CHECK(png.image.width == 1120);
    int64_t dark = 0, blue = 0;
    for (size_t i = 0; i < hd_image_bytes(&png.image); i += 3) {
        dark += png.image.rgb[i] < 80 && png.image.rgb[i + 2] < 80;
        blue += png.image.rgb[i] == 31 && png.image.rgb[i + 1] == 119;
    }
    CHECK(dark > 1000); // axes and letters
    CHECK(blue > 100);  // the point and its legend
    hd_png_free(&png);
    CHECK_FAILS(hd_bench_write_plot(&r, f.path("a.jpg").c_str()), HD_ERR_ARGUMENT,
                "must end in .png or .svg");
    hd_bench_report_free(&r);
}
