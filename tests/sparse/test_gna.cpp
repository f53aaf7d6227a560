// Neighbourhood windows: published neighbour sets and predictions, properties of the rule, plans
// against brute-force masks on random grids.
#include <algorithm>
#include <cmath>
#include <random>

#include "engine/ops/sdpa.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/gna.h"
#include "support/plan.h"
#include "support/values.h"

namespace
{

using Set = std::vector<int64_t>;

hd_gna_axis axis_of(int64_t window, int64_t stride = 1, int64_t dilation = 1, bool causal = false)
{
    return {window, stride, dilation, causal};
}

Set neighbours(const hd_gna_axis &a, int64_t length, int64_t x)
{
    std::vector<int32_t> start((size_t)length), end((size_t)length);
    hd_gna_windows(&a, length, start.data(), end.data());
    Set set;
    for (int64_t y = start[(size_t)x]; y < end[(size_t)x]; y += a.dilation)
        set.push_back(y);
    return set;
}

Set run(int64_t first, int64_t last, int64_t step = 1)
{
    Set set;
    for (int64_t y = first; y <= last; y += step)
        set.push_back(y);
    return set;
}

void check_sets(const hd_gna_axis &a, int64_t length, const std::vector<Set> &expected)
{
    for (int64_t x = 0; x < length; x++) {
        CAPTURE(a.window, a.stride, a.dilation, a.causal, x);
        CHECK(neighbours(a, length, x) == expected[(size_t)x]);
    }
}

struct Problem {
    hd_gna_problem p{};
    std::vector<std::vector<hd_gna_axis>> rules;
    std::vector<hd_gna_axis> flat;
    std::vector<int32_t> rule_of;

    Problem(hd_grid grid, std::vector<std::vector<hd_gna_axis>> r, int64_t tokens = 0,
            std::vector<int32_t> of = {0})
        : rules(r), rule_of(of)
    {
        for (auto &rule : rules)
            flat.insert(flat.end(), rule.begin(), rule.end());
        p.grid = grid;
        p.queries = p.keys = tokens ? tokens : hd_grid_tokens(&grid);
        p.rules = (int64_t)rules.size();
        p.rule = reinterpret_cast<const hd_gna_axis(*)[3]>(flat.data());
        p.heads = (int64_t)rule_of.size();
        p.rule_of = rule_of.data();
    }
    Problem(const Problem &) = delete;

    // by the definition
    bool at(int64_t head, int64_t q, int64_t k) const
    {
        const int64_t n = hd_grid_tokens(&p.grid);
        const int64_t a = q - p.grid.token, b = k - p.grid.token;
        if (a < 0 || a >= n || b < 0 || b >= n) return true;
        const auto &rule = rules[rules.size() == 1 ? 0 : (size_t)rule_of[(size_t)head]];
        const int64_t *s = p.grid.size;
        return gna_sees(rule[0], s[0], a / (s[1] * s[2]), b / (s[1] * s[2])) &&
               gna_sees(rule[1], s[1], a / s[2] % s[1], b / s[2] % s[1]) &&
               gna_sees(rule[2], s[2], a % s[2], b % s[2]);
    }
};

struct Plan {
    hd_plan_builder b{};
    Plan(const Problem &problem, const hd_gna_tiles &tiles)
    {
        hd_plan_builder_init(&b, nullptr, 0);
        REQUIRE_OK(hd_gna_build(&b, &problem.p, &tiles));
    }
    Plan(const Plan &) = delete;
    ~Plan()
    {
        hd_plan_builder_free(&b);
    }
    // of row t: keys, those of full entries marked
    std::vector<std::pair<int64_t, bool>> row(int64_t t) const
    {
        std::vector<std::pair<int64_t, bool>> list;
        hd_visits v = hd_plan_row(&b.plan, 0, t);
        for (int64_t i = 0; i < v.count; i++)
            list.push_back({v.entry[i].key, v.entry[i].mask == HD_VISIT_FULL});
        return list;
    }
    // Differences from the definition; full entries that hide something count too.
    int64_t wrong(const Problem &problem) const
    {
        int64_t count = 0;
        for (int64_t h = 0; h < problem.p.heads; h++) {
            PlanMeaning m = plan_meaning(b.plan, h, problem.p.queries, problem.p.keys);
            for (int64_t q = 0; q < problem.p.queries; q++)
                for (int64_t k = 0; k < problem.p.keys; k++)
                    count += m.at(q, k) != problem.at(h, q, k);
        }
        return count;
    }
};

hd_grid line(int64_t length)
{
    return {{1, 1, length}, 0};
}

std::vector<hd_gna_axis> on_line(hd_gna_axis a)
{
    return {axis_of(1), axis_of(1), a};
}

hd_gna_prediction predict(hd_grid grid, std::vector<hd_gna_axis> axis, hd_gna_tiles tiles)
{
    hd_gna_prediction p{};
    REQUIRE_OK(hd_gna_predict(&p, &grid, axis.data(), &tiles));
    return p;
}

} // namespace

TEST_CASE("gna: neighbours on one axis", "[gna]")
{
    const Set a = run(0, 2);
    check_sets(axis_of(3), 8,
               {a, a, run(1, 3), run(2, 4), run(3, 5), run(4, 6), run(5, 7), run(5, 7)});
    const Set b = run(0, 3);
    check_sets(axis_of(4), 8, {b, b, b, run(1, 4), run(2, 5), run(3, 6), run(4, 7), run(4, 7)});
    check_sets(axis_of(4, 2), 8,
               {b, b, run(1, 4), run(1, 4), run(3, 6), run(3, 6), run(4, 7), run(4, 7)});
    check_sets(axis_of(4, 3), 8, {b, b, b, run(2, 5), run(2, 5), run(2, 5), run(4, 7), run(4, 7)});
    check_sets(axis_of(4, 4), 8, {b, b, b, b, run(4, 7), run(4, 7), run(4, 7), run(4, 7)});
    check_sets(axis_of(3, 2), 7, {a, a, run(2, 4), run(2, 4), run(4, 6), run(4, 6), run(4, 6)});
    const Set c = run(0, 4), d = run(4, 8), e = run(5, 9);
    check_sets(axis_of(5, 4), 10, {c, c, c, c, d, d, d, d, e, e});
}

TEST_CASE("gna: dilated and causal neighbours", "[gna]")
{
    const Set even = run(0, 8, 2), odd = run(1, 9, 2), far = run(2, 10, 2), last = run(3, 11, 2);
    check_sets(axis_of(5, 1, 2), 10, {even, odd, even, odd, even, odd, even, odd, even, odd});
    check_sets(axis_of(5, 1, 2), 11, {even, odd, even, odd, even, odd, far, odd, far, odd, far});
    check_sets(axis_of(5, 2, 2), 12,
               {even, odd, even, odd, far, last, far, last, far, last, far, last});
    check_sets(axis_of(4, 1, 1, true), 8,
               {{0}, run(0, 1), run(0, 2), run(0, 3), run(1, 4), run(2, 5), run(3, 6), run(4, 7)});
    check_sets(axis_of(4, 2, 1, true), 8,
               {{0}, run(0, 1), run(0, 2), run(0, 3), run(2, 4), run(2, 5), run(4, 6), run(4, 7)});
    check_sets(axis_of(3, 3, 1, true), 8,
               {{0}, run(0, 1), run(0, 2), {3}, run(3, 4), run(3, 5), run(5, 6), run(5, 7)});
    check_sets(axis_of(3, 2, 2, true), 11,
               {{0},
                {1},
                {0, 2},
                {1, 3},
                {2, 4},
                {3, 5},
                {2, 4, 6},
                {3, 5, 7},
                {6, 8},
                {5, 7, 9},
                {6, 8, 10}});
}

TEST_CASE("gna: starts of a video's windows", "[gna]")
{
    auto starts = [](int64_t length, int64_t window, int64_t stride) {
        std::vector<int32_t> start((size_t)length), end((size_t)length);
        hd_gna_axis a = axis_of(window, stride);
        hd_gna_windows(&a, length, start.data(), end.data());
        Set of;
        for (int64_t x = 0; x < length; x += stride)
            of.push_back(start[(size_t)x]);
        return of;
    };
    CHECK(starts(30, 18, 16) == Set{0, 12});
    CHECK(starts(48, 24, 8) == Set{0, 0, 8, 16, 24, 24});
    CHECK(starts(80, 24, 8) == Set{0, 0, 8, 16, 24, 32, 40, 48, 56, 56});
}

TEST_CASE("gna: neighbours on two axes", "[gna]")
{
    auto set = [](const Problem &problem, int64_t q) {
        Plan plan(problem, {{1, 2, 2}, {1, 2, 2}, false});
        PlanMeaning m = plan_meaning(plan.b.plan, 0, 16, 16);
        Set seen;
        for (int64_t k = 0; k < 16; k++)
            if (m.at(q, k)) seen.push_back(k);
        return seen;
    };
    const hd_grid grid{{1, 4, 4}, 0};
    const Problem plain(grid, {{axis_of(1), axis_of(3), axis_of(3)}});
    const Set corner[2][2] = {{{0, 1, 2, 4, 5, 6, 8, 9, 10}, {1, 2, 3, 5, 6, 7, 9, 10, 11}},
                              {{4, 5, 6, 8, 9, 10, 12, 13, 14}, {5, 6, 7, 9, 10, 11, 13, 14, 15}}};
    for (int64_t q = 0; q < 16; q++) {
        CAPTURE(q);
        CHECK(set(plain, q) == corner[q / 4 / 2][q % 4 / 2]);
    }
    const Problem causal(grid, {{axis_of(1), axis_of(3, 1, 1, true), axis_of(3)}});
    const Set first[2] = {{0, 1, 2}, {1, 2, 3}};
    const Set second[2] = {{0, 1, 2, 4, 5, 6}, {1, 2, 3, 5, 6, 7}};
    for (int64_t q = 0; q < 16; q++) {
        CAPTURE(q);
        const int64_t side = q % 4 / 2;
        CHECK(set(causal, q) == (q < 4    ? first[side]
                                 : q < 8  ? second[side]
                                 : q < 12 ? corner[0][side]
                                          : corner[1][side]));
    }
}

TEST_CASE("gna: plans tile by tile", "[gna]")
{
    using Row = std::vector<std::pair<int64_t, bool>>;
    const Problem strided(line(8), {on_line(axis_of(4, 2))});
    const hd_gna_tiles two{{1, 1, 2}, {1, 1, 2}, false}, free_two{{1, 1, 2}, {1, 1, 2}, true};
    Plan plan(strided, two);
    CHECK(plan.row(0) == Row{{0, true}, {1, true}});
    CHECK(plan.row(1) == Row{{0, false}, {1, true}, {2, false}});
    CHECK(plan.row(2) == Row{{1, false}, {2, true}, {3, false}});
    CHECK(plan.row(3) == Row{{2, true}, {3, true}});
    CHECK(plan.b.plan.query_order == nullptr);
    hd_gna_prediction p = predict(line(8), on_line(axis_of(4, 2)), two);
    CHECK(p.visited == 10);
    CHECK(p.full == 6);
    CHECK(p.speed_sim == Approx(4.0 / 3));
    Plan free_boxes(strided, free_two);
    CHECK(free_boxes.row(0) == Row{{0, true}, {2, true}});
    CHECK(free_boxes.row(1) == Row{{1, true}, {3, true}});
    CHECK(free_boxes.row(2) == Row{{3, true}, {5, true}});
    CHECK(free_boxes.row(3) == Row{{4, true}, {6, true}});
    p = predict(line(8), on_line(axis_of(4, 2)), free_two);
    CHECK(p.visited == 8);
    CHECK(p.full == 8);

    p = predict(line(8), on_line(axis_of(4, 4)), {{1, 1, 4}, {1, 1, 4}, false});
    CHECK(p.visited == 2);
    CHECK(p.full == 2);
    p = predict({{1, 4, 4}, 0}, {axis_of(1), axis_of(3), axis_of(3)},
                {{1, 2, 2}, {1, 2, 2}, false});
    CHECK(p.visited == 16);
    CHECK(p.full == 4);
    Plan causal(Problem(line(8), {on_line(axis_of(4, 1, 1, true))}), two);
    CHECK(causal.row(0) == Row{{0, false}});
    CHECK(causal.row(1) == Row{{0, true}, {1, false}});
    CHECK(causal.row(2) == Row{{0, false}, {1, true}, {2, false}});
    CHECK(causal.row(3) == Row{{1, false}, {2, true}, {3, false}});
    const std::vector<hd_gna_axis> square{axis_of(1), axis_of(8, 4), axis_of(8, 4)};
    p = predict({{1, 16, 16}, 0}, square, {{1, 4, 4}, {1, 4, 4}, false});
    CHECK(p.visited == 100);
    CHECK(p.full == 36);
    p = predict({{1, 16, 16}, 0}, square, {{1, 4, 4}, {1, 4, 4}, true});
    CHECK(p.visited == 64);
    CHECK(p.full == 64);
}

TEST_CASE("gna: a large perfect plan", "[gna]")
{
    const Problem video({{30, 48, 80}, 0}, {{axis_of(18, 16), axis_of(24, 8), axis_of(24, 8)}});
    const hd_gna_tiles tiles{{2, 8, 8}, {2, 8, 8}, false};
    Plan plan(video, tiles);
    int64_t full = 0;
    for (int64_t t = 0; t < plan.b.plan.query_tiles; t++)
        for (auto [key, whole] : plan.row(t))
            full += whole;
    CHECK(plan.b.plan.row_start[plan.b.plan.query_tiles] == 72900);
    CHECK(full == 72900);
    hd_plan_stats stats;
    REQUIRE_OK(hd_plan_measure(&stats, &plan.b.plan, 24, 115200, 115200, 128, 128, 2));
    CHECK(stats.useful_pairs == stats.executed_pairs);
    CHECK(stats.executed_flops == 4.0 * 24 * 128 * 128 * 128 * 72900);
    CHECK(stats.density == Approx(0.09));
}

TEST_CASE("gna: the published simulator's numbers", "[gna]")
{
    struct Case {
        int64_t stride[3];
        double sim, end_to_end, average, full_share, waste;
    };
    const Case video[] = {
        {{1, 1, 1}, 3.273, 1.729, 5.245, 0.154, 2.26},
        {{2, 1, 1}, 3.600, 1.781, 5.455, 0.167, 2.17},
        {{1, 1, 8}, 5.455, 1.983, 7.692, 0.423, 1.54},
        {{2, 1, 8}, 6.000, 2.024, 8.000, 0.460, 1.48},
        {{1, 8, 8}, 9.091, 2.175, 10.256, 0.846, 1.16},
        {{2, 8, 8}, 10.000, 2.204, 10.667, 0.920, 1.11},
        {{16, 8, 8}, 11.111, 2.234, 11.111, 1.000, 1.07},
    };
    for (const Case &c : video) {
        CAPTURE(c.stride[0], c.stride[1], c.stride[2]);
        hd_gna_prediction p =
            predict({{30, 48, 80}, 0},
                    {axis_of(18, c.stride[0]), axis_of(24, c.stride[1]), axis_of(24, c.stride[2])},
                    {{4, 8, 8}, {2, 8, 8}, false});
        CHECK(p.speed_sim == Approx(c.sim).margin(5e-4));
        CHECK(hd_gna_end_to_end(0.607, 1.0, p.speed_sim) == Approx(c.end_to_end).margin(1e-3));
        CHECK(p.speed_avg == Approx(c.average).margin(1e-3));
        CHECK(p.full_share == Approx(c.full_share).margin(1e-3));
        CHECK(p.waste == Approx(c.waste).margin(6e-3));
        CHECK(p.speed_flop == Approx(11.111).margin(1e-3));
    }
    struct Row {
        hd_grid grid;
        int64_t window[3], stride[3];
        hd_gna_tiles tiles;
        double share, sim, end_to_end;
    };
    const hd_grid flux{{1, 256, 256}, 0}, cosmos{{16, 44, 80}, 0}, hunyuan{{30, 48, 80}, 0};
    const hd_gna_tiles a{{1, 16, 16}, {1, 16, 8}, false}, b{{8, 4, 8}, {4, 4, 8}, false};
    const hd_gna_tiles c{{2, 16, 8}, {2, 8, 8}, false};
    const Row rows[] = {
        {flux, {1, 80, 80}, {1, 1, 1}, a, 0.518, 6.095, 1.764},
        {flux, {1, 80, 80}, {1, 16, 1}, a, 0.518, 8.533, 1.843},
        {flux, {1, 80, 80}, {1, 16, 16}, a, 0.518, 10.240, 1.878},
        {cosmos, {16, 24, 16}, {1, 1, 1}, b, 0.587, 0, 1.905},
        {cosmos, {16, 24, 16}, {1, 8, 1}, b, 0.587, 0, 1.964},
        {cosmos, {16, 24, 16}, {1, 1, 16}, b, 0.587, 0, 2.050},
        {cosmos, {16, 24, 16}, {1, 8, 16}, b, 0.587, 0, 2.096},
        {cosmos, {16, 32, 48}, {1, 1, 1}, b, 0.587, 0, 1.335},
        {cosmos, {16, 32, 48}, {1, 8, 1}, b, 0.587, 0, 1.405},
        {cosmos, {16, 32, 48}, {1, 1, 16}, b, 0.587, 0, 1.426},
        {cosmos, {16, 32, 48}, {1, 8, 16}, b, 0.587, 0, 1.494},
        {hunyuan, {30, 40, 40}, {1, 1, 8}, c, 0.607, 0, 1.436},
        {hunyuan, {30, 40, 40}, {1, 32, 8}, c, 0.607, 0, 1.548},
        {hunyuan, {30, 40, 40}, {30, 40, 40}, c, 0.607, 0, 1.436},
        {hunyuan, {30, 40, 40}, {1, 1, 1}, c, 0.607, 0, 1.223},
    };
    for (const Row &r : rows) {
        CAPTURE(r.window[1], r.window[2], r.stride[0], r.stride[1], r.stride[2]);
        hd_gna_prediction p =
            predict(r.grid,
                    {axis_of(r.window[0], r.stride[0]), axis_of(r.window[1], r.stride[1]),
                     axis_of(r.window[2], r.stride[2])},
                    r.tiles);
        if (r.sim > 0) CHECK(p.speed_sim == Approx(r.sim).margin(1e-3));
        CHECK(hd_gna_end_to_end(r.share, 1.0, p.speed_sim) == Approx(r.end_to_end).margin(1e-3));
    }
}

TEST_CASE("gna: waste of tiles at stride 1", "[gna]")
{
    auto waste = [](hd_gna_tiles tiles) {
        return predict({{30, 48, 80}, 0}, {axis_of(18), axis_of(24), axis_of(24)}, tiles).waste;
    };
    CHECK(waste({{2, 8, 8}, {2, 8, 8}, false}) == Approx(2.04).margin(6e-3));
    CHECK(waste({{2, 8, 8}, {2, 8, 8}, true}) == Approx(1.62).margin(6e-3));
    CHECK(waste({{2, 4, 8}, {2, 4, 8}, true}) == Approx(1.43).margin(6e-3));
    CHECK(waste({{1, 1, 8}, {1, 1, 16}, true}) == Approx(1.33).margin(6e-3));
    CHECK(waste({{1, 4, 4}, {1, 4, 4}, true}) == Approx(1.21).margin(6e-3));
}

TEST_CASE("gna: smallest strides without a partial tile", "[gna]")
{
    // 0: none
    auto smallest = [](int64_t length, int64_t window, int64_t query, int64_t key, bool dynamic) {
        for (int64_t s = 1; s <= window; s++) {
            hd_gna_prediction p = predict(line(length), on_line(axis_of(window, s)),
                                          {{1, 1, query}, {1, 1, key}, dynamic});
            if (p.full == p.visited) return s;
        }
        return (int64_t)0;
    };
    struct Row {
        int64_t length, window, query, key, fixed, dynamic;
    };
    const Row rows[] = {{30, 18, 2, 2, 2, 2}, {30, 18, 4, 2, 16, 4},     {48, 24, 8, 8, 8, 8},
                        {80, 24, 8, 8, 8, 8}, {256, 80, 16, 16, 16, 16}, {256, 80, 8, 8, 16, 8},
                        {44, 32, 4, 4, 8, 4}, {80, 48, 8, 8, 16, 8},     {45, 24, 8, 8, 0, 8},
                        {30, 16, 4, 4, 0, 4}, {21, 12, 2, 2, 0, 2},      {52, 16, 8, 8, 0, 8}};
    for (const Row &r : rows) {
        CAPTURE(r.length, r.window, r.query, r.key);
        CHECK(smallest(r.length, r.window, r.query, r.key, false) == r.fixed);
        CHECK(smallest(r.length, r.window, r.query, r.key, true) == r.dynamic);
    }
}

TEST_CASE("gna: properties of the rule", "[gna]")
{
    for (int64_t length = 1; length <= 14; length++)
        for (int64_t w = 1; w <= length; w++)
            for (int64_t s = 1; s <= w; s++)
                for (int64_t d = 1; w * d <= length; d++)
                    for (bool causal : {false, true}) {
                        const hd_gna_axis a = axis_of(w, s, d, causal);
                        CAPTURE(length, w, s, d, causal);
                        for (int64_t x = 0; x < length; x++) {
                            Set seen;
                            for (int64_t y = 0; y < length; y++)
                                if (gna_sees(a, length, x, y)) seen.push_back(y);
                            const Set found = neighbours(a, length, x);
                            REQUIRE(found == seen);
                            REQUIRE(std::count(found.begin(), found.end(), x) == 1);
                            if (!causal) REQUIRE((int64_t)found.size() == w);
                            if (causal) REQUIRE((int64_t)found.size() <= w);
                            if (causal && x / d >= w) REQUIRE((int64_t)found.size() >= w - s + 1);
                            if (x >= d) {
                                const Set before = neighbours(a, length, x - d);
                                REQUIRE(found.front() >= before.front());
                                REQUIRE(found.back() >= before.back());
                                REQUIRE(found.front() <= before.back() + d); // no gap
                            }
                        }
                    }
}

namespace
{

struct Random {
    std::mt19937 generator;
    explicit Random(uint32_t seed) : generator(seed)
    {
    }
    int64_t up_to(int64_t most)
    {
        return 1 + (int64_t)(generator() % (uint64_t)most);
    }
    bool coin()
    {
        return generator() % 2;
    }
    hd_gna_axis axis(int64_t length, bool dilated)
    {
        hd_gna_axis a{};
        a.window = up_to(length);
        a.stride = up_to(a.window);
        a.dilation = dilated ? up_to(length / a.window) : 1;
        a.causal = generator() % 4 == 0;
        return a;
    }
};

} // namespace

TEST_CASE("gna: random plans against the definition", "[gna]")
{
    const uint32_t seed = (uint32_t)GENERATE(range(0, 400));
    CAPTURE(seed);
    Random r(seed);
    const int64_t axes = r.up_to(3);
    hd_grid grid{
        {axes > 2 ? r.up_to(5) : 1, axes > 1 ? r.up_to(7) : 1, axes > 1 ? r.up_to(9) : r.up_to(60)},
        r.coin() ? 0 : r.up_to(4)};
    const bool dilated = r.coin();
    std::vector<std::vector<hd_gna_axis>> rules;
    std::vector<int32_t> of;
    const int64_t count = r.generator() % 3 == 0 ? 2 : 1;
    for (int64_t rule = 0; rule < count; rule++) {
        rules.emplace_back();
        for (int64_t length : grid.size)
            rules.back().push_back(r.axis(length, dilated));
    }
    for (int64_t h = 0; h < (count == 1 ? 1 : 3); h++)
        of.push_back((int32_t)(r.up_to(count) - 1));
    const Problem problem(grid, rules, hd_grid_tokens(&grid) + grid.token + (r.coin() ? 0 : 3), of);
    hd_gna_tiles tiles{};
    for (int i = 0; i < 3; i++) {
        tiles.query[i] = r.up_to(4);
        tiles.key[i] = r.up_to(4);
    }
    tiles.dynamic = !hd_gna_dilated(&problem.p) && r.coin();
    Plan plan(problem, tiles);
    CHECK(plan.wrong(problem) == 0);
    if (count > 1) return;
    // the prediction counts the plan's entries, and the pairs that are seen
    const hd_gna_prediction p = predict(grid, rules[0], tiles);
    hd_plan_stats stats;
    const int64_t tokens = problem.p.queries, inside = hd_grid_tokens(&grid);
    REQUIRE_OK(hd_plan_measure(&stats, &plan.b.plan, 1, tokens, tokens, 1, 1, 4));
    CHECK((double)stats.entries == p.visited);
    CHECK((double)stats.full == p.full);
    CHECK(stats.useful_pairs - stats.tail_pairs == p.pairs);
    CHECK(p.speed_flop == Approx((double)(inside * inside) / p.pairs));
    // chosen tiles mean the same
    hd_gna_tiles best[3];
    int64_t found = 0;
    REQUIRE_OK(hd_gna_choose(best, &found, 3, &problem.p, HD_GNA_KV_AUTO));
    REQUIRE(found >= 1);
    for (int64_t i = 0; i < found; i++) {
        Plan chosen(problem, best[i]);
        CHECK(chosen.wrong(problem) == 0);
    }
    double cost[2];
    for (int64_t i = 0; i < 2 && found > 1; i++)
        REQUIRE_OK(hd_gna_cost(&cost[i], &problem.p, &best[i]));
    if (found > 1) CHECK(cost[0] <= cost[1]);
}

TEST_CASE("gna: each allocation failing in turn", "[gna]")
{
    const Problem problem(
        {{3, 5, 6}, 2},
        {{axis_of(2), axis_of(3), axis_of(3, 2)}, {axis_of(1), axis_of(2), axis_of(3)}}, 95,
        {0, 1});
    fail_each_allocation([&] {
        hd_gna_tiles tiles;
        int64_t count;
        HD_TRY(hd_gna_choose(&tiles, &count, 1, &problem.p, HD_GNA_KV_AUTO));
        hd_plan_builder b;
        hd_plan_builder_init(&b, nullptr, 0);
        hd_status status = hd_gna_build(&b, &problem.p, &tiles);
        hd_plan_builder_free(&b);
        return status;
    });
}

TEST_CASE("gna: neighbour sets are NATTEN's", "[gna]")
{
    Fixture fixture = fixture_open("natten/neighbours.safetensors");
    const int64_t *number = fixture.at("case").i64(), *word = fixture.at("mask").i64();
    const int64_t cases = fixture.at("case").shape[0];
    REQUIRE(cases == 150);
    for (int64_t c = 0; c < cases; c++, number += 16) {
        CAPTURE(c);
        hd_grid grid{};
        std::vector<hd_gna_axis> rule;
        for (int i = 0; i < 3; i++) {
            const int64_t *axis = number + 1 + 5 * i;
            grid.size[i] = axis[0];
            rule.push_back(axis_of(axis[1], axis[2], axis[3], axis[4] != 0));
        }
        const Problem problem(grid, {rule});
        hd_gna_tiles tiles;
        int64_t count, wrong = 0;
        REQUIRE_OK(hd_gna_choose(&tiles, &count, 1, &problem.p, HD_GNA_KV_AUTO));
        Plan plan(problem, tiles);
        const int64_t tokens = problem.p.queries;
        PlanMeaning m = plan_meaning(plan.b.plan, 0, tokens, tokens);
        for (int64_t i = 0; i < tokens * tokens; i++)
            wrong += m.at(i / tokens, i % tokens) != ((word[i / 64] >> (i % 64) & 1) != 0);
        CHECK(wrong == 0);
        word += (tokens * tokens + 63) / 64;
    }
}

TEST_CASE("gna: the kernel over its plans, f32 and bf16, with log-sum-exp", "[gna]")
{
    const hd_dtype dtype = GENERATE(HD_F32, HD_BF16);
    const int64_t dim = GENERATE(64, 128);
    const bool dynamic = GENERATE(false, true);
    CAPTURE(dtype, dim, dynamic);
    const Problem problem({{2, 9, 21}, 3}, {{axis_of(2), axis_of(5, 2), axis_of(7)}}, 384);
    Plan plan(problem, {{2, 4, 8}, {1, 4, 8}, dynamic});
    const int64_t L = 384, H = 2;
    const hd_shape shape = hd_shape4(1, L, H, dim);
    Values q = Values::normal(dtype, shape, 1), k = Values::normal(dtype, shape, 2);
    Values v = Values::normal(dtype, shape, 3), out(dtype, shape);
    Values lse(HD_F32, hd_shape3(1, H, L));
    const hd_plan *plans[1] = {&plan.b.plan};
    int64_t visited = 0;
    hd_sdpa a{};
    a.q = q.t, a.k = k.t, a.v = v.t, a.out = out.t, a.lse = lse.t;
    a.scale = (float)(1.0 / std::sqrt((double)dim));
    a.plan = plans;
    a.visited = &visited;
    Run run(hd_cpu_features(), 2);
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    CHECK(visited == H * plan.b.plan.row_start[plan.b.plan.query_tiles]);
    double worst = 0, worst_lse = 0;
    for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < L; i++) {
            std::vector<double> truth((size_t)dim);
            double sum = 0;
            for (int64_t j = 0; j < L; j++) {
                if (!problem.at(0, i, j)) continue;
                double s = 0;
                for (int64_t d = 0; d < dim; d++)
                    s += q.at((i * H + h) * dim + d) * k.at((j * H + h) * dim + d);
                const double w = std::exp(s * (double)a.scale);
                sum += w;
                for (int64_t d = 0; d < dim; d++)
                    truth[(size_t)d] += w * v.at((j * H + h) * dim + d);
            }
            for (int64_t d = 0; d < dim; d++)
                worst = std::max(worst,
                                 std::fabs(out.at((i * H + h) * dim + d) - truth[(size_t)d] / sum));
            worst_lse = std::max(worst_lse, std::fabs(lse.at(h * L + i) - std::log(sum)));
        }
    CHECK(worst < (dtype == HD_F32 ? 1e-5 : 1e-2));
    CHECK(worst_lse < (dtype == HD_F32 ? 1e-5 : 1e-2));
}

TEST_CASE("gna: log-sum-exp that one can compute by hand", "[gna]")
{
    Values q(HD_F32, hd_shape4(1, 4, 1, 1), 1.0f), k = q, v = q, out = q;
    const Problem problem(line(4), {on_line(axis_of(3))});
    Plan plan(problem, {{1, 1, 2}, {1, 1, 2}, false});
    for (int64_t i = 0; i < 4; i++)
        k.set(i, i == 0 ? 0.0f : (float)std::log(std::pow(2.0, (double)i)));
    Values lse(HD_F32, hd_shape3(1, 1, 4));
    const hd_plan *plans[1] = {&plan.b.plan};
    hd_sdpa a{};
    a.q = q.t, a.k = k.t, a.v = v.t, a.out = out.t, a.lse = lse.t, a.scale = 1, a.plan = plans;
    Run run;
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    CHECK(lse.at(0) == Approx(std::log(7.0)));
    CHECK(lse.at(1) == Approx(std::log(7.0)));
    CHECK(lse.at(2) == Approx(std::log(14.0)));
    CHECK(lse.at(3) == Approx(std::log(14.0)));
}
