// Accelerators beside a processor that appends keys, through the whole attention call: every query
// sees the appended keys beside what the accelerator's plan alone lets it see.
#include <cstring>

#include "sparse/all.h"
#include "support/attention.h"
#include "support/folder.h"
#include "support/plan_file.h"
#include "support/planning.h"

namespace
{

constexpr int64_t APPENDED = 5;

// Number d of appended key (or value) i of a row and head.
float appended(bool value, int64_t row, int64_t i, int64_t head, int64_t d)
{
    return (float)((row * 7 + i * 5 + head * 3 + d * 2 + value) % 11) * 0.25f - 1.0f;
}

// Appends to the active rows; no row of the other branches gets any.
TestClass appends()
{
    TestClass t;
    t.name = "appends";
    t.prepare = [](hd_prepare_ctx *ctx) {
        ctx->extra_keys = APPENDED;
        return HD_OK;
    };
    t.tokens = [](const hd_hook_ctx *ctx, hd_tokens *tokens) {
        for (int64_t b = 0; b < tokens->k.dim[0]; b++) {
            if (!ctx->active[b]) continue;
            for (int64_t i = 0; i < APPENDED; i++)
                for (int64_t h = 0; h < tokens->k.dim[2]; h++)
                    for (int64_t d = 0; d < tokens->k.dim[3]; d++)
                        for (hd_tensor part : {tokens->k, tokens->v})
                            static_cast<float *>(
                                part.data)[b * part.stride[0] +
                                           (tokens->key_len[b] + i) * part.stride[1] +
                                           h * part.stride[2] + d] =
                                appended(part.data == tokens->v.data, b, i, h, d);
            tokens->key_len[b] += APPENDED;
        }
        return HD_OK;
    };
    return t;
}

struct Case {
    const hd_processor_class *kind;
    const char *json;   // without "use" and braces; FILE: a plan file's path
    const char *engine; // fields that the engine reads
};

const Case cases[] = {
    {&hd_gna, R"("window": [1, 3, 5], "stride": 1)", ""},
    {&hd_gna, R"("window": [3, 4, 4], "stride": [3, 2, 2])", ""},
    {&hd_gna, R"("window": [1, 4, 4], "stride": [1, 2, 2])", R"(, "rest": "proxy")"},
    {&hd_paro, R"("plan": "FILE")", ""},
    {&hd_paro, R"("plan": "FILE")", R"(, "rest": "proxy")"},
    {&hd_swin_windows, R"("window": [1, 3, 4])", ""},
    {&hd_block_causal, R"("block_frames": 1)", ""},
    {&hd_vmoba, R"("cycle": [0, 0, 1], "block3": [2, 4, 4], "k3": 3)", ""},
    {&hd_xattention, R"("tile": [1, 4, 4], "stride": 4, "tau": 0.5)", ""},
    {&hd_dynamic_mask, R"("keep": 0.3)", ""},
    {&hd_proxy, R"("ring": 1)", ""},
};

PlanInput::Shape shape_of()
{
    PlanInput::Shape shape;
    shape.frames = 4, shape.height = 7, shape.width = 8, shape.heads = 2, shape.rows = 2;
    shape.dim = 16, shape.text_before = 2, shape.text_behind = 4;
    return shape;
}

std::string replaced(std::string text, const std::string &what, const std::string &by)
{
    const size_t at = text.find(what);
    return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

// A plan for the input's site, with another order per head.
void write_plan_file(const PlanInput &in, const std::string &path)
{
    hd_plan_file *file = nullptr;
    REQUIRE_OK(hd_plan_file_create(&file, 64, 10, 1, 1));
    PlanFilePtr owner(file, hd_plan_file_free);
    file->target = 0.4f;
    const hd_token_segment grid = in.call.q_layout.segment[1];
    const int64_t size[3] = {grid.frames, grid.height, grid.width};
    hd_plan_file_site *site = nullptr;
    REQUIRE_OK(hd_plan_file_add(file, &in.call.site, size, in.tokens - grid.count, false, &site));
    randomise(file, site, 0.4, 3);
    site->order[0] = 1, site->order[1] = 4;
    REQUIRE_OK(hd_plan_file_write(file, path.c_str()));
}

// The input with the appended keys as text behind its own, for the truth.
struct Longer {
    PlanInput in;

    static PlanInput::Shape longer(PlanInput::Shape shape)
    {
        shape.text_behind += APPENDED;
        return shape;
    }
    Longer(const PlanInput &own, const PlanInput::Shape &shape) : in(longer(shape))
    {
        for (int64_t b = 0; b < own.rows; b++)
            for (int64_t t = 0; t < in.tokens; t++)
                for (int64_t h = 0; h < own.heads; h++)
                    for (int64_t d = 0; d < own.dim; d++) {
                        const int64_t at = ((b * in.tokens + t) * own.heads + h) * own.dim + d;
                        const int64_t i = t - own.tokens;
                        in.q.set(at, i < 0 ? (float)own.q_at(b, t, h, d) : 0.0f);
                        in.k.set(at,
                                 i < 0 ? (float)own.k_at(b, t, h, d) : appended(false, b, i, h, d));
                        in.v.set(at,
                                 i < 0 ? (float)own.v_at(b, t, h, d) : appended(true, b, i, h, d));
                    }
    }
};

// What is seen of the own keys, and of the appended ones all or none.
PlanMeaning with_appended(const PlanMeaning &own, bool seen)
{
    PlanMeaning m = own;
    m.queries = m.keys = own.keys + APPENDED;
    m.sees.assign((size_t)(m.queries * m.keys), 0);
    m.proxy.resize((size_t)(m.queries * m.tiles));
    for (int64_t i = 0; i < m.queries; i++)
        for (int64_t j = 0; j < m.keys; j++)
            m.sees[(size_t)(i * m.keys + j)] =
                i >= own.keys ? 1 : (j < own.keys ? own.at(i, j) : seen);
    return m;
}

double error_of(const PlanInput &in, const std::vector<double> &numbers,
                const std::vector<double> &truth, int64_t b, int64_t h)
{
    double worst = 0;
    for (int64_t i = 0; i < in.tokens; i++)
        for (int64_t d = 0; d < in.dim; d++) {
            const double x = numbers[(size_t)(((b * in.tokens + i) * in.heads + h) * in.dim + d)];
            worst = std::fmax(worst, std::fabs(x - truth[(size_t)(i * in.dim + d)]));
        }
    return worst;
}

} // namespace

TEST_CASE("accelerators: appended keys are dense beside the plan", "[sparse][appended]")
{
    const Case c = GENERATE(from_range(std::begin(cases), std::end(cases)));
    CAPTURE(c.kind->name, c.json, c.engine);
    PlanInput in(shape_of());
    Longer longer(in, shape_of());
    Folder folder;
    write_plan_file(in, folder.path("a.hdplan"));
    const std::string json = replaced(c.json, "FILE", folder.path("a.hdplan"));

    TestList own({appends()});
    const hd_processor_list *one = own;
    const hd_processor_class *both[] = {c.kind, one->item[0]};
    const hd_processor_list list = {2, both};
    // the accelerator stands first: it still plans for keys appended after it. Only "cond" has
    // them, and only in the run's second half.
    const std::string text = std::string(R"([{"use": ")") + c.kind->name + "\", " + json +
                             c.engine +
                             R"(}, {"use": "appends", "branches": ["cond"], "steps": [0.5, 1]}])";
    const std::vector<double> numbers = attention_by(in, &list, text, 7);
    const std::vector<double> early = attention_by(in, &list, text, 2);

    Run ex;
    const hd_plan_rest rest = c.engine[0] ? HD_REST_PROXY : c.kind->rest;
    Planning planning(*c.kind, "{" + json + "}", in, &rest);
    for (int64_t b = 0; b < in.rows; b++)
        for (int64_t h = 0; h < in.heads; h++) {
            const hd_plan *given = planning.plan(&ex, 7)[(size_t)b];
            REQUIRE(given != nullptr);
            hd_plan plan = *given;
            plan.rest = rest;
            const PlanMeaning m = plan_meaning(plan, h, in.tokens, in.tokens);
            CHECK(m.pairs() < in.tokens * in.tokens);
            const bool cond = b == 1;
            CHECK(error_of(in, numbers, attention_over(longer.in, with_appended(m, cond), b, h), b,
                           h) < 1e-5);
            // a test that cannot tell appended keys would not be one
            if (cond) CHECK(error_of(in, numbers, attention_over(in, m, b, h), b, h) > 1e-2);
            CHECK(error_of(in, early, attention_over(in, m, b, h), b, h) < 1e-5);
        }
}
