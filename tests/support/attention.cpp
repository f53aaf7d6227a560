#include "support/attention.h"

#include <cstddef>

namespace
{
/* The one parameter of a test class: which it is. hd_params gives it its default, the index. */
struct Which {
    int64_t which;
};

// Test lists that are alive, and their first number.
std::vector<const TestClass *> all_classes;

const TestClass *self(const void *params)
{
    return all_classes[(size_t) static_cast<const Which *>(params)->which];
}

hd_status on_prepare(hd_prepare_ctx *ctx)
{
    return self(ctx->params)->prepare(ctx);
}
hd_status on_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    return self(ctx->params)->pass(ctx, index, pass);
}
hd_status on_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    return self(ctx->params)->tokens(ctx, tokens);
}
hd_status on_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    return self(ctx->params)->logits(ctx, logits);
}
hd_status on_probe(const hd_hook_ctx *ctx, hd_tensor indicator)
{
    return self(ctx->params)->probe(ctx, indicator);
}
hd_status on_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    return self(ctx->params)->plan(ctx, tokens, plan);
}
hd_status on_map(const hd_hook_ctx *ctx, hd_attention_map *map)
{
    return self(ctx->params)->map(ctx, map);
}
hd_status on_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    return self(ctx->params)->output(ctx, output);
}
hd_status on_check(void *params)
{
    return self(params)->check();
}
void on_clear(void *params)
{
    self(params)->clear();
}

void on_release(void *made)
{
    auto m = static_cast<TestMade *>(made);
    m->released();
    delete m;
}
} // namespace

TestList::TestList(std::vector<TestClass> classes) : classes_(std::move(classes))
{
    for (const TestClass &t : classes_) {
        all_classes.push_back(&t);
        auto params = new hd_param[2]();
        params[0].type = HD_PARAM_TYPE_INT;
        params[0].name = "which";
        params[0].offset = offsetof(Which, which);
        params[0].def = (double)(all_classes.size() - 1);
        auto c = std::make_unique<hd_processor_class>();
        c->name = t.name.c_str();
        c->summary = "for a test";
        c->params = params;
        c->params_size = sizeof(Which);
        c->edits = t.edits;
        c->static_plan = t.static_plan;
        if (t.prepare) c->prepare = on_prepare;
        if (t.pass) c->pass = on_pass;
        if (t.tokens) c->tokens = on_tokens;
        if (t.logits) c->logits = on_logits;
        if (t.probe) c->probe = on_probe;
        if (t.plan) c->plan = on_plan;
        if (t.map) c->map = on_map;
        if (t.output) c->output = on_output;
        if (t.releases) c->release = on_release;
        if (t.check) c->check = on_check;
        if (t.clear) c->clear = on_clear;
        item_.push_back(c.get());
        made_.push_back(std::move(c));
    }
    list_ = {item_.size(), item_.data()};
}

TestList::~TestList()
{
    for (auto &c : made_)
        delete[] c->params;
}

TestRun::TestRun(const hd_processor_list *list, const std::string &json, int64_t steps)
{
    status = hd_json_parse(&doc, "test.json", json.data(), json.size());
    REQUIRE_OK(status);
    status =
        hd_attention_run_create(&run, list, hd_json_get(hd_json_root(doc), "processors"), steps);
}

TestRun::~TestRun()
{
    hd_attention_run_free(run);
    hd_json_free(doc);
}

std::string TestRun::chain(int64_t site) const
{
    char text[400];
    return hd_attention_run_chain_text(run, site, text, sizeof text);
}

TestCall::TestCall(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim,
                   uint64_t seed)
    : B(batch), Lq(queries), Lk(keys), H(heads), D(dim), q(normal_values(B * Lq * H * D, 4 * seed)),
      k(normal_values(B * Lk * H * D, 4 * seed + 1)),
      v(normal_values(B * Lk * H * D, 4 * seed + 2)),
      x(normal_values(B * Lq * H * D, 4 * seed + 3)), out((size_t)(B * Lq * H * D)), rows((size_t)B)
{
    for (size_t b = 0; b < rows.size(); b++) {
        strcpy(rows[b].branch, "main");
        strcpy(rows[b].role, b % 2 ? "cond" : "uncond");
        rows[b].picture = (int64_t)b / 2;
    }
    forward.rows = {B, rows.data()};
    forward.step = {0, 10, 999.0, 1.0, HD_PHASE_SAMPLING};
    call.forward = &forward;
    call.site = {HD_NETWORK_UNET, HD_SITE_SELF, "mid.attn.0", 1, H, Lq};
    call.x = hd_tensor_of(x.data(), HD_F32, hd_shape3(B, Lq, H * D));
    call.q = hd_tensor_of(q.data(), HD_F32, hd_shape4(B, Lq, H, D));
    call.k = hd_tensor_of(k.data(), HD_F32, hd_shape4(B, Lk, H, D));
    call.v = hd_tensor_of(v.data(), HD_F32, hd_shape4(B, Lk, H, D));
    call.out = hd_tensor_of(out.data(), HD_F32, hd_shape4(B, Lq, H, D));
    call.q_layout = hd_layout_grid(1, 1, Lq);
    call.k_layout = hd_layout_grid(1, 1, Lk);
    call.scale = (float)(1.0 / std::sqrt((double)D));
}

hd_status TestCall::dry(TestRun &run)
{
    Run ex(HD_CPU);
    hd_arena *measuring = nullptr;
    hd_status status = hd_arena_create_measuring(&measuring);
    if (status != HD_OK) return status;
    hd_exec dry = ex.exec;
    dry.arena = measuring;
    dry.recording = true;
    forward.run = run.run;
    status = hd_attention(&dry, &call);
    arena_ = hd_arena_peak_bytes(measuring);
    hd_arena_free(measuring);
    return status;
}

hd_status TestCall::try_act(TestRun &run, int64_t step, int threads, unsigned isa)
{
    // kernels of other instruction sets, and more threads, take more than the dry pass saw
    const bool as_measured = threads == 1 && isa == HD_CPU;
    Run ex(isa, threads, as_measured ? arena_ : arena_ + (64u << 20));
    forward.run = run.run;
    forward.step.index = step;
    return hd_attention(&ex, &call);
}

std::vector<float> TestCall::act(TestRun &run, int64_t step)
{
    REQUIRE_OK(try_act(run, step, 1, HD_CPU));
    return out;
}

std::vector<double> softmax_f64(int64_t keys, const std::function<double(int64_t)> &score)
{
    std::vector<double> p((size_t)keys);
    double most = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < keys; j++)
        most = std::fmax(most, p[(size_t)j] = score(j));
    for (double &s : p)
        sum += s = std::isinf(most) ? 0 : std::exp(s - most);
    for (double &s : p)
        s = sum > 0 ? s / sum : 0;
    return p;
}

double score_f64(const TestCall &c, int64_t b, int64_t h, int64_t i, int64_t j)
{
    double s = 0;
    for (int64_t d = 0; d < c.D; d++)
        s += (double)c.q[(size_t)(((b * c.Lq + i) * c.H + h) * c.D + d)] *
             (double)c.k[(size_t)(((b * c.Lk + j) * c.H + h) * c.D + d)];
    return s * (double)c.call.scale;
}

double error_f64(const TestCall &c, const std::vector<float> &out, int64_t b,
                 const std::function<std::vector<double>(int64_t, int64_t)> &weights,
                 const std::function<double(int64_t, int64_t, int64_t)> &value)
{
    double worst = 0;
    for (int64_t h = 0; h < c.H; h++)
        for (int64_t i = 0; i < c.Lq; i++) {
            std::vector<double> w = weights(h, i);
            for (int64_t d = 0; d < c.D; d++) {
                double truth = 0;
                for (size_t j = 0; j < w.size(); j++)
                    truth +=
                        w[j] *
                        (value
                             ? value((int64_t)j, h, d)
                             : (double)
                                   c.v[((size_t)(b * c.Lk + (int64_t)j) * (size_t)c.H + (size_t)h) *
                                           (size_t)c.D +
                                       (size_t)d]);
                double got = (double)out[(size_t)(((b * c.Lq + i) * c.H + h) * c.D + d)];
                double e = std::fabs(got - truth);
                if (!(e <= worst)) worst = e;
            }
        }
    return worst;
}
