// The attention kernel over plans: every kind of entry, order and rest against f64 over what
// tests/support/plan.h says the plan means.
#include "tests/engine/ops/sdpa_call.h"

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
        check_against_f64(now, lse_tolerance);
        if (c.key_len.empty() && c.query_len.empty() && !c.causal)
            CHECK(now.visited == entries(now));
        CHECK(hd_arena_mark(run.exec.arena) == 0);
    }
}

} // namespace

TEST_CASE("sdpa: random plans of tiles agree with f64", "[ops][sdpa][plan]")
{
    for (uint64_t seed = 1; seed <= 120; seed++) {
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
    for (uint64_t seed = 1; seed <= 80; seed++) {
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
    for (uint64_t seed = 1; seed <= 80; seed++) {
        std::mt19937_64 rng(seed);
        Call c = random_call(rng, seed);
        for (int64_t b = 0; b < c.n.b; b++)
            c.owned.push_back(random_tiles(rng, c.n, true));
        // the mean keys are rounded to the call's type
        check_everywhere(c, seed, c.n.dtype == HD_BF16 ? 2e-2 : 0.0);
    }
}
