// Dynamic mask: the learned form's bias, kept keys and plans; the training-free choice of tiles.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/ops/sdpa.h"
#include "sparse/all.h"
#include "sparse/dynamic_mask_trained.h"
#include "support/catch.h"
#include "support/field.h"

namespace
{

std::vector<float> bias_of(const std::vector<float> &t, float a, bool exponential)
{
    std::vector<float> bias(t.size());
    hd_dynamic_mask_bias(bias.data(), t.data(), a, (int64_t)t.size(), exponential);
    return bias;
}

// Bits of kept keys as truth values.
std::vector<bool> kept_keys(const std::vector<float> &bias, hd_dynamic_mask_keep rule)
{
    const int64_t keys = (int64_t)bias.size();
    std::vector<uint64_t> bits((size_t)(keys + 63) / 64), scratch(bias.size() * 2);
    std::vector<int32_t> index(bias.size());
    hd_dynamic_mask_select(bits.data(), bias.data(), keys, rule, index.data(), scratch.data());
    std::vector<bool> kept;
    for (size_t j = 0; j < bias.size(); j++)
        kept.push_back(bits[j / 64] >> (j % 64) & 1);
    return kept;
}

std::vector<uint64_t> bits_of(const std::vector<std::vector<bool>> &heads)
{
    const size_t words = (heads[0].size() + 63) / 64;
    std::vector<uint64_t> bits(heads.size() * words);
    for (size_t h = 0; h < heads.size(); h++)
        for (size_t j = 0; j < heads[h].size(); j++)
            if (heads[h][j]) bits[h * words + j / 64] |= (uint64_t)1 << (j % 64);
    return bits;
}

// A plan from kept keys, freed with it.
struct Built {
    hd_plan_builder builder;
    Built(const std::vector<std::vector<bool>> &kept, int64_t queries,
          hd_dynamic_mask_layout layout)
    {
        hd_plan_builder_init(&builder, nullptr, 0);
        REQUIRE_OK(hd_dynamic_mask_plan(&builder, bits_of(kept).data(), (int64_t)kept.size(),
                                        queries, (int64_t)kept[0].size(), 64, layout));
    }
    ~Built()
    {
        hd_plan_builder_free(&builder);
    }
};

// The kernel over a plan, with a bias per key and head.
Values attend(PlanInput &in, const hd_plan *plan, std::vector<float> bias)
{
    Run ex;
    Values out(in.dtype, hd_tensor_shape(in.q.t));
    hd_sdpa a = {};
    a.q = in.q.t, a.k = in.k.t, a.v = in.v.t, a.out = out.t;
    a.scale = in.call.scale;
    a.bias = a.mask = a.lse = a.indicator = a.probed = hd_tensor_none();
    a.column_bias = hd_tensor_of(bias.data(), HD_F32, hd_shape3(1, in.heads, in.tokens));
    a.plan = &plan;
    REQUIRE_OK(hd_sdpa_run(&ex, &a));
    return out;
}

// softmax(q k + bias) over kept keys, in f64
std::vector<double> plain(const PlanInput &in, const std::vector<std::vector<bool>> &kept,
                          const std::vector<float> &bias)
{
    std::vector<double> out((size_t)(in.tokens * in.heads * in.dim));
    for (int64_t h = 0; h < in.heads; h++)
        for (int64_t i = 0; i < in.tokens; i++) {
            double sum = 0;
            std::vector<double> w((size_t)in.tokens);
            for (int64_t j = 0; j < in.tokens; j++) {
                if (!kept[(size_t)h][(size_t)j]) continue;
                double s = 0;
                for (int64_t d = 0; d < in.dim; d++)
                    s += in.q_at(0, i, h, d) * in.k_at(0, j, h, d);
                s = s * (double)in.call.scale + (double)bias[(size_t)(h * in.tokens + j)];
                sum += w[(size_t)j] = std::exp(s);
            }
            for (int64_t d = 0; d < in.dim; d++)
                for (int64_t j = 0; j < in.tokens && sum > 0; j++)
                    out[(size_t)((i * in.heads + h) * in.dim + d)] +=
                        w[(size_t)j] / sum * in.v_at(0, j, h, d);
        }
    return out;
}

double error(const PlanInput &in, const PlanMeaning &m, const std::vector<double> &dense)
{
    return relative_l1(attention_over(in, m), dense);
}

// One list of keys for all queries.
PlanMeaning same_keys(const PlanInput &in, const std::vector<double> &priority, int64_t count)
{
    std::vector<size_t> order(priority.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return priority[a] > priority[b]; });
    PlanMeaning m{in.tokens, in.tokens, 0, {}, {}, {}, 0};
    m.sees.assign((size_t)(in.tokens * in.tokens), 0);
    for (int64_t i = 0; i < in.tokens; i++)
        for (int64_t r = 0; r < count; r++)
            m.sees[(size_t)(i * in.tokens) + order[(size_t)r]] = 1;
    return m;
}

std::vector<double> value_lengths(const PlanInput &in, bool from_mean)
{
    std::vector<double> mean((size_t)in.dim), length;
    for (int64_t j = 0; j < in.tokens && from_mean; j++)
        for (int64_t d = 0; d < in.dim; d++)
            mean[(size_t)d] += in.v_at(0, j, 0, d) / (double)in.tokens;
    for (int64_t j = 0; j < in.tokens; j++) {
        double square = 0;
        for (int64_t d = 0; d < in.dim; d++)
            square += std::pow(in.v_at(0, j, 0, d) - mean[(size_t)d], 2);
        length.push_back(std::sqrt(square));
    }
    return length;
}

} // namespace

TEST_CASE("dynamic_mask: the learned bias and the keys it keeps", "[sparse][dynamic_mask]")
{
    const std::vector<float> t = {0, 1, -1, 2};
    std::vector<float> bias = bias_of(t, 0.5f, false);
    const double expected[4] = {0.346574, 0.656631, 0.156631, 1.063464};
    for (size_t j = 0; j < 4; j++)
        CHECK((double)bias[j] == Approx(expected[j]).margin(1e-6));
    std::vector<bool> kept = kept_keys(bias, {2, false, 0});
    CHECK(kept == std::vector<bool>{false, true, false, true});
    std::vector<float> factor = bias_of(t, 0.5f, true);
    CHECK((double)factor[1] == Approx(1.928285).margin(1e-6));
    CHECK((double)factor[3] == Approx(2.896387).margin(1e-6));
    // q . k = 0: the weights are those of the bias alone
    PlanInput::Shape shape;
    shape.height = 1, shape.width = 4, shape.dim = 2;
    PlanInput in(shape);
    PlanInput::put(in.q, 0, 0, std::vector<double>(8, 0.0));
    PlanInput::put(in.v, 0, 0, {0, 0, 1, 0, 0, 0, 0, 1});
    for (auto [form, first, last] :
         {std::make_tuple(bias, 0.399672, 0.600328), std::make_tuple(factor, 0.275259, 0.724741)}) {
        Built built({kept}, 4, HD_DYNAMIC_MASK_AUTO);
        Values out = attend(in, &built.builder.plan, form);
        CHECK(out.at(0) == Approx(first).margin(1e-6));
        CHECK(out.at(1) == Approx(last).margin(1e-6));
    }
    // a negative A turns the order round
    CHECK(kept_keys(bias_of(t, -0.5f, false), {2, false, 0}) ==
          std::vector<bool>{true, false, true, false});
    CHECK(kept_keys({-1.0f, 0.0f, 2.0f, 1.0f}, {1, true, 0}) ==
          std::vector<bool>{false, false, true, true});
    CHECK(kept_keys({1, 2, 2, 2, 1}, {2, false, 0}) ==
          std::vector<bool>{false, true, true, false, false}); // ties: the lower first
}

TEST_CASE("dynamic_mask: blocks of keys by strict majority", "[sparse][dynamic_mask]")
{
    auto smoothed = [](const std::string &mask, int64_t block) {
        std::vector<float> bias;
        for (char c : mask)
            bias.push_back(c == '1' ? 1.0f : -1.0f);
        std::string out;
        for (bool k : kept_keys(bias, {1, true, block}))
            out += k ? '1' : '0';
        return out;
    };
    CHECK(smoothed("11011000011", 4) == "11110000111");
    CHECK(smoothed("1100", 4) == "0000");
}

TEST_CASE("dynamic_mask: gathered keys and masked tiles give the same output",
          "[sparse][dynamic_mask]")
{
    PlanInput::Shape shape;
    shape.height = 11, shape.width = 17, shape.heads = 2, shape.dim = 16;
    PlanInput in(shape);
    const int64_t keys = in.tokens, count = GENERATE(1, 63, 64, 65, 187);
    CAPTURE(count);
    const std::vector<float> t = normal_values(2 * keys, 5);
    std::vector<float> bias = bias_of(t, 0.7f, false), all_bias = bias;
    std::vector<std::vector<bool>> kept;
    for (size_t h = 0; h < 2; h++)
        kept.push_back(kept_keys(
            {bias.begin() + (ptrdiff_t)h * keys, bias.begin() + (ptrdiff_t)(h + 1) * keys},
            {count, false, 0}));
    CHECK(std::count(kept[1].begin(), kept[1].end(), true) == count);
    Built gather(kept, keys, HD_DYNAMIC_MASK_GATHER), tiles(kept, keys, HD_DYNAMIC_MASK_TILES);
    for (int64_t h = 0; h < 2; h++) {
        PlanMeaning g = plan_meaning(gather.builder.plan, h, keys, keys);
        PlanMeaning m = plan_meaning(tiles.builder.plan, h, keys, keys);
        CHECK(g.sees == m.sees);
        CHECK(g.entries == (count + 63) / 64);
        for (int64_t j = 0; j < keys; j++)
            CHECK(g.at(0, j) == kept[(size_t)h][(size_t)j]);
    }
    const std::vector<double> truth = plain(in, kept, bias);
    CHECK(worst_error(attend(in, &gather.builder.plan, bias), truth) < 3e-6);
    CHECK(worst_error(attend(in, &tiles.builder.plan, bias), truth) < 3e-6);
    // dropped keys are keys with a bias of -inf
    for (size_t h = 0; h < 2; h++)
        for (size_t j = 0; j < (size_t)keys; j++)
            if (!kept[h][j]) all_bias[h * (size_t)keys + j] = -INFINITY;
    CHECK(worst_error(attend(in, nullptr, all_bias), truth) < 3e-6);
}

TEST_CASE("dynamic_mask: a window over all keys and no bias is dense", "[sparse][dynamic_mask]")
{
    PlanInput::Shape shape;
    shape.height = 9, shape.width = 9, shape.dim = 8;
    PlanInput in(shape);
    const std::vector<float> none(81, 0.0f);
    std::vector<std::vector<bool>> kept = {kept_keys(none, {2048, false, 0})};
    CHECK(std::count(kept[0].begin(), kept[0].end(), true) == 81);
    Built built(kept, 81, HD_DYNAMIC_MASK_AUTO);
    CHECK(worst_error(attend(in, &built.builder.plan, none), dense_attention(in)) < 3e-6);
    // no key at all: 0, not NaN
    Built nothing({std::vector<bool>(81)}, 81, HD_DYNAMIC_MASK_AUTO);
    Values out = attend(in, &nothing.builder.plan, none);
    for (int64_t i = 0; i < out.count(); i++)
        CHECK(out.at(i) == 0.0);
}

TEST_CASE("dynamic_mask: tiles kept by mean query and mean key against the definition",
          "[sparse][dynamic_mask]")
{
    const int64_t seed = GENERATE(range(1, 21));
    CAPTURE(seed);
    PlanInput::Shape shape;
    shape.seed = (uint64_t)seed, shape.heads = 2, shape.key_heads = 1, shape.rows = 2;
    shape.frames = 1 + seed % 3, shape.height = 5 + seed % 7, shape.width = 4 + seed * 3 % 9;
    shape.dim = 3 + seed % 6, shape.text_behind = seed % 4;
    PlanInput in(shape);
    const double keep = 0.1 + 0.04 * (double)(seed % 20), mass = seed % 3 ? 1.0 : 0.6;
    const int64_t ring = 1 + seed % 2, sink = seed % 3;
    const char *const scorers[] = {"block_mean", "col_mass", "value_norm", "value_dev"};
    const std::string scorer = scorers[seed % 4];
    Planning p(hd_dynamic_mask,
               "{\"window\": [2, 2, 3], \"refresh\": 1, \"query_sample\": 5, \"scorer\": \"" +
                   scorer + "\", \"ring\": " + std::to_string(ring) +
                   ", \"keep\": " + std::to_string(keep) + ", \"mass\": " + std::to_string(mass) +
                   ", \"sink\": " + std::to_string(sink) + "}",
               in);
    Planning rings(hd_proxy, "{\"window\": [2, 2, 3], \"ring\": " + std::to_string(ring) + "}", in);
    Run ex(every_isa()[(size_t)seed % every_isa().size()], 2);
    const int64_t b = seed % 2, h = seed / 2 % 2, grid = in.tokens - in.text_behind;
    PlanMeaning m = p.meaning(&ex, b, h), near = rings.meaning(&ex, b, h);
    const size_t tiles = m.tile_tokens.size();
    const std::vector<double> lengths = [&] {
        std::vector<double> mean((size_t)in.dim), out;
        for (int64_t j = 0; j < grid && scorer == "value_dev"; j++)
            for (int64_t d = 0; d < in.dim; d++)
                mean[(size_t)d] += in.v_at(b, j, h, d) / (double)grid;
        for (int64_t j = 0; j < grid; j++) {
            double square = 0;
            for (int64_t d = 0; d < in.dim; d++)
                square += std::pow(in.v_at(b, j, h, d) - mean[(size_t)d], 2);
            out.push_back(std::sqrt(square));
        }
        return out;
    }();
    std::vector<int64_t> order; // ranks
    for (auto &tile : m.tile_tokens)
        order.insert(order.end(), tile.begin(), tile.end());
    for (size_t a = 0; a < tiles; a++) {
        std::vector<double> share(tiles);
        auto mean = [&](bool query, size_t tile, int64_t d) {
            double sum = 0;
            for (int64_t t : m.tile_tokens[tile])
                sum += query ? in.q_at(b, t, h, d) : in.k_at(b, t, h, d);
            return sum / (double)m.tile_tokens[tile].size();
        };
        for (size_t t = 0; t < tiles; t++) {
            if (scorer == "block_mean") {
                double s = 0;
                for (int64_t d = 0; d < in.dim; d++)
                    s += mean(true, a, d) * mean(false, t, d);
                share[t] = (double)m.tile_tokens[t].size() * std::exp(s * (double)in.call.scale);
            } else if (scorer != "col_mass") {
                for (int64_t token : m.tile_tokens[t])
                    share[t] += lengths[(size_t)token];
            }
        }
        for (int64_t r = 2; r < grid && scorer == "col_mass" && r / 5 < grid / 5; r += 5) {
            std::vector<double> w((size_t)grid);
            double sum = 0;
            for (int64_t j = 0; j < grid; j++) {
                double s = 0;
                for (int64_t d = 0; d < in.dim; d++)
                    s += in.q_at(b, order[(size_t)r], h, d) * in.k_at(b, j, h, d);
                sum += w[(size_t)j] = std::exp(s * (double)in.call.scale);
            }
            for (size_t t = 0; t < tiles; t++)
                for (int64_t token : m.tile_tokens[t])
                    share[t] += w[(size_t)token] / sum;
        }
        const double all = std::accumulate(share.begin(), share.end(), 0.0);
        std::vector<size_t> best(tiles);
        std::iota(best.begin(), best.end(), 0);
        std::stable_sort(best.begin(), best.end(),
                         [&](size_t x, size_t y) { return share[x] > share[y]; });
        std::vector<bool> kept(tiles);
        double have = 0;
        int64_t count = 0;
        for (size_t t = 0; t < tiles; t++) {
            kept[t] = (int64_t)t < sink || near.at(m.tile_tokens[a][0], m.tile_tokens[t][0]);
            count += kept[t];
            have += kept[t] ? share[t] / all : 0;
        }
        const int64_t most = (int64_t)((double)(float)keep * (double)tiles + 1e-6);
        for (size_t t : best) {
            if (count >= most || have >= (double)(float)mass) break;
            if (kept[t]) continue;
            kept[t] = true;
            count++;
            have += share[t] / all;
        }
        for (size_t t = 0; t < tiles; t++) {
            CAPTURE(a, t, scorer);
            CHECK(m.at(m.tile_tokens[a][0], m.tile_tokens[t][0]) == kept[t]);
        }
    }
}

TEST_CASE("dynamic_mask: which scorers work on a smooth field, and what proxies add",
          "[sparse][dynamic_mask]")
{
    const bool sharp = GENERATE(false, true);
    PlanInput::Shape shape;
    shape.height = 32, shape.width = 32, shape.dim = 64;
    PlanInput in(shape);
    fill_field(in, 3, sharp ? 2.0 : 0.75);
    const auto map = attention_map(in);
    const double effective = effective_keys(map);
    CAPTURE(sharp, effective);
    CHECK(effective > (sharp ? 8 : 150));
    CHECK(effective < (sharp ? 20 : 400));
    const std::vector<double> dense = dense_attention(in);
    std::vector<double> columns((size_t)in.tokens), random;
    PlanMeaning best{in.tokens, in.tokens, 0, {}, {}, {}, 0}; // per query, exactly
    best.sees.assign((size_t)(in.tokens * in.tokens), 0);
    for (int64_t i = 0; i < in.tokens; i++) {
        const std::vector<double> &w = map[(size_t)i];
        std::vector<double> sorted = w;
        std::nth_element(sorted.begin(), sorted.begin() + 255, sorted.end(), std::greater<>());
        for (size_t j = 0; j < w.size(); j++) {
            columns[j] += w[j];
            best.sees[(size_t)(i * in.tokens) + j] = w[j] >= sorted[255];
        }
    }
    for (float x : normal_values(in.tokens, 9))
        random.push_back((double)x);
    Run ex;
    Planning tiles(hd_dynamic_mask, R"({"window": [1, 4, 4], "keep": 0.25, "mass": 1})", in);
    PlanMeaning mean = tiles.meaning(&ex), mean_proxy = mean;
    for (int64_t i = 0; i < in.tokens; i++)
        for (int64_t t = 0; t < mean.tiles; t++)
            mean_proxy.proxy[(size_t)(i * mean.tiles + t)] =
                !mean.at(i, mean.tile_tokens[(size_t)t][0]);
    mean.proxy.assign(mean.proxy.size(), 0);
    PlanMeaning norm = same_keys(in, value_lengths(in, false), 256);
    PlanMeaning apart = same_keys(in, value_lengths(in, true), 256);
    PlanMeaning any = same_keys(in, random, 256), column = same_keys(in, columns, 256);
    // one list for all queries holds little of the mass, and values say nothing of it
    for (const PlanMeaning *m : {&norm, &apart, &any, &column})
        CHECK(retained_mass(map, *m) < 0.6 * retained_mass(map, mean));
    CHECK(retained_mass(map, column) > retained_mass(map, any));
    CHECK(retained_mass(map, best) > retained_mass(map, mean));
    CHECK(error(in, norm, dense) > error(in, any, dense));
    CHECK(error(in, apart, dense) > error(in, any, dense));
    CHECK(error(in, mean_proxy, dense) < error(in, mean, dense));
    CHECK(error(in, best, dense) < error(in, mean, dense));
    if (!sharp) CHECK(error(in, mean_proxy, dense) < error(in, best, dense));
    for (const char *scorer : {"value_norm", "value_dev", "col_mass"}) {
        Planning p(hd_dynamic_mask,
                   std::string(R"({"window": [1, 4, 4], "mass": 1, "scorer": ")") + scorer + "\"}",
                   in);
        PlanMeaning m = p.meaning(&ex);
        m.proxy.assign(m.proxy.size(), 0);
        CHECK(error(in, m, dense) > error(in, mean, dense));
    }
}

TEST_CASE("dynamic_mask: a list serves for `refresh` steps", "[sparse][dynamic_mask]")
{
    PlanInput::Shape shape;
    shape.height = 24, shape.width = 24;
    PlanInput in(shape);
    Run ex;
    Planning p(hd_dynamic_mask, R"({"window": [1, 4, 4], "keep": 0.3, "refresh": 2})", in);
    PlanMeaning old = p.meaning(&ex, 0, 0, 4);
    Values k = Values::normal(HD_F32, hd_tensor_shape(in.k.t), 77);
    for (int64_t i = 0; i < k.count(); i++)
        in.k.set(i, (float)k.at(i));
    CHECK(p.meaning(&ex, 0, 0, 5).sees == old.sees);
    CHECK(p.meaning(&ex, 0, 0, 6).sees != old.sees);
}

TEST_CASE("dynamic_mask: what has no meaning here is refused", "[sparse][dynamic_mask]")
{
    PlanInput in(PlanInput::Shape{});
    auto refused = [&](const char *json, const char *text) {
        Planning p(hd_dynamic_mask, json, in);
        INFO(json << ": " << p.message);
        CHECK(p.status != HD_OK);
        CHECK(p.message.find(text) != std::string::npos);
    };
    refused(R"({"mode": "trained"})", "trained with it");
    refused(R"({"scorer": "prev_step"})", "does not record");
    refused(R"({"keep": 1.5})", "keep");
    refused(R"({"refresh": 0})", "refresh");
    refused(R"({"window": [1, 2]})", "window");
    in.call.q_layout = hd_layout_text(64);
    refused("{}", "queries are not one grid");
}
