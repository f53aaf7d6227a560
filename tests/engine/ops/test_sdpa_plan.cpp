// The attention kernel over plans: every kind of entry, order and rest against f64 over what
// tests/support/plan.h says the plan means.
#include "tests/engine/ops/sdpa_int8.h"

#include <numeric>

namespace
{

int64_t pick(std::mt19937_64 &rng, std::initializer_list<int64_t> values)
{
    return *(values.begin() + rng() % values.size());
}

bool chance(std::mt19937_64 &rng, double p)
{
    return std::uniform_real_distribution<>()(rng) < p;
}

std::vector<int32_t> shuffled(std::mt19937_64 &rng, int64_t count, int64_t first = 0)
{
    std::vector<int32_t> order((size_t)count);
    std::iota(order.begin(), order.end(), (int32_t)first);
    std::shuffle(order.begin(), order.end(), rng);
    return order;
}

// Tiles of 1 to `longest` that cover `ranks`.
std::vector<int32_t> random_bounds(std::mt19937_64 &rng, int64_t ranks, int64_t longest)
{
    std::vector<int32_t> bound = {0};
    while (bound.back() < ranks)
        bound.push_back((int32_t)std::min<int64_t>(
            ranks, bound.back() + 1 + (int64_t)(rng() % (uint64_t)longest)));
    return bound;
}

// A plan for a call: its numbers, its tiles; the list is empty so far.
struct Maker {
    std::mt19937_64 &rng;
    const Sizes &n;
    OwnedPlan o;

    Maker(std::mt19937_64 &random, const Sizes &sizes) : rng(random), n(sizes)
    {
        o.p.orders = 1, o.p.heads = rng() % 2 ? n.h : 1;
        o.p.query_ranks = n.lq, o.p.key_ranks = n.lk;
    }
    void cut(int64_t query_tile, int64_t key_tile, bool unequal)
    {
        o.p.query_tile = query_tile, o.p.key_tile = key_tile;
        o.p.query_tiles = (o.p.query_ranks + query_tile - 1) / query_tile;
        o.p.key_tiles = (o.p.key_ranks + key_tile - 1) / key_tile;
        if (!unequal) return;
        o.query_bound = random_bounds(rng, o.p.query_ranks, query_tile);
        o.key_bound = random_bounds(rng, o.p.key_ranks, key_tile);
        o.p.query_tiles = (int64_t)o.query_bound.size() - 1;
        o.p.key_tiles = (int64_t)o.key_bound.size() - 1;
    }
    // Permutes the first `ranks` ranks among themselves, and all if nothing hangs on the tail.
    void order(bool per_head, int64_t grid_token, int64_t volume)
    {
        o.p.orders = per_head ? n.h : 1;
        for (int64_t h = 0; h < o.p.orders; h++) {
            add_order(o.query_order, n.lq, o.p.query_ranks, grid_token, volume);
            add_order(o.key_order, n.lk, o.p.key_ranks, grid_token, volume);
        }
    }
    void add_order(std::vector<int32_t> &list, int64_t tokens, int64_t ranks, int64_t grid_token,
                   int64_t volume)
    {
        std::vector<int32_t> all;
        if (volume > 0) { // the plan's ranks are the grid's tokens
            all = shuffled(rng, volume, grid_token);
            for (int32_t t = 0; t < tokens; t++)
                if (t < grid_token || t >= grid_token + volume) all.push_back(t);
        } else {
            all = shuffled(rng, tokens);
        }
        REQUIRE((volume == 0 || ranks == volume));
        list.insert(list.end(), all.begin(), all.end());
    }
    void list(int64_t first_key, int64_t keys, double keep, int64_t masks, double partial)
    {
        o.row_start = {0};
        for (int64_t r = 0; r < o.p.heads * o.p.query_tiles; r++) {
            for (int64_t k = 0; k < keys; k++) {
                if (!chance(rng, keep)) continue;
                int64_t mask = (int64_t)HD_VISIT_FULL;
                if (chance(rng, partial))
                    mask = masks > 0 && rng() % 2 ? (int64_t)(rng() % (uint64_t)masks)
                                                  : (int64_t)HD_VISIT_PARTIAL;
                o.visit.push_back({(int32_t)(first_key + k), (int32_t)mask});
            }
            o.row_start.push_back((int64_t)o.visit.size());
        }
    }
    std::vector<uint64_t> masks(int64_t count, int64_t bits)
    {
        std::vector<uint64_t> words;
        for (int64_t m = 0; m < count; m++)
            for (int64_t w = 0; w < (bits + 63) / 64; w++)
                words.push_back(m == 0 ? 0 : rng() | (m % 2 ? rng() : 0));
        return words;
    }
    void segments()
    {
        for (int64_t i = 0; i < o.p.orders * o.p.query_ranks; i++)
            o.query_segment.push_back((uint8_t)(rng() % 3));
        for (int64_t i = 0; i < o.p.orders * o.p.key_ranks; i++)
            o.key_segment.push_back((uint8_t)(rng() % 3));
        o.query_segment.push_back(0), o.key_segment.push_back(0); // no list is an empty vector
    }
    void grid(std::initializer_list<int64_t> extent, int64_t token)
    {
        std::copy(extent.begin(), extent.end(), o.p.grid);
        o.p.grid_token = token;
    }
    void window()
    {
        const int64_t heads = rng() % 2 ? n.h : 1;
        for (int64_t i = 0; i < heads * 3; i++) {
            const int64_t size = o.p.grid[i % 3], reach = 1 + (int64_t)(rng() % 4);
            o.dilation.push_back(pick(rng, {1, 1, 2, 3}));
            o.start.emplace_back(), o.end.emplace_back();
            for (int64_t x = 0; x < size; x++) {
                o.start.back().push_back((int32_t)(x - reach)); // may lie beyond the grid
                o.end.back().push_back((int32_t)(x + reach + 1));
            }
        }
    }
};

// Tiles, of any rule and order.
OwnedPlan random_tiles(std::mt19937_64 &rng, const Sizes &n, bool proxies)
{
    Maker m(rng, n);
    const bool tail = rng() % 2;
    int64_t token = 0, volume = 0;
    const bool window = n.lq == n.lk && n.lq >= 24 && rng() % 2;
    if (window) {
        const int64_t f = 1 + (int64_t)(rng() % 3), y = 2 + (int64_t)(rng() % 3);
        volume = n.lk / (f * y) * f * y;
        token = (int64_t)(rng() % (uint64_t)(n.lk - volume + 1));
        m.grid({f, y, volume / (f * y)}, token);
        m.o.p.query_ranks = m.o.p.key_ranks = volume;
        m.window();
    } else if (tail) {
        m.o.p.query_ranks = (int64_t)(rng() % (uint64_t)(n.lq + 1));
        m.o.p.key_ranks = (int64_t)(rng() % (uint64_t)(n.lk + 1));
    }
    m.cut(pick(rng, {1, 16, 32, 60, 64, 128, 200, 500}),
          pick(rng, {1, 5, 16, 49, 64, 100, 128, 500}), rng() % 2);
    if (window || rng() % 2) m.order(rng() % 2, token, volume);
    if (rng() % 2) m.segments();
    if (rng() % 2) m.o.row_mask = m.masks(4, m.o.p.query_tile);
    if (rng() % 2) m.o.column_mask = m.masks(4, m.o.p.key_tile);
    const bool masks = !m.o.row_mask.empty() || !m.o.column_mask.empty();
    if (rng() % 8) m.list(0, m.o.p.key_tiles, 0.5, masks ? 4 : 0, 0.6);
    if (proxies) m.o.p.rest = HD_REST_PROXY;
    return m.o;
}

OwnedPlan random_boxes(std::mt19937_64 &rng, const Sizes &n, std::initializer_list<int64_t> grid,
                       int64_t token)
{
    Maker m(rng, n);
    int64_t volume = 1;
    for (int64_t g : grid)
        volume *= g;
    m.grid(grid, token);
    m.o.p.query_ranks = m.o.p.key_ranks = volume;
    for (int i = 0; i < 3; i++)
        m.o.p.box_extent[i] = 1 + (int64_t)(rng() % (uint64_t)m.o.p.grid[i]);
    const int64_t *e = m.o.p.box_extent;
    m.cut(pick(rng, {8, 16, 64, 100}), e[0] * e[1] * e[2], rng() % 2);
    m.o.key_bound.clear(), m.o.p.key_tiles = 0;
    m.order(rng() % 2, token, volume);
    if (token == 0 && rng() % 2) { // no order of the keys
        m.o.key_order.clear();
    } else {
        for (int64_t h = 0; h < m.o.p.orders; h++) {
            std::vector<int32_t>::iterator at = m.o.key_order.begin() + h * n.lk;
            std::iota(at, at + volume, (int32_t)token);
        }
    }
    if (rng() % 2) m.window();
    if (rng() % 2) m.segments();
    if (rng() % 2) m.o.row_mask = m.masks(4, m.o.p.query_tile);
    if (rng() % 2) m.o.column_mask = m.masks(4, e[0] * e[1] * e[2]);
    const bool masks = !m.o.row_mask.empty() || !m.o.column_mask.empty();
    // one box per row: boxes of a row must not share keys
    m.o.row_start = {0};
    for (int64_t r = 0; r < m.o.p.heads * m.o.p.query_tiles; r++) {
        const int32_t key = (int32_t)(token + (int64_t)(rng() % (uint64_t)volume));
        if (rng() % 8)
            m.o.visit.push_back(
                {key, (int32_t)pick(rng, {HD_VISIT_FULL, HD_VISIT_PARTIAL, masks ? 2 : -1})});
        m.o.row_start.push_back((int64_t)m.o.visit.size());
    }
    return m.o;
}

// Edits of the call that any plan without proxies goes with.
void add_edits(Call &c, std::mt19937_64 &rng)
{
    const Sizes &n = c.n;
    auto some = [&](int64_t full) { return rng() % 2 ? full : 1; };
    if (rng() % 6 == 0) c.causal = true;
    if (rng() % 6 == 0) c.add_bias(hd_shape4(some(n.b), some(n.h), some(n.lq), n.lk), rng());
    if (rng() % 6 == 0) c.add_mask(hd_shape4(some(n.b), some(n.h), some(n.lq), n.lk), rng, 0.7);
    if (rng() % 4 == 0) {
        c.column_heads = some(n.h);
        c.column_bias = normal_values(n.b * c.column_heads * n.lk, rng());
        c.column_bias[0] = -infinity;
    }
    if (rng() % 4 == 0) c.add_segments(rng, rng() % 2, rng() % 2);
}

// What stands for the tiles, of any form.
void add_proxy_form(OwnedPlan &o, std::mt19937_64 &rng, const Sizes &n)
{
    o.get();
    auto ranks = [&](std::vector<int32_t> &list) {
        for (int64_t i = 0; i < o.p.orders * o.p.key_tiles; i++) {
            const int64_t t = i % o.p.key_tiles, first = hd_plan_key_start(&o.p, t);
            const int64_t length = hd_plan_key_start(&o.p, t + 1) - first;
            list.push_back((int32_t)(first + (int64_t)(rng() % (uint64_t)length)));
        }
    };
    if (rng() % 2) ranks(o.proxy_key);
    if (rng() % 2) ranks(o.proxy_value);
    o.p.proxy.uncounted = rng() % 2;
    o.p.proxy.clip = (float)(rng() % 3);
    if (rng() % 2)
        for (float x : normal_values(n.h * o.p.key_tiles * n.d, rng()))
            o.proxy_variance.push_back(x * x);
}

Call random_call(std::mt19937_64 &rng, uint64_t seed)
{
    Sizes n;
    n.b = pick(rng, {1, 1, 2, 3});
    n.hk = pick(rng, {1, 1, 2});
    n.h = n.hk * pick(rng, {1, 1, 3});
    n.lk = pick(rng, {1, 7, 64, 77, 129, 257, 300});
    n.lq = rng() % 2 ? n.lk : pick(rng, {1, 16, 65, 130});
    n.d = pick(rng, {2, 7, 16, 40, 64});
    n.dv = pick(rng, {1, 6, 17, 40});
    n.dtype = rng() % 2 ? HD_F32 : HD_BF16;
    Call c(n, seed, (Tokens::Layout)(rng() % 3));
    for (int64_t b = 0; b < n.b && rng() % 3 == 0; b++)
        c.key_len.push_back(1 + (int64_t)(rng() % (uint64_t)n.lk));
    c.key_len.resize(c.key_len.empty() ? 0 : (size_t)n.b, 1);
    for (int64_t b = 0; b < n.b && rng() % 3 == 0; b++)
        c.query_len.push_back((int64_t)(rng() % (uint64_t)(n.lq + 1)));
    c.query_len.resize(c.query_len.empty() ? 0 : (size_t)n.b, n.lq);
    if (rng() % 4 == 0)
        for (float x : normal_values(n.b * n.lq, rng(), 0.3f))
            c.row_scale.push_back(1.0f + x);
    if (rng() % 8 == 0) c.scale = -c.scale;
    if (rng() % 3 == 0) c.add_indicators(1 + (int64_t)(rng() % 20), rng());
    return c;
}

// The entries that a call walks, if nothing of them is out of reach.
int64_t entries(Call &c)
{
    int64_t sum = 0;
    for (int64_t b = 0; b < c.n.b; b++)
        for (int64_t h = 0; h < c.n.h; h++)
            sum += plan_meaning(*c.plan_of(b), h, c.n.lq, c.n.lk).entries;
    return sum;
}

void check_everywhere(Call &c, uint64_t seed, double lse_tolerance = 0.0)
{
    const Call::Truth truth = c.truth();
    for (unsigned isa : every_isa()) {
        Run run(isa, 1 + (int)(seed % 3));
        char text[100];
        INFO("seed " << seed << ", " << hd_features_text(text, sizeof text, isa));
        INFO("B " << c.n.b << " Lq " << c.n.lq << " Lk " << c.n.lk << " H " << c.n.h << "/"
                  << c.n.hk << " D " << c.n.d << "/" << c.n.dv << " " << hd_dtype_name(c.n.dtype)
                  << " causal " << c.causal);
        Call now = c;
        hd_sdpa a = now.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        check_against(truth, now, lse_tolerance);
        if (c.key_len.empty() && c.query_len.empty() && !c.causal)
            CHECK(now.visited == entries(now));
        CHECK(hd_arena_mark(run.exec.arena) == 0);
    }
    INFO("seed " << seed);
    check_int8(c, seed, !c.owned.empty() && c.owned[0].p.rest == HD_REST_PROXY);
}

} // namespace

TEST_CASE("sdpa: random plans of tiles agree with f64", "[ops][sdpa][plan]")
{
    for (uint64_t seed = 1; seed <= 100; seed++) {
        std::mt19937_64 rng(seed);
        Call c = random_call(rng, seed);
        for (int64_t b = 0; b < c.n.b; b++)
            c.owned.push_back(random_tiles(rng, c.n, false));
        add_edits(c, rng);
        check_everywhere(c, seed);
    }
}

TEST_CASE("sdpa: random plans of key boxes agree with f64", "[ops][sdpa][plan]")
{
    for (uint64_t seed = 1; seed <= 70; seed++) {
        std::mt19937_64 rng(seed);
        Call c = random_call(rng, seed);
        const int64_t f = pick(rng, {1, 2, 3}), y = pick(rng, {1, 4, 5}), x = pick(rng, {1, 7, 10});
        const int64_t tail = pick(rng, {0, 0, 9}), token = tail ? pick(rng, {0, 9, 4}) : 0;
        c = Call(
            {c.n.b, f * y * x + tail, f * y * x + tail, c.n.h, c.n.hk, c.n.d, c.n.dv, c.n.dtype},
            seed);
        if (rng() % 4 == 0)
            for (int64_t b = 0; b < c.n.b; b++)
                c.key_len.push_back(1 + (int64_t)(rng() % (uint64_t)c.n.lk));
        for (int64_t b = 0; b < c.n.b; b++)
            c.owned.push_back(random_boxes(rng, c.n, {f, y, x}, token));
        add_edits(c, rng);
        check_everywhere(c, seed);
    }
}

TEST_CASE("sdpa: proxies stand for what a query does not visit", "[ops][sdpa][plan]")
{
    for (uint64_t seed = 1; seed <= 70; seed++) {
        std::mt19937_64 rng(seed);
        Call c = random_call(rng, seed);
        for (int64_t b = 0; b < c.n.b; b++)
            c.owned.push_back(random_tiles(rng, c.n, true));
        // the mean keys are rounded to the call's type
        check_everywhere(c, seed, c.n.dtype == HD_BF16 ? 2e-2 : 0.0);
    }
}

TEST_CASE("sdpa: proxies of every form, beside what the call adds to keys", "[ops][sdpa][plan]")
{
    for (uint64_t seed = 201; seed <= 270; seed++) {
        std::mt19937_64 rng(seed);
        Call c = random_call(rng, seed);
        for (int64_t b = 0; b < c.n.b; b++) {
            c.owned.push_back(random_tiles(rng, c.n, true));
            add_proxy_form(c.owned.back(), rng, c.n);
        }
        if (rng() % 3 == 0) c.causal = true;
        if (rng() % 3 == 0) {
            auto some = [&](int64_t full) { return rng() % 2 ? full : 1; };
            c.add_mask(hd_shape4(some(c.n.b), some(c.n.h), some(c.n.lq), c.n.lk), rng, 0.97);
        }
        if (rng() % 2) {
            c.column_heads = rng() % 2 ? c.n.h : 1;
            c.column_bias = normal_values(c.n.b * c.column_heads * c.n.lk, rng(), 3.0f);
            for (float &x : c.column_bias)
                if (rng() % 4 == 0) x = -infinity;
        }
        check_everywhere(c, seed, c.n.dtype == HD_BF16 ? 2e-2 : 0.0);
    }
}

TEST_CASE("sdpa: proxies that stand for no tile of theirs are refused", "[ops][sdpa][plan]")
{
    std::mt19937_64 rng(1);
    Call c({1, 32, 32, 1, 1, 4, 4, HD_F32}, 1);
    OwnedPlan &o = c.add_plan(1, 8, 8, rng, 0.5);
    o.p.rest = HD_REST_PROXY;
    o.proxy_key = {0, 8, 24, 24};
    Run run;
    hd_sdpa a = c.args();
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT,
                "the key of rank 24 stands for key tile 2 of the plan, which has ranks 16 to 23");
    o.proxy_key.clear(), o.proxy_value = {0, 7, 16, 24};
    a = c.args();
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT,
                "the value of rank 7 stands for key tile 1");
    o.p.rest = HD_REST_DROP; // nobody looks
    a = c.args();
    REQUIRE_OK(hd_sdpa_run(&run, &a));
}

TEST_CASE("sdpa: every pattern of twelve key tiles agrees with f64", "[ops][sdpa][plan]")
{
    // one query tile per pattern; its first visited tile may be masked for its first query
    auto dtype = GENERATE(HD_F32, HD_BF16);
    const int64_t patterns = 1 << 12;
    Call c({1, 3 * patterns, 12 * 5, 1, 1, 4, 3, dtype}, 9);
    std::mt19937_64 rng(9);
    OwnedPlan &o = c.add_plan(1, 3, 5, rng, 0.0);
    o.row_start.resize(1);
    o.row_mask = {6}; // all but the first
    for (int64_t p = 0; p < patterns; p++) {
        bool masked = p % 3 == 0;
        for (int32_t t = 0; t < 12; t++) {
            if (!(p >> t & 1)) continue;
            o.visit.push_back({t, masked ? 0 : HD_VISIT_FULL});
            masked = false;
        }
        o.row_start.push_back((int64_t)o.visit.size());
    }
    const Call::Truth truth = c.truth();
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        hd_sdpa a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        check_against(truth, c);
        CHECK(c.visited == 12 * patterns / 2);
        CHECK(c.out.at(0, 0, 0, 0) == 0.0); // sees nothing
        CHECK(c.lse[0] == -infinity);
    }
}

TEST_CASE("sdpa: a plan of every tile has the bytes of the permuted dense call",
          "[ops][sdpa][plan]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        if (isa == HD_CPU) continue; // sums by token, whatever the order
        Run run(isa, 2);
        const int64_t l = 300;
        Call dense({1, l, l, 2, 1, 40, 24, dtype}, 5), planned = dense;
        std::mt19937_64 rng(5);
        OwnedPlan &o = planned.add_plan(1, 64, 128, rng, 1.0);
        o.query_order = shuffled(rng, l), o.key_order = shuffled(rng, l);
        for (int64_t r = 0; r < l; r++)
            for (int64_t h = 0; h < 2; h++) {
                for (int64_t d = 0; d < 40; d++) {
                    dense.q.set(0, r, h, d, (float)planned.q.at(0, o.query_order[(size_t)r], h, d));
                    if (h == 0)
                        dense.k.set(0, r, 0, d,
                                    (float)planned.k.at(0, o.key_order[(size_t)r], 0, d));
                }
                for (int64_t d = 0; d < 24 && h == 0; d++)
                    dense.v.set(0, r, 0, d, (float)planned.v.at(0, o.key_order[(size_t)r], 0, d));
            }
        hd_sdpa a = dense.args(), b = planned.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        REQUIRE_OK(hd_sdpa_run(&run, &b));
        int64_t different = 0;
        for (int64_t r = 0; r < l; r++)
            for (int64_t h = 0; h < 2; h++)
                for (int64_t d = 0; d < 24; d++)
                    different += dense.out.at(0, r, h, d) !=
                                 planned.out.at(0, o.query_order[(size_t)r], h, d);
        CHECK(different == 0);
    }
}

TEST_CASE("sdpa: two plans that share out the tiles merge by lse to the whole", "[ops][sdpa][plan]")
{
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        Call whole({1, 130, 300, 2, 2, 40, 17}), left = whole, right = whole;
        std::mt19937_64 rng(2);
        left.add_plan(2, 32, 20, rng, 0.5);
        OwnedPlan &l = left.owned[0], &r = right.add_plan(2, 32, 20, rng, 0.0);
        r.row_start = {0};
        for (size_t row = 0; row + 1 < l.row_start.size(); row++) {
            for (int32_t t = 0; t < 15; t++)
                if (std::none_of(l.visit.begin() + l.row_start[row],
                                 l.visit.begin() + l.row_start[row + 1],
                                 [&](const hd_visit &e) { return e.key == t; }))
                    r.visit.push_back({t, HD_VISIT_FULL});
            r.row_start.push_back((int64_t)r.visit.size());
        }
        for (Call *c : {&whole, &left, &right}) {
            hd_sdpa a = c->args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
        }
        double worst = 0.0;
        for (int64_t h = 0; h < 2; h++)
            for (int64_t i = 0; i < 130; i++) {
                const auto at = (size_t)(h * 130 + i);
                const double w =
                    1.0 / (1.0 + std::exp((double)right.lse[at] - (double)left.lse[at]));
                for (int64_t d = 0; d < 17; d++)
                    worst = std::max(worst, std::fabs(w * left.out.at(0, i, h, d) +
                                                      (1 - w) * right.out.at(0, i, h, d) -
                                                      whole.out.at(0, i, h, d)));
            }
        CHECK(worst <= 1e-6);
    }
}

TEST_CASE("sdpa: proxies of tiles of one key are the keys", "[ops][sdpa][plan]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        Run run(isa);
        Call c({2, 65, 131, 2, 2, 16, 16, dtype}), dense = c;
        std::mt19937_64 rng(4);
        c.add_plan(2, 32, 1, rng, 0.3).p.rest = HD_REST_PROXY;
        hd_sdpa a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        dense.out = c.out, dense.lse = c.lse;
        check_against_f64(dense); // the truth has no plan
    }
}

TEST_CASE("sdpa: a planned row's bytes depend on that row alone", "[ops][sdpa][plan][threads]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        if (isa == HD_CPU) continue; // one query after the other
        Sizes n{1, 150, 150, 4, 2, 40, 24, dtype};
        std::mt19937_64 rng(8);
        Call alone(n, 3);
        alone.owned.push_back(random_tiles(rng, n, true));
        Run single(isa, 1);
        hd_sdpa a = alone.args();
        REQUIRE_OK(hd_sdpa_run(&single, &a));
        for (int threads : {1, 2, 3}) {
            Run run(isa, threads);
            n.b = 3;
            Call batch(n, 77);
            batch.q.copy_row(1, alone.q, 0);
            batch.k.copy_row(1, alone.k, 0);
            batch.v.copy_row(1, alone.v, 0);
            batch.owned = {random_tiles(rng, n, false), alone.owned[0], random_tiles(rng, n, true)};
            a = batch.args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
            CHECK(batch.out.bits(1) == alone.out.bits(0));
            CHECK(memcmp(&batch.lse[4 * 150], alone.lse.data(), 4 * 150 * sizeof(float)) == 0);
        }
    }
}

namespace
{

// What the dry pass of a call with this plan asks for; tokens are not touched.
size_t dry_peak(const Run &run, hd_dtype dtype, int64_t l, const hd_plan *const *plan)
{
    hd_arena *arena = nullptr;
    REQUIRE_OK(hd_arena_create_measuring(&arena));
    hd_exec dry = run.exec;
    dry.arena = arena, dry.recording = true;
    hd_sdpa a{};
    a.q = a.k = a.v = a.out = hd_tensor_of((void *)64, dtype, hd_shape4(1, l, 2, 64));
    a.scale = 1.0f, a.plan = plan;
    REQUIRE_OK(hd_sdpa_run(&dry, &a));
    const size_t peak = hd_arena_peak_bytes(arena);
    hd_arena_free(arena);
    return peak;
}

} // namespace

TEST_CASE("sdpa: a plan's scratch is linear in the tokens", "[ops][sdpa][plan]")
{
    Run run;
    for (hd_dtype dtype : {HD_F32, HD_BF16}) {
        size_t peak[2][3]; // with a plan, with one yet to come, without
        for (int i = 0; i < 2; i++) {
            const int64_t l = (int64_t)16384 << i;
            std::vector<int32_t> list(2 * (size_t)l);
            std::vector<int64_t> start(2 * (size_t)l / 64 + 1);
            hd_plan p{};
            p.query_tile = p.key_tile = 64, p.query_tiles = p.key_tiles = l / 64;
            p.query_ranks = p.key_ranks = l, p.orders = p.heads = 2;
            p.query_order = p.key_order = list.data(), p.row_start = start.data();
            p.rest = HD_REST_PROXY;
            const hd_plan *given = &p, *none = nullptr;
            peak[i][0] = dry_peak(run, dtype, l, &given);
            peak[i][1] = dry_peak(run, dtype, l, &none);
            peak[i][2] = dry_peak(run, dtype, l, nullptr);
        }
        for (int k = 0; k < 3; k++)
            CHECK(peak[1][k] <= 2 * peak[0][k]);
        CHECK(peak[0][0] <= 2 * peak[0][2]);
        CHECK(peak[0][0] <= peak[0][1]);
        CHECK(peak[0][1] <= 3 * peak[0][2]);
    }
}

TEST_CASE("sdpa: the dry pass reserves for a plan yet to come", "[ops][sdpa][plan]")
{
    for (unsigned isa : every_isa())
        for (uint64_t seed = 1; seed <= 10; seed++) {
            std::mt19937_64 rng(seed);
            const Sizes n{1, 300, 300, 2, 2, 64, 64, seed % 2 ? HD_F32 : HD_BF16};
            Call c(n, seed);
            do {
                c.owned = {random_tiles(rng, n, seed % 3 == 0)};
            } while (c.owned[0].p.key_tiles > n.lk / 8);
            Run run(isa);
            const hd_plan *none = nullptr;
            hd_arena *exact = nullptr;
            REQUIRE_OK(hd_arena_create(&exact, dry_peak(run, n.dtype, 300, &none)));
            hd_exec real = run.exec;
            real.arena = exact;
            hd_sdpa a = c.args();
            REQUIRE_OK(hd_sdpa_run(&real, &a));
            hd_arena_free(exact);
        }
}

TEST_CASE("sdpa: plans that cannot be indexed with are refused", "[ops][sdpa][plan]")
{
    const Sizes n{1, 40, 40, 2, 1, 8, 8};
    std::mt19937_64 rng(1);
    Call fresh(n);
    OwnedPlan &o = fresh.add_plan(1, 16, 10, rng, 1.0);
    Run run;
    auto refused = [&](hd_status status, const char *text, auto spoil) {
        Call c = fresh;
        spoil(c.owned[0]);
        hd_sdpa a = c.args();
        CHECK_FAILS(hd_sdpa_run(&run, &a), status, text);
        CHECK(std::isnan(c.out.at(0, 0, 0, 0)));
    };
    const std::vector<int32_t> identity = [] {
        std::vector<int32_t> list(80);
        for (size_t i = 0; i < 80; i++)
            list[i] = (int32_t)(i % 40);
        return list;
    }();
    REQUIRE(o.p.key_tiles == 4);
    refused(HD_ERR_SHAPE, "for 41 x 40 ranks", [](OwnedPlan &p) { p.p.query_ranks = 41; });
    refused(HD_ERR_SHAPE, "5 key tiles of 10", [](OwnedPlan &p) { p.p.key_tiles = 5; });
    refused(HD_ERR_SHAPE, "3 orders, expected 1 or 2",
            [&](OwnedPlan &p) { p.query_order = identity, p.p.orders = 3; });
    refused(HD_ERR_ARGUMENT, "rank 3 of the plan's key order is token 40",
            [&](OwnedPlan &p) { p.key_order = identity, p.key_order[3] = 40; });
    refused(HD_ERR_ARGUMENT, "rank 2 of the plan's query order is token -1", [&](OwnedPlan &p) {
        p.query_order = identity, p.p.orders = 2, p.query_order[42] = -1;
    });
    refused(HD_ERR_ARGUMENT, "key tile 1 of the plan has 0 ranks, must be 1 to 10",
            [](OwnedPlan &p) { p.key_bound = {0, 10, 10, 20, 30, 40}, p.p.key_tiles = 5; });
    refused(HD_ERR_ARGUMENT, "query tile 0 of the plan has 20 ranks, must be 0 to 16",
            [](OwnedPlan &p) {
                p.query_bound = {0, 20, 30, 40};
            });
    refused(HD_ERR_ARGUMENT, "4 key tiles do not cover 40 ranks", [](OwnedPlan &p) {
        p.key_bound = {0, 10, 20, 30, 39};
    });
    refused(HD_ERR_ARGUMENT, "row 0 of the plan has entries 0 to -4",
            [](OwnedPlan &p) { p.row_start[1] = -4; });
    refused(HD_ERR_ARGUMENT, "visits key tile 4 after 2", [](OwnedPlan &p) { p.visit[3].key = 4; });
    refused(HD_ERR_ARGUMENT, "by mask 0, which the plan lacks",
            [](OwnedPlan &p) { p.visit[3].mask = 0; });
    refused(HD_ERR_ARGUMENT, "by mask -3", [](OwnedPlan &p) { p.visit[3].mask = -3; });
    refused(HD_ERR_ARGUMENT, "segments of keys alone",
            [](OwnedPlan &p) { p.key_segment.assign(40, 0); });
}

TEST_CASE("sdpa: boxes, windows and proxies that do not fit are refused", "[ops][sdpa][plan]")
{
    const Sizes n{1, 40, 40, 2, 1, 8, 8};
    Call fresh(n);
    fresh.owned.emplace_back();
    OwnedPlan &o = fresh.owned[0];
    o.p.query_tile = 20, o.p.query_tiles = 2, o.p.query_ranks = o.p.key_ranks = 40;
    o.p.orders = o.p.heads = 1, o.p.key_tile = 1;
    o.p.grid[0] = 2, o.p.grid[1] = 4, o.p.grid[2] = 5;
    for (int64_t &e : o.p.box_extent)
        e = 2;
    o.row_start = {0, 1, 2}, o.visit = {{0, -1}, {39, -1}};
    Run run;
    auto refused = [&](hd_status status, const char *text, auto spoil) {
        Call c = fresh;
        spoil(c.owned[0]);
        hd_sdpa a = c.args();
        CHECK_FAILS(hd_sdpa_run(&run, &a), status, text);
    };
    {
        Call c = fresh;
        hd_sdpa a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        check_against_f64(c);
    }
    refused(HD_ERR_ARGUMENT, "visits key box 40 after", [](OwnedPlan &p) { p.visit[1].key = 40; });
    refused(HD_ERR_ARGUMENT, "boxes are 2 x 0 x 2", [](OwnedPlan &p) { p.p.box_extent[1] = 0; });
    refused(HD_ERR_ARGUMENT, "grid is 2 x 4 x 6", [](OwnedPlan &p) { p.p.grid[2] = 6; });
    refused(HD_ERR_ARGUMENT, "grid is 4611686018427387904 x 4 x 5",
            [](OwnedPlan &p) { p.p.grid[0] = (int64_t)1 << 62; });
    refused(HD_ERR_ARGUMENT, "grid begins at token 1", [](OwnedPlan &p) { p.p.grid_token = 1; });
    refused(HD_ERR_ARGUMENT, "its grid of 20 tokens", [](OwnedPlan &p) {
        p.p.grid[0] = 1, p.visit[1].key = 5;
        p.p.key_ranks = 10;
    });
    refused(HD_ERR_ARGUMENT, "needs a list", [](OwnedPlan &p) { p.row_start.clear(); });
    refused(HD_ERR_ARGUMENT, "column masks are of 1 keys",
            [](OwnedPlan &p) { p.column_mask = {1}; });
    refused(HD_ERR_UNSUPPORTED, "no tiles that proxies could stand for",
            [](OwnedPlan &p) { p.p.rest = HD_REST_PROXY; });
    refused(HD_ERR_ARGUMENT, "key rank 0 of a plan of boxes is token 1", [](OwnedPlan &p) {
        for (int32_t i = 0; i < 40; i++)
            p.key_order.push_back(i ^ 1);
    });
    refused(HD_ERR_ARGUMENT, "axis 1 of the plan's window 0 has a dilation of 0", [](OwnedPlan &p) {
        p.dilation = {1, 0, 1}, p.start.assign(3, {0, 0, 0, 0, 0}), p.end = p.start;
    });
    refused(HD_ERR_ARGUMENT, "query ranks 0 to 29 of the plan are not tokens of its grid",
            [](OwnedPlan &p) {
                p.dilation = {1, 1, 1}, p.start.assign(3, {0, 0, 0, 0, 0}), p.end = p.start;
                p.p.grid[0] = 1, p.p.key_ranks = 20, p.p.query_ranks = 30, p.visit[1].key = 5;
            });

    refused(HD_ERR_ARGUMENT, "row 0 of the plan visits boxes 0 and 5, which share keys",
            [](OwnedPlan &p) {
                p.row_start = {0, 2, 2}, p.visit[1].key = 5;
            });

    Call biased = fresh;
    biased.owned[0].p.box_extent[0] = 0, biased.owned[0].p.key_tile = 20;
    biased.owned[0].p.key_tiles = 2, biased.owned[0].visit[1].key = 1;
    biased.owned[0].p.rest = HD_REST_PROXY;
    Call labelled = biased;
    biased.add_bias(hd_shape4(1, 1, 1, 40), 1);
    hd_sdpa a = biased.args();
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED, "a proxy has one score for all");
    std::mt19937_64 rng(1);
    labelled.add_segments(rng, true, false);
    a = labelled.args();
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED, "a proxy has one score for all");
}

TEST_CASE("sdpa: labels, lengths and probes that do not fit are refused", "[ops][sdpa][plan]")
{
    Call c({2, 10, 20, 4, 2, 8, 8});
    std::mt19937_64 rng(1);
    c.add_segments(rng, true, true);
    c.add_indicators(3, 1);
    c.column_bias.assign(2 * 20, 0.0f);
    Run run;
    hd_sdpa a = c.args();
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    c.key_label[25] = 9;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT,
                "key 25 has segment label 9, must be below");
    c.key_label[25] = 0;
    c.segments.query_labels = 257;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "257 query labels, must be 1 to 256");
    a = c.args();
    a.probed = hd_tensor_none();
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "must be given together");
    a = c.args();
    a.indicator.dim[2] = 2;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "sdpa: probed is [2, 4, 10, 3] f32");
    a = c.args();
    a.column_bias.dim[2] = 19;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "column_bias is [2, 1, 19] f32");
    a = c.args();
    const int64_t too_long[] = {10, 11};
    a.query_len = too_long;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "query_len[1] is 11, must be 0 to 10");
}
