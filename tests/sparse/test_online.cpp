// Accelerators that plan at every call, through the whole attention call: the output is attention
// over the plan that the hook alone gives, and the bytes depend on no other row or thread.
#include <cstring>

#include "engine/attention/run.h"
#include "sparse/all.h"
#include "support/catch.h"
#include "support/field.h"

namespace
{

struct Case {
    const hd_processor_class *kind;
    const char *json; // without "use" and braces
    bool everything;  // all is kept
};

const Case cases[] = {
    {&hd_vmoba, R"("cycle": [0, 0, 1], "block3": [2, 4, 4], "k3": 3)", false},
    {&hd_vmoba, R"("cycle": [0, 0, 1], "block3": [2, 4, 4], "k3": 3, "layout": "C")", false},
    {&hd_vmoba, R"("cycle": [0, 1, 0], "block2": [3, 4], "mode": "threshold", "tau": 0.4)", false},
    {&hd_vmoba, R"("cycle": [0, 1, 0], "block2": [3, 4], "mode": "threshold", "tau": 1)", true},
    {&hd_xattention, R"("block": 32, "stride": 4, "tau": 0.6)", false},
    {&hd_xattention, R"("tile": [2, 4, 4], "stride": 4, "tau": 0.5, "score": "groupmean")", false},
    {&hd_xattention, R"("tau": 1)", true},
    {&hd_dynamic_mask, R"("keep": 0.3, "rest": "drop")", false},
    {&hd_dynamic_mask, R"("keep": 0.3)", false},
    {&hd_dynamic_mask, R"("keep": 1, "mass": 1, "ring": 99)", true},
    {&hd_proxy, R"("ring": 1, "topk": 2)", false},
    {&hd_proxy, R"("ring": 99)", true},
};

// The call through the engine, on a pool of `threads`.
std::vector<float> run(PlanInput &in, const Case &c, int threads, Values &out)
{
    const std::string text = std::string("[{\"use\": \"") + c.kind->name + "\", " + c.json + "}]";
    hd_json_doc *doc = nullptr;
    hd_attention_run *attention = nullptr;
    REQUIRE_OK(hd_json_parse(&doc, "test.json", text.data(), text.size()));
    REQUIRE_OK(hd_attention_run_create(&attention, &hd_all_accelerators, hd_json_root(doc), 10));
    in.forward.run = attention;
    in.forward.step.index = 0;
    in.call.out = out.t;
    Run dry(hd_cpu_features(), threads);
    hd_arena_free(dry.exec.arena);
    REQUIRE_OK(hd_arena_create_measuring(&dry.exec.arena));
    dry.exec.recording = true;
    REQUIRE_OK(hd_attention(&dry, &in.call));
    Run real(hd_cpu_features(), threads, hd_arena_peak_bytes(dry.exec.arena));
    REQUIRE_OK(hd_attention(&real, &in.call));
    hd_attention_run_free(attention);
    hd_json_free(doc);
    in.forward.run = nullptr;
    std::vector<float> numbers;
    for (int64_t i = 0; i < out.count(); i++)
        numbers.push_back((float)out.at(i));
    return numbers;
}

} // namespace

TEST_CASE("online accelerators: the call's output is attention over their plan", "[sparse][online]")
{
    const Case c = GENERATE(from_range(std::begin(cases), std::end(cases)));
    const hd_dtype dtype = GENERATE(HD_F32, HD_BF16);
    CAPTURE(c.kind->name, c.json, hd_dtype_name(dtype));
    PlanInput::Shape shape;
    shape.frames = 3, shape.height = 7, shape.width = 10, shape.heads = 2, shape.rows = 2;
    shape.dim = 16, shape.text_behind = 6, shape.dtype = dtype;
    PlanInput in(shape);
    Values out(dtype, hd_tensor_shape(in.q.t)), again = out;
    std::vector<float> numbers = run(in, c, 2, out);
    CHECK(run(in, c, 1, again) == numbers);
    CHECK(memcmp(out.bytes.data(), again.bytes.data(), out.bytes.size()) == 0);

    std::string json = std::string("{") + c.json + "}";
    const size_t drop = json.find(", \"rest\"");
    if (drop != std::string::npos) json = json.substr(0, drop) + "}";
    Planning planning(*c.kind, json, in);
    Run ex;
    double worst = 0, top = 0;
    for (int64_t b = 0; b < in.rows; b++)
        for (int64_t h = 0; h < in.heads; h++) {
            hd_plan plan = *planning.plan(&ex)[(size_t)b];
            plan.rest = drop == std::string::npos ? c.kind->rest : HD_REST_DROP;
            PlanMeaning m = plan_meaning(plan, h, in.tokens, in.tokens);
            if (c.everything) CHECK(m.pairs() == in.tokens * in.tokens);
            std::vector<double> truth = attention_over(in, m, b, h);
            for (int64_t i = 0; i < in.tokens; i++)
                for (int64_t d = 0; d < in.dim; d++) {
                    double x = numbers[(size_t)(((b * in.tokens + i) * in.heads + h) * in.dim + d)];
                    double t = truth[(size_t)(i * in.dim + d)];
                    worst = std::fmax(worst, std::fabs(x - t));
                    top = std::fmax(top, std::fabs(t));
                }
        }
    CHECK(worst < (dtype == HD_BF16 ? 2e-2 : 5e-6) * top);
}

TEST_CASE("online accelerators: a row's bytes are its own", "[sparse][online]")
{
    const Case c = GENERATE(from_range(std::begin(cases), std::end(cases)));
    CAPTURE(c.kind->name, c.json);
    PlanInput::Shape shape;
    shape.frames = 2, shape.height = 9, shape.width = 8, shape.heads = 2, shape.rows = 2;
    shape.dim = 8, shape.dtype = HD_BF16;
    PlanInput both(shape);
    shape.rows = 1;
    PlanInput one(shape);
    const int64_t count = one.q.count();
    for (int64_t i = 0; i < count; i++) {
        one.q.set(i, (float)both.q.at(count + i));
        one.k.set(i, (float)both.k.at(count + i));
        one.v.set(i, (float)both.v.at(count + i));
    }
    strcpy(one.names[0].role, "cond");
    Values out(HD_BF16, hd_tensor_shape(both.q.t)), alone(HD_BF16, hd_tensor_shape(one.q.t));
    std::vector<float> a = run(both, c, 2, out), b = run(one, c, 1, alone);
    CHECK(std::vector<float>(a.begin() + (ptrdiff_t)count, a.end()) == b);
}
