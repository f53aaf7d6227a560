// The hooks of a call, each against f64: forms of the scores, segments, probes, appended and merged
// tokens, the map, plans and number formats; and which of them may stand together.
#include <algorithm>
#include <cstring>

#include "base/plan.h"
#include "support/alloc_fail.h"
#include "support/attention.h"

namespace
{

std::string use(const std::string &names)
{
    std::string json = "{\"processors\": [";
    size_t at = 0;
    while (at < names.size()) {
        size_t end = std::min(names.find('|', at), names.size());
        std::string one = names.substr(at, end - at);
        json += (at ? ", " : "") + (one[0] == '{' ? one : "{\"use\": \"" + one + "\"}");
        at = end + 1;
    }
    return json + "]}";
}

// Forces the explicit map and leaves it as it is.
TestClass plain_map()
{
    TestClass t;
    t.name = "look";
    t.map = [](const hd_hook_ctx *, hd_attention_map *) { return HD_OK; };
    return t;
}

float noise(int64_t a, int64_t b, int64_t c, int64_t d)
{
    uint64_t x = (uint64_t)(a * 31 + b * 17 + c * 7 + d + 1) * 0x9E3779B97F4A7C15ull;
    return (float)((double)(x >> 40) / (double)(1 << 24)) * 2.0f - 1.0f;
}

// Every form of the scores at once, on active rows.
TestClass all_forms()
{
    TestClass t;
    t.name = "forms";
    t.edits = HD_ADDS_COLUMN_BIAS | HD_ADDS_BIAS | HD_ADDS_MASK | HD_ADDS_SEGMENTS;
    t.prepare = [](hd_prepare_ctx *ctx) {
        ctx->query_labels = 2;
        ctx->key_labels = 3;
        return HD_OK;
    };
    t.logits = [](const hd_hook_ctx *ctx, hd_logits *l) {
        const int64_t H = ctx->call->q.dim[2];
        for (int64_t b = 0; b < l->rows; b++) {
            if (!ctx->active[b]) continue;
            for (int64_t i = 0; i < l->queries; i++) {
                l->row_scale[b * l->queries + i] *= 1.5f;
                l->segments->query_label[b * l->queries + i] = (uint8_t)(i % 2);
            }
            for (int64_t j = 0; j < l->keys; j++)
                l->segments->key_label[b * l->keys + j] = (uint8_t)(j % 3);
            for (int64_t a = 0; a < 2; a++)
                for (int64_t c = 0; c < 3; c++) {
                    l->segments->bias[(b * 2 + a) * 3 + c] = noise(a, c, 5, 5);
                    l->segments->gain[(b * 2 + a) * 3 + c] = 1.0f + 0.1f * (float)(a + 2 * c);
                }
            for (int64_t h = 0; h < H; h++)
                for (int64_t j = 0; j < l->keys; j++) {
                    float *column = static_cast<float *>(l->column_bias.data);
                    column[(b * H + h) * l->keys + j] += noise(1, h, j, 2);
                    for (int64_t i = 0; i < l->queries; i++) {
                        const int64_t at = ((b * H + h) * l->queries + i) * l->keys + j;
                        static_cast<float *>(l->bias.data)[at] += noise(h, i, j, 3);
                        // query 1 sees nothing
                        if ((i + j) % 4 == 0 || i == 1)
                            static_cast<bool *>(l->mask.data)[at] = false;
                    }
                }
        }
        return HD_OK;
    };
    return t;
}

double formed(const TestCall &c, int64_t b, int64_t h, int64_t i, int64_t j)
{
    if ((i + j) % 4 == 0 || i == 1) return -HUGE_VAL;
    return 1.5 * score_f64(c, b, h, i, j) + (double)noise(1, h, j, 2) + (double)noise(h, i, j, 3) +
           (double)noise(i % 2, j % 3, 5, 5);
}

std::vector<double> plain_weights(const TestCall &c, int64_t b, int64_t h, int64_t i)
{
    return softmax_f64(c.Lk, [&](int64_t j) { return score_f64(c, b, h, i, j); });
}

double plain_error(const TestCall &c, const std::vector<float> &out, int64_t b)
{
    return error_f64(c, out, b, [&](int64_t h, int64_t i) { return plain_weights(c, b, h, i); });
}

hd_status give(const hd_hook_ctx *ctx, const hd_plan *plan, const hd_plan **out)
{
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++)
        if (ctx->active[b]) out[b] = plan;
    return HD_OK;
}

/* Tiles of `tile` tokens; every query tile sees its own key tile only. */
struct Diagonal {
    std::vector<int64_t> start;
    std::vector<hd_visit> visit;
    hd_plan plan{};
    Diagonal(int64_t tokens, int64_t tile)
    {
        const int64_t tiles = (tokens + tile - 1) / tile;
        for (int64_t t = 0; t <= tiles; t++) {
            start.push_back(t);
            visit.push_back({(int32_t)t, HD_VISIT_FULL});
        }
        plan.query_tile = plan.key_tile = tile;
        plan.query_tiles = plan.key_tiles = tiles;
        plan.query_ranks = plan.key_ranks = tokens;
        plan.orders = plan.heads = 1;
        plan.row_start = start.data();
        plan.visit = visit.data();
    }
};

TestClass diagonal(const Diagonal &d)
{
    TestClass t;
    t.name = "diagonal";
    t.plan = [&d](const hd_hook_ctx *ctx, const hd_tokens *, const hd_plan **plan) {
        return give(ctx, &d.plan, plan);
    };
    return t;
}

double diagonal_error(const TestCall &c, const std::vector<float> &out, int64_t b, int64_t tile)
{
    return error_f64(c, out, b, [&](int64_t h, int64_t i) {
        return softmax_f64(c.Lk, [&](int64_t j) {
            return i / tile == j / tile ? score_f64(c, b, h, i, j) : -HUGE_VAL;
        });
    });
}

} // namespace

TEST_CASE("hooks: the explicit map computes attention, every form of the scores, and the sums",
          "[attention][hooks]")
{
    TestList list({plain_map(), all_forms()});
    TestCall c(3, 19, 23, 2, 12);
    int64_t key_len[] = {23, 7, 23};
    SECTION("plain, with fewer keys in a row")
    {
        c.call.key_len = key_len;
        TestRun run(list, use("look"));
        REQUIRE_OK(c.dry(run));
        auto out = c.act(run);
        CHECK(plain_error(c, out, 0) < 1e-5);
        CHECK(error_f64(c, out, 1, [&](int64_t h, int64_t i) {
                  return softmax_f64(7, [&](int64_t j) { return score_f64(c, 1, h, i, j); });
              }) < 1e-5);
        // threads and the batch change no byte
        REQUIRE_OK(c.try_act(run, 0, 3));
        CHECK(memcmp(out.data(), c.out.data(), out.size() * sizeof(float)) == 0);
        CHECK(run.chain() == "look [0, 10): explicit map of look [0, 10)");
    }
    SECTION("all forms, on the rows named")
    {
        for (const char *kernel : {"|look", ""}) { // the map's, and the streaming one
            INFO(kernel);
            TestRun run(
                list, use("{\"use\": \"forms\", \"branches\": [\"cond\"]}" + std::string(kernel)));
            REQUIRE_OK(run.status);
            REQUIRE_OK(c.dry(run));
            auto out = c.act(run);
            CHECK(plain_error(c, out, 0) < 1e-5);
            double worst = error_f64(c, out, 1, [&](int64_t h, int64_t i) {
                auto p = softmax_f64(c.Lk, [&](int64_t j) { return formed(c, 1, h, i, j); });
                for (int64_t j = 0; j < c.Lk; j++)
                    p[(size_t)j] *= 1.0 + 0.1 * (double)(i % 2 + 2 * (j % 3)); // the gain
                return p;
            });
            CHECK(worst < 1e-5);
        }
    }
    SECTION("causal")
    {
        c.call.causal = true;
        TestRun run(list, use("look"));
        REQUIRE_OK(c.dry(run));
        auto out = c.act(run);
        CHECK(error_f64(c, out, 2, [&](int64_t h, int64_t i) {
                  return softmax_f64(i + 1, [&](int64_t j) { return score_f64(c, 2, h, i, j); });
              }) < 1e-5);
    }
}

TEST_CASE("hooks: map hooks edit in preset order, on their rows and steps", "[attention][hooks]")
{
    TestClass twice, shift;
    twice.name = "twice";
    twice.map = [](const hd_hook_ctx *ctx, hd_attention_map *m) {
        const int64_t values = m->p.dim[1] * m->p.dim[2] * m->p.dim[3];
        for (int64_t b = 0; b < m->p.dim[0]; b++)
            for (int64_t i = 0; ctx->active[b] && i < values; i++)
                static_cast<float *>(m->p.data)[b * values + i] *= 2.0f;
        return HD_OK;
    };
    shift.name = "shift";
    shift.map = [](const hd_hook_ctx *ctx, hd_attention_map *m) {
        const int64_t values = m->p.dim[1] * m->p.dim[2] * m->p.dim[3];
        for (int64_t b = 0; b < m->p.dim[0]; b++)
            for (int64_t i = 0; ctx->active[b] && i < values; i++)
                static_cast<float *>(m->p.data)[b * values + i] += 0.125f;
        return HD_OK;
    };
    TestList list({twice, shift});
    TestCall c(2, 5, 9, 2, 8);
    TestRun run(list, use("{\"use\": \"shift\", \"branches\": [\"cond\"]}|{\"use\": \"twice\", "
                          "\"steps\": [0, 0.5], \"branches\": [\"cond\"]}"));
    REQUIRE_OK(c.dry(run));
    auto edited = [&](double factor) {
        return [&c, factor](int64_t h, int64_t i) {
            auto p = plain_weights(c, 1, h, i);
            for (double &x : p)
                x = (x + 0.125) * factor;
            return p;
        };
    };
    auto early = c.act(run, 4), late = c.act(run, 5);
    CHECK(error_f64(c, early, 1, edited(2)) < 1e-5);
    CHECK(error_f64(c, late, 1, edited(1)) < 1e-5);
    CHECK(plain_error(c, early, 0) < 1e-5);
    CHECK(run.chain() == "shift [0, 10), twice [0, 5): explicit map of shift [0, 10), explicit map "
                         "of twice [0, 5), else streaming f32");
}

TEST_CASE("hooks: the map in bf16", "[attention][hooks]")
{
    TestList list({plain_map()});
    TestCall c(1, 6, 9, 2, 16);
    std::vector<uint16_t> half[4];
    std::vector<float> *full[] = {&c.q, &c.k, &c.v, &c.out};
    hd_tensor *tensor[] = {&c.call.q, &c.call.k, &c.call.v, &c.call.out};
    for (int n = 0; n < 4; n++) {
        for (float &x : *full[n]) {
            half[n].push_back(hd_bf16_from_f32(x));
            x = hd_bf16_to_f32(half[n].back());
        }
        tensor[n]->data = half[n].data();
        tensor[n]->dtype = HD_BF16;
    }
    TestRun run(list, use("look"));
    REQUIRE_OK(c.dry(run));
    c.act(run);
    std::vector<float> out;
    for (uint16_t x : half[3])
        out.push_back(hd_bf16_to_f32(x));
    CHECK(plain_error(c, out, 0) < 8e-3); // of the output's own rounding
}

TEST_CASE("hooks: each probe has its own channels, and changes no byte of the result",
          "[attention][hooks]")
{
    const bool mapped = GENERATE(true, false);
    std::vector<float> seen[2];
    auto make = [&seen](int n, int64_t channels) {
        TestClass t;
        t.name = n ? "second" : "first";
        t.prepare = [channels](hd_prepare_ctx *ctx) {
            ctx->indicators = channels;
            return HD_OK;
        };
        t.probe = [n, channels](const hd_hook_ctx *, hd_tensor e) {
            REQUIRE(e.dim[2] == channels);
            for (int64_t b = 0; b < e.dim[0]; b++)
                for (int64_t j = 0; j < e.dim[1]; j++)
                    for (int64_t x = 0; x < channels; x++)
                        static_cast<float *>(e.data)[b * e.stride[0] + j * e.stride[1] + x] =
                            noise(n, b, j, x);
            return HD_OK;
        };
        t.output = [n, &seen](const hd_hook_ctx *, hd_attention_output *o) {
            seen[n].clear();
            const hd_tensor p = o->probed;
            for (int64_t b = 0; b < p.dim[0]; b++)
                for (int64_t h = 0; h < p.dim[1]; h++)
                    for (int64_t i = 0; i < p.dim[2]; i++)
                        for (int64_t x = 0; x < p.dim[3]; x++)
                            seen[n].push_back(static_cast<float *>(
                                p.data)[b * p.stride[0] + h * p.stride[1] + i * p.stride[2] + x]);
            return HD_OK;
        };
        return t;
    };
    TestList list({make(0, 1), make(1, 3), plain_map()});
    TestCall c(2, 11, 37, 2, 8);
    std::string end = mapped ? "|look" : "";
    TestRun without(list, mapped ? use("look") : "{}"), with(list, use("first|second" + end));
    REQUIRE_OK(c.dry(without));
    auto plain = c.act(without);
    REQUIRE_OK(c.dry(with));
    auto probed = c.act(with);
    CHECK(memcmp(plain.data(), probed.data(), plain.size() * sizeof(float)) == 0);
    const int64_t channels[] = {1, 3};
    for (int n = 0; n < 2; n++) {
        REQUIRE((int64_t)seen[n].size() == c.B * c.H * c.Lq * channels[n]);
        double worst = 0;
        size_t at = 0;
        for (int64_t b = 0; b < c.B; b++)
            for (int64_t h = 0; h < c.H; h++)
                for (int64_t i = 0; i < c.Lq; i++) {
                    auto p = plain_weights(c, b, h, i);
                    for (int64_t x = 0; x < channels[n]; x++, at++) {
                        double truth = 0;
                        for (int64_t j = 0; j < c.Lk; j++)
                            truth += p[(size_t)j] * (double)noise(n, b, j, x);
                        worst = std::fmax(worst, std::fabs(truth - (double)seen[n][at]));
                    }
                }
        CHECK(worst < 1e-5);
    }
}

namespace
{
// Appends `count` keys and values, all `value`, to active rows; looks at where it stands.
TestClass appends(const char *name, int64_t count, float value)
{
    TestClass t;
    t.name = name;
    t.prepare = [count](hd_prepare_ctx *ctx) {
        ctx->extra_keys = count;
        return HD_OK;
    };
    t.tokens = [count, value](const hd_hook_ctx *ctx, hd_tokens *tokens) {
        const hd_token_layout &layout = ctx->call->k_layout;
        const hd_token_segment &last = layout.segment[layout.segments - 1];
        CHECK(last.kind == HD_TOKENS_REFERENCE);
        CHECK(last.start + last.count == tokens->k.dim[1]);
        for (int64_t b = 0; b < tokens->k.dim[0]; b++) {
            if (!ctx->active[b]) continue;
            const int64_t width = tokens->k.stride[1];
            for (hd_tensor part : {tokens->k, tokens->v}) {
                float *to = static_cast<float *>(part.data) + b * part.stride[0] +
                            tokens->key_len[b] * width;
                std::fill(to, to + count * width, value);
            }
            tokens->key_len[b] += count;
        }
        return HD_OK;
    };
    return t;
}
} // namespace

TEST_CASE("hooks: processors append keys, one behind the other, on their own rows",
          "[attention][hooks]")
{
    TestList list({appends("one", 2, 0.5f), appends("two", 3, -0.25f)});
    TestCall c(2, 6, 8, 2, 4);
    int64_t key_len[] = {8, 5};
    c.call.key_len = key_len;
    TestRun run(list, use("{\"use\": \"one\", \"branches\": [\"cond\"]}|two"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    auto k = c.k;
    auto out = c.act(run);
    CHECK(c.k == k);
    for (int64_t b = 0; b < 2; b++) {
        std::vector<double> more;
        if (b == 1) more.insert(more.end(), {0.5, 0.5});
        more.insert(more.end(), {-0.25, -0.25, -0.25});
        const int64_t own = key_len[b];
        CHECK(error_f64(
                  c, out, b,
                  [&](int64_t h, int64_t i) {
                      double sum = 0;
                      for (int64_t d = 0; d < c.D; d++)
                          sum += (double)c.q[(size_t)(((b * c.Lq + i) * c.H + h) * c.D + d)];
                      return softmax_f64(own + (int64_t)more.size(), [&](int64_t j) {
                          if (j < own) return score_f64(c, b, h, i, j);
                          return sum * more[(size_t)(j - own)] * (double)c.call.scale;
                      });
                  },
                  [&](int64_t j, int64_t h, int64_t d) {
                      if (j >= own) return more[(size_t)(j - own)];
                      return (double)c.v[(size_t)(((b * c.Lk + j) * c.H + h) * c.D + d)];
                  }) < 1e-5);
    }
    // where nobody appends, the call is the network's own
    TestRun late(list, use("{\"use\": \"one\", \"steps\": [0.5, 1]}"));
    REQUIRE_OK(c.dry(late));
    c.call.key_len = nullptr;
    CHECK(plain_error(c, c.act(late, 0), 0) < 1e-5);
}

namespace
{
// Keeps the first half of the tokens and copies their results to the second half.
TestClass merges(std::vector<int64_t> *dims = nullptr)
{
    TestClass t;
    t.name = "merges";
    t.edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V | HD_MOVES_TOKENS;
    t.tokens = [dims](const hd_hook_ctx *ctx, hd_tokens *tokens) {
        for (int64_t b = 0; b < tokens->q.dim[0]; b++)
            if (ctx->active[b]) tokens->query_len[b] = tokens->key_len[b] = tokens->q.dim[1] / 2;
        if (dims) dims->assign(tokens->q.dim, tokens->q.dim + 4);
        return HD_OK;
    };
    t.output = [](const hd_hook_ctx *ctx, hd_attention_output *o) {
        const int64_t half = o->out.dim[1] / 2, width = o->out.stride[1];
        CHECK(ctx->call->q_layout.segment[0].width == 0);
        for (int64_t b = 0; b < o->out.dim[0]; b++) {
            float *row = static_cast<float *>(o->out.data) + b * o->out.stride[0];
            if (ctx->active[b]) std::copy_n(row, half * width, row + half * width);
        }
        return HD_OK;
    };
    return t;
}
} // namespace

TEST_CASE("hooks: merged tokens, restored before anybody else sees the output",
          "[attention][hooks]")
{
    TestClass marks;
    marks.name = "marks";
    std::vector<float> last;
    marks.output = [&last](const hd_hook_ctx *, hd_attention_output *o) {
        const float *y = static_cast<float *>(o->out.data);
        last.assign(y, y + hd_tensor_count(o->out));
        return HD_OK;
    };
    TestList list({marks, merges()});
    TestCall c(2, 8, 8, 2, 4);
    TestRun run(list, use("marks|{\"use\": \"merges\", \"branches\": [\"cond\"]}"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    auto out = c.act(run);
    CHECK(last == out); // though "marks" stands first
    CHECK(plain_error(c, out, 0) < 1e-5);
    CHECK(error_f64(c, out, 1, [&](int64_t h, int64_t i) {
              return softmax_f64(4, [&](int64_t j) { return score_f64(c, 1, h, i % 4, j); });
          }) < 1e-5);
}

TEST_CASE("hooks: a plan per row, dense where it is not given", "[attention][hooks]")
{
    Diagonal d(12, 4);
    TestList list({diagonal(d)});
    TestCall c(1, 12, 12, 2, 8);
    TestRun run(list, use("{\"use\": \"diagonal\", \"steps\": [0.2, 1]}"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    CHECK(run.chain() == "diagonal [2, 10): plan of diagonal [2, 10), else streaming f32");
    CHECK(plain_error(c, c.act(run, 1), 0) < 1e-5);
    auto out = c.act(run, 2);
    CHECK(diagonal_error(c, out, 0, 4) < 1e-5);
    CHECK(plain_error(c, out, 0) > 1e-2);
    TestCall two(2, 12, 12, 2, 8);
    TestRun rows(list, use("{\"use\": \"diagonal\", \"branches\": [\"cond\"]}"));
    REQUIRE_OK(two.dry(rows));
    out = two.act(rows);
    CHECK(plain_error(two, out, 0) < 1e-5);
    CHECK(diagonal_error(two, out, 1, 4) < 1e-5);
}

TEST_CASE("hooks: engine fields of a plan, and only of a plan", "[attention][hooks]")
{
    Diagonal d(12, 4);
    TestList list({diagonal(d), plain_map()});
    TestRun good(list, use("{\"use\": \"diagonal\", \"rest\": \"drop\", \"qk\": \"bf16\", \"pv\": "
                           "\"bf16\", \"on_edit\": \"dense\"}"));
    REQUIRE_OK(good.status);
    TestRun bad(list, use("{\"use\": \"diagonal\", \"rest\": \"dorp\"}"));
    CHECK_FAILS(bad.status, HD_ERR_ARGUMENT, "test.json: processors[0].rest is \"dorp\"");
    CHECK_FAILS(bad.status, HD_ERR_ARGUMENT, "did you mean \"drop\"?");
    TestRun none(list, use("{\"use\": \"look\", \"qk\": \"int8\"}"));
    CHECK_FAILS(none.status, HD_ERR_ARGUMENT, "test.json: processors[0] (look) has no \"qk\"");
}

TEST_CASE("hooks: boxes that start anywhere leave no tile to a proxy", "[attention][hooks]")
{
    Diagonal d(12, 4);
    d.plan.box_extent[0] = d.plan.box_extent[1] = 1;
    d.plan.box_extent[2] = 4;
    TestList list({diagonal(d)});
    TestCall c(1, 12, 12, 2, 8);
    TestRun run(list, use("{\"use\": \"diagonal\", \"rest\": \"proxy\"}"));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    CHECK_FAILS(c.try_act(run, 0, 1, HD_CPU), HD_ERR_UNSUPPORTED,
                "test.json: processors[0] (diagonal) visits boxes of keys that start anywhere");
}

TEST_CASE("hooks: rows whose keys are edited are dense if the preset says so", "[attention][hooks]")
{
    Diagonal d(12, 4);
    TestClass fixed = diagonal(d), doubles;
    fixed.static_plan = true;
    doubles.name = "doubles";
    doubles.edits = HD_EDITS_K;
    doubles.tokens = [](const hd_hook_ctx *ctx, hd_tokens *t) {
        const int64_t values = hd_tensor_count(t->k) / t->k.dim[0];
        for (int64_t b = 0; b < t->k.dim[0]; b++)
            for (int64_t i = 0; ctx->active[b] && i < values; i++)
                static_cast<float *>(t->k.data)[b * values + i] *= 2.0f;
        return HD_OK;
    };
    TestList list({fixed, doubles, appends("appends", 2, 0.0f)});
    TestCall c(2, 12, 12, 2, 8);
    std::string edit = "|{\"use\": \"doubles\", \"branches\": [\"cond\"]}";
    TestRun refused(list, use("diagonal" + edit));
    CHECK_FAILS(c.dry(refused), HD_ERR_UNSUPPORTED,
                "test.json: processors[0] (diagonal) cannot act at unet:mid.attn.0 self together "
                "with processors[1] (doubles): its plan is made from shapes alone");
    // keys that are appended alone stand beside its plan
    TestRun appended(list, use("appends|diagonal"));
    REQUIRE_OK(c.dry(appended));
    // on other rows, or at other steps, they do not meet
    TestRun apart(list, use("{\"use\": \"diagonal\", \"branches\": [\"uncond\"]}" + edit));
    REQUIRE_OK(c.dry(apart));
    TestRun dense(list, use("{\"use\": \"diagonal\", \"on_edit\": \"dense\"}" + edit));
    REQUIRE_OK(c.dry(dense));
    auto out = c.act(dense);
    CHECK(diagonal_error(c, out, 0, 4) < 1e-5);
    CHECK(error_f64(c, out, 1, [&](int64_t h, int64_t i) {
              return softmax_f64(c.Lk, [&](int64_t j) { return 2 * score_f64(c, 1, h, i, j); });
          }) < 1e-5);
}

TEST_CASE("hooks: what does not go together is refused before step 0, both named",
          "[attention][hooks]")
{
    Diagonal d(12, 4);
    TestClass other = diagonal(d), forms = all_forms(), probes, forms2 = all_forms(), edits;
    other.name = "other";
    forms2.name = "forms2";
    probes.name = "probes";
    probes.prepare = [](hd_prepare_ctx *ctx) {
        ctx->indicators = 1;
        return HD_OK;
    };
    probes.probe = [](const hd_hook_ctx *, hd_tensor) { return HD_OK; };
    edits.name = "edits";
    edits.edits = HD_EDITS_V;
    edits.tokens = [](const hd_hook_ctx *, hd_tokens *) { return HD_OK; };
    TestClass merges2 = merges();
    merges2.name = "merges2";
    TestList list(
        {diagonal(d), other, plain_map(), forms, forms2, probes, edits, merges(), merges2});
    TestCall c(2, 12, 12, 2, 8);
    struct {
        std::string processors, message;
    } cases[] = {
        {"diagonal|other", "processors[1] (other) cannot act at unet:mid.attn.0 self together with "
                           "processors[0] (diagonal): a row can have one plan"},
        {"forms|forms2", "processors[1] (forms2) cannot act at unet:mid.attn.0 self together with "
                         "processors[0] (forms): a row can have one set of segments"},
        {"diagonal|look", "processors[0] (diagonal) cannot act at unet:mid.attn.0 self together "
                          "with processors[1] (look): the other needs the whole map"},
        {"look|merges", "processors[0] (look) cannot act at unet:mid.attn.0 self together with "
                        "processors[1] (merges): the other merges or moves tokens, and it reads "
                        "the map"},
        {"merges|forms", "processors[1] (forms)"},
        {"merges|probes", "and it probes keys by their places"},
        {"{\"use\": \"diagonal\", \"rest\": \"proxy\"}|forms",
         "processors[0] (diagonal) cannot act at unet:mid.attn.0 self together with processors[1] "
         "(forms): its proxies have one score for all the keys they stand for"},
        {"diagonal|merges", "its plan needs the tokens in their places"},
        {"merges|edits", "let it stand before the other"},
        {"merges|merges2", "only one processor can move the tokens"},
    };
    for (const auto &one : cases) {
        INFO(one.processors);
        TestRun run(list, use(one.processors));
        REQUIRE_OK(run.status);
        CHECK_FAILS(c.dry(run), HD_ERR_UNSUPPORTED, one.message);
    }
    for (std::string good :
         {"{\"use\": \"diagonal\", \"steps\": [0, 0.5]}|{\"use\": \"other\", \"steps\": [0.5, 1]}",
          "{\"use\": \"diagonal\", \"branches\": [\"cond\"]}|{\"use\": \"other\", \"branches\": "
          "[\"uncond\"]}",
          "edits|merges", "{\"use\": \"diagonal\", \"on_edit\": \"dense\"}|merges",
          "{\"use\": \"look\", \"steps\": [0, 0.5]}|{\"use\": \"merges\", \"steps\": [0.5, 1]}"}) {
        INFO(good);
        TestRun run(list, use(good));
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
    }
}

TEST_CASE("hooks: what prepare makes for a site is released once, with the run",
          "[attention][hooks]")
{
    int made = 0, released = 0, cleared = 0;
    TestClass t;
    t.name = "keeps";
    t.releases = true;
    t.check = [] { return HD_OK; };
    t.clear = [&cleared] { cleared++; };
    t.prepare = [&](hd_prepare_ctx *ctx) {
        ctx->made = new TestMade{[&released] { released++; }};
        made++;
        return HD_OK;
    };
    t.output = [](const hd_hook_ctx *ctx, hd_attention_output *) {
        CHECK(ctx->made != nullptr);
        return HD_OK;
    };
    TestList list({t});
    TestCall c(1, 4, 4, 1, 4), other(1, 4, 4, 1, 4);
    strcpy(other.call.site.path, "up.0.attn.0");
    {
        TestRun run(list, use("keeps"));
        REQUIRE_OK(c.dry(run));
        REQUIRE_OK(c.dry(run));
        REQUIRE_OK(other.dry(run));
        c.act(run);
        CHECK(made == 2);
        CHECK(released == 0);
    }
    CHECK(released == 2);
    CHECK(cleared == 1);
}

TEST_CASE("hooks: a watch is told of every call and changes nothing", "[attention][hooks]")
{
    Diagonal d(12, 4);
    TestList list({diagonal(d), appends("appends", 2, 0.0f)});
    TestCall c(2, 12, 12, 2, 8);
    TestRun run(list,
                use("{\"use\": \"diagonal\", \"branches\": [\"cond\"], \"steps\": [0.5, 1]}"));
    struct Seen {
        int calls = 0, dry = 0, planned = 0;
        int64_t visited = 0;
    } seen;
    REQUIRE_OK(c.dry(run));
    auto before = c.act(run, 0);
    hd_attention_run_watch(
        run.run,
        [](void *user, const hd_attention_seen *s) {
            auto me = static_cast<Seen *>(user);
            me->calls++;
            me->dry += s->ex->recording;
            me->planned += s->plan[1] != nullptr && s->plan[0] == nullptr;
            me->visited = s->visited;
            CHECK(s->key_len[0] == 12);
            CHECK(hd_tensor_count(s->call->k) == 2 * 12 * 2 * 8);
            return HD_OK;
        },
        &seen);
    REQUIRE_OK(c.dry(run));
    CHECK(seen.dry == 1);
    auto after = c.act(run, 0);
    CHECK(before == after);
    c.act(run, 5);
    CHECK(seen.calls == 3);
    CHECK(seen.planned == 1);
    hd_attention_run_watch(
        run.run,
        [](void *, const hd_attention_seen *) { return hd_fail(HD_ERR_IO, "no room to write"); },
        nullptr);
    CHECK_FAILS(c.try_act(run), HD_ERR_IO, "no room to write");
}

TEST_CASE("hooks: a chain lives through each allocation failing", "[attention][hooks][nomem]")
{
    TestList list({all_forms(), plain_map(), appends("appends", 2, 0.5f)});
    TestCall c(2, 6, 6, 2, 4);
    std::string json = use("forms|look|{\"use\": \"appends\", \"sites\": [\"mid.**\"]}");
    hd_arena *arena = nullptr;
    REQUIRE_OK(hd_arena_create_measuring(&arena));
    hd_exec ex{};
    ex.has = HD_CPU;
    ex.arena = arena;
    ex.recording = true;
    int64_t count = fail_each_allocation([&] {
        hd_json_doc *doc = nullptr;
        hd_attention_run *run = nullptr;
        hd_status status = hd_json_parse(&doc, "test.json", json.data(), json.size());
        if (status == HD_OK)
            status = hd_attention_run_create(&run, list,
                                             hd_json_get(hd_json_root(doc), "processors"), 10);
        c.forward.run = run;
        if (status == HD_OK) status = hd_attention(&ex, &c.call);
        hd_attention_run_free(run);
        hd_json_free(doc);
        return status;
    });
    CHECK(count > 8);
    hd_arena_free(arena);
}
