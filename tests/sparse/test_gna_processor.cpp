// The processor "gna": what it computes beside a masked f64 attention, how its parameters become
// windows on a grid, and what it refuses.
#include <cmath>

#include "sparse/all.h"
#include "sparse/gna.h"
#include "support/alloc_fail.h"
#include "support/attention.h"
#include "support/gna.h"
#include "support/planning.h"

namespace
{

hd_token_layout joint(int64_t text, int64_t f, int64_t h, int64_t w, int64_t behind = 0)
{
    hd_token_layout l{};
    if (text) l.segment[l.segments++] = {HD_TOKENS_TEXT, 0, text, 0, 0, 0};
    l.segment[l.segments++] = {HD_TOKENS_GRID, text, f * h * w, f, h, w};
    if (behind) l.segment[l.segments++] = {HD_TOKENS_REFERENCE, text + f * h * w, behind, 0, 0, 0};
    return l;
}

/* A call on a grid, and a preset of one "gna". */
struct Site {
    TestCall c;
    hd_token_layout layout;
    Site(hd_token_layout l, int64_t tokens, int64_t heads = 2, int64_t dim = 8)
        : c(2, tokens, tokens, heads, dim), layout(l)
    {
        c.call.q_layout = c.call.k_layout = l;
    }
    static std::string preset(const std::string &fields)
    {
        return "{\"processors\": [{\"use\": \"gna\", " + fields + "}]}";
    }
    hd_status refused(const std::string &fields)
    {
        TestRun run(&hd_all_accelerators, preset(fields));
        return run.status != HD_OK ? run.status : c.dry(run);
    }
    const hd_token_segment &grid() const
    {
        for (int i = 0; i < layout.segments; i++)
            if (layout.segment[i].kind == HD_TOKENS_GRID) return layout.segment[i];
        throw 0;
    }
    bool sees(const hd_gna_axis rule[3], int64_t q, int64_t k) const
    {
        const hd_token_segment &g = grid();
        const int64_t a = q - g.start, b = k - g.start;
        if (a < 0 || a >= g.count || b < 0 || b >= g.count) return true;
        const int64_t size[3] = {g.frames, g.height, g.width};
        const int64_t x[3] = {a / (size[1] * size[2]), a / size[2] % size[1], a % size[2]};
        const int64_t y[3] = {b / (size[1] * size[2]), b / size[2] % size[1], b % size[2]};
        bool seen = true;
        for (int i = 0; i < 3; i++)
            seen = seen && gna_sees(rule[i], size[i], x[i], y[i]);
        return seen;
    }
    // Largest difference from f64 attention under rule[of[head]].
    double error(const std::string &fields, const std::vector<std::vector<hd_gna_axis>> &rule,
                 const std::vector<int> &of = {0, 0}, double factor = 1.0,
                 unsigned isa = hd_cpu_features(), int threads = 1)
    {
        TestRun run(&hd_all_accelerators, preset(fields));
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
        REQUIRE_OK(c.try_act(run, 0, threads, isa));
        double worst = 0;
        for (int64_t b = 0; b < c.B; b++)
            worst = std::fmax(worst, error_f64(c, c.out, b, [&](int64_t h, int64_t i) {
                                  return softmax_f64(c.Lk, [&](int64_t j) {
                                      return sees(rule[(size_t)of[(size_t)h]].data(), i, j)
                                                 ? factor * score_f64(c, b, h, i, j)
                                                 : -HUGE_VAL;
                                  });
                              }));
        return worst;
    }
};

using Rule = std::vector<std::vector<hd_gna_axis>>;

hd_gna_options options_of(const std::string &json, hd_json_doc **doc)
{
    hd_gna_options o{};
    REQUIRE_OK(hd_json_parse(doc, "test.json", json.data(), json.size()));
    REQUIRE_OK(hd_params_default(hd_gna.params, &o));
    REQUIRE_OK(hd_params_read(hd_gna.params, &o, hd_json_root(*doc), nullptr));
    REQUIRE_OK(hd_gna.check(&o));
    return o;
}

/* What options mean on a grid. */
struct Resolved {
    hd_json_doc *doc = nullptr;
    hd_gna_options options;
    hd_gna_site site{};
    hd_status status;
    Resolved(const std::string &json, int64_t f, int64_t h, int64_t w, int64_t heads = 2,
             hd_plan_rest rest = HD_REST_DROP)
        : options(options_of(json, &doc))
    {
        hd_attention_call call{};
        call.q_layout = call.k_layout = joint(0, f, h, w);
        call.q.dim[1] = call.k.dim[1] = f * h * w;
        call.q.dim[2] = call.k.dim[2] = heads;
        call.q.dim[3] = call.k.dim[3] = 64;
        status = hd_gna_resolve_site(&site, &options, &call, rest);
    }
    ~Resolved()
    {
        if (status == HD_OK) hd_gna_site_free(&site);
        hd_gna.clear(&options);
        hd_json_free(doc);
    }
    std::vector<int64_t> of(int64_t hd_gna_axis::*field, int rule = 0) const
    {
        std::vector<int64_t> list;
        for (int i = 0; i < 3; i++)
            list.push_back(site.problem.rule[rule][i].*field);
        return list;
    }
};

using List = std::vector<int64_t>;

} // namespace

TEST_CASE("gna: outputs beside masked attention in f64", "[gna]")
{
    const unsigned isa = GENERATE(from_range(every_isa()));
    const int threads = GENERATE(1, 2);
    Site picture(joint(0, 1, 9, 11), 99);
    CHECK(picture.error("\"window\": [3, 5]",
                        Rule{{{1, 1, 1, false}, {3, 1, 1, false}, {5, 1, 1, false}}}, {0, 0}, 1,
                        isa, threads) < 1e-5);
    CHECK(picture.error("\"window\": 4, \"stride\": [4, 3], \"causal\": [true, false]",
                        Rule{{{1, 1, 1, false}, {4, 4, 1, true}, {4, 3, 1, false}}}, {0, 0}, 1, isa,
                        threads) < 1e-5);
    CHECK(picture.error("\"window\": [3, 3], \"dilation\": [3, 2]",
                        Rule{{{1, 1, 1, false}, {3, 1, 3, false}, {3, 1, 2, false}}}, {0, 0}, 1,
                        isa, threads) < 1e-5);
    CHECK(picture.error("\"window\": 3, \"scale\": 0",
                        Rule{{{1, 1, 1, false}, {3, 1, 1, false}, {3, 1, 1, false}}}, {0, 0}, 0.0,
                        isa, threads) < 1e-5);
    Site video(joint(5, 4, 5, 6, 3), 128);
    for (const char *kv : {"static", "dynamic"})
        for (const char *tiles : {"", ", \"tile_q\": [2, 2, 4], \"tile_kv\": [3, 2, 4]"}) {
            CAPTURE(kv, tiles);
            CHECK(video.error("\"window\": [3, -1, 3], \"stride\": [2, 1, 1], \"kv_tiling\": \"" +
                                  std::string(kv) + "\"" + tiles,
                              Rule{{{3, 2, 1, false}, {5, 1, 1, false}, {3, 1, 1, false}}}, {0, 0},
                              1, isa, threads) < 1e-5);
        }
    CHECK(video.error("\"window\": 3, \"heads\": [{\"heads\": 1, \"window\": [1, -1, -1]}]",
                      Rule{{{3, 1, 1, false}, {3, 1, 1, false}, {3, 1, 1, false}},
                           {{1, 1, 1, false}, {5, 1, 1, false}, {6, 1, 1, false}}},
                      {0, 1}, 1, isa, threads) < 1e-5);
    CHECK(video.error("\"window\": 2, \"heads\": [{\"heads\": [0], \"dilation\": [2, 1, 3]}]",
                      Rule{{{2, 1, 1, false}, {2, 1, 1, false}, {2, 1, 1, false}},
                           {{2, 1, 2, false}, {2, 1, 1, false}, {2, 1, 3, false}}},
                      {1, 0}, 1, isa, threads) < 1e-5);
}

TEST_CASE("gna: a query whose window one can compute by hand", "[gna]")
{
    // keys 0, ln 2, ln 4, ln 8; values 1 .. 4; window 3: 17/7 and 24/7
    Site s(joint(0, 1, 1, 4), 4, 1, 1);
    const double key[4] = {0, std::log(2), std::log(4), std::log(8)};
    for (size_t i = 0; i < 8; i++) {
        s.c.q[i] = 1;
        s.c.k[i] = (float)key[i % 4];
        s.c.v[i] = (float)(i % 4 + 1);
    }
    TestRun run(&hd_all_accelerators, Site::preset("\"window\": 3"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(s.c.dry(run));
    std::vector<float> out = s.c.act(run);
    CHECK(out[0] == Approx(17.0 / 7));
    CHECK(out[1] == Approx(17.0 / 7));
    CHECK(out[2] == Approx(24.0 / 7));
    CHECK(out[3] == Approx(24.0 / 7));
    // one key more beside the grid: score ln 7, value 10
    Site more(joint(0, 1, 1, 4, 1), 5, 1, 1);
    for (size_t i = 0; i < 10; i++) {
        more.c.q[i] = 1;
        more.c.k[i] = (float)(i % 5 < 4 ? key[i % 5] : std::log(7));
        more.c.v[i] = (float)(i % 5 < 4 ? i % 5 + 1 : 10);
    }
    TestRun again(&hd_all_accelerators, Site::preset("\"window\": 3"));
    REQUIRE_OK(more.c.dry(again));
    out = more.c.act(again);
    CHECK(out[0] == Approx(87.0 / 14));
    CHECK(out[3] == Approx(118.0 / 21));
    // the published way of joining the parts: by their log-sum-exp
    auto merged = [](double a, double la, double b, double lb) {
        return a - (a - b) / (1 + std::exp(la - lb));
    };
    CHECK(merged(17.0 / 7, std::log(7), 10, std::log(7)) == Approx(87.0 / 14));
    CHECK(merged(24.0 / 7, std::log(14), 10, std::log(7)) == Approx(118.0 / 21));
}

TEST_CASE("gna: the whole grid as the window is dense attention", "[gna]")
{
    Site s(joint(2, 2, 3, 4), 26);
    TestRun dense(&hd_all_accelerators, "{}");
    REQUIRE_OK(s.c.dry(dense));
    const std::vector<float> truth = s.c.act(dense);
    for (const char *fields : {"\"window\": -1", "\"window\": [2, 3, 4], \"stride\": [1, 3, 2]"}) {
        TestRun run(&hd_all_accelerators, Site::preset(fields));
        REQUIRE_OK(run.status);
        REQUIRE_OK(s.c.dry(run));
        CHECK(s.c.act(run) == truth);
    }
}

TEST_CASE("gna: the same bytes whatever the threads and the other rows", "[gna]")
{
    Site s(joint(3, 3, 6, 7), 129);
    TestRun run(&hd_all_accelerators, Site::preset("\"window\": 3, \"stride\": [1, 2, 1]"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(s.c.dry(run));
    REQUIRE_OK(s.c.try_act(run, 0, 1));
    const std::vector<float> first = s.c.out;
    REQUIRE_OK(s.c.try_act(run, 0, 3));
    CHECK(s.c.out == first);
    const size_t row = s.c.q.size() / 2;
    for (size_t i = 0; i < row; i++)
        s.c.q[row + i] = s.c.k[row + i] = 100.0f;
    REQUIRE_OK(s.c.try_act(run, 0, 2));
    CHECK(std::equal(first.begin(), first.begin() + (int64_t)row, s.c.out.begin()));
}

TEST_CASE("gna: scaling from a base size", "[gna]")
{
    // 480p's grid from 720p's: windows and strides halve to the even neighbour
    Resolved scaled(
        "{\"window\": [18, 24, 24], \"stride\": [2, 4, 8], \"base_size\": [30, 48, 80], "
        "\"snap\": false}",
        21, 30, 52);
    CHECK(scaled.of(&hd_gna_axis::window) == List{13, 15, 16}); // 12.6, 15, 15.6
    CHECK(scaled.of(&hd_gna_axis::stride) == List{1, 2, 5});    // 1.4, 2.5, 5.2
    Resolved snapped(
        "{\"window\": [18, 24, 24], \"stride\": [2, 4, 8], \"base_size\": [30, 48, 80], "
        "\"tile_q\": [1, 4, 8], \"tile_kv\": [4, 8, 8]}",
        21, 30, 52);
    CHECK(snapped.of(&hd_gna_axis::window) == List{16, 16, 16});
    CHECK(snapped.of(&hd_gna_axis::stride) == List{1, 4, 8});
    Resolved same("{\"window\": [1, -1, 5], \"base_size\": [-1, 48, 80], \"dilation\": [1, 1, 4], "
                  "\"snap\": false}",
                  4, 24, 40);
    CHECK(same.of(&hd_gna_axis::window) == List{1, 24, 2}); // 2.5 to the even neighbour
    CHECK(same.of(&hd_gna_axis::dilation) == List{1, 1, 2});
    Resolved small("{\"window\": [18, 24, 24], \"base_size\": [30, 48, 80], \"snap\": false}", 2, 3,
                   4);
    CHECK(small.of(&hd_gna_axis::window) == List{2, 2, 2}); // never below 2, nor above the axis
}

TEST_CASE("gna: windows larger than a small grid", "[gna]")
{
    Resolved small("{\"window\": [5, 9, 4], \"stride\": [4, 9, 2], \"dilation\": [2, 1, 3], "
                   "\"on_small\": \"clamp\"}",
                   3, 6, 8);
    REQUIRE_OK(small.status);
    CHECK(small.of(&hd_gna_axis::window) == List{3, 6, 4});
    CHECK(small.of(&hd_gna_axis::stride) == List{3, 6, 2});
    CHECK(small.of(&hd_gna_axis::dilation) == List{1, 1, 2});
}

TEST_CASE("gna: a window that was cut is said", "[gna]")
{
    PlanInput::Shape shape;
    shape.frames = 3, shape.height = 6, shape.width = 8;
    PlanInput in(shape);
    const std::string window = R"({"window": [2, 9, 4], "on_small": "clamp"})";
    CHECK(std::string(Planning(hd_gna, window, in).prepared.note) == "window cut to 2x6x4");
    Planning fits(hd_gna, R"({"window": [2, 6, 4], "on_small": "clamp"})", in);
    CHECK(std::string(fits.prepared.note) == "");
}

TEST_CASE("gna: lists on grids of fewer axes", "[gna]")
{
    Resolved picture("{\"window\": [3, 5], \"stride\": 2}", 1, 8, 8);
    CHECK(picture.of(&hd_gna_axis::window) == List{1, 3, 5});
    CHECK(picture.of(&hd_gna_axis::stride) == List{1, 2, 2});
    Resolved all("{\"window\": [-1, 3, 5]}", 1, 8, 8);
    CHECK(all.of(&hd_gna_axis::window) == List{1, 3, 5});
    Resolved per_head(
        "{\"window\": 3, \"stride\": 2, \"heads\": [{\"heads\": [3, 1], \"window\": 5}, "
        "{\"heads\": 0, \"stride\": 1}]}",
        1, 8, 8, 4);
    REQUIRE_OK(per_head.status);
    CHECK(per_head.of(&hd_gna_axis::window, 1) == List{1, 5, 5});
    CHECK(per_head.of(&hd_gna_axis::stride, 1) == List{1, 2, 2});
    CHECK(per_head.of(&hd_gna_axis::stride, 2) == List{1, 1, 1});
    const int32_t *of = per_head.site.problem.rule_of;
    CHECK(std::vector<int32_t>(of, of + 4) == std::vector<int32_t>{2, 1, 0, 1});
}

TEST_CASE("gna: proxies want a fixed cut of the keys", "[gna]")
{
    Resolved drop("{\"window\": [3, 5]}", 1, 64, 64);
    Resolved proxy("{\"window\": [3, 5]}", 1, 64, 64, 2, HD_REST_PROXY);
    CHECK(drop.site.tiles.dynamic);
    CHECK(!proxy.site.tiles.dynamic);
}

TEST_CASE("gna: refusals when the preset loads", "[gna]")
{
    Site s(joint(0, 3, 6, 8), 144);
    auto refused = [&](const std::string &fields, const std::string &message) {
        INFO(fields);
        CHECK_FAILS(s.refused(fields), HD_ERR_ARGUMENT, message);
    };
    refused("\"stride\": 1", "window");
    refused("\"window\": [3, 0, 3]", "processors[0].window[1] is 0: a window is at least 1 key");
    refused("\"window\": -2", "processors[0].window is -2: a window is at least 1 key");
    refused("\"window\": 3, \"stride\": [1, 1, 0]",
            "processors[0].stride[2] is 0: a window is shared");
    refused("\"window\": 3, \"dilation\": 0", "processors[0].dilation is 0: must be at least 1");
    refused("\"window\": 3, \"causal\": [true, 1, false]", "processors[0].causal[1]");
    refused("\"window\": 3, \"base_size\": [30, 0, 80]", "processors[0].base_size[1] is 0");
    refused("\"window\": 3, \"tile_q\": [1, 8, 8]",
            "processors[0].tile_q is given without \"tile_kv\"");
    refused("\"window\": 3, \"tile_kv\": [1, 8, 8]",
            "processors[0].tile_kv is given without \"tile_q\"");
    refused("\"window\": [3, 3, 3], \"stride\": [1, 1]",
            "processors[0].stride has 2 numbers but window has 3");
    refused("\"window\": [3, 3, 3, 3]", "processors[0].window");
    refused("\"window\": 3, \"snap\": true", "there is no \"base_size\"");
    refused("\"window\": 3, \"heads\": [{\"heads\": [0, 1, 0]}]",
            "names head 0, which \"heads\" already has");
    refused("\"window\": 3, \"heads\": [{\"heads\": 1}, {\"heads\": [0, 1]}]", "names head 1");
    refused("\"window\": 3, \"heads\": [{\"window\": 2}]", "heads");
    refused("\"window\": 3, \"heads\": [{\"heads\": 1, \"windows\": 2}]",
            "did you mean \"window\"");
    refused("\"window\": 3, \"heads\": [{\"heads\": 1, \"window\": 0}]",
            "processors[0].heads[0].window is 0");
    refused("\"window\": 3, \"kv_tiling\": \"dynamik\"", "kv_tiling");
    refused("\"window\": 3, \"scale\": 1e999", "scale");
    refused("\"window\": 3, \"strict\": 1", "strict");
}

TEST_CASE("gna: refusals at the first call of a site", "[gna]")
{
    Site s(joint(4, 3, 6, 8), 148);
    auto refused = [&](const std::string &fields, hd_status status, const std::string &message) {
        INFO(fields);
        CHECK_FAILS(s.refused(fields), status, message);
    };
    refused("\"window\": [3, 7, 3]", HD_ERR_SHAPE,
            "window[1] is 7 but that axis of its grid has 6 tokens; use at most 6");
    refused("\"window\": [3, 3, 3], \"dilation\": [1, 1, 3]", HD_ERR_SHAPE,
            "has 8 tokens; use a dilation of at most 2");
    refused("\"window\": [3, 4, 4], \"stride\": [1, 1, 5]", HD_ERR_SHAPE,
            "stride[2] is 5 but window[2] is 4: a stride above the window would leave keys unseen; "
            "use at most 4");
    refused("\"window\": [3, 4, -1], \"stride\": 5", HD_ERR_SHAPE,
            "stride is 5 but window[0] is 3");
    refused("\"window\": [3, 3]", HD_ERR_SHAPE,
            "window has 2 numbers, its grid of 3 x 6 x 8 has 3 axes");
    refused("\"window\": [1, 3, 3], \"strict\": true", HD_ERR_ARGUMENT, "\"strict\"");
    refused("\"window\": 3, \"extra\": [[2, 6]]", HD_ERR_SHAPE,
            "processors[0].extra[0] is [2, 6]: must ascend");
    refused("\"window\": 3, \"extra\": [[0, 200]]", HD_ERR_SHAPE, "within the 148 tokens");
    refused("\"window\": 3, \"extra\": [[0, 3]]", HD_ERR_SHAPE,
            "names 3 tokens, which with the grid's 144 are not the 148");
    CHECK(s.refused("\"window\": 3, \"extra\": [[0, 2], [2, 4]]") == HD_OK);
    refused("\"window\": 3, \"tile_q\": [3, 16, 16], \"tile_kv\": [1, 8, 8]", HD_ERR_UNSUPPORTED,
            "tile_q has 768 tokens, the kernel's tiles at most 256; tile_q with tile_kv that suit "
            "this grid: [");
    refused("\"window\": 3, \"tile_q\": [1, 8, 8], \"tile_kv\": [9, 8, 8]", HD_ERR_UNSUPPORTED,
            "tile_kv has 576 tokens");
    refused("\"window\": 3, \"dilation\": [1, 2, 1], \"kv_tiling\": \"dynamic\"",
            HD_ERR_UNSUPPORTED, "an axis is dilated");
    refused("\"window\": 3, \"heads\": [{\"heads\": 2}]", HD_ERR_ARGUMENT,
            "names head 2, a site it acts on has 2 (0 to 1)");
    refused("\"window\": 3, \"heads\": [{\"heads\": 1, \"stride\": 4}]", HD_ERR_SHAPE,
            "in heads[0]");
    refused("\"window\": 3, \"heads\": [{\"heads\": 1}], \"rest\": \"proxy\", \"kv_tiling\": "
            "\"dynamic\"",
            HD_ERR_UNSUPPORTED, "\"rest\"");
}

TEST_CASE("gna: refusals of calls that are no self attention over a grid", "[gna]")
{
    const std::string preset = Site::preset("\"window\": 3");
    auto refused = [&](TestCall &c, hd_status status, const std::string &message) {
        TestRun run(&hd_all_accelerators, preset);
        REQUIRE_OK(run.status);
        CHECK_FAILS(c.dry(run), status, message);
    };
    TestCall cross(1, 64, 10, 2, 8);
    cross.call.q_layout = hd_layout_grid(1, 8, 8);
    cross.call.k_layout = hd_layout_text(10);
    refused(cross, HD_ERR_UNSUPPORTED, "its keys are not one grid");
    TestCall other(1, 64, 16, 2, 8);
    other.call.q_layout = hd_layout_grid(1, 8, 8);
    other.call.k_layout = hd_layout_grid(1, 4, 4);
    refused(other, HD_ERR_UNSUPPORTED, "for self attention");
}
