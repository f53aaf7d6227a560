// Window attention: plans beside boxes of the grid cut at {0, s, s + w, ...}, published counts,
// regions of the rolled grid, relative positions, the flow of information, outputs and refusals.
#include <algorithm>
#include <cmath>
#include <random>

#include "sparse/all.h"
#include "sparse/swin_windows.h"
#include "support/alloc_fail.h"
#include "support/attention.h"
#include "support/plan.h"

namespace
{

struct Plan {
    hd_swin_problem p{};
    hd_plan_builder b{};
    Plan(hd_grid grid, std::vector<int64_t> window, std::vector<int64_t> shift, bool plain,
         bool shifted, bool wrap = false, int64_t ring = 1, int64_t tail = 0, int64_t heads = 2)
    {
        p.grid = grid;
        p.queries = p.keys = grid.token + hd_grid_tokens(&grid) + tail;
        p.heads = heads;
        std::copy(window.begin(), window.end(), p.window);
        std::copy(shift.begin(), shift.end(), p.shift);
        hd_swin_fit(&p.grid, p.window, p.shift);
        p.plain = plain;
        p.shifted = shifted;
        p.wrap = wrap;
        p.ring = ring;
        hd_plan_builder_init(&b, nullptr, 0);
        REQUIRE_OK(hd_swin_build(&b, &p));
    }
    Plan(const Plan &) = delete;
    ~Plan()
    {
        hd_plan_builder_free(&b);
    }
    PlanMeaning meaning(int64_t head = 0) const
    {
        return plan_meaning(b.plan, head, p.queries, p.keys);
    }
    // The box of coordinate x on an axis, by the cut's borders; on a torus by the rolled grid's.
    int64_t box(int i, int64_t x, bool shifted) const
    {
        const int64_t n = p.grid.size[i], s = shifted ? p.shift[i] : 0;
        if (p.wrap) return (x + n - s) % n / p.window[i];
        return s == 0 ? x / p.window[i] : x < s ? 0 : 1 + (x - s) / p.window[i];
    }
    bool near(int i, int64_t x, int64_t y, bool shifted) const
    {
        int64_t d = std::abs(box(i, x, shifted) - box(i, y, shifted));
        if (p.wrap) {
            const int64_t boxes = (p.grid.size[i] + p.window[i] - 1) / p.window[i];
            d = std::min(d, boxes - d);
        }
        return d < p.ring;
    }
    bool sees(int64_t q, int64_t k, bool shifted) const
    {
        const int64_t n = hd_grid_tokens(&p.grid), a = q - p.grid.token, b_ = k - p.grid.token;
        if (a < 0 || a >= n || b_ < 0 || b_ >= n) return true;
        const int64_t *g = p.grid.size;
        return near(0, a / (g[1] * g[2]), b_ / (g[1] * g[2]), shifted) &&
               near(1, a / g[2] % g[1], b_ / g[2] % g[1], shifted) &&
               near(2, a % g[2], b_ % g[2], shifted);
    }
    int64_t wrong() const
    {
        int64_t count = 0;
        for (int64_t h = 0; h < p.heads; h++) {
            PlanMeaning m = meaning(h);
            const bool shifted = p.shifted && (!p.plain || h >= p.heads / 2);
            for (int64_t q = 0; q < p.queries; q++)
                for (int64_t k = 0; k < p.keys; k++)
                    count += m.at(q, k) != sees(q, k, shifted);
        }
        return count;
    }
    double pairs() const
    {
        hd_plan_stats s;
        REQUIRE_OK(hd_plan_measure(&s, &b.plan, 1, p.queries, p.keys, 1, 1, 4));
        return s.useful_pairs;
    }
};

hd_grid square(int64_t side)
{
    return {{1, side, side}, 0};
}

} // namespace

TEST_CASE("swin: regions of a rolled 4 x 4 grid", "[swin]")
{
    const hd_grid grid = square(4);
    const int64_t window[3] = {1, 2, 2}, shift[3] = {0, 1, 1};
    uint8_t label[16];
    hd_swin_labels(label, &grid, window, shift);
    auto labels = [&](int w) {
        std::vector<uint8_t> four(label + 4 * w, label + 4 * w + 4);
        std::sort(four.begin(), four.end());
        return std::unique(four.begin(), four.end()) - four.begin();
    };
    CHECK(labels(0) == 1);
    CHECK(labels(1) == 2);
    CHECK(labels(2) == 2);
    CHECK(labels(3) == 4);
    CHECK(label[4] == label[6]); // window 1: its columns differ, its rows do not
    CHECK(label[4] != label[5]);
    CHECK(label[8] == label[9]);
    int64_t pairs = 0;
    for (int i = 0; i < 16; i++)
        for (int j = i / 4 * 4; j < i / 4 * 4 + 4; j++)
            pairs += label[i] == label[j];
    CHECK(pairs == 36);
    hd_swin_cut cut{{{1, 0, 0}, {2, 0, 0}, {2, 0, 0}}, {0, 1, 1}};
    int32_t order[16], bound[5];
    hd_swin_order(order, bound, &grid, &cut);
    CHECK(order[15] == 0); // the token of the corner is last of the last window
    CHECK(std::count(label, label + 16, label[15]) == 1);
    for (bool both : {false, true}) { // by boxes, and by labels of the second half of the heads
        Plan plan(grid, {1, 2, 2}, {0, 1, 1}, both, true);
        PlanMeaning m = plan.meaning(1);
        CHECK(m.pairs() == 36);
        for (int64_t k = 0; k < 16; k++)
            CHECK(m.at(0, k) == (k == 0));
        CHECK((plan.b.plan.query_segment != nullptr) == both);
    }
    CHECK(Plan(grid, {1, 2, 2}, {0, 1, 1}, true, false).meaning().pairs() == 64);
}

TEST_CASE("swin: pairs of larger grids", "[swin]")
{
    CHECK(Plan(square(32), {1, 8, 8}, {0, 4, 4}, false, true).pairs() == 50176);
    CHECK(Plan(square(32), {1, 8, 8}, {0, 4, 4}, true, false).pairs() == 0.0625 * 1024 * 1024);
    CHECK(Plan(square(64), {1, 8, 8}, {0, 4, 4}, false, true).pairs() / (4096.0 * 4096) ==
          Approx(0.013733).margin(5e-7));
    CHECK(Plan(square(64), {1, 8, 8}, {0, 4, 4}, true, false).pairs() / (4096.0 * 4096) ==
          Approx(0.015625));
    Plan rolled(square(64), {1, 8, 8}, {0, 4, 4}, true, true);
    const hd_plan &p = rolled.b.plan;
    CHECK(p.query_tiles == 64);
    int64_t partial = 0;
    for (int64_t t = 0; t < 64; t++) {
        REQUIRE(hd_plan_row(&p, 1, t).count == 1); // as many tiles as unshifted
        partial += hd_plan_row(&p, 1, t).entry[0].mask != HD_VISIT_FULL;
    }
    CHECK(partial == 64 - 49);
}

TEST_CASE("swin: random plans beside boxes of the grid", "[swin]")
{
    const uint32_t seed = (uint32_t)GENERATE(range(0, 300));
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto up_to = [&](int64_t n) { return 1 + (int64_t)(random() % (uint64_t)n); };
    hd_grid grid{{random() % 2 ? 1 : up_to(5), up_to(9), up_to(random() % 8 ? 9 : 40)},
                 (int64_t)(random() % 3)};
    std::vector<int64_t> window, shift;
    for (int i = 0; i < 3; i++) {
        // dividing windows are met often enough
        int64_t w = up_to(6);
        if (random() % 2)
            while (grid.size[i] % w)
                w--;
        window.push_back(w);
        shift.push_back(random() % 2 ? w / 2 : (int64_t)(random() % (uint64_t)w));
    }
    const bool plain = random() % 2, shifted = !plain || random() % 2;
    Plan plan(grid, window, shift, plain, shifted, random() % 3 == 0, up_to(3),
              (int64_t)(random() % 3), 2);
    CAPTURE(grid.size[0], grid.size[1], grid.size[2], plain, shifted, plan.p.wrap, plan.p.ring);
    CAPTURE(window, shift);
    CHECK(plan.wrong() == 0);
}

TEST_CASE("swin: large windows are cut into tiles", "[swin]")
{
    Plan plan(square(40), {1, 20, 20}, {0, 10, 10}, false, true);
    CHECK(plan.b.plan.query_tile == 128);
    CHECK(plan.wrong() == 0);
    Plan both(square(40), {1, 20, 20}, {0, 10, 10}, true, true);
    CHECK(both.b.plan.query_tile == 128);
    CHECK(both.wrong() == 0);
}

TEST_CASE("swin: relative positions of a 2 x 2 window", "[swin]")
{
    const int64_t expected[4][4] = {{4, 3, 1, 0}, {5, 4, 2, 1}, {7, 6, 4, 3}, {8, 7, 5, 4}};
    for (int64_t q = 0; q < 4; q++)
        for (int64_t k = 0; k < 4; k++)
            CHECK(hd_swin_relative_index(2, 2, q, k) == expected[q][k]);
    CHECK(hd_swin_relative_index(2, 3, 0, 5) == 0);
    CHECK(hd_swin_relative_index(2, 3, 5, 0) == 3 * 5 - 1);
}

TEST_CASE("swin: rolling there and back", "[swin]")
{
    const hd_grid grid{{2, 5, 7}, 0};
    hd_swin_cut there{{{2, 0, 0}, {5, 0, 0}, {7, 0, 0}}, {1, 2, 3}};
    hd_swin_cut back = there;
    for (int i = 0; i < 3; i++)
        back.roll[i] = grid.size[i] - there.roll[i];
    std::vector<int32_t> a(70), b(70), inverse(70);
    int32_t bound[2];
    hd_swin_order(a.data(), bound, &grid, &there);
    hd_swin_order(b.data(), bound, &grid, &back);
    hd_order_invert(inverse.data(), a.data(), 70);
    CHECK(inverse == b);
    for (int32_t r = 0; r < 70; r++)
        REQUIRE(a[(size_t)b[(size_t)r]] == r);
}

TEST_CASE("swin: halves of the heads without a shift are one kind of windows", "[swin]")
{
    Plan halves(square(12), {1, 4, 4}, {0, 0, 0}, true, true);
    Plan fixed(square(12), {1, 4, 4}, {0, 0, 0}, true, false);
    CHECK(halves.b.plan.heads == 1);
    CHECK(halves.meaning(1).sees == fixed.meaning().sees);
}

TEST_CASE("swin: how far information flows", "[swin]")
{
    const int64_t n = 24, w = 4, s = 2;
    const hd_grid line{{1, 1, n}, 0};
    Plan plain(line, {1, 1, w}, {0, 0, s}, true, false);
    Plan shifted(line, {1, 1, w}, {0, 0, s}, false, true);
    PlanMeaning first = plain.meaning(), second = shifted.meaning();
    for (int64_t x = 0; x < n; x++) {
        const int64_t a = x / w;
        const int64_t from = std::max<int64_t>(a * w - (w - s), 0), to = std::min(a * w + w + s, n);
        std::vector<int64_t> reached, expected;
        for (int64_t y = 0; y < n; y++) {
            bool hit = false;
            for (int64_t middle = 0; middle < n; middle++)
                hit = hit || (first.at(middle, x) && second.at(y, middle));
            if (hit) reached.push_back(y);
        }
        for (int64_t y = from; y < to; y++)
            expected.push_back(y);
        CAPTURE(x);
        CHECK(reached == expected);
    }
    // halves of the heads in one layer: one's window, and one's shifted box
    Plan both(line, {1, 1, w}, {0, 0, s}, true, true);
    CHECK(both.meaning(0).sees == first.sees);
    CHECK(both.meaning(1).sees == second.sees);
}

namespace
{

std::string preset(const std::string &fields)
{
    return "{\"processors\": [{\"use\": \"swin_windows\"" + fields + "}]}";
}

// The largest difference from f64 attention inside the boxes of `truth`.
double error_of(TestCall &c, const std::string &fields, const Plan &truth, bool plain, bool shifted,
                int64_t step = 0)
{
    TestRun run(&hd_all_accelerators, preset(fields));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    REQUIRE_OK(c.try_act(run, step, 2));
    return error_f64(c, c.out, 0, [&](int64_t h, int64_t i) {
        return softmax_f64(c.Lk, [&](int64_t j) {
            return truth.sees(i, j, shifted && (!plain || h >= c.H / 2)) ? score_f64(c, 0, h, i, j)
                                                                         : -HUGE_VAL;
        });
    });
}

} // namespace

TEST_CASE("swin: outputs by schedule", "[swin]")
{
    TestCall c(1, 12 * 10, 12 * 10, 4, 8);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 12, 10);
    Plan truth({{1, 12, 10}, 0}, {1, 4, 4}, {0, 2, 2}, true, true, false, 1, 0, 4);
    const std::string window = ", \"window\": [4, 4]";
    strcpy(c.call.site.path, "block.2");
    CHECK(error_of(c, window, truth, true, false) < 1e-5);
    strcpy(c.call.site.path, "block.3");
    CHECK(error_of(c, window, truth, false, true) < 1e-5);
    CHECK(error_of(c, window + ", \"shift\": \"none\"", truth, true, false) < 1e-5);
    CHECK(error_of(c, window + ", \"schedule\": \"double\"", truth, true, true) < 1e-5);
    CHECK(error_of(c, window + ", \"schedule_axis\": \"head\"", truth, true, true) < 1e-5);
    strcpy(c.call.site.path, "down.1.attn.0");
    CHECK(error_of(c, window, truth, true, false) < 1e-5);
    CHECK(error_of(c, window + ", \"schedule\": \"fixed\", \"shift\": [2, 2]", truth, false, true) <
          1e-5);
    CHECK(error_of(c, window + ", \"schedule_axis\": \"step\"", truth, true, false, 4) < 1e-5);
    CHECK(error_of(c, window + ", \"schedule_axis\": \"step\"", truth, false, true, 5) < 1e-5);
    strcpy(c.call.site.path, "up.0.attn.0.1");
    CHECK(error_of(c, window + ", \"schedule\": \"both\"", truth, false, true) < 1e-5);
}

TEST_CASE("swin: constant keys give the mean of the box", "[swin]")
{
    TestCall c(1, 36, 36, 2, 4);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 6, 6);
    std::fill(c.k.begin(), c.k.end(), 0.5f);
    Plan truth(square(6), {1, 4, 4}, {0, 2, 2}, false, true);
    TestRun run(&hd_all_accelerators, preset(", \"window\": 4, \"schedule\": \"fixed\""));
    REQUIRE_OK(c.dry(run));
    std::vector<float> out = c.act(run);
    CHECK(error_f64(c, out, 0, [&](int64_t, int64_t i) {
              std::vector<double> mean(36);
              double sum = 0;
              for (int64_t j = 0; j < 36; j++)
                  sum += mean[(size_t)j] = truth.sees(i, j, true);
              for (double &m : mean)
                  m /= sum;
              return mean;
          }) < 1e-6);
}

TEST_CASE("swin: windows of the whole grid are dense", "[swin]")
{
    TestCall c(1, 20, 20, 2, 4);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 4, 5);
    TestRun dense(&hd_all_accelerators, "{}");
    REQUIRE_OK(c.dry(dense));
    const std::vector<float> truth = c.act(dense);
    for (const char *fields :
         {", \"window\": 5", ", \"window\": [4, 9], \"schedule\": \"double\"", ""}) {
        TestRun run(&hd_all_accelerators, preset(fields));
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
        CHECK(c.act(run) == truth);
    }
}

TEST_CASE("swin: refusals and failing allocations", "[swin]")
{
    TestCall c(1, 36, 36, 3, 4);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 6, 6);
    auto refused = [&](const std::string &fields, hd_status status, const std::string &message) {
        INFO(fields);
        TestRun run(&hd_all_accelerators, preset(fields));
        CHECK_FAILS(run.status != HD_OK ? run.status : c.dry(run), status, message);
    };
    refused(", \"window\": [4, 0]", HD_ERR_ARGUMENT, "processors[0].window[1]");
    refused(", \"shift\": \"third\"", HD_ERR_ARGUMENT, "processors[0].shift is \"third\"");
    refused(", \"window\": 4, \"shift\": [2, 4]", HD_ERR_ARGUMENT, "shift is 4 on an axis");
    refused(", \"window\": [4, 4, 4], \"shift\": [1, 1, 1], \"ring\": 0", HD_ERR_ARGUMENT, "ring");
    refused(", \"window\": 4, \"schedule\": \"double\"", HD_ERR_UNSUPPORTED,
            "its 3 heads have no halves");
    refused(", \"window\": 4, \"schedule\": \"both\"", HD_ERR_UNSUPPORTED,
            "its block has one attention");
    refused(", \"schedule\": \"fixed\", \"schedule_axis\": \"head\"", HD_ERR_ARGUMENT,
            "only \"alternate\"");
    refused(", \"bias\": \"relative\"", HD_ERR_ARGUMENT, "bias");
    fail_each_allocation([&] {
        hd_swin_problem p{};
        p.grid = {{1, 6, 6}, 1};
        p.queries = p.keys = 38;
        p.heads = 2;
        p.window[0] = 1;
        p.window[1] = p.window[2] = 4;
        p.shift[1] = p.shift[2] = 2;
        p.plain = p.shifted = true;
        p.ring = 1;
        hd_plan_builder b;
        hd_plan_builder_init(&b, nullptr, 0);
        hd_status status = hd_swin_build(&b, &p);
        hd_plan_builder_free(&b);
        return status;
    });
}
