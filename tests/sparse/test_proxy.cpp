// Proxies: which windows are seen key by key, what stands for the others, and what comes out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "engine/attention/planner/builder.h"
#include "sparse/all.h"
#include "support/attention.h"
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

// Four tokens of one channel in two windows, query 0 with q = 1 and scale 1: the attention call's
// output, and what dense attention gives.
std::vector<double> four(const std::vector<double> &k, const std::vector<double> &v,
                         const std::string &more = "")
{
    PlanInput in(line(4));
    PlanInput::put(in.q, 0, 0, {1, 1, 1, 1});
    PlanInput::put(in.k, 0, 0, k);
    PlanInput::put(in.v, 0, 0, v);
    const std::vector<double> out =
        attention_by(in, &hd_all_accelerators,
                     R"([{"use": "proxy", "window": [1, 1, 2], "ring": 1)" + more + "}]");
    return {out[0], dense_attention(in)[0]};
}

// One row and head of the call's output.
std::vector<double> head_of(const PlanInput &in, const std::vector<double> &out, int64_t row,
                            int64_t head)
{
    std::vector<double> numbers;
    for (int64_t i = 0; i < in.tokens; i++)
        for (int64_t d = 0; d < in.dim; d++)
            numbers.push_back(
                out[(size_t)(((row * in.tokens + i) * in.heads + head) * in.dim + d)]);
    return numbers;
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
    const std::vector<double> k = {0, 0, ln3, ln3}, v = {1, 2, 3, 4};
    std::vector<double> out = four(k, v);
    CHECK(out[0] == Approx(3.0).epsilon(1e-6));
    CHECK(out[1] == Approx(3.0).epsilon(1e-6));
    CHECK(four(k, v, R"(, "size_bias": false)")[0] == Approx(2.7).epsilon(1e-6));
    out = four({0, 0, 0, 2}, {4, 4, 0, 0});
    CHECK(out[0] == Approx(1.075766).epsilon(1e-6));
    CHECK(out[1] == Approx(0.770041).epsilon(1e-6));
    out = four({0, 0, 0, 2}, {4, 4, 0, 0}, R"(, "variance_correction": true)");
    CHECK(out[0] == Approx(0.729702).epsilon(1e-6));
    CHECK(out[0] == Approx(8 / 10.963378).epsilon(1e-6));
    // half a variance of 1 is 0.5: a clip of 0.2 stands in its way
    out =
        four({0, 0, 0, 2}, {4, 4, 0, 0}, R"(, "variance_correction": true, "variance_clip": 0.2)");
    CHECK(out[0] == Approx(8 / (2 + 2 * std::exp(1.2))).epsilon(1e-6));
}

TEST_CASE("proxy: the first token, or one drawn at random, stands for its window",
          "[sparse][proxy]")
{
    PlanInput::Shape shape;
    shape.height = 9, shape.width = 10, shape.text_behind = 3, shape.heads = 2, shape.rows = 2;
    PlanInput in(shape);
    const bool same = GENERATE(false, true), random = GENERATE(false, true);
    const std::string form = std::string(R"("window": [1, 3, 4], "ring": 1, "representative": )") +
                             (random ? R"("random", "seed": 5)" : R"("first")") +
                             (same ? R"(, "value": "same")" : "");
    CAPTURE(form);
    Run ex;
    Planning p(hd_proxy, "{" + form + "}", in);
    const PlanMeaning m = p.meaning(&ex, 0, 0, 4);
    const hd_plan *plan = p.plan(&ex, 4)[1];
    REQUIRE(plan->proxy.key != nullptr);
    CHECK((plan->proxy.value != nullptr) == same);
    ProxyForm by;
    for (int64_t t = 0; t < m.tiles; t++) {
        const int64_t at = plan->proxy.key[t] - hd_plan_key_start(plan, t);
        if (!random) CHECK(at == 0);
        by.token.push_back(m.tile_tokens[(size_t)t][(size_t)at]);
    }
    by.value_too = same;
    const std::vector<double> out =
        attention_by(in, &hd_all_accelerators, R"([{"use": "proxy", )" + form + "}]", 4);
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 2; h++) {
            CHECK(relative_l1(head_of(in, out, b, h), attention_over(in, m, b, h, by)) < 1e-6);
            CHECK(relative_l1(head_of(in, out, b, h), attention_over(in, m, b, h)) > 1e-2);
        }
}

TEST_CASE("proxy: a draw is that of seed, step and site alone", "[sparse][proxy]")
{
    PlanInput::Shape shape;
    shape.height = 32, shape.width = 32, shape.dim = 4;
    PlanInput in(shape);
    Run ex;
    auto drawn = [&](const std::string &seed, int64_t step, const char *path) {
        strcpy(in.call.site.path, path);
        Planning p(hd_proxy,
                   R"({"window": [1, 4, 4], "representative": "random", "seed": )" + seed + "}",
                   in);
        const hd_plan *plan = p.plan(&ex, step)[0];
        std::vector<int32_t> ranks(plan->proxy.key, plan->proxy.key + plan->key_tiles);
        for (int64_t t = 0; t < plan->key_tiles; t++)
            ranks[(size_t)t] -= (int32_t)hd_plan_key_start(plan, t);
        return ranks;
    };
    const std::vector<int32_t> one = drawn("1", 3, "block.0");
    CHECK(drawn("1", 3, "block.0") == one);
    CHECK(drawn("2", 3, "block.0") != one);
    CHECK(drawn("1", 4, "block.0") != one);
    CHECK(drawn("1", 3, "block.1") != one);
    CHECK(std::set<int32_t>(one.begin(), one.end()).size() > 8); // of 16 places, 64 draws
}

TEST_CASE("proxy: the second-order term against its formula", "[sparse][proxy]")
{
    const hd_dtype dtype = GENERATE(HD_F32, HD_BF16);
    PlanInput::Shape shape;
    shape.height = 7, shape.width = 10, shape.text_before = 2, shape.heads = 2, shape.key_heads = 1;
    shape.dim = 12, shape.dtype = dtype;
    PlanInput in(shape);
    const char *form = R"("window": [1, 3, 4], "ring": 1, "variance_correction": true)";
    Run ex;
    Planning p(hd_proxy, std::string("{") + form + "}", in);
    const std::vector<double> out =
        attention_by(in, &hd_all_accelerators, std::string(R"([{"use": "proxy", )") + form + "}]");
    ProxyForm with;
    with.clip = 2.0;
    for (int64_t h = 0; h < 2; h++) {
        const PlanMeaning m = p.meaning(&ex, 0, h);
        const std::vector<double> got = head_of(in, out, 0, h);
        const double tolerance = dtype == HD_BF16 ? 2e-2 : 1e-5;
        CHECK(relative_l1(got, attention_over(in, m, 0, h, with)) < tolerance);
        CHECK(relative_l1(got, attention_over(in, m, 0, h)) > 2 * tolerance);
    }
}

TEST_CASE("proxy: where keys are not turned, before and after RoPE are one", "[sparse][proxy]")
{
    PlanInput in(PlanInput::Shape{});
    in.call.site.network = HD_NETWORK_UNET;
    const std::string use = R"([{"use": "proxy", "window": [1, 4, 4], "ring": 1, "pool": )";
    CHECK(attention_by(in, &hd_all_accelerators, use + R"("pre_rope"}])") ==
          attention_by(in, &hd_all_accelerators, use + R"("post_rope"}])"));
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

TEST_CASE("proxy: a bias per key counts its keys more or less, exactly where they are equal",
          "[sparse][proxy]")
{
    PlanInput::Shape shape;
    shape.height = 6, shape.width = 6, shape.text_behind = 2, shape.heads = 2, shape.dim = 4;
    PlanInput in(shape);
    for (int64_t t = 0; t < 36; t++) // equal keys within a window of 2 x 3
        for (int64_t h = 0; h < 2; h++)
            for (int64_t d = 0; d < 4; d++) {
                const int64_t first = t / 6 / 2 * 2 * 6 + t % 6 / 3 * 3;
                in.k.set((t * 2 + h) * 4 + d, (float)in.k_at(0, first, h, d));
            }
    // a window without any, one with a single key, and biases of all sizes
    auto bias = [](int64_t head, int64_t t) {
        if (t < 12 && t % 6 < 3) return -INFINITY;
        if (t >= 24 && t % 6 >= 3 && t != 28) return -INFINITY;
        return (float)((t * 7 + head * 3) % 5) - 2.0f;
    };
    TestClass biases;
    biases.name = "biases";
    biases.edits = HD_ADDS_COLUMN_BIAS;
    biases.logits = [&](const hd_hook_ctx *, hd_logits *f) {
        for (int64_t h = 0; h < 2; h++)
            for (int64_t t = 0; t < f->keys; t++)
                static_cast<float *>(f->column_bias.data)[h * f->keys + t] = bias(h, t);
        return HD_OK;
    };
    TestList own({biases});
    const hd_processor_list *one = own;
    const hd_processor_class *both[] = {&hd_proxy, one->item[0]};
    const hd_processor_list list = {2, both};
    const std::vector<double> dense = attention_by(in, &list, R"([{"use": "biases"}])");
    const std::string use = R"([{"use": "proxy", "window": [1, 2, 3], "ring": 1})";
    const std::vector<double> out = attention_by(in, &list, use + R"(, {"use": "biases"}])");
    CHECK(relative_l1(out, dense) < 1e-6);
    CHECK(relative_l1(attention_by(in, &list, use + "]"), dense) > 1e-1);
}

TEST_CASE("proxy: causal queries do not learn of later keys from proxies", "[sparse][proxy]")
{
    PlanInput in(line(64));
    in.call.causal = true;
    const std::string use = R"([{"use": "proxy", "window": [1, 1, 4], "ring": 1}])";
    const std::vector<double> before = attention_by(in, &hd_all_accelerators, use);
    in.k.set(42, 9.0f), in.v.set(42, -9.0f);
    const std::vector<double> after = attention_by(in, &hd_all_accelerators, use);
    for (int64_t i = 0; i < 64; i++) // 43's window ends with 43: later ones see the changed mean
        CHECK((before[(size_t)i] == after[(size_t)i]) == (i < 42));
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
    refused(R"({"pool": "pre_rope"})", "its keys come here turned by their places");
    refused(R"({"variance_clip": -1})", "variance_clip");
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
