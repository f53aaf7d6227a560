#include "support/planning.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "engine/attention/run.h"
#include "support/catch.h"
#include "support/run.h"

PlanInput::PlanInput(const Shape &s)
    : rows(s.rows), heads(s.heads), dim(s.dim),
      tokens(s.text_before + s.frames * s.height * s.width + s.text_behind),
      text_before(s.text_before), text_behind(s.text_behind), dtype(s.dtype),
      q(Values::normal(s.dtype, hd_shape4(s.rows, tokens, s.heads, s.dim), s.seed)),
      k(Values::normal(s.dtype,
                       hd_shape4(s.rows, tokens, s.key_heads ? s.key_heads : s.heads, s.dim),
                       s.seed + 1000)),
      v(Values::normal(s.dtype,
                       hd_shape4(s.rows, tokens, s.key_heads ? s.key_heads : s.heads, s.dim),
                       s.seed + 2000)),
      names((size_t)s.rows)
{
    hd_token_layout layout = {};
    const int64_t grid = s.frames * s.height * s.width;
    if (s.text_before)
        layout.segment[layout.segments++] = {HD_TOKENS_TEXT, 0, s.text_before, 0, 0, 0};
    layout.segment[layout.segments++] = {HD_TOKENS_GRID, s.text_before, grid,
                                         s.frames,       s.height,      s.width};
    if (s.text_behind)
        layout.segment[layout.segments++] = {
            HD_TOKENS_TEXT, s.text_before + grid, s.text_behind, 0, 0, 0};
    for (size_t b = 0; b < names.size(); b++) {
        strcpy(names[b].branch, "main");
        strcpy(names[b].role, b % 2 ? "cond" : "uncond");
        names[b].picture = (int64_t)b / 2;
    }
    forward.rows = {rows, names.data()};
    forward.step = {0, 10, 999.0, 1.0, HD_PHASE_SAMPLING};
    call.forward = &forward;
    call.site = {HD_NETWORK_DIT, HD_SITE_SELF, "block.0", 1, heads, tokens};
    call.x = call.out = hd_tensor_none();
    call.q = q.t, call.k = k.t, call.v = v.t;
    call.q_layout = call.k_layout = layout;
    call.scale = (float)(1.0 / std::sqrt((double)dim));
}

void PlanInput::put(Values &x, int64_t row, int64_t head, const std::vector<double> &numbers)
{
    const int64_t dim = x.t.dim[3];
    for (size_t i = 0; i < numbers.size(); i++) {
        int64_t token = (int64_t)i / dim, d = (int64_t)i % dim;
        x.set(((row * x.t.dim[1] + token) * x.t.dim[2] + head) * dim + d, (float)numbers[i]);
    }
}

static double number_at(const Values &x, int64_t row, int64_t token, int64_t head, int64_t heads,
                        int64_t d)
{
    int64_t own = head / (heads / x.t.dim[2]);
    return x.at(((row * x.t.dim[1] + token) * x.t.dim[2] + own) * x.t.dim[3] + d);
}

double PlanInput::q_at(int64_t row, int64_t token, int64_t head, int64_t d) const
{
    return number_at(q, row, token, head, heads, d);
}

double PlanInput::k_at(int64_t row, int64_t token, int64_t head, int64_t d) const
{
    return number_at(k, row, token, head, heads, d);
}

double PlanInput::v_at(int64_t row, int64_t token, int64_t head, int64_t d) const
{
    return number_at(v, row, token, head, heads, d);
}

void Planning::Free::operator()(void *p) const
{
    std::free(p);
}

static void *zeroed(size_t bytes)
{
    bytes = (bytes + 127) & ~(size_t)63;
    void *p = aligned_alloc(64, bytes);
    if (!p) throw std::runtime_error("no memory");
    return memset(p, 0, bytes);
}

Planning::Planning(const hd_processor_class &kind, const std::string &json, PlanInput &input,
                   const hd_plan_rest *rest)
    : active((size_t)input.rows, 1), kind_(kind), input_(input),
      params_(zeroed(kind.params_size + 1))
{
    REQUIRE_OK(hd_json_parse(&doc_, "test.json", json.data(), json.size()));
    REQUIRE_OK(hd_params_default(kind.params, params_.get()));
    status = hd_params_read(kind.params, params_.get(), hd_json_root(doc_), nullptr);
    if (status == HD_OK && kind.check) status = kind.check(params_.get());
    if (status == HD_OK) {
        prepared.params = params_.get();
        prepared.call = &input.call;
        prepared.rest = rest ? *rest : kind.rest;
        status = kind.prepare(&prepared);
    }
    if (status != HD_OK) {
        message = hd_message();
        return;
    }
    scratch_.reset(zeroed(prepared.scratch_bytes));
    for (int64_t b = 0; b < input.rows; b++)
        state_.emplace_back(prepared.state_bytes ? zeroed(prepared.state_bytes) : nullptr);
}

Planning::~Planning()
{
    if (kind_.release) kind_.release(prepared.made);
    if (kind_.clear) kind_.clear(params_.get());
    hd_params_free(kind_.params, params_.get());
    hd_json_free(doc_);
}

std::vector<const hd_plan *> Planning::plan(const hd_exec *ex, int64_t step)
{
    std::vector<const hd_plan *> plans((size_t)input_.rows);
    std::vector<void *> state;
    std::vector<int64_t> query_len((size_t)input_.rows, input_.tokens), key_len = query_len;
    for (auto &s : state_)
        state.push_back(s.get());
    INFO(message);
    REQUIRE(status == HD_OK);
    input_.forward.step.index = step;
    hd_hook_ctx ctx = {};
    ctx.params = params_.get();
    ctx.ex = ex;
    ctx.call = &input_.call;
    ctx.active = reinterpret_cast<const bool *>(active.data());
    ctx.scratch = scratch_.get();
    ctx.made = prepared.made;
    ctx.state = state.data();
    hd_tokens tokens = {input_.call.q, input_.call.k, input_.call.v, query_len.data(),
                        key_len.data()};
    REQUIRE_OK(kind_.plan(&ctx, &tokens, plans.data()));
    return plans;
}

PlanMeaning Planning::meaning(const hd_exec *ex, int64_t row, int64_t head, int64_t step)
{
    const hd_plan *p = plan(ex, step)[(size_t)row];
    REQUIRE(p != nullptr);
    return plan_meaning(*p, head, input_.tokens, input_.tokens);
}

std::vector<double> attention_by(PlanInput &in, const hd_processor_list *list,
                                 const std::string &processors, int64_t step)
{
    hd_json_doc *doc = nullptr;
    hd_attention_run *attention = nullptr;
    REQUIRE_OK(hd_json_parse(&doc, "test.json", processors.data(), processors.size()));
    REQUIRE_OK(hd_attention_run_create(&attention, list, hd_json_root(doc), 10));
    Values out(in.dtype, hd_tensor_shape(in.q.t));
    in.forward.run = attention;
    in.forward.step.index = step;
    in.call.out = out.t;
    Run dry(hd_cpu_features(), 2);
    hd_arena_free(dry.exec.arena);
    REQUIRE_OK(hd_arena_create_measuring(&dry.exec.arena));
    dry.exec.recording = true;
    REQUIRE_OK(hd_attention(&dry, &in.call));
    Run real(hd_cpu_features(), 2, hd_arena_peak_bytes(dry.exec.arena));
    REQUIRE_OK(hd_attention(&real, &in.call));
    hd_attention_run_free(attention);
    hd_json_free(doc);
    in.forward.run = nullptr;
    std::vector<double> numbers;
    for (int64_t i = 0; i < out.count(); i++)
        numbers.push_back(out.at(i));
    return numbers;
}

namespace
{

// One row and head, token after token.
struct Head {
    int64_t dim;
    double scale;
    std::vector<double> q, k, v;

    Head(const PlanInput &in, int64_t row, int64_t head) : dim(in.dim), scale((double)in.call.scale)
    {
        for (int64_t t = 0; t < in.tokens; t++)
            for (int64_t d = 0; d < in.dim; d++) {
                q.push_back(in.q_at(row, t, head, d));
                k.push_back(in.k_at(row, t, head, d));
                v.push_back(in.v_at(row, t, head, d));
            }
    }
    double score(int64_t query, const double *key) const
    {
        const double *a = &q[(size_t)(query * dim)];
        double dot = 0;
        for (int64_t d = 0; d < dim; d++)
            dot += a[d] * key[d];
        return dot * scale;
    }
    // half the variance of the scores of some keys, channel by channel
    double spread(int64_t query, const std::vector<int64_t> &of) const
    {
        const std::vector<double> middle = mean(k, of);
        double sum = 0;
        for (int64_t t : of)
            for (int64_t d = 0; d < dim; d++) {
                const double apart = k[(size_t)(t * dim + d)] - middle[(size_t)d];
                const double by = scale * q[(size_t)(query * dim + d)];
                sum += 0.5 * by * by * apart * apart / (double)of.size();
            }
        return sum;
    }
    // the mean of some tokens of k or v
    std::vector<double> mean(const std::vector<double> &x, const std::vector<int64_t> &of) const
    {
        std::vector<double> m((size_t)dim);
        for (int64_t t : of)
            for (int64_t d = 0; d < dim; d++)
                m[(size_t)d] += x[(size_t)(t * dim + d)] / (double)of.size();
        return m;
    }
};

// Scores to weights.
void softmax(std::vector<double> &score)
{
    double most = -INFINITY, sum = 0;
    for (double s : score)
        most = std::fmax(most, s);
    for (double &s : score)
        sum += s = std::exp(s - most);
    for (double &s : score)
        s /= sum;
}

} // namespace

std::vector<double> attention_over(const PlanInput &in, const PlanMeaning &meaning, int64_t row,
                                   int64_t head, const ProxyForm &form)
{
    const Head h(in, row, head);
    std::vector<double> out((size_t)(in.tokens * in.dim));
    std::vector<std::vector<double>> k, v;
    std::vector<double> bias;
    for (size_t t = 0; t < meaning.tile_tokens.size(); t++) {
        const std::vector<int64_t> all = meaning.tile_tokens[t];
        std::vector<int64_t> of = all;
        bias.push_back(form.counted ? std::log((double)of.size()) : 0.0);
        if (!form.token.empty()) of = {form.token[t]};
        k.push_back(h.mean(h.k, of));
        v.push_back(h.mean(h.v, form.value_too ? of : all));
    }
    for (int64_t i = 0; i < in.tokens; i++) {
        std::vector<const double *> value;
        std::vector<double> weight;
        for (int64_t j = 0; j < in.tokens; j++) {
            if (!meaning.at(i, j)) continue;
            weight.push_back(h.score(i, &h.k[(size_t)(j * in.dim)]));
            value.push_back(&h.v[(size_t)(j * in.dim)]);
        }
        for (size_t t = 0; t < (size_t)meaning.tiles; t++) {
            if (!meaning.proxy[(size_t)(i * meaning.tiles) + t]) continue;
            weight.push_back(h.score(i, k[t].data()) + bias[t]);
            if (form.clip > 0.0)
                weight.back() += std::min(h.spread(i, meaning.tile_tokens[t]), form.clip);
            value.push_back(v[t].data());
        }
        softmax(weight);
        double *o = &out[(size_t)(i * in.dim)];
        for (size_t j = 0; j < weight.size(); j++)
            for (int64_t d = 0; d < in.dim; d++)
                o[d] += weight[j] * value[j][d];
    }
    return out;
}

std::vector<std::vector<double>> attention_map(const PlanInput &in, int64_t row, int64_t head)
{
    const Head h(in, row, head);
    std::vector<std::vector<double>> map((size_t)in.tokens);
    for (int64_t i = 0; i < in.tokens; i++) {
        for (int64_t j = 0; j < in.tokens; j++)
            map[(size_t)i].push_back(h.score(i, &h.k[(size_t)(j * in.dim)]));
        softmax(map[(size_t)i]);
    }
    return map;
}

double retained_mass(const std::vector<std::vector<double>> &map, const PlanMeaning &meaning)
{
    double mass = 0;
    for (size_t i = 0; i < map.size(); i++)
        for (size_t j = 0; j < map.size(); j++)
            mass += meaning.at((int64_t)i, (int64_t)j) ? map[i][j] / (double)map.size() : 0;
    return mass;
}

std::vector<double> dense_attention(const PlanInput &in, int64_t row, int64_t head)
{
    PlanMeaning all{in.tokens, in.tokens, 0, {}, {}, {}, 0};
    all.sees.assign((size_t)(in.tokens * in.tokens), 1);
    return attention_over(in, all, row, head);
}

double relative_l1(const std::vector<double> &a, const std::vector<double> &b)
{
    double apart = 0, size = 0;
    for (size_t i = 0; i < b.size(); i++) {
        apart += std::fabs(a[i] - b[i]);
        size += std::fabs(b[i]);
    }
    return apart / size;
}
