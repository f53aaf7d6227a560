// Attention to the past, block by block: the plan beside the mask's formula, its pairs, outputs
// beside f64 and what is refused.
#include <cmath>

#include "engine/attention/planner/builder.h"
#include "sparse/all.h"
#include "support/alloc_fail.h"
#include "support/attention.h"
#include "support/plan.h"

namespace
{

/* The plan that the processor makes of a grid with text before it. */
struct Made {
    hd_json_doc *doc = nullptr;
    std::vector<char> params;
    hd_prepare_ctx ctx{};
    hd_attention_call call{};
    hd_status status;

    Made(const std::string &json, int64_t f, int64_t h, int64_t w, int64_t text = 0)
        : params(hd_block_causal.params_size)
    {
        REQUIRE_OK(hd_json_parse(&doc, "test.json", json.data(), json.size()));
        REQUIRE_OK(hd_params_default(hd_block_causal.params, params.data()));
        REQUIRE_OK(
            hd_params_read(hd_block_causal.params, params.data(), hd_json_root(doc), nullptr));
        hd_token_layout &l = call.q_layout;
        if (text) l.segment[l.segments++] = {HD_TOKENS_TEXT, 0, text, 0, 0, 0};
        l.segment[l.segments++] = {HD_TOKENS_GRID, text, f * h * w, f, h, w};
        call.k_layout = l;
        call.q.dim[1] = call.k.dim[1] = text + f * h * w;
        ctx.params = params.data();
        ctx.call = &call;
        status = hd_block_causal.prepare(&ctx);
    }
    Made(const Made &) = delete;
    ~Made()
    {
        hd_block_causal.release(ctx.made);
        hd_json_free(doc);
    }
    const hd_plan *plan() const
    {
        return ctx.made ? &static_cast<hd_plan_builder *>(ctx.made)->plan : nullptr;
    }
};

bool sees(int64_t m, int64_t w, int64_t S, int64_t q, int64_t k)
{
    const int64_t behind = (q / (m * S) + 1) * m * S;
    return k < behind && (w < 0 || k >= behind - w * S);
}

} // namespace

TEST_CASE("block_causal: three blocks of two tokens", "[block_causal]")
{
    for (const char *json : {"{\"block_frames\": 2}", "{\"block_frames\": 1}"}) {
        const bool pairs = json[17] == '2';
        Made made(json, pairs ? 6 : 3, 1, pairs ? 1 : 2);
        REQUIRE_OK(made.status);
        PlanMeaning m = plan_meaning(*made.plan(), 0, 6, 6);
        const int64_t rows[] = {2, 2, 4, 4, 6, 6};
        for (int64_t q = 0; q < 6; q++)
            for (int64_t k = 0; k < 6; k++)
                CHECK(m.at(q, k) == (k < rows[q]));
        CHECK(m.pairs() == 24);
    }
    Made eight("{}", 8, 4, 4);
    hd_plan_stats stats;
    REQUIRE_OK(hd_plan_measure(&stats, eight.plan(), 1, 128, 128, 8, 8, 4));
    CHECK(stats.useful_pairs / stats.dense_pairs == 0.5625);
}

TEST_CASE("block_causal: plans beside the mask", "[block_causal]")
{
    const int64_t window = GENERATE(-1, 3, 4, 6), block = GENERATE(1, 2, 3);
    const int64_t side = GENERATE(1, 3, 5, 13), text = GENERATE(0, 3), frames = 7;
    CAPTURE(window, block, side, text);
    Made made("{\"block_frames\": " + std::to_string(block) +
                  ", \"window_frames\": " + std::to_string(window) + "}",
              frames, side, side, text);
    REQUIRE_OK(made.status);
    const int64_t tokens = text + frames * side * side;
    PlanMeaning m = plan_meaning(*made.plan(), 0, tokens, tokens);
    int64_t wrong = 0;
    for (int64_t q = 0; q < tokens; q++)
        for (int64_t k = 0; k < tokens; k++)
            wrong += m.at(q, k) !=
                     (q < text || k < text || sees(block, window, side * side, q - text, k - text));
    CHECK(wrong == 0);
    hd_plan_stats stats;
    REQUIRE_OK(hd_plan_measure(&stats, made.plan(), 1, tokens, tokens, 8, 8, 4));
    if (side == 13) CHECK(stats.partial == 0); // borders of tiles are borders of the mask
}

TEST_CASE("block_causal: outputs, and one block is dense", "[block_causal]")
{
    TestCall c(2, 5 * 12, 5 * 12, 2, 8);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(5, 3, 4);
    TestRun run(&hd_all_accelerators,
                "{\"processors\": [{\"use\": \"block_causal\", \"block_frames\": 2, "
                "\"window_frames\": 3}]}");
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    REQUIRE_OK(c.try_act(run));
    for (int64_t b = 0; b < 2; b++)
        CHECK(error_f64(c, c.out, b, [&](int64_t h, int64_t i) {
                  return softmax_f64(c.Lk, [&](int64_t j) {
                      return sees(2, 3, 12, i, j) ? score_f64(c, b, h, i, j) : -HUGE_VAL;
                  });
              }) < 1e-5);
    Made whole("{\"block_frames\": 8}", 8, 4, 4);
    REQUIRE_OK(whole.status);
    CHECK(whole.plan() == nullptr);
}

TEST_CASE("block_causal: refusals and failing allocations", "[block_causal]")
{
    TestRun run(&hd_all_accelerators, "{\"processors\": [{\"use\": \"block_causal\", "
                                      "\"block_frames\": 3, \"window_frames\": 2}]}");
    CHECK_FAILS(run.status, HD_ERR_ARGUMENT,
                "window_frames is 2 but block_frames is 3: a block must see itself");
    Made made("{}", 4, 5, 6, 2);
    fail_each_allocation([&] {
        hd_prepare_ctx ctx = made.ctx;
        ctx.made = nullptr;
        hd_status status = hd_block_causal.prepare(&ctx);
        hd_block_causal.release(ctx.made);
        return status;
    });
}
