/* tests/engine/ops/sdpa_call.h: an attention call with everything it may have, and its truth: two
 * passes in f64 over what tests/support/plan.h says of its plan. */
#ifndef HD_TESTS_ENGINE_OPS_SDPA_CALL_H
#define HD_TESTS_ENGINE_OPS_SDPA_CALL_H

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "engine/ops/sdpa.h"
#include "support/catch.h"
#include "support/plan.h"
#include "support/run.h"

const float infinity = std::numeric_limits<float>::infinity();

// Tokens [B, L, H, D] of f32 or bf16 in a buffer with gaps; the gaps hold NaN and must stay so.
class Tokens
{
  public:
    enum Layout { packed, gaps, heads_first };

    Tokens() = default;
    Tokens(hd_dtype dtype, int64_t b, int64_t l, int64_t h, int64_t d, Layout layout = packed)
    {
        view = hd_tensor_of(nullptr, dtype, hd_shape4(b, l, h, d));
        if (layout == gaps) { // as a slice of a fused projection
            view.stride[2] = d + 3;
            view.stride[1] = view.stride[2] * h + 5;
            view.stride[0] = view.stride[1] * l + 7;
        } else if (layout == heads_first) {
            view.stride[1] = d;
            view.stride[2] = d * l;
        }
        count = 0;
        each([&](int64_t at) { count = std::max(count, at + 1); });
        if (dtype == HD_F32)
            f32.assign((size_t)count, std::nanf(""));
        else
            bf16.assign((size_t)count, hd_bf16_from_f32(std::nanf("")));
    }

    void fill(uint64_t seed, float scale = 1.0f)
    {
        auto values = normal_values(hd_tensor_count(view), seed, scale);
        size_t i = 0;
        each([&](int64_t at) { put(at, values[i++]); });
    }

    hd_tensor tensor()
    {
        hd_tensor t = view;
        t.data = view.dtype == HD_F32 ? (void *)f32.data() : (void *)bf16.data();
        return t;
    }

    double at(int64_t b, int64_t l, int64_t h, int64_t d) const
    {
        return (double)get(offset(b, l, h, d));
    }

    void set(int64_t b, int64_t l, int64_t h, int64_t d, float x)
    {
        put(offset(b, l, h, d), x);
    }

    // The elements in order, bits and all.
    std::vector<uint32_t> bits(int64_t row) const
    {
        std::vector<uint32_t> out;
        each([&](int64_t at, int64_t b) {
            if (b != row) return;
            uint32_t u = 0;
            if (view.dtype == HD_F32)
                memcpy(&u, &f32[(size_t)at], sizeof u);
            else
                u = bf16[(size_t)at];
            out.push_back(u);
        });
        return out;
    }

    bool gaps_untouched() const
    {
        std::vector<bool> used((size_t)count);
        each([&](int64_t at) { used[(size_t)at] = true; });
        for (int64_t i = 0; i < count; i++)
            if (!used[(size_t)i] && !std::isnan(get(i))) return false;
        return true;
    }

    void copy_row(int64_t to, const Tokens &from, int64_t row)
    {
        for (int64_t l = 0; l < view.dim[1]; l++)
            for (int64_t h = 0; h < view.dim[2]; h++)
                for (int64_t d = 0; d < view.dim[3]; d++)
                    set(to, l, h, d, (float)from.at(row, l, h, d));
    }

    hd_tensor view{};

  private:
    int64_t offset(int64_t b, int64_t l, int64_t h, int64_t d) const
    {
        return b * view.stride[0] + l * view.stride[1] + h * view.stride[2] + d;
    }
    void each(const std::function<void(int64_t, int64_t)> &visit) const
    {
        for (int64_t b = 0; b < view.dim[0]; b++)
            for (int64_t l = 0; l < view.dim[1]; l++)
                for (int64_t h = 0; h < view.dim[2]; h++)
                    for (int64_t d = 0; d < view.dim[3]; d++)
                        visit(offset(b, l, h, d), b);
    }
    void each(const std::function<void(int64_t)> &visit) const
    {
        each([&](int64_t at, int64_t) { visit(at); });
    }
    float get(int64_t at) const
    {
        return view.dtype == HD_F32 ? f32[(size_t)at] : hd_bf16_to_f32(bf16[(size_t)at]);
    }
    void put(int64_t at, float x)
    {
        if (view.dtype == HD_F32)
            f32[(size_t)at] = x;
        else
            bf16[(size_t)at] = hd_bf16_from_f32(x);
    }

    int64_t count = 0;
    std::vector<float> f32;
    std::vector<hd_bf16> bf16;
};

struct Sizes {
    int64_t b = 1, lq = 1, lk = 1, h = 1, hk = 1, d = 1, dv = 1;
    hd_dtype dtype = HD_F32;
};

/* A plan that owns its lists. Fill the vectors, then take it by get(). */
struct OwnedPlan {
    hd_plan p{};
    std::vector<int32_t> query_bound, key_bound, query_order, key_order;
    std::vector<std::vector<int32_t>> start, end; // of the window rule's axes
    std::vector<int64_t> dilation;
    std::vector<int64_t> row_start;
    std::vector<hd_visit> visit;
    std::vector<uint8_t> query_segment, key_segment;
    std::vector<uint64_t> row_mask, column_mask;
    std::vector<hd_plan_axis> window;
    std::vector<int32_t> proxy_key, proxy_value;
    std::vector<float> proxy_variance;

    template <typename T> static const T *list(const std::vector<T> &v)
    {
        return v.empty() ? nullptr : v.data();
    }
    const hd_plan *get()
    {
        p.query_bound = list(query_bound), p.key_bound = list(key_bound);
        p.query_order = list(query_order), p.key_order = list(key_order);
        p.row_start = list(row_start), p.visit = visit.data();
        p.query_segment = list(query_segment), p.key_segment = list(key_segment);
        p.row_mask = list(row_mask), p.column_mask = list(column_mask);
        p.proxy.key = list(proxy_key), p.proxy.value = list(proxy_value);
        p.proxy.variance = list(proxy_variance);
        window.clear();
        for (size_t i = 0; i < dilation.size(); i++)
            window.push_back({dilation[i], list(start[i]), list(end[i])});
        p.window = list(window), p.windows = (int64_t)window.size() / 3;
        return &p;
    }
};

/* An attention call with everything it may have, all of it owned here. */
struct Call {
    Sizes n;
    Tokens q, k, v, out;
    std::vector<int64_t> query_len, key_len;
    std::vector<float> row_scale, bias, column_bias, lse, indicator, probed;
    std::vector<uint8_t> mask, query_label, key_label;
    std::vector<float> segment_bias, segment_gain;
    hd_shape bias_shape{}, mask_shape{};
    int64_t column_heads = 1, query_labels = 0, key_labels = 0, indicators = 0;
    bool causal = false;
    float scale = 1.0f;
    std::vector<OwnedPlan> owned; // of each row, the last of those behind; none: dense
    std::vector<const hd_plan *> plans;
    hd_sdpa_segments segments{};
    int64_t visited = -1;

    explicit Call(Sizes sizes, uint64_t seed = 1, Tokens::Layout layout = Tokens::packed,
                  float spread = 1.0f)
        : n(sizes), q(n.dtype, n.b, n.lq, n.h, n.d, layout),
          k(n.dtype, n.b, n.lk, n.hk, n.d, layout), v(n.dtype, n.b, n.lk, n.hk, n.dv, layout),
          out(n.dtype, n.b, n.lq, n.h, n.dv, layout),
          lse((size_t)(n.b * n.h * n.lq), std::nanf("")), scale(1.0f / std::sqrt((float)n.d))
    {
        q.fill(3 * seed, spread);
        k.fill(3 * seed + 1, spread);
        v.fill(3 * seed + 2);
    }

    void add_bias(hd_shape shape, uint64_t seed)
    {
        bias_shape = shape;
        bias = normal_values(hd_shape_count(shape), seed);
    }
    void add_mask(hd_shape shape, std::mt19937_64 &rng, double keep)
    {
        mask_shape = shape;
        mask.resize((size_t)hd_shape_count(shape));
        for (uint8_t &m : mask)
            m = std::uniform_real_distribution<>()(rng) < keep;
    }
    void add_segments(std::mt19937_64 &rng, bool with_bias, bool with_gain)
    {
        query_labels = 1 + (int64_t)(rng() % 4), key_labels = 1 + (int64_t)(rng() % 5);
        for (int64_t i = 0; i < n.b * n.lq; i++)
            query_label.push_back((uint8_t)(rng() % (uint64_t)query_labels));
        for (int64_t i = 0; i < n.b * n.lk; i++)
            key_label.push_back((uint8_t)(rng() % (uint64_t)key_labels));
        if (with_bias) segment_bias = normal_values(n.b * query_labels * key_labels, rng());
        if (with_gain) segment_gain = normal_values(n.b * query_labels * key_labels, rng());
        if (with_bias && rng() % 2) segment_bias[0] = -infinity;
    }
    void add_indicators(int64_t count, uint64_t seed)
    {
        indicators = count;
        indicator = normal_values(n.b * n.lk * count, seed);
        probed.assign((size_t)(n.b * n.h * n.lq * count), std::nanf(""));
    }
    /* Full tiles, each with probability `keep`. */
    OwnedPlan &add_plan(int64_t heads, int64_t query_tile, int64_t key_tile, std::mt19937_64 &rng,
                        double keep)
    {
        owned.emplace_back();
        OwnedPlan &o = owned.back();
        hd_plan &plan = o.p;
        plan.query_tile = query_tile, plan.key_tile = key_tile, plan.heads = heads;
        plan.query_tiles = (n.lq + query_tile - 1) / query_tile;
        plan.key_tiles = (n.lk + key_tile - 1) / key_tile;
        plan.query_ranks = n.lq, plan.key_ranks = n.lk, plan.orders = 1;
        o.row_start = {0};
        for (int64_t r = 0; r < heads * plan.query_tiles; r++) {
            for (int64_t t = 0; t < plan.key_tiles; t++)
                if (std::uniform_real_distribution<>()(rng) < keep)
                    o.visit.push_back({(int32_t)t, HD_VISIT_FULL});
            o.row_start.push_back((int64_t)o.visit.size());
        }
        return o;
    }
    const hd_plan *plan_of(int64_t b)
    {
        if (owned.empty()) return nullptr;
        return owned[std::min((size_t)b, owned.size() - 1)].get();
    }

    hd_sdpa args(bool with_lse = true)
    {
        hd_sdpa a{};
        a.q = q.tensor(), a.k = k.tensor(), a.v = v.tensor(), a.out = out.tensor();
        a.query_len = query_len.empty() ? nullptr : query_len.data();
        a.key_len = key_len.empty() ? nullptr : key_len.data();
        a.scale = scale;
        a.row_scale = row_scale.empty() ? nullptr : row_scale.data();
        if (!bias.empty()) a.bias = hd_tensor_of(bias.data(), HD_F32, bias_shape);
        if (!mask.empty()) a.mask = hd_tensor_of(mask.data(), HD_BOOL, mask_shape);
        if (!column_bias.empty())
            a.column_bias =
                hd_tensor_of(column_bias.data(), HD_F32, hd_shape3(n.b, column_heads, n.lk));
        if (query_labels > 0) {
            segments = {query_label.data(),
                        key_label.data(),
                        query_labels,
                        key_labels,
                        OwnedPlan::list(segment_bias),
                        OwnedPlan::list(segment_gain)};
            a.segments = &segments;
        }
        if (indicators > 0) {
            a.indicator = hd_tensor_of(indicator.data(), HD_F32, hd_shape3(n.b, n.lk, indicators));
            a.probed = hd_tensor_of(probed.data(), HD_F32, hd_shape4(n.b, n.h, n.lq, indicators));
        }
        a.causal = causal;
        if (with_lse) a.lse = hd_tensor_of(lse.data(), HD_F32, hd_shape3(n.b, n.h, n.lq));
        plans.clear();
        for (int64_t b = 0; b < n.b; b++)
            plans.push_back(plan_of(b));
        if (!owned.empty()) a.plan = plans.data();
        a.visited = &visited;
        return a;
    }

    static int64_t broadcast(const hd_shape &s, int64_t b, int64_t h, int64_t i, int64_t j)
    {
        auto part = [&](int axis, int64_t x) { return s.dim[axis] == 1 ? 0 : x; };
        return ((part(0, b) * s.dim[1] + part(1, h)) * s.dim[2] + part(2, i)) * s.dim[3] + j;
    }

    /* Whatever the plan says. */
    bool allowed(int64_t b, int64_t h, int64_t i, int64_t j) const
    {
        if (!key_len.empty() && j >= key_len[(size_t)b]) return false;
        if (causal && j > i) return false;
        return mask.empty() || mask[(size_t)broadcast(mask_shape, b, h, i, j)];
    }

    float table(const std::vector<float> &t, int64_t b, int64_t i, int64_t j) const
    {
        const int64_t row = (b * query_labels + query_label[(size_t)(b * n.lq + i)]) * key_labels;
        return t[(size_t)(row + key_label[(size_t)(b * n.lk + j)])];
    }

    double scale_of(int64_t b, int64_t i) const
    {
        return (double)scale *
               (row_scale.empty() ? 1.0 : (double)row_scale[(size_t)(b * n.lq + i)]);
    }

    double column_of(int64_t b, int64_t h, int64_t j) const
    {
        const int64_t head = b * column_heads + (column_heads > 1 ? h : 0);
        return (double)column_bias[(size_t)(head * n.lk + j)];
    }

    double score(int64_t b, int64_t h, int64_t i, int64_t j) const
    {
        double dot = 0.0;
        for (int64_t d = 0; d < n.d; d++)
            dot += q.at(b, i, h, d) * k.at(b, j, h / (n.h / n.hk), d);
        double s = dot * scale_of(b, i);
        if (!bias.empty()) s += (double)bias[(size_t)broadcast(bias_shape, b, h, i, j)];
        if (!column_bias.empty()) s += column_of(b, h, j);
        if (!segment_bias.empty()) s += (double)table(segment_bias, b, i, j);
        return s;
    }

    // Channel d of a key's value, the indicators behind them.
    double value_of(int64_t b, int64_t h, int64_t j, int64_t d) const
    {
        if (d < n.dv) return v.at(b, j, h / (n.h / n.hk), d);
        return (double)indicator[(size_t)((b * n.lk + j) * indicators + d - n.dv)];
    }

    // What one query sums: scores and values.
    struct Summand {
        double score;
        std::vector<double> value;
    };

    std::vector<Summand> summands(int64_t b, int64_t h, int64_t i, const PlanMeaning *m) const
    {
        std::vector<Summand> list;
        const int64_t channels = n.dv + indicators;
        for (int64_t j = 0; j < n.lk; j++) {
            if (!allowed(b, h, i, j) || (m && !m->at(i, j))) continue;
            Summand s{score(b, h, i, j), {}};
            for (int64_t d = 0; d < channels; d++)
                s.value.push_back(
                    value_of(b, h, j, d) *
                    (segment_gain.empty() ? 1.0 : (double)table(segment_gain, b, i, j)));
            list.push_back(s);
        }
        for (int64_t t = 0; m && t < m->tiles; t++) {
            if (!m->proxy[(size_t)(i * m->tiles + t)]) continue;
            Summand s{0.0, std::vector<double>((size_t)channels)};
            if (proxy_of(b, h, i, t, *m, s)) list.push_back(s);
        }
        return list;
    }

    // Tile t as one summand; false: nothing, or not for query i. Its keys may be -1's and biased.
    bool proxy_of(int64_t b, int64_t h, int64_t i, int64_t t, const PlanMeaning &m,
                  Summand &s) const
    {
        const hd_plan &plan = owned[std::min((size_t)b, owned.size() - 1)].p;
        const int64_t at = (plan.orders > 1 ? h : 0) * plan.key_tiles + t;
        std::vector<int64_t> there;
        std::vector<double> weight;
        double all = 0.0, dot = 0.0, spread = 0.0;
        for (int64_t j : m.tile_tokens[(size_t)t]) {
            if (!key_len.empty() && j >= key_len[(size_t)b]) continue;
            if (!allowed(b, h, i, j)) return false;
            there.push_back(j);
            weight.push_back(column_bias.empty() ? 1.0 : std::exp(column_of(b, h, j)));
            all += weight.back();
        }
        if (all == 0.0) return false;
        // the token of a rank that was chosen, or -1
        auto chosen = [&](const int32_t *rank) {
            if (!rank) return (int64_t)-1;
            const int64_t first = hd_plan_key_start(&plan, t);
            const int64_t j = m.tile_tokens[(size_t)t][(size_t)(rank[at] - first)];
            return std::count(there.begin(), there.end(), j) ? j : -1;
        };
        const int64_t key = chosen(plan.proxy.key), value = chosen(plan.proxy.value);
        for (size_t x = 0; x < there.size(); x++) {
            const int64_t j = there[x];
            const double by_key = key < 0 ? weight[x] / all : j == key;
            const double by_value = value < 0 ? weight[x] / all : j == value;
            for (int64_t d = 0; d < n.d; d++)
                dot += q.at(b, i, h, d) * k.at(b, j, h / (n.h / n.hk), d) * by_key;
            for (size_t d = 0; d < s.value.size(); d++)
                s.value[d] += value_of(b, h, j, (int64_t)d) * by_value;
        }
        for (int64_t d = 0; plan.proxy.variance && d < n.d; d++)
            spread += 0.5 * std::pow(scale_of(b, i) * q.at(b, i, h, d), 2) *
                      (double)plan.proxy.variance[(h * plan.key_tiles + t) * n.d + d];
        s.score = dot * scale_of(b, i) + std::log(all) + std::min(spread, (double)plan.proxy.clip) -
                  (plan.proxy.uncounted ? std::log((double)there.size()) : 0.0);
        return true;
    }

    // What a call should give, by two passes in f64; NaN where nothing is to be written.
    struct Truth {
        std::vector<double> out; // [B, H, Lq, Dv + indicators]
        std::vector<double> lse; // [B, H, Lq]
    };

    void add_query(Truth &t, int64_t b, int64_t h, int64_t i, const PlanMeaning *m) const
    {
        auto list = summands(b, h, i, m);
        double max = -(double)infinity, sum = 0.0;
        for (const Summand &s : list)
            max = std::max(max, s.score);
        std::vector<double> value((size_t)(n.dv + indicators));
        for (const Summand &s : list) {
            const double p = max > -(double)infinity ? std::exp(s.score - max) : 0.0;
            sum += p;
            for (size_t d = 0; p > 0 && d < value.size(); d++)
                value[d] += p * s.value[d];
        }
        for (double x : value)
            t.out.push_back(sum > 0 ? x / sum : 0.0);
        t.lse.push_back(sum > 0 ? max + std::log(sum) : -(double)infinity);
    }

    Truth truth()
    {
        Truth t;
        for (int64_t b = 0; b < n.b; b++)
            for (int64_t h = 0; h < n.h; h++) {
                const hd_plan *plan = plan_of(b);
                PlanMeaning m{};
                if (plan) m = plan_meaning(*plan, h, n.lq, n.lk);
                const int64_t end = query_len.empty() ? n.lq : query_len[(size_t)b];
                for (int64_t i = 0; i < end; i++)
                    add_query(t, b, h, i, plan ? &m : nullptr);
                t.lse.resize((size_t)((b * n.h + h + 1) * n.lq), std::nan(""));
                t.out.resize(t.lse.size() * (size_t)(n.dv + indicators), std::nan(""));
            }
        return t;
    }

    static void meet(double &worst, double got, double want)
    {
        if (std::isnan(want) ? std::isnan(got) : got == want) return;
        const double difference = std::fabs(got - want);
        worst = std::isnan(difference) ? (double)infinity : std::max(worst, difference);
    }

    // Relative error (max-abs over max-abs) of out and probed, and the largest absolute one of
    // lse.
    void errors(const Truth &t, double &out_error, double &lse_error) const
    {
        double largest = 1e-30;
        size_t at = 0;
        out_error = lse_error = 0.0;
        for (int64_t row = 0; row < n.b * n.h * n.lq; row++) {
            const int64_t b = row / n.lq / n.h, h = row / n.lq % n.h, i = row % n.lq;
            meet(lse_error, (double)lse[(size_t)row], t.lse[(size_t)row]);
            for (int64_t d = 0; d < n.dv + indicators; d++, at++) {
                const bool probe = d >= n.dv;
                meet(out_error,
                     probe ? (double)probed[(size_t)(row * indicators + d - n.dv)]
                           : out.at(b, i, h, d),
                     t.out[at]);
                if (!std::isnan(t.out[at])) largest = std::max(largest, std::fabs(t.out[at]));
            }
        }
        out_error /= largest;
    }
    void errors(double &out_error, double &lse_error)
    {
        errors(truth(), out_error, lse_error);
    }
};

inline double tolerance(hd_dtype dtype)
{
    return dtype == HD_F32 ? 2e-5 : 2e-2;
}

inline void check_against(const Call::Truth &truth, const Call &c, double lse_tolerance = 0.0)
{
    double out_error, lse_error;
    c.errors(truth, out_error, lse_error);
    CHECK(out_error <= tolerance(c.n.dtype));
    CHECK(lse_error <= (lse_tolerance > 0 ? lse_tolerance : c.n.dtype == HD_F32 ? 1e-5 : 1e-3));
    CHECK(c.out.gaps_untouched());
}

inline void check_against_f64(Call &c)
{
    check_against(c.truth(), c);
}

#endif
