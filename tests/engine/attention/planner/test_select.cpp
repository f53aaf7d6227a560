// What online planners share: kernels against plain loops, order by weight, cumulative thresholds
// and the search of a large set's last kept entry against a sort.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/exec.h"
#include "engine/attention/planner/means.h"
#include "engine/attention/planner/scores.h"
#include "engine/attention/planner/select.h"
#include "support/catch.h"
#include "support/values.h"

namespace
{

constexpr int lanes = HD_PLANNER_LANES;

std::vector<int32_t> sorted_order(const std::vector<float> &weight)
{
    std::vector<int32_t> index(weight.size());
    std::iota(index.begin(), index.end(), 0);
    std::stable_sort(index.begin(), index.end(),
                     [&](int32_t a, int32_t b) { return weight[(size_t)a] > weight[(size_t)b]; });
    return index;
}

// Few different numbers, so that there are ties.
std::vector<float> coarse_values(int64_t count, uint64_t seed, int levels)
{
    std::vector<float> x = normal_values(count, seed);
    for (float &v : x)
        v = std::round(v * (float)levels) / (float)levels;
    return x;
}

} // namespace

TEST_CASE("planner: means of tiles on every instruction set", "[planner][select]")
{
    const unsigned has = GENERATE(from_range(every_isa()));
    const hd_dtype dtype = GENERATE(HD_F32, HD_BF16);
    const int64_t dim = GENERATE(1, 7, 64, 67, 128);
    CAPTURE(has, dim, hd_dtype_name(dtype));
    Run ex(has, 2);
    const int64_t tokens = 50, heads = 3;
    Values x = Values::normal(dtype, hd_shape3(tokens, heads, dim), 5);
    std::vector<int32_t> order((size_t)tokens), bound = {0, 1, 20, 37, 50};
    for (int64_t i = 0; i < tokens; i++)
        order[(size_t)i] = (int32_t)(i * 7 % tokens);
    std::vector<hd_planner_tokens> list;
    for (int64_t h = 0; h < heads; h++)
        list.push_back({x.bytes.data() + (size_t)(h * dim) * hd_dtype_size(dtype), dtype,
                        heads * dim, dim, h == 1 ? order.data() : nullptr});
    std::vector<float> mean((size_t)(heads * 4 * dim));
    REQUIRE_OK(hd_planner_means(&ex, mean.data(), list.data(), heads, bound.data(), 4));
    for (int64_t h = 0; h < heads; h++)
        for (size_t t = 0; t < 4; t++)
            for (int64_t d = 0; d < dim; d++) {
                double sum = 0;
                for (int32_t r = bound[t]; r < bound[t + 1]; r++)
                    sum += x.at(((h == 1 ? order[(size_t)r] : r) * heads + h) * dim + d);
                CHECK(mean[(size_t)((h * 4 + (int64_t)t) * dim + d)] ==
                      Approx(sum / (bound[t + 1] - bound[t])).margin(2e-6));
            }
}

TEST_CASE("planner: means of heads side by side are those of each head alone", "[planner][select]")
{
    const hd_dtype dtype = GENERATE(HD_F32, HD_BF16);
    const int64_t dim = GENERATE(40, 128), heads = 19, tiles = 600, tokens = 3 * tiles;
    CAPTURE(dim, hd_dtype_name(dtype));
    Run ex(hd_cpu_features(), 2);
    Values x = Values::normal(dtype, hd_shape3(tokens, heads, dim), 6);
    std::vector<int32_t> bound;
    for (int64_t t = 0; t <= tiles; t++)
        bound.push_back((int32_t)(t * 3));
    std::vector<hd_planner_tokens> list;
    for (int64_t h = 0; h < heads; h++)
        list.push_back({x.bytes.data() + (size_t)(h * dim) * hd_dtype_size(dtype), dtype,
                        heads * dim, dim, nullptr});
    std::vector<float> all((size_t)(heads * tiles * dim)), one((size_t)(tiles * dim));
    REQUIRE_OK(hd_planner_means(&ex, all.data(), list.data(), heads, bound.data(), tiles));
    for (int64_t h = 0; h < heads; h++) {
        REQUIRE_OK(hd_planner_means(&ex, one.data(), &list[(size_t)h], 1, bound.data(), tiles));
        CHECK(memcmp(one.data(), all.data() + h * tiles * dim, one.size() * sizeof(float)) == 0);
    }
}

TEST_CASE("planner: products of means and their softmax on every instruction set",
          "[planner][select]")
{
    const unsigned has = GENERATE(from_range(every_isa()));
    const int64_t dim = GENERATE(1, 9, 64), keys = GENERATE(1, 5, 6, 13), queries = 70;
    CAPTURE(has, dim, keys);
    Run ex(has);
    const hd_planner_kernels *kernels = hd_planner_kernels_of(&ex);
    std::vector<float> q = normal_values(queries * dim, 1), k = normal_values(keys * dim, 2);
    std::vector<float> scores((size_t)(keys * lanes)), panel((size_t)(dim * lanes));
    std::vector<int32_t> bound = {0};
    for (int64_t j = 0; j < keys; j++)
        bound.push_back(bound.back() + 1 + (int32_t)(j % 3));
    for (int64_t first : {(int64_t)0, (int64_t)64}) {
        hd_planner_scores(kernels, scores.data(), panel.data(), q.data(), first, queries, k.data(),
                          keys, dim);
        std::vector<double> truth((size_t)(keys * lanes));
        for (int64_t i = 0; i < lanes && first + i < queries; i++)
            for (int64_t j = 0; j < keys; j++) {
                double &s = truth[(size_t)(j * lanes + i)];
                for (int64_t d = 0; d < dim; d++)
                    s += (double)q[(size_t)((first + i) * dim + d)] *
                         (double)k[(size_t)(j * dim + d)];
                CHECK(scores[(size_t)(j * lanes + i)] == Approx(s).margin(1e-4));
            }
        hd_planner_shares(kernels, scores.data(), keys, 0.5f, bound.data());
        for (int64_t i = 0; i < lanes && first + i < queries; i++) {
            double sum = 0;
            auto e = [&](int64_t j) {
                return std::exp2(0.5 * truth[(size_t)(j * lanes + i)]) *
                       (bound[(size_t)j + 1] - bound[(size_t)j]);
            };
            for (int64_t j = 0; j < keys; j++)
                sum += e(j);
            for (int64_t j = 0; j < keys; j++)
                CHECK(scores[(size_t)(j * lanes + i)] == Approx(e(j) / sum).margin(1e-5));
        }
    }
}

TEST_CASE("planner: the product of bf16 pairs", "[planner][select]")
{
    Run ex;
    hd_planner_product *product = hd_planner_pairs_of(&ex);
    if (!product) return;
    const int64_t units = 33, rows = GENERATE(1, 2, 3, 4, 5, 6, 16);
    Values a = Values::normal(HD_BF16, hd_shape2(rows, 2 * units), 3);
    Values q = Values::normal(HD_BF16, hd_shape2(lanes, 2 * units), 4);
    std::vector<float> panel((size_t)(units * lanes)), scores((size_t)(rows * lanes));
    const void *token[lanes];
    for (int i = 0; i < lanes; i++)
        token[i] = q.bytes.data() + (size_t)(i * 2 * units) * 2;
    hd_planner_kernels_of(&ex)->pack(panel.data(), token, HD_F32, units);
    product(scores.data(), rows, reinterpret_cast<const float *>(a.bytes.data()), units,
            panel.data(), units);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < lanes; i++) {
            double sum = 0;
            for (int64_t d = 0; d < 2 * units; d++)
                sum += a.at(r * 2 * units + d) * q.at(i * 2 * units + d);
            CHECK(scores[(size_t)(r * lanes + i)] == Approx(sum).margin(1e-3));
        }
}

TEST_CASE("planner: the best rows of every lane, ties by index", "[planner][select]")
{
    const unsigned has = GENERATE(from_range(every_isa()));
    const int64_t rows = GENERATE(1, 2, 7, 40, 300);
    const int64_t keep = GENERATE(1, 2, 3, 18, 270, 1000);
    const bool owned = GENERATE(false, true);
    const int levels = GENERATE(4, 1000000); // many equal scores, or hardly any
    CAPTURE(has, rows, keep, owned, levels);
    Run ex(has);
    std::vector<float> scores = coarse_values(rows * lanes, 11, levels);
    if (levels == 4) scores[0] = -INFINITY;
    std::vector<int32_t> own((size_t)lanes);
    for (int i = 0; i < lanes; i++)
        own[(size_t)i] = (int32_t)(i * 5 % rows);
    std::vector<uint64_t> words((size_t)rows);
    hd_planner_kernels_of(&ex)->top(words.data(), scores.data(), rows, keep,
                                    owned ? own.data() : nullptr);
    bool right = true;
    for (int i = 0; i < lanes; i++) {
        std::vector<float> lane((size_t)rows);
        hd_planner_lane(lane.data(), scores.data(), rows, i);
        if (owned) lane[(size_t)own[(size_t)i]] = INFINITY;
        std::vector<int32_t> order = sorted_order(lane);
        std::vector<bool> kept((size_t)rows);
        for (int64_t r = 0; r < rows && r < keep; r++)
            kept[(size_t)order[(size_t)r]] = true;
        for (int64_t r = 0; r < rows; r++)
            right = right && kept[(size_t)r] == (words[(size_t)r] >> i & 1);
    }
    CHECK(right);
}

TEST_CASE("select: order and share against a sort", "[planner][select]")
{
    const uint64_t seed = GENERATE(range(1, 30));
    const int64_t n = 1 + (int64_t)(seed * 37 % 400);
    CAPTURE(seed, n);
    std::vector<float> weight = coarse_values(n, seed, 20);
    if (seed % 3 == 0) weight[0] = -0.0f;
    for (float &w : weight)
        w = seed % 2 ? w : std::fabs(w);
    std::vector<int32_t> index((size_t)n);
    std::vector<uint64_t> scratch((size_t)(2 * n));
    hd_select_order(index.data(), weight.data(), n, scratch.data());
    CHECK(index == sorted_order(weight));
    if (seed % 2) return;
    double all = std::accumulate(weight.begin(), weight.end(), 0.0);
    for (double share : {0.0, 0.3, 0.9, 0.999, 1.0}) {
        int64_t kept = hd_select_share(weight.data(), index.data(), n, share, n);
        double before = 0;
        for (int64_t i = 0; i + 1 < kept; i++)
            before += (double)weight[(size_t)index[(size_t)i]];
        CHECK((kept == 1 || before < share * all + 1e-9));
        double with = before + (double)weight[(size_t)index[(size_t)kept - 1]];
        CHECK((kept == n || with >= share * all - 1e-9));
        CHECK(hd_select_share(weight.data(), index.data(), n, share, 3) ==
              std::min(kept, std::min<int64_t>(n, 3)));
    }
}

TEST_CASE("select: the last kept of a large set without sorting it", "[planner][select]")
{
    const uint64_t seed = GENERATE(range(1, 25));
    const int64_t n = 1 + (int64_t)(seed * 631 % 3000);
    CAPTURE(seed, n);
    std::vector<float> weight = coarse_values(n, seed, seed % 2 ? 8 : 100000);
    for (float &w : weight)
        w = std::fabs(w);
    std::vector<float> sorted = weight;
    std::sort(sorted.rbegin(), sorted.rend());
    double all = std::accumulate(weight.begin(), weight.end(), 0.0);
    std::unique_ptr<hd_radix> radix(new hd_radix);
    for (double share : {0.0, 0.2, 0.7, 1.5, -0.4}) {
        hd_radix_search search = {};
        int64_t expected = 0;
        if (share < 0) {
            expected = search.count = std::max<int64_t>(1, (int64_t)(-share * (double)n));
        } else {
            search.sum = share * all;
            double sum = 0;
            do
                sum += (double)sorted[(size_t)expected++];
            while (sum < search.sum && expected < n);
        }
        while (search.pass < HD_RADIX_PASSES && !search.all) {
            *radix = {};
            for (float w : weight) {
                int bin = hd_radix_bin(&search, hd_radix_key(w));
                if (bin < 0) continue;
                radix->count[bin]++;
                radix->sum[bin] += (double)w;
            }
            hd_radix_next(&search, radix.get());
        }
        CAPTURE(share);
        if (search.all) {
            CHECK(expected == n);
            continue;
        }
        int64_t above = 0, equal = 0;
        for (float w : weight) {
            above += hd_radix_key(w) > search.key;
            equal += hd_radix_key(w) == search.key;
        }
        CHECK(search.equal == equal);
        CHECK(search.above == above);
        CHECK(above + search.ties == expected);
    }
}
