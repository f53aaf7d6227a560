// Agent attention and token merging: sizes, the matching, the two softmaxes, against numbers worked
// out by hand and an f64 implementation of its own.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "pipelines/runner.h"
#include "sparse/agent_match.h"
#include "sparse/all.h"
#include "support/alloc_fail.h"
#include "support/attention.h"

namespace
{

const hd_processor_class *const classes[] = {&hd_agent};
const hd_processor_list list = {1, classes};

std::string use(const std::string &fields)
{
    return "{\"processors\": [{\"use\": \"agent\"" + fields + "}]}";
}

/* Self attention over a grid of h x w tokens. */
struct GridCall : TestCall {
    GridCall(int64_t batch, int64_t h, int64_t w, int64_t heads, int64_t dim, uint64_t seed = 1,
             int64_t frames = 1)
        : TestCall(batch, frames * h * w, frames * h * w, heads, dim, seed)
    {
        call.q_layout = call.k_layout = hd_layout_grid(frames, h, w);
    }
};

struct Lengths {
    int64_t queries = 0, keys = 0;
};

// What the kernel of the first row was left with.
Lengths lengths(GridCall &c, const std::string &fields)
{
    TestRun run(&list, use(fields));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    Lengths l;
    hd_attention_run_watch(
        run.run,
        [](void *user, const hd_attention_seen *s) {
            *static_cast<Lengths *>(user) = {s->query_len[0], s->key_len[0]};
            return HD_OK;
        },
        &l);
    REQUIRE_OK(c.try_act(run));
    return l;
}

/* The matching of one row on its own. */
struct Match {
    hd_match_grid grid;
    std::vector<char> memory;
    std::vector<int32_t> target, place;
    hd_match m{};

    Match(const std::vector<float> &x, int64_t channels, std::vector<int64_t> size,
          std::vector<int64_t> stride, int64_t merged, const uint64_t *seed = nullptr)
        : grid(hd_match_grid_of(size.data(), stride.data())), target((size_t)grid.targets),
          place((size_t)grid.tokens)
    {
        hd_match_work work;
        for (int round = 0; round < 2; round++) {
            hd_room room{};
            room.base = round ? memory.data() : nullptr;
            hd_match_take(&room, &m, &grid);
            hd_match_work_take(&room, &work, &grid, channels);
            memory.resize(room.used);
        }
        m.place = place.data();
        hd_match_targets(&grid, seed, 0, 0, target.data());
        Run ex(hd_cpu_features(), 2);
        hd_match_features features = {x.data(), HD_F32, channels, channels};
        REQUIRE_OK(hd_match_find(&ex, &m, &grid, &features, target.data(), &work));
        hd_match_lists(&m, &grid, target.data(), merged);
    }

    // Rows of merged features, and what each token gets back.
    std::vector<std::vector<double>> merge(const std::vector<float> &x, int64_t channels,
                                           int64_t merged) const
    {
        std::vector<std::vector<double>> rows;
        for (int64_t i = merged; i < grid.sources; i++)
            rows.push_back(mean(x, channels, {m.source[m.order[i]]}));
        for (int64_t t = 0; t < grid.targets; t++)
            rows.push_back(mean(
                x, channels, std::vector<int32_t>(m.list + m.start[t], m.list + m.start[t + 1])));
        return rows;
    }

    static std::vector<double> mean(const std::vector<float> &x, int64_t channels,
                                    const std::vector<int32_t> &tokens)
    {
        std::vector<double> sum((size_t)channels);
        for (int32_t t : tokens)
            for (int64_t c = 0; c < channels; c++)
                sum[(size_t)c] += (double)x[(size_t)(t * channels + c)];
        for (double &s : sum)
            s /= (double)tokens.size();
        return sum;
    }
};

using Rows = std::vector<std::vector<double>>;

void check_rows(const Rows &got, const Rows &expected)
{
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); i++)
        for (size_t c = 0; c < got[i].size(); c++) {
            CAPTURE(i, c);
            CHECK(got[i][c] == Approx(expected[i][c]).margin(1e-6));
        }
}

const std::vector<float> eight = {1, 0, 1, 0.1f, 0, 1, 0.2f, 1, 0.9f, 0.2f, 1, 0.3f, 0.1f, 1, 1, 1};

// --- an implementation from the paper's words, slow and in f64

struct Options {
    double ratio = 0.4, agent_ratio = 0.95, k_scale2 = 0.3, shortcut = 0.075;
    int64_t sx = 4, sy = 4;
    bool agents = true;
};

double dot(const std::vector<double> &a, const std::vector<double> &b)
{
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// Row b, every head: [tokens][heads * dim].
Rows agent_f64(const GridCall &c, int64_t b, int64_t h, int64_t w, const Options &o)
{
    const int64_t N = c.Lq, C = c.H * c.D;
    auto row = [&](const std::vector<float> &t, int64_t i) {
        return std::vector<double>(t.begin() + (b * N + i) * C, t.begin() + (b * N + i + 1) * C);
    };
    std::vector<int64_t> dst, src;
    for (int64_t y = 0; y + o.sy <= h; y += o.sy)
        for (int64_t x = 0; x + o.sx <= w; x += o.sx)
            dst.push_back(y * w + x);
    for (int64_t i = 0; i < N; i++)
        if (!std::count(dst.begin(), dst.end(), i)) src.push_back(i);
    std::map<int64_t, std::pair<int64_t, double>> best;
    for (int64_t s : src) {
        best[s] = {-1, -2};
        auto x = row(c.x, s);
        for (size_t t = 0; t < dst.size(); t++) {
            auto y = row(c.x, dst[t]);
            double cosine = dot(x, y) / std::sqrt(dot(x, x) * dot(y, y));
            if (cosine > best[s].second) best[s] = {(int64_t)t, cosine};
        }
    }
    std::stable_sort(src.begin(), src.end(),
                     [&](int64_t i, int64_t j) { return best[i].second > best[j].second; });
    auto count = [&](double ratio) {
        return std::min((int64_t)std::floor((double)N * ratio + 1e-9), (int64_t)src.size());
    };
    auto merged = [&](const std::vector<float> &t, int64_t r) {
        Rows rows;
        for (size_t i = (size_t)r; i < src.size(); i++)
            rows.push_back(row(t, src[i]));
        for (size_t d = 0; d < dst.size(); d++) {
            auto sum = row(t, dst[d]);
            double n = 1;
            for (int64_t i = 0; i < r; i++)
                if (best[src[(size_t)i]].first == (int64_t)d) {
                    auto y = row(t, src[(size_t)i]);
                    for (size_t e = 0; e < y.size(); e++)
                        sum[e] += y[e];
                    n++;
                }
            for (double &x : sum)
                x /= n;
            rows.push_back(sum);
        }
        return rows;
    };
    const int64_t r = count(o.ratio), ra = count(o.agent_ratio);
    Rows q = merged(c.q, r), k = merged(c.k, r), v = merged(c.v, r), a = merged(c.q, ra), out = q;
    const bool on = o.agents && r > 0 && 2 * a.size() < q.size();
    auto attend = [&](const Rows &queries, const Rows &keys, const Rows &values, double scale) {
        Rows result(queries.size(), std::vector<double>((size_t)C));
        for (int64_t head = 0; head < c.H; head++)
            for (size_t i = 0; i < queries.size(); i++) {
                auto p = softmax_f64((int64_t)keys.size(), [&](int64_t j) {
                    double s = 0;
                    for (int64_t d = head * c.D; d < (head + 1) * c.D; d++)
                        s += queries[i][(size_t)d] * keys[(size_t)j][(size_t)d];
                    return s * scale;
                });
                for (int64_t d = head * c.D; d < (head + 1) * c.D; d++)
                    for (size_t j = 0; j < keys.size(); j++)
                        result[i][(size_t)d] += p[j] * values[j][(size_t)d];
            }
        return result;
    };
    const double scale = 1.0 / std::sqrt((double)c.D);
    if (on) {
        Rows va = attend(a, k, v, scale);
        out = attend(q, a, va, std::pow(scale, o.k_scale2));
        for (size_t i = 0; i < out.size(); i++)
            for (size_t d = 0; d < out[i].size(); d++)
                out[i][d] += o.shortcut * v[i][d];
    } else {
        out = attend(q, k, v, scale);
    }
    Rows whole((size_t)N);
    const size_t stay = src.size() - (size_t)r;
    for (size_t i = 0; i < src.size(); i++)
        whole[(size_t)src[i]] =
            out[i < (size_t)r ? stay + (size_t)best[src[i]].first : i - (size_t)r];
    for (size_t d = 0; d < dst.size(); d++)
        whole[(size_t)dst[d]] = out[stay + d];
    return whole;
}

double worst(const GridCall &c, const std::vector<float> &out, int64_t b, const Rows &truth)
{
    double e = 0;
    const int64_t C = c.H * c.D;
    for (int64_t i = 0; i < c.Lq; i++)
        for (int64_t d = 0; d < C; d++) {
            double diff = std::fabs((double)out[(size_t)((b * c.Lq + i) * C + d)] -
                                    truth[(size_t)i][(size_t)d]);
            if (!(diff <= e)) e = diff;
        }
    return e;
}

} // namespace

TEST_CASE("agent: how many tokens are left, and when agents pay", "[agent][sparse]")
{
    struct {
        int64_t h, w;
        const char *fields;
        int64_t queries, keys;
    } cases[] = {
        {64, 64, "", 2458, 256}, // the recipe
        {64, 64, ", \"sx\": 2, \"sy\": 2, \"agent_ratio\": 0.5", 2458, 2458},
        {64, 64, ", \"sx\": 2, \"sy\": 2, \"ratio\": 0.5, \"agent_ratio\": 0.8", 2048, 2048},
        {96, 64, "", 3687, 384},
        {65, 63, "", 2457, 240},
        {64, 64, ", \"agents\": false", 2458, 2458},
        {64, 64, ", \"source\": \"pool\"", 4096, 256},
        {65, 63, ", \"source\": \"pool\"", 4095, 17 * 16},
        {64, 64, ", \"ratio\": 0", 4096, 4096},
    };
    for (const auto &one : cases) {
        GridCall c(1, one.h, one.w, 1, 4);
        INFO(one.h << " x " << one.w << one.fields);
        Lengths l = lengths(c, one.fields);
        CHECK(l.queries == one.queries);
        CHECK(l.keys == one.keys);
    }
}

TEST_CASE("agent: the matching of a small grid", "[agent][sparse]")
{
    Match two(eight, 2, {1, 2, 4}, {1, 2, 2}, 2), six(eight, 2, {1, 2, 4}, {1, 2, 2}, 6);
    CHECK(two.target == std::vector<int32_t>{0, 2});
    std::vector<int32_t> order;
    for (int i = 0; i < 6; i++)
        order.push_back(two.m.source[two.m.order[i]]);
    CHECK(order == std::vector<int32_t>{1, 6, 3, 4, 5, 7});
    Rows rows = two.merge(eight, 2, 2);
    check_rows(rows, {{0.2, 1}, {0.9, 0.2}, {1, 0.3}, {1, 1}, {1, 0.05}, {0.05, 1}});
    Rows back;
    for (int32_t p : two.place)
        back.push_back(rows[(size_t)p]);
    check_rows(
        back, {{1, 0.05}, {1, 0.05}, {0.05, 1}, {0.2, 1}, {0.9, 0.2}, {1, 0.3}, {0.05, 1}, {1, 1}});
    check_rows(six.merge(eight, 2, 6), {{0.98, 0.32}, {0.1, 1}});
}

TEST_CASE("agent: ratio 0 is dense attention to the bit", "[agent][sparse]")
{
    GridCall c(2, 8, 8, 2, 8);
    TestRun none(&list, "{}"), zero(&list, use(", \"ratio\": 0"));
    REQUIRE_OK(c.dry(none));
    auto plain = c.act(none);
    REQUIRE_OK(c.dry(zero));
    auto out = c.act(zero);
    CHECK(memcmp(plain.data(), out.data(), out.size() * sizeof(float)) == 0);
}

TEST_CASE("agent: equals an implementation in f64, with agents and without", "[agent][sparse]")
{
    struct {
        int64_t h, w;
        Options o;
        const char *fields;
    } cases[] = {
        {12, 16, {}, ""},
        {13, 9, {0.4, 0.95, 0.3, 0.075, 4, 3, true}, ", \"sy\": 3"},
        {10,
         10,
         {0.5, 0.8, 0.3, 0.075, 2, 2, true},
         ", \"sx\": 2, \"sy\": 2, \"ratio\": 0.5, \"agent_ratio\": 0.8"},
        {9,
         8,
         {0.3, 0.95, 0.3, 0.075, 2, 2, false},
         ", \"sx\": 2, \"sy\": 2, \"ratio\": 0.3, \"agents\": false"},
        {12,
         12,
         {0.6, 0.9, 0.8, 0.5, 4, 4, true},
         ", \"ratio\": 0.6, \"agent_ratio\": 0.9, \"k_scale2\": 0.8, \"k_shortcut\": 0.5"},
    };
    uint64_t seed = 3;
    for (auto &one : cases) {
        INFO(one.h << " x " << one.w << one.fields << ", seed " << seed);
        GridCall c(2, one.h, one.w, 2, 8, seed++);
        TestRun run(&list, use(std::string(one.fields) + ", \"use_rand\": false"));
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
        auto out = c.act(run);
        for (int64_t b = 0; b < 2; b++)
            CHECK(worst(c, out, b, agent_f64(c, b, one.h, one.w, one.o)) < 2e-5);
        REQUIRE_OK(c.try_act(run, 0, 3, HD_CPU));
        CHECK(memcmp(out.data(), c.out.data(), out.size() * sizeof(float)) == 0);
        REQUIRE_OK(c.try_act(run)); // this machine's kernels
        CHECK(worst(c, c.out, 1, agent_f64(c, 1, one.h, one.w, one.o)) < 2e-5);
    }
}

namespace
{
// A pool of cells of `sx` tokens over one row of tokens.
std::vector<float> pool(GridCall &c, int64_t sx, const std::string &more = "")
{
    TestRun run(&list,
                use(", \"source\": \"pool\", \"sy\": 1, \"sx\": " + std::to_string(sx) + more));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    return c.act(run);
}

void check_values(const std::vector<float> &got, const std::vector<double> &expected)
{
    for (size_t i = 0; i < expected.size(); i++) {
        CAPTURE(i);
        CHECK((double)got[i] == Approx(expected[i]).margin(2e-6));
    }
}
} // namespace

TEST_CASE("agent: two softmaxes and a share of v, worked out by hand", "[agent][sparse]")
{
    SECTION("one agent that is 0")
    {
        GridCall c(1, 1, 3, 1, 1);
        std::fill(c.q.begin(), c.q.end(), 0.0f);
        c.v = {1, 2, 6};
        c.call.v.data = c.v.data();
        check_values(pool(c, 3), {3.075, 3.15, 3.45});
    }
    SECTION("two agents, 0 and ln 2")
    {
        // keys and values twice: the weights of a softmax halve, its mean stays
        GridCall c(1, 1, 6, 1, 1);
        const float l = std::log(2.0f);
        const std::vector<float> q = {0, 1, -1, l, l, l}, k = {0, 1, 2, 0, 1, 2},
                                 v = {1, 2, 6, 1, 2, 6};
        std::copy(q.begin(), q.end(), c.q.begin());
        std::copy(k.begin(), k.end(), c.k.begin());
        std::copy(v.begin(), v.end(), c.v.begin());
        check_values(pool(c, 3), {3.646429, 3.911905, 3.830952});
    }
    SECTION("the second scale")
    {
        // agents 2 e0 and 2 e1, each of which sees only keys of its own: values 1 and 0
        GridCall c(1, 1, 6, 1, 4);
        std::fill(c.q.begin(), c.q.end(), 0.0f);
        std::fill(c.k.begin(), c.k.end(), 0.0f);
        std::fill(c.v.begin(), c.v.end(), 0.0f);
        c.q[0] = 1, c.q[4] = 5, c.q[3 * 4 + 1] = 6;
        for (int j = 0; j < 6; j++)
            c.k[(size_t)(j * 4 + j / 3)] = 1000;
        for (int j = 0; j < 3; j++)
            c.v[(size_t)(j * 4)] = 1;
        auto out = pool(c, 3, ", \"k_shortcut\": 0");
        CHECK((double)out[0] == Approx(0.835415).margin(2e-6));
    }
    SECTION("a constant v grows by the share")
    {
        GridCall c(1, 8, 8, 1, 4);
        std::fill(c.v.begin(), c.v.end(), 2.0f);
        for (const char *fields : {"", ", \"source\": \"pool\""}) {
            TestRun run(&list, use(fields));
            REQUIRE_OK(c.dry(run));
            for (float x : c.act(run))
                CHECK((double)x == Approx(2.15).margin(1e-5));
        }
    }
    SECTION("the order and the number of equal agents do not matter")
    {
        GridCall c(1, 1, 16, 2, 4), swapped(1, 1, 16, 2, 4);
        const int64_t half = 8 * 2 * 4;
        std::copy_n(c.q.begin(), half, swapped.q.begin() + half);
        std::copy_n(c.q.begin() + half, half, swapped.q.begin());
        auto a = pool(c, 8, ", \"k_shortcut\": 0"), b = pool(swapped, 8, ", \"k_shortcut\": 0");
        for (int64_t i = 0; i < half; i++)
            CHECK(a[(size_t)i] == Approx(b[(size_t)(i + half)]).margin(1e-6));
        for (int64_t i = 0; i < 16; i++) // queries equal within each cell of 8
            std::copy_n(c.q.begin() + i / 8 * half, 8, c.q.begin() + i * 8);
        auto two = pool(c, 8), four = pool(c, 4);
        for (size_t i = 0; i < two.size(); i++)
            CHECK(two[i] == Approx(four[i]).margin(1e-6));
    }
}

TEST_CASE("agent: averaging commutes with a projection", "[agent][sparse]")
{
    const int64_t n = 48, c = 12;
    std::vector<float> x = normal_values(n * c, 5), w = normal_values(c * c, 6, 0.3f),
                       bias = normal_values(c, 7);
    for (bool with_bias : {false, true}) {
        auto project = [&](auto &&at) {
            std::vector<double> y((size_t)c);
            for (int64_t o = 0; o < c; o++) {
                y[(size_t)o] = with_bias ? (double)bias[(size_t)o] : 0;
                for (int64_t i = 0; i < c; i++)
                    y[(size_t)o] += (double)w[(size_t)(o * c + i)] * at(i);
            }
            return y;
        };
        std::vector<float> q;
        for (int64_t t = 0; t < n; t++)
            for (double y : project([&](int64_t i) { return (double)x[(size_t)(t * c + i)]; }))
                q.push_back((float)y);
        Match m(x, c, {1, 6, 8}, {1, 2, 2}, 20);
        Rows merged_q = m.merge(q, c, 20), merged_x = m.merge(x, c, 20), expected;
        for (const auto &row : merged_x)
            expected.push_back(project([&](int64_t i) { return row[(size_t)i]; }));
        check_rows(merged_q, expected);
    }
}

TEST_CASE("agent: the draw of a cell's token depends on seed, step and site alone",
          "[agent][sparse][threads]")
{
    GridCall c(1, 16, 16, 1, 8);
    auto run_of = [&](const std::string &fields, int64_t step) {
        TestRun run(&list, use(fields));
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
        return c.act(run, step);
    };
    auto a = run_of("", 0);
    CHECK(a == run_of("", 0));
    CHECK(a != run_of("", 1));
    CHECK(a != run_of(", \"seed\": 1", 0));
    CHECK(a != run_of(", \"use_rand\": false", 0));
    strcpy(c.call.site.path, "up.1.attn.0");
    CHECK(a != run_of("", 0));
    // tokens of their cells, all of them at some time
    const int64_t size[] = {2, 9, 10}, stride[] = {1, 4, 3};
    hd_match_grid g = hd_match_grid_of(size, stride);
    REQUIRE(g.targets == 2 * 2 * 3);
    std::vector<int32_t> target((size_t)g.targets);
    std::vector<bool> met(180);
    for (int64_t step = 0; step < 300; step++) {
        uint64_t seed = 9;
        hd_match_targets(&g, &seed, step, 77, target.data());
        for (int64_t t = 0; t < g.targets; t++) {
            const int32_t at = target[(size_t)t];
            met[(size_t)at] = true;
            CHECK(at / 90 == t / 6);
            CHECK(at / 10 % 9 / 4 == t / 3 % 2);
            CHECK(at % 10 / 3 == t % 3);
        }
    }
    CHECK(std::count(met.begin(), met.end(), true) == g.targets * 12);
}

TEST_CASE("agent: rows are their own, and those not named are left alone",
          "[agent][sparse][threads]")
{
    for (const char *fields :
         {", \"branches\": [\"cond\"]", ", \"branches\": [\"cond\"], \"source\": \"pool\"",
          ", \"branches\": [\"cond\"], \"match_on\": \"k\", \"agents\": false"}) {
        INFO(fields);
        GridCall all(4, 12, 8, 2, 8), one(1, 12, 8, 2, 8);
        TestRun run(&list, use(fields)), none(&list, "{}");
        REQUIRE_OK(run.status);
        REQUIRE_OK(all.dry(none));
        auto plain = all.act(none);
        REQUIRE_OK(all.dry(run));
        auto out = all.act(run);
        const size_t values = out.size() / 4, bytes = values * sizeof(float);
        CHECK(memcmp(out.data(), plain.data(), bytes) == 0);
        CHECK(memcmp(out.data() + 3 * values, plain.data() + 3 * values, bytes) != 0);
        auto row = [&](const std::vector<float> &t) {
            return std::vector<float>(t.begin() + 3 * (std::ptrdiff_t)values, t.end());
        };
        for (auto [to, from] : {std::pair{&one.q, &all.q}, std::pair{&one.k, &all.k},
                                std::pair{&one.v, &all.v}, std::pair{&one.x, &all.x}})
            std::copy_n(row(*from).begin(), values, to->begin());
        strcpy(one.rows[0].role, "cond");
        TestRun alone(&list, use(fields));
        REQUIRE_OK(one.dry(alone));
        auto mine = one.act(alone);
        CHECK(memcmp(mine.data(), out.data() + 3 * values, bytes) == 0);
    }
}

TEST_CASE("agent: what it cannot do is refused, layers below it are left alone", "[agent][sparse]")
{
    GridCall small(1, 3, 8, 1, 4);
    TestRun large(&list, use(""));
    CHECK_FAILS(small.dry(large), HD_ERR_ARGUMENT,
                "test.json: processors[0] (agent) cannot act at unet:mid.attn.0 self: cells of 1 x "
                "4 x 4 tokens (sf, sy, sx) do not fit a grid of 1 x 3 x 8");
    TestRun cells(&list, use(", \"source\": \"pool\", \"sx\": 1, \"sy\": 1"));
    CHECK_FAILS(small.dry(cells), HD_ERR_ARGUMENT, "24 agents for 24 tokens save nothing");
    GridCall cross(1, 8, 8, 1, 4);
    cross.call.site.kind = HD_SITE_CROSS;
    TestRun anywhere(&list, use(""));
    CHECK_FAILS(cross.dry(anywhere), HD_ERR_UNSUPPORTED, "let \"sites\" say \"** self\"");
    GridCall low(1, 8, 8, 1, 4);
    low.call.site.factor = 2;
    TestRun leaves(&list, use("")), none(&list, "{}");
    REQUIRE_OK(low.dry(leaves));
    CHECK(leaves.chain() == "streaming f32");
    CHECK_FAILS(hd_attention_run_finish(leaves.run), HD_ERR_ARGUMENT, "matches no attention site");
    auto out = low.act(leaves);
    CHECK(out == low.act(none));
    TestRun deeper(&list, use(", \"max_downsample\": 2"));
    REQUIRE_OK(low.dry(deeper));
    CHECK(deeper.chain() == "agent [0, 10): streaming f32");
    GridCall blind(1, 8, 8, 1, 4);
    blind.call.x = hd_tensor_none();
    TestRun x(&list, use("")), k(&list, use(", \"match_on\": \"k\""));
    CHECK_FAILS(blind.dry(x), HD_ERR_UNSUPPORTED, "\"match_on\": \"k\" compares keys");
    REQUIRE_OK(blind.dry(k));
    TestRun pooled(&list, use(", \"source\": \"pool\", \"ratio\": 0.4"));
    CHECK_FAILS(pooled.status, HD_ERR_ARGUMENT, "ratio belongs to source \"merge\"");
    TestRun one(&list, use(", \"ratio\": 1"));
    CHECK_FAILS(one.status, HD_ERR_ARGUMENT, "processors[0].ratio is 1, must be 0 to 0.99");
}

TEST_CASE("agent: presets run on the starter model and differ from dense",
          "[agent][sparse][pipeline]")
{
    Context context;
    auto picture = [&](const std::string &processors) {
        auto r = context.run("{" + starter() +
                             ", \"prompt\": \"a red fish\", \"seed\": 3, \"steps\": 4, "
                             "\"processors\": [" +
                             processors + "]}");
        return pixels(r.get(), 0);
    };
    const std::string early = "{\"use\": \"agent\", \"sites\": [\"** self\"], \"steps\": [0, 0.5]}";
    const std::string late = "{\"use\": \"agent\", \"sites\": [\"** self\"], \"steps\": [0.5, 1], "
                             "\"sx\": 2, \"sy\": 2, \"agent_ratio\": 0.5}";
    auto plain = picture(""), both = picture(early + ", " + late);
    CHECK(both == picture(early + ", " + late));
    CHECK(both != plain);
    CHECK(both != picture(early));
    CHECK(psnr(both.data(), plain.data(), plain.size()) > 10); // still that picture
}
