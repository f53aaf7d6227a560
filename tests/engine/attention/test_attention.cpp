// The attention call with its chain: a processor from outside the engine, the temperature control
// from JSON, selectors of sites, steps and rows, refusals before step 0, and the independence of
// rows.
#include <cmath>
#include <cstring>
#include <memory>

#include "controls/all.h"
#include "engine/attention/run.h"
#include "support/catch.h"
#include "support/run.h"

namespace
{

/* A processor that lives here: doubles v on the rows it is told to, asks for an attention of its
 * own in which each query sees only the first `head` keys, counts its calls in its state, and
 * blends that pass into the output. */
struct Blend {
    float amount;
    int64_t head;
};

const hd_param blend_params[] = {
    HD_PARAM_FLOAT(Blend, amount, .def = 0.5, .min = 0.0, .max = 1.0,
                   .help = "share of the extra pass"),
    HD_PARAM_INT(Blend, head, .def = 3, .min = 1, .max = 1000, .help = "keys of the extra pass"),
    HD_PARAM_END,
};

hd_status blend_prepare(hd_prepare_ctx *ctx)
{
    const Blend *p = static_cast<const Blend *>(ctx->params);
    if (ctx->call->k.dim[1] < p->head)
        return hd_fail(HD_ERR_ARGUMENT, "head is %lld, the site has %lld keys", (long long)p->head,
                       (long long)ctx->call->k.dim[1]);
    ctx->state_bytes = sizeof(int64_t);
    ctx->passes = 1;
    ctx->pass[0].when = HD_PASS_AFTER;
    ctx->pass[0].key_len = p->head;
    return HD_OK;
}

hd_status blend_pass(const hd_hook_ctx *ctx, int, hd_pass *pass)
{
    const Blend *p = static_cast<const Blend *>(ctx->params);
    pass->k = hd_tensor_slice(ctx->call->k, 1, 0, p->head);
    pass->v = hd_tensor_slice(ctx->call->v, 1, 0, p->head);
    return HD_OK;
}

hd_status blend_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    int64_t values = tokens->v.dim[1] * tokens->v.dim[2] * tokens->v.dim[3];
    float *v = static_cast<float *>(tokens->v.data);
    for (int64_t b = 0; b < tokens->v.dim[0]; b++)
        for (int64_t i = 0; ctx->active[b] && i < values; i++)
            v[b * values + i] *= 2.0f;
    return HD_OK;
}

hd_status blend_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const Blend *p = static_cast<const Blend *>(ctx->params);
    int64_t values = output->out.dim[1] * output->out.dim[2] * output->out.dim[3];
    float *y = static_cast<float *>(output->out.data);
    const float *extra = static_cast<const float *>(ctx->pass[0].out.data);
    for (int64_t b = 0; b < output->out.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        ++*static_cast<int64_t *>(ctx->state[b]);
        for (int64_t i = b * values; i < (b + 1) * values; i++)
            y[i] += p->amount * (extra[i] - y[i]);
        y[b * values] +=
            1000.0f * (float)*static_cast<int64_t *>(ctx->state[b]); // shows the state from outside
    }
    return HD_OK;
}

const hd_processor_class blend = [] {
    hd_processor_class c = {};
    c.name = "test_blend";
    c.summary = "for this test";
    c.params = blend_params;
    c.params_size = sizeof(Blend);
    c.edits = HD_EDITS_V;
    c.prepare = blend_prepare;
    c.pass = blend_pass;
    c.tokens = blend_tokens;
    c.output = blend_output;
    return c;
}();

const hd_processor_class *const classes[] = {&hd_temperature, &blend};
const hd_processor_list list = {2, classes};

/* A call over random q, k, v, with everything it points to. */
struct Call {
    static constexpr int64_t L = 6, H = 2, D = 5;
    std::vector<float> q, k, v, out;
    std::vector<hd_row> rows;
    hd_forward forward{};
    hd_attention_call call{};

    explicit Call(int64_t batch)
        : q(normal_values(batch * L * H * D, 1)), k(normal_values(batch * L * H * D, 2)),
          v(normal_values(batch * L * H * D, 3)), out((size_t)(batch * L * H * D)),
          rows((size_t)batch)
    {
        hd_shape shape = hd_shape4(batch, L, H, D);
        for (size_t b = 0; b < rows.size(); b++) {
            strcpy(rows[b].branch, "main");
            strcpy(rows[b].role, b % 2 ? "cond" : "uncond");
            rows[b].picture = (int64_t)b / 2;
        }
        forward.rows = {batch, rows.data()};
        forward.step = {0, 10, 999.0, 1.0, HD_PHASE_SAMPLING};
        call.forward = &forward;
        call.site = {HD_NETWORK_UNET, HD_SITE_SELF, "mid.attn.0", 1, H, L};
        call.x = hd_tensor_none();
        call.q = hd_tensor_of(q.data(), HD_F32, shape);
        call.k = hd_tensor_of(k.data(), HD_F32, shape);
        call.v = hd_tensor_of(v.data(), HD_F32, shape);
        call.out = hd_tensor_of(out.data(), HD_F32, shape);
        call.q_layout = hd_layout_grid(1, 2, 3);
        call.k_layout = call.q_layout;
        call.scale = 0.4f;
    }
};

/* A run from JSON text. */
struct Preset {
    hd_json_doc *doc = nullptr;
    hd_attention_run *run = nullptr;
    hd_status status;

    explicit Preset(const std::string &processors, int64_t steps = 10)
    {
        status = hd_json_parse(&doc, "test.json", processors.data(), processors.size());
        REQUIRE_OK(status);
        status = hd_attention_run_create(&run, &list, hd_json_get(hd_json_root(doc), "processors"),
                                         steps);
    }
    ~Preset()
    {
        hd_attention_run_free(run);
        hd_json_free(doc);
    }
};

hd_status dry(Call &c, Preset &p)
{
    Run ex(HD_CPU);
    ex.exec.recording = true;
    c.forward.run = p.run;
    return hd_attention(&ex, &c.call);
}

std::vector<float> act(Call &c, Preset &p, int64_t step = 0)
{
    Run ex(HD_CPU);
    c.forward.run = p.run;
    c.forward.step.index = step;
    REQUIRE_OK(hd_attention(&ex, &c.call));
    return c.out;
}

/* softmax(scale * factor * q k^T) v over the first `keys` keys, in f64. */
std::vector<double> plain(const Call &c, int64_t b, double factor, double v_factor, int64_t keys)
{
    const int64_t L = Call::L, H = Call::H, D = Call::D;
    std::vector<double> out((size_t)(L * H * D));
    auto at = [&](const std::vector<float> &t, int64_t i, int64_t h, int64_t d) {
        return (double)t[(size_t)(((b * L + i) * H + h) * D + d)];
    };
    for (int64_t i = 0; i < L; i++)
        for (int64_t h = 0; h < H; h++) {
            std::vector<double> p((size_t)keys);
            double sum = 0;
            for (int64_t j = 0; j < keys; j++) {
                double s = 0;
                for (int64_t d = 0; d < D; d++)
                    s += at(c.q, i, h, d) * at(c.k, j, h, d);
                sum += p[(size_t)j] = std::exp(s * 0.4 * factor);
            }
            for (int64_t d = 0; d < D; d++) {
                double o = 0;
                for (int64_t j = 0; j < keys; j++)
                    o += p[(size_t)j] / sum * at(c.v, j, h, d) * v_factor;
                out[(size_t)((i * H + h) * D + d)] = o;
            }
        }
    return out;
}

double error_of_row(const std::vector<float> &out, const std::vector<double> &truth, int64_t b)
{
    double worst = 0;
    for (size_t i = 0; i < truth.size(); i++)
        worst = std::fmax(worst, std::fabs((double)out[(size_t)b * truth.size() + i] - truth[i]));
    return worst;
}

} // namespace

TEST_CASE("attention: temperature divides the scores of the rows it names", "[attention]")
{
    Preset p(R"({"processors": [{"use": "temperature", "tau": 0.5, "branches": ["cond"]}]})");
    REQUIRE_OK(p.status);
    Call c(2);
    REQUIRE_OK(dry(c, p));
    REQUIRE_OK(hd_attention_run_finish(p.run));
    auto out = act(c, p);
    CHECK(error_of_row(out, plain(c, 0, 1.0, 1.0, Call::L), 0) < 1e-5);
    CHECK(error_of_row(out, plain(c, 1, 2.0, 1.0, Call::L), 1) < 1e-5);
    CHECK(error_of_row(out, plain(c, 1, 1.0, 1.0, Call::L), 1) > 1e-2);
}

TEST_CASE("attention: a neutral temperature changes no bit, two of them multiply", "[attention]")
{
    Call c(2);
    Preset none(R"({"processors": []})"),
        neutral(R"({"processors": [{"use": "temperature", "tau": 1}]})");
    REQUIRE_OK(dry(c, neutral));
    auto with = act(c, neutral), without = act(c, none);
    CHECK(memcmp(with.data(), without.data(), with.size() * sizeof(float)) == 0);
    Preset two(
        R"({"processors": [{"use": "temperature", "tau": 0.5}, {"use": "temperature", "tau": 4}]})");
    REQUIRE_OK(dry(c, two));
    CHECK(error_of_row(act(c, two), plain(c, 1, 0.5, 1.0, Call::L), 1) < 1e-5);
}

TEST_CASE(
    "attention: a processor from outside edits v, gets a pass of its own and blends the output",
    "[attention]")
{
    Preset p(
        R"({"processors": [{"use": "test_blend", "amount": 0.25, "head": 2, "branches": ["cond"]}]})");
    REQUIRE_OK(p.status);
    Call c(4);
    std::vector<float> v_before = c.v;
    REQUIRE_OK(dry(c, p));
    auto out = act(c, p);
    CHECK(c.v == v_before); // the network's v is not touched
    for (int64_t b : {1, 3}) {
        auto whole = plain(c, b, 1.0, 2.0, Call::L), head = plain(c, b, 1.0, 2.0, 2);
        for (size_t i = 0; i < whole.size(); i++)
            whole[i] += 0.25 * (head[i] - whole[i]);
        whole[0] += 1000.0; // first call of this row's state
        CHECK(error_of_row(out, whole, b) < 1e-3);
        CHECK(error_of_row(out, plain(c, b - 1, 1.0, 1.0, Call::L), b - 1) < 1e-5);
    }
    // the state is the row's own and stays over the steps
    auto again = act(c, p, 1);
    CHECK(again[(size_t)(Call::L * Call::H * Call::D)] -
              out[(size_t)(Call::L * Call::H * Call::D)] ==
          Approx(1000.0).margin(1e-2));
}

TEST_CASE("attention: processors compose in preset order", "[attention]")
{
    Preset p(
        R"({"processors": [{"use": "test_blend", "amount": 0, "head": 1}, {"use": "temperature", "tau": 2}]})");
    Call c(1);
    REQUIRE_OK(dry(c, p));
    auto whole = plain(c, 0, 0.5, 2.0, Call::L);
    whole[0] += 1000.0;
    CHECK(error_of_row(act(c, p), whole, 0) < 1e-3);
    char text[200];
    REQUIRE(hd_attention_run_sites(p.run) == 1);
    CHECK(std::string(hd_attention_run_chain_text(p.run, 0, text, sizeof text)) ==
          "test_blend [0, 10), temperature [0, 10): streaming f32");
}

TEST_CASE("attention: steps are fractions of the run", "[attention]")
{
    // 0.7 * 10 is 6.999... in binary: the edge must still be 7
    Preset p(R"({"processors": [{"use": "temperature", "tau": 0.5, "steps": [0.3, 0.7]}]})");
    Call c(1);
    REQUIRE_OK(dry(c, p));
    auto off = plain(c, 0, 1.0, 1.0, Call::L), on = plain(c, 0, 2.0, 1.0, Call::L);
    for (int64_t step = 0; step < 10; step++) {
        INFO("step " << step);
        CHECK(error_of_row(act(c, p, step), step >= 3 && step < 7 ? on : off, 0) < 1e-5);
    }
}

TEST_CASE("attention: token kinds select query rows", "[attention]")
{
    Preset p(R"({"processors": [{"use": "temperature", "tau": 0.5, "rows": "text"}]})");
    Call c(1);
    c.call.q_layout.segments = 2;
    c.call.q_layout.segment[0] = {HD_TOKENS_GRID, 0, 4, 1, 2, 2};
    c.call.q_layout.segment[1] = {HD_TOKENS_TEXT, 4, 2, 0, 0, 0};
    REQUIRE_OK(dry(c, p));
    auto out = act(c, p);
    auto on = plain(c, 0, 2.0, 1.0, Call::L), truth = plain(c, 0, 1.0, 1.0, Call::L);
    std::copy(on.begin() + 4 * Call::H * Call::D, on.end(), truth.begin() + 4 * Call::H * Call::D);
    CHECK(error_of_row(out, truth, 0) < 1e-5);
}

TEST_CASE("attention: an unmatched site is not touched", "[attention]")
{
    Preset p(R"({"processors": [{"use": "test_blend", "sites": ["up.**"]}]})"), none(R"({})");
    Call c(2);
    REQUIRE_OK(dry(c, p));
    auto with = act(c, p), without = act(c, none);
    CHECK(memcmp(with.data(), without.data(), with.size() * sizeof(float)) == 0);
    CHECK_FAILS(hd_attention_run_finish(p.run), HD_ERR_ARGUMENT,
                "test.json: processors[0] (test_blend) matches no attention site of this model; it "
                "has: unet:mid.attn.0 self");
}

TEST_CASE("attention: what cannot be honoured is refused before step 0, with its place",
          "[attention]")
{
    struct {
        const char *json, *message;
    } cases[] = {
        {R"({"processors": [{"use": "temperatur"}]})",
         "test.json: processors[0].use \"temperatur\" is no processor; did you mean "
         "\"temperature\"?"},
        {R"({"processors": [{"tau": 1}]})", "test.json: processors[0] has no \"use\""},
        {R"({"processors": [{"use": "temperature", "tau": 40}]})",
         "test.json: processors[0].tau is 40, must be 0.05 to 20 (default 1)"},
        {R"({"processors": [{"use": "temperature", "taw": 4}]})", "did you mean \"tau\"?"},
        {R"({"processors": [{"use": "temperature", "rows": "words"}]})", "processors[0].rows"},
        {R"({"processors": [{"use": "temperature", "steps": [0.5, 0.2]}]})",
         "processors[0].steps is [0.5, 0.2]"},
        {R"({"processors": [{"use": "temperature", "steps": [0.5]}]})",
         "processors[0].steps has 1 numbers"},
        {R"({"processors": [{"use": "temperature", "steps": [0, 1.5]}]})",
         "processors[0].steps[1]"},
        {R"({"processors": [{"use": "temperature", "sites": ["upp.**"]}]})",
         "processors[0].sites[0]"},
        {R"({"processors": [{"use": "temperature", "sites": []}]})",
         "processors[0].sites is empty"},
        {R"({"processors": [{"use": "temperature", "branches": ["mine"]}]})",
         "processors[0].branches[0]"},
        {R"({"processors": {}})", "processors"},
    };
    for (const auto &c : cases) {
        INFO(c.json);
        Preset p(c.json);
        CHECK(p.status == HD_ERR_ARGUMENT);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
    }
}

TEST_CASE("attention: a processor refuses a site, and rows that nobody has, with its place",
          "[attention]")
{
    Call c(2);
    Preset many(R"({"processors": [{"use": "test_blend", "head": 7}]})");
    CHECK_FAILS(dry(c, many), HD_ERR_ARGUMENT,
                "test.json: processors[0] (test_blend) cannot act at unet:mid.attn.0 self: head is "
                "7, the site has 6 keys");
    Preset nobody(R"({"processors": [{"use": "temperature", "branches": ["style"]}]})");
    REQUIRE_OK(dry(c, nobody));
    CHECK_FAILS(hd_attention_run_finish(nobody.run), HD_ERR_ARGUMENT, "matches no row of this run");
}

TEST_CASE("attention: a row with a chain does not depend on its batch", "[attention][threads]")
{
    Preset p(
        R"({"processors": [{"use": "temperature", "tau": 0.7}, {"use": "test_blend", "amount": 0.3}]})");
    Call alone(1), batch(5);
    // the rows of both are the same picture's
    for (size_t b = 0; b < 5; b++)
        batch.rows[b].picture = (int64_t)b, strcpy(batch.rows[b].role, "uncond");
    REQUIRE_OK(dry(batch, p));
    auto all = act(batch, p);
    Preset q(
        R"({"processors": [{"use": "temperature", "tau": 0.7}, {"use": "test_blend", "amount": 0.3}]})");
    REQUIRE_OK(dry(alone, q));
    int64_t values = Call::L * Call::H * Call::D;
    for (int64_t b = 0; b < 5; b++) {
        std::copy_n(batch.q.begin() + b * values, values, alone.q.begin());
        std::copy_n(batch.k.begin() + b * values, values, alone.k.begin());
        std::copy_n(batch.v.begin() + b * values, values, alone.v.begin());
        alone.rows[0].picture = 0;
        Preset fresh(
            R"({"processors": [{"use": "temperature", "tau": 0.7}, {"use": "test_blend", "amount": 0.3}]})");
        REQUIRE_OK(dry(alone, fresh));
        auto one = act(alone, fresh);
        CHECK(memcmp(one.data(), all.data() + b * values, (size_t)values * sizeof(float)) == 0);
    }
}
