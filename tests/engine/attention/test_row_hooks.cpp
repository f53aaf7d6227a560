// What a class says of the rows it acts on, and what the engine spares or lends it for them: rows
// that it replaces, the call as the network gave it, passes that go by the call's own scores.
#include "support/attention.h"

namespace
{

const hd_param no_params[] = {HD_PARAM_END};

// What the hooks of the one class below saw.
struct Seen {
    std::vector<float> out; // of every row before the output hook wrote
    std::vector<bool> active;
    bool given_is_whole = false;
    std::vector<float> pass, lse; // of the row it acts on
} seen;

bool row_is_perturbed(const void *, const hd_row *row)
{
    return strcmp(row->role, "perturbed") == 0;
}

bool always(const hd_hook_ctx *ctx, int64_t row)
{
    CHECK(ctx->active[row]);
    return true;
}

hd_status look(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const float *out = static_cast<const float *>(output->out.data);
    const int64_t rows = output->out.dim[0];
    seen.out.assign(out, out + hd_tensor_count(output->out));
    seen.active.assign(ctx->active, ctx->active + rows);
    seen.given_is_whole = ctx->given->q.data != nullptr && ctx->given->q.dim[1] == 6;
    return HD_OK;
}

hd_status prepare_pass(hd_prepare_ctx *ctx)
{
    ctx->passes = 1;
    ctx->pass[0].when = HD_PASS_AFTER;
    ctx->pass[0].like_call = ctx->pass[0].wants_lse = true;
    return HD_OK;
}

hd_status own_pass(const hd_hook_ctx *ctx, int, hd_pass *pass)
{
    pass->q = ctx->call->q, pass->k = ctx->call->k, pass->v = ctx->call->v;
    return HD_OK;
}

hd_status keep_pass(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    HD_TRY(look(ctx, output));
    for (int64_t b = 0; b < output->out.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        const hd_tensor out = hd_tensor_slice(ctx->pass[0].out, 0, b, 1),
                        lse = hd_tensor_slice(ctx->pass[0].lse, 0, b, 1);
        seen.pass.assign(static_cast<float *>(out.data),
                         static_cast<float *>(out.data) + hd_tensor_count(out));
        seen.lse.assign(static_cast<float *>(lse.data),
                        static_cast<float *>(lse.data) + hd_tensor_count(lse));
    }
    return HD_OK;
}

hd_status halve(const hd_hook_ctx *ctx, hd_logits *logits)
{
    return hd_logits_scale_rows(logits, &ctx->call->q_layout, HD_TOKENS_ALL, 0.5f);
}

hd_processor_class class_of(const char *name)
{
    hd_processor_class c = {};
    c.name = name;
    c.params = no_params;
    return c;
}

const hd_processor_class replacing = [] {
    hd_processor_class c = class_of("replacing");
    c.acts_on = row_is_perturbed;
    c.replaces = always;
    c.output = look;
    return c;
}();
const hd_processor_class passing = [] {
    hd_processor_class c = class_of("passing");
    c.acts_on = row_is_perturbed;
    c.prepare = prepare_pass;
    c.pass = own_pass;
    c.output = keep_pass;
    return c;
}();
const hd_processor_class looking = [] {
    hd_processor_class c = class_of("looking");
    c.output = [](const hd_hook_ctx *, hd_attention_output *) { return HD_OK; };
    return c;
}();
const hd_processor_class halving = [] {
    hd_processor_class c = class_of("halving");
    c.logits = halve;
    return c;
}();
const hd_processor_class *const classes[] = {&replacing, &passing, &looking, &halving};
const hd_processor_list list = {4, classes};

// Three rows, the last one perturbed; what act() leaves in a row that is not computed is `mark`.
struct Three : TestCall {
    static constexpr float mark = 12345.0f;
    Three() : TestCall(3, 6, 6, 2, 4, 8)
    {
        strcpy(rows[2].role, "perturbed");
    }
    std::vector<float> row(const std::vector<float> &all, size_t b) const
    {
        return {all.begin() + (long)(b * 48), all.begin() + (long)(b * 48 + 48)};
    }
    void run(const std::string &processors)
    {
        TestRun run(&list, "{\"processors\": [" + processors + "]}");
        REQUIRE_OK(run.status);
        REQUIRE_OK(dry(run));
        seen = {};
        std::fill(out.begin(), out.end(), mark);
        act(run);
    }
};

} // namespace

TEST_CASE("rows: a row that is replaced is not computed unless somebody looks",
          "[engine][attention]")
{
    Three c;
    c.run("{\"use\": \"looking\"}");
    const std::vector<float> plain = c.out;
    c.run("{\"use\": \"replacing\"}");
    CHECK(seen.active == std::vector<bool>{false, false, true});
    CHECK(seen.given_is_whole);
    CHECK(c.row(seen.out, 0) == c.row(plain, 0));
    CHECK(c.row(seen.out, 1) == c.row(plain, 1));
    CHECK(c.row(seen.out, 2) == std::vector<float>(48, Three::mark));
    c.run("{\"use\": \"looking\"}, {\"use\": \"replacing\"}");
    CHECK(seen.out == plain);
    c.run("{\"use\": \"looking\", \"branches\": [\"uncond\"]}, {\"use\": \"replacing\"}");
    CHECK(c.row(seen.out, 2) == std::vector<float>(48, Three::mark));
}

TEST_CASE("rows: a pass may go by the scores of the call, and tell the sum of its weights",
          "[engine][attention]")
{
    Three c;
    c.run("{\"use\": \"passing\"}, {\"use\": \"halving\"}");
    CHECK(seen.pass == c.row(c.out, 2));
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < 6; i++) {
            double sum = 0;
            for (int64_t j = 0; j < 6; j++)
                sum += std::exp(0.5 * score_f64(c, 2, h, i, j));
            CHECK(std::fabs((double)seen.lse[(size_t)(h * 6 + i)] - std::log(sum)) < 1e-5);
        }
}
