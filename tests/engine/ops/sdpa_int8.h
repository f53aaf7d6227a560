/* tests/engine/ops/sdpa_int8.h: a call with its products in int8, on the vectors and on the plain
 * integers of the reference. */
#ifndef HD_TESTS_ENGINE_OPS_SDPA_INT8_H
#define HD_TESTS_ENGINE_OPS_SDPA_INT8_H

#include "tests/engine/ops/sdpa_call.h"

inline bool has_int8()
{
    return (hd_cpu_features() & (HD_AVX512_VNNI | HD_AVX_VNNI)) != 0;
}

// The instruction sets that have vectors of int8.
inline std::vector<unsigned> int8_vectors()
{
    const unsigned has = hd_cpu_features(), small = HD_CPU | HD_AVX2 | HD_AVX_VNNI;
    std::vector<unsigned> sets;
    if (has & HD_AVX512_VNNI) sets.push_back(has);
    if ((has & small) == small) sets.push_back(small);
    return sets;
}

// What pairs of numbers a test goes through.
const std::pair<hd_attention_number, hd_attention_number> int8_pairs[] = {
    {HD_NUMBER_INT8, HD_NUMBER_NATIVE},
    {HD_NUMBER_NATIVE, HD_NUMBER_INT8},
    {HD_NUMBER_INT8, HD_NUMBER_INT8}};

/* How far two roundings of a query's probabilities may bring its log-sum-exp apart: each of N keys
 * is rounded by half of 1/255 of its group's largest, which is at most the largest of all, so that
 * the sum l of exp(s - max) is off by N / 510 at most, in either. */
inline double rounded_lse_bound(const Call &c, int64_t b, int64_t h, int64_t i,
                                const PlanMeaning *m)
{
    const auto list = c.summands(b, h, i, m);
    double max = -HUGE_VAL, sum = 0.0;
    for (const auto &s : list)
        max = std::max(max, s.score);
    for (const auto &s : list)
        sum += std::exp(s.score - max);
    const double share = (double)list.size() / 510.0 / sum;
    return share < 0.5 ? -2.0 * std::log1p(-share) : HUGE_VAL;
}

/* The vectors against the reference: the same codes, so that scores differ by f32's rounding alone;
 * probabilities are rounded to 1/255 of the largest in other groups of keys. Proxies are quantised
 * from means that two orders of summing make. */
inline void compare_int8(const Call &c, Call &plain, const Call &vectors, hd_attention_number pv,
                         bool proxies)
{
    const Sizes &n = c.n;
    const bool rounded = pv == HD_NUMBER_INT8;
    double worst = 0.0, largest = 1e-30, lse = 0.0, largest_value = 0.0;
    for (int64_t b = 0; b < n.b; b++)
        for (int64_t j = 0; j < n.lk; j++)
            for (int64_t h = 0; h < n.hk; h++)
                for (int64_t d = 0; d < n.dv; d++)
                    largest_value = std::max(largest_value, std::fabs(c.v.at(b, j, h, d)));
    for (int64_t b = 0; b < n.b; b++)
        for (int64_t h = 0; h < n.h; h++) {
            const hd_plan *plan = plain.plan_of(b);
            PlanMeaning m{};
            if (plan && rounded) m = plan_meaning(*plan, h, n.lq, n.lk);
            for (int64_t i = 0; i < n.lq; i++) {
                if (!c.query_len.empty() && i >= c.query_len[(size_t)b]) continue;
                const auto at = (size_t)((b * n.h + h) * n.lq + i);
                const double sum = (double)plain.lse[at], other = (double)vectors.lse[at];
                if (sum != other) // both may be -inf; a large one has f32's rounding
                    lse = std::max(
                        lse,
                        std::fabs(sum - other) - 1e-6 * std::fabs(sum) -
                            (rounded ? rounded_lse_bound(c, b, h, i, plan ? &m : nullptr) : 0.0));
                for (int64_t d = 0; d < n.dv; d++) {
                    const double want = plain.out.at(b, i, h, d), got = vectors.out.at(b, i, h, d);
                    REQUIRE(std::isfinite(got));
                    worst = std::max(worst, std::fabs(got - want));
                    largest = std::max(largest, std::fabs(want));
                }
            }
        }
    double allowed = n.dtype == HD_F32 ? 3e-5 : 2e-2;
    if (proxies) allowed = std::max(allowed, 3e-2);
    allowed *= largest;
    // each rounds by half of 1/255 of a step's largest
    if (pv == HD_NUMBER_INT8) allowed += 4e-3 * largest_value;
    CHECK(worst <= allowed);
    CHECK(lse <= (proxies ? 3e-2 : n.dtype == HD_F32 ? 3e-5 : 1e-3));
    CHECK(vectors.visited == plain.visited);
    CHECK(vectors.out.gaps_untouched());
}

inline void check_int8(const Call &c, uint64_t seed, bool proxies = false)
{
    const Sizes &n = c.n;
    if (!has_int8() || c.indicators > 0 || !c.segment_gain.empty()) return;
    if (n.b * n.h * n.lq * n.lk * n.d > 4000000) return; // the reference is slow
    const auto [qk, pv] = int8_pairs[seed % 3];
    auto computed = [&](unsigned has) {
        Call now = c;
        Run run(has, 1 + (int)(seed % 3));
        hd_sdpa a = now.args();
        a.qk = qk, a.pv = pv;
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(hd_arena_mark(run.exec.arena) == 0);
        return now;
    };
    Call plain = computed((unsigned)HD_CPU);
    for (unsigned has : int8_vectors()) {
        char text[100];
        INFO("qk " << (qk == HD_NUMBER_INT8 ? "int8" : "native") << ", pv "
                   << (pv == HD_NUMBER_INT8 ? "int8" : "native") << ", "
                   << hd_features_text(text, sizeof text, has));
        compare_int8(c, plain, computed(has), pv, proxies);
    }
}

#endif
