// Proxies: which windows are seen key by key, what stands for the others, and what comes out.
#include <algorithm>
#include <cmath>

#include "engine/attention/planner/builder.h"
#include "sparse/all.h"
#include "support/catch.h"
#include "support/field.h"

namespace
{

PlanInput::Shape line(int64_t tokens)
{
    PlanInput::Shape s;
    s.dim = 1, s.height = 1, s.width = tokens;
    return s;
}

struct Window {
    int64_t f, y, x;
};

int64_t apart(Window a, Window b)
{
    return std::max(std::max(std::llabs(a.f - b.f), std::llabs(a.y - b.y)), std::llabs(a.x - b.x));
}

// Four tokens of one channel in two windows, query 0 with q = 1 and scale 1.
std::vector<double> four(const std::vector<double> &k, const std::vector<double> &v)
{
    Run ex;
    PlanInput in(line(4));
    PlanInput::put(in.q, 0, 0, {1, 1, 1, 1});
    PlanInput::put(in.k, 0, 0, k);
    PlanInput::put(in.v, 0, 0, v);
    Planning p(hd_proxy, R"({"window": [1, 1, 2], "ring": 1})", in);
    std::vector<double> out = attention_over(in, p.meaning(&ex));
    out.push_back(dense_attention(in)[0]);
    return out;
}

} // namespace

TEST_CASE("proxy: windows within the ring are seen, the others stand aside as one key",
          "[sparse][proxy]")
{
    const int64_t seed = GENERATE(range(1, 25));
    CAPTURE(seed);
    PlanInput::Shape shape;
    shape.frames = 1 + seed % 4, shape.height = 3 + seed * 5 % 9, shape.width = 2 + seed * 7 % 11;
    shape.text_before = seed % 3, shape.text_behind = seed % 5;
    PlanInput in(shape);
    const int64_t w[3] = {1 + seed % 3, 1 + seed % 4, 1 + seed * 3 % 5}, ring = 1 + seed % 3;
    Planning p(hd_proxy,
               "{\"window\": [" + std::to_string(w[0]) + ", " + std::to_string(w[1]) + ", " +
                   std::to_string(w[2]) + "], \"ring\": " + std::to_string(ring) + "}",
               in);
    Run ex;
    PlanMeaning m = p.meaning(&ex);
    const int64_t grid = shape.frames * shape.height * shape.width;
    auto window = [&](int64_t token) {
        return Window{token / (shape.height * shape.width) / w[0],
                      token / shape.width % shape.height / w[1], token % shape.width / w[2]};
    };
    bool right = true;
    for (int64_t i = 0; i < in.tokens; i++) {
        const int64_t a = i - in.text_before;
        const bool text = a < 0 || a >= grid;
        for (int64_t j = 0; j < in.tokens; j++) {
            const int64_t b = j - in.text_before;
            const bool near = text || b < 0 || b >= grid || apart(window(a), window(b)) < ring;
            right = right && m.at(i, j) == near;
        }
        for (int64_t t = 0; t < m.tiles; t++) {
            const int64_t b = m.tile_tokens[(size_t)t][0] - in.text_before;
            const bool stands = !text && apart(window(a), window(b)) >= ring;
            right = right && (m.proxy[(size_t)(i * m.tiles + t)] != 0) == stands;
        }
    }
    CHECK(right);
}

TEST_CASE("proxy: a ring over the whole grid is dense", "[sparse][proxy]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.frames = 2, shape.height = 6, shape.width = 7, shape.text_behind = 3;
    PlanInput in(shape);
    Planning p(hd_proxy, R"({"window": [2, 2, 3], "ring": 3})", in);
    CHECK(p.meaning(&ex).pairs() == in.tokens * in.tokens);
    CHECK(relative_l1(attention_over(in, p.meaning(&ex)), dense_attention(in)) < 1e-14);
}

TEST_CASE("proxy: equal keys within a window, or windows of one token, are exact",
          "[sparse][proxy]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.height = 7, shape.width = 6, shape.text_behind = 2;
    PlanInput in(shape);
    const int64_t ring = GENERATE(1, 2);
    Planning one(hd_proxy, "{\"window\": [1, 1, 1], \"ring\": " + std::to_string(ring) + "}", in);
    CHECK(relative_l1(attention_over(in, one.meaning(&ex)), dense_attention(in)) < 1e-13);
    for (int64_t t = 0; t < 42; t++)
        for (int64_t d = 0; d < in.dim; d++) {
            int64_t first = t / 6 / 2 * 2 * 6 + t % 6 / 3 * 3;
            in.k.set(t * in.dim + d, (float)in.k.at(first * in.dim + d));
        }
    Planning p(hd_proxy, "{\"window\": [1, 2, 3], \"ring\": " + std::to_string(ring) + "}", in);
    PlanMeaning m = p.meaning(&ex);
    CHECK(m.pairs() < in.tokens * in.tokens);
    CHECK(relative_l1(attention_over(in, m), dense_attention(in)) < 1e-13);
}

TEST_CASE("proxy: worked examples of two windows", "[sparse][proxy]")
{
    const double ln3 = std::log(3.0);
    std::vector<double> out = four({0, 0, ln3, ln3}, {1, 2, 3, 4});
    CHECK(out[0] == Approx(3.0).epsilon(1e-6));
    CHECK(out[4] == Approx(3.0).epsilon(1e-6));
    out = four({0, 0, 0, 2}, {4, 4, 0, 0});
    CHECK(out[0] == Approx(1.075766).epsilon(1e-6));
    CHECK(out[4] == Approx(0.770041).epsilon(1e-6));
}

TEST_CASE("proxy: weights sum to 1, and far queries do not care where a token is in its window",
          "[sparse][proxy]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.height = 8, shape.width = 8, shape.text_behind = 3, shape.dim = 4;
    PlanInput in(shape);
    Planning p(hd_proxy, R"({"window": [1, 2, 2], "ring": 2})", in);
    const PlanMeaning m = p.meaning(&ex);
    std::vector<double> before = attention_over(in, m);
    for (int64_t d = 0; d < 4; d++) { // tokens 0 and 9 of the first window change places
        for (Values *x : {&in.k, &in.v}) {
            float a = (float)x->at(d), b = (float)x->at(9 * 4 + d);
            x->set(d, b), x->set(9 * 4 + d, a);
        }
    }
    std::vector<double> after = attention_over(in, m);
    for (int64_t i = 0; i < 64; i++)
        if (i / 8 >= 4 || i % 8 >= 4)
            for (int64_t d = 0; d < 4; d++)
                CHECK(after[(size_t)(i * 4 + d)] ==
                      Approx(before[(size_t)(i * 4 + d)]).epsilon(1e-12));
    for (int64_t i = 0; i < in.v.count(); i++)
        in.v.set(i, 1.0f);
    for (double o : attention_over(in, m))
        CHECK(o == Approx(1.0).epsilon(1e-12));
}

TEST_CASE("proxy: the best windows by mean query and mean key join the ring", "[sparse][proxy]")
{
    const int64_t seed = GENERATE(range(1, 9));
    CAPTURE(seed);
    PlanInput::Shape shape;
    shape.seed = (uint64_t)seed, shape.height = 13, shape.width = 22, shape.dim = 5;
    shape.heads = 2, shape.rows = 2, shape.key_heads = 1;
    PlanInput in(shape);
    const int64_t topk = 1 + seed % 5;
    Planning p(hd_proxy,
               "{\"window\": [1, 3, 4], \"ring\": 1, \"topk\": " + std::to_string(topk) + "}", in);
    Planning rings(hd_proxy, R"({"window": [1, 3, 4], "ring": 1})", in);
    Run ex(every_isa()[(size_t)seed % every_isa().size()], 2);
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 2; h++) {
            PlanMeaning m = p.meaning(&ex, b, h), own = rings.meaning(&ex, b, h);
            auto mean = [&](bool query, const std::vector<int64_t> &tokens, int64_t d) {
                double sum = 0;
                for (int64_t t : tokens)
                    sum += query ? in.q_at(b, t, h, d) : in.k_at(b, t, h, d);
                return sum / (double)tokens.size();
            };
            for (auto &a : m.tile_tokens) {
                std::vector<std::pair<double, int64_t>> score;
                for (size_t t = 0; t < m.tile_tokens.size(); t++) {
                    double s = 0;
                    for (int64_t d = 0; d < in.dim; d++)
                        s += mean(true, a, d) * mean(false, m.tile_tokens[t], d);
                    score.push_back({-s, (int64_t)t});
                }
                std::sort(score.begin(), score.end());
                for (size_t r = 0; r < score.size(); r++) {
                    int64_t key = m.tile_tokens[(size_t)score[r].second][0];
                    CHECK(m.at(a[0], key) == ((int64_t)r < topk || own.at(a[0], key)));
                }
            }
        }
}

TEST_CASE("proxy: density is that of windows, proxies and text", "[sparse][proxy]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.height = 32, shape.width = 32, shape.text_behind = 16, shape.dim = 4;
    PlanInput in(shape);
    Planning p(hd_proxy, R"({"window": [1, 8, 8], "ring": 1})", in);
    hd_plan_stats stats;
    const hd_plan *plan = p.plan(&ex)[0];
    CHECK(plan->query_tiles == 16);
    REQUIRE_OK(hd_plan_measure(&stats, plan, 1, in.tokens, in.tokens, 4, 4, 4));
    // of grid queries: own window, proxies of the others, text; text queries see everything
    const double grid = 1024 * (64 + 15 + 16), text = 16 * 1040;
    CHECK(stats.useful_pairs == Approx(grid + text));
    CHECK(stats.density < 0.12);
}

TEST_CASE("proxy: what the kernel or the grid cannot do is refused", "[sparse][proxy]")
{
    PlanInput in(PlanInput::Shape{});
    auto refused = [&](const char *json, const char *text) {
        Planning p(hd_proxy, json, in);
        INFO(json << ": " << p.message);
        CHECK(p.status != HD_OK);
        CHECK(p.message.find(text) != std::string::npos);
    };
    refused(R"({"window": [1, 8]})", "window");
    refused(R"({"window": [1, 0, 8]})", "window[1]");
    refused(R"({"ring": 0})", "ring");
    refused(R"({"pool": "pre_rope"})", "keys after RoPE");
    refused(R"({"variance_correction": true})", "variance_correction");
    in.call.q_layout = hd_layout_text(64);
    refused("{}", "queries are not one grid");
}

TEST_CASE("proxy: what each part brings on a smooth field", "[sparse][proxy]")
{
    const bool sharp = GENERATE(false, true);
    PlanInput::Shape shape;
    shape.height = 32, shape.width = 32, shape.dim = 64;
    PlanInput in(shape);
    fill_field(in, 4, sharp ? 2.0 : 0.75);
    Run ex;
    const std::vector<double> dense = dense_attention(in);
    auto error = [&](const std::string &json, const ProxyForm &form = {}, bool drop = false) {
        Planning p(hd_proxy, "{\"window\": [1, 4, 4], \"ring\": 1, " + json + "}", in);
        PlanMeaning m = p.meaning(&ex);
        if (drop) m.proxy.assign(m.proxy.size(), 0);
        return relative_l1(attention_over(in, m, 0, 0, form), dense);
    };
    ProxyForm uncounted, random;
    uncounted.counted = false;
    Planning p(hd_proxy, R"({"window": [1, 4, 4]})", in);
    for (auto &tile : p.meaning(&ex).tile_tokens)
        random.token.push_back(tile[random.token.size() * 7 % 16]);
    const double local = error("\"topk\": 0", {}, true), counted = error("\"topk\": 0");
    CHECK(counted < error("\"topk\": 0", random));
    if (!sharp) {
        CHECK(error("\"topk\": 0", uncounted) < local);
        CHECK(2 * counted < error("\"topk\": 0", uncounted));
        // a few tiles and proxies for the rest beat many tiles alone
        CHECK(error("\"topk\": 4") < error("\"topk\": 16", {}, true));
    }
    CHECK(error("\"topk\": 16") < error("\"topk\": 16", {}, true));
    CHECK(error("\"topk\": 32") < error("\"topk\": 32", {}, true));
}
