// Building plans: growing and fixed memory, each allocation failing in turn; the figures of random
// plans (windows, masks, segments, boxes, tails, proxies) against a count of what the plan means.
#include <random>

#include "engine/attention/planner/builder.h"
#include "engine/attention/planner/orders.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/plan.h"

namespace
{

hd_plan shape_of(int64_t query_tiles, int64_t key_tiles, int64_t heads)
{
    hd_plan p{};
    p.query_tile = p.key_tile = 4;
    p.query_tiles = query_tiles;
    p.key_tiles = key_tiles;
    p.query_ranks = 4 * query_tiles;
    p.key_ranks = 4 * key_tiles;
    p.heads = heads;
    p.orders = 1;
    return p;
}

// Rows of ever more entries, every second with a mask.
hd_status triangle(hd_plan_builder *b)
{
    HD_TRY(hd_plan_begin(b, 1, 1, HD_PLAN_ROW_MASKS | HD_PLAN_COLUMN_MASKS));
    for (int64_t t = 0; t < b->plan.query_tiles; t++) {
        for (int64_t k = 0; k <= t; k++) {
            int32_t mask = HD_VISIT_FULL;
            uint64_t *row, *column;
            if (k % 2) {
                HD_TRY(hd_plan_mask(b, &mask, &row, &column));
                row[0] = (uint64_t)t;
                column[0] = (uint64_t)k;
            }
            HD_TRY(hd_plan_add(b, k, mask));
        }
        hd_plan_close_row(b);
    }
    return hd_plan_end(b);
}

struct Builder {
    hd_plan_builder b{};
    explicit Builder(void *memory = nullptr, size_t bytes = 0)
    {
        hd_plan_builder_init(&b, memory, bytes);
    }
    ~Builder()
    {
        hd_plan_builder_free(&b);
    }
};

} // namespace

TEST_CASE("plan builder: rows, entries and masks grow", "[planner]")
{
    Builder built;
    built.b.plan = shape_of(20, 20, 1);
    REQUIRE_OK(triangle(&built.b));
    const hd_plan &p = built.b.plan;
    REQUIRE(p.row_start[20] == 210);
    for (int64_t t = 0; t < 20; t++) {
        hd_visits row = hd_plan_row(&p, 0, t);
        REQUIRE(row.count == t + 1);
        for (int64_t k = 0; k <= t; k++) {
            CHECK(row.entry[k].key == k);
            if (k % 2 == 0) {
                CHECK(row.entry[k].mask == HD_VISIT_FULL);
                continue;
            }
            CHECK(p.row_mask[row.entry[k].mask] == (uint64_t)t);
            CHECK(p.column_mask[row.entry[k].mask] == (uint64_t)k);
        }
    }
    fail_each_allocation([] {
        Builder again;
        again.b.plan = shape_of(20, 20, 1);
        int32_t *order = static_cast<int32_t *>(hd_plan_take(&again.b, 80, sizeof(int32_t)));
        return order ? triangle(&again.b) : HD_ERR_NOMEM;
    });
}

TEST_CASE("plan builder: fixed memory does not grow", "[planner]")
{
    const hd_plan shape = shape_of(2, 2, 3);
    const size_t bytes = hd_plan_rows_bytes(&shape, 6, 2, HD_PLAN_ROW_MASKS);
    std::vector<char> memory(bytes + 64);
    char *start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    Builder fixed(start, bytes);
    fixed.b.plan = shape;
    for (int call = 0; call < 2; call++) { // planned anew in the same memory
        hd_plan_builder_init(&fixed.b, start, bytes);
        fixed.b.plan = shape;
        REQUIRE_OK(hd_plan_begin(&fixed.b, 6, 2, HD_PLAN_ROW_MASKS));
        for (int r = 0; r < 6; r++) {
            REQUIRE_OK(hd_plan_add(&fixed.b, r % 2, HD_VISIT_FULL));
            hd_plan_close_row(&fixed.b);
        }
        REQUIRE_OK(hd_plan_end(&fixed.b));
        CHECK(fixed.b.plan.row_start[6] == 6);
    }
    CHECK_FAILS(hd_plan_add(&fixed.b, 0, HD_VISIT_FULL), HD_ERR_NOMEM, "more than the 6 entries");
    int32_t mask;
    REQUIRE_OK(hd_plan_mask(&fixed.b, &mask, nullptr, nullptr));
    REQUIRE_OK(hd_plan_mask(&fixed.b, &mask, nullptr, nullptr));
    CHECK_FAILS(hd_plan_mask(&fixed.b, &mask, nullptr, nullptr), HD_ERR_NOMEM, "2 masks");
    CHECK(hd_plan_take(&fixed.b, 1, 1) == nullptr);
    CHECK(std::string(hd_message()).find("too small") != std::string::npos);
}

namespace
{

struct RandomPlan {
    std::mt19937 random;
    Builder built;
    hd_grid grid{};
    int64_t tokens;
    std::vector<hd_cut> query_cut, key_cut;
    hd_plan_axis window[3]{};
    std::vector<int32_t> start[3], end[3];
    std::vector<uint8_t> query_label, key_label;

    int64_t up_to(int64_t most)
    {
        return 1 + (int64_t)(random() % (uint64_t)most);
    }

    explicit RandomPlan(uint32_t seed) : random(seed)
    {
        grid = {{up_to(3), up_to(5), up_to(6)}, (int64_t)(random() % 3)};
        tokens = hd_grid_tokens(&grid) + grid.token + (int64_t)(random() % 3);
        const bool dilated = random() % 3 == 0;
        for (int i = 0; i < 3; i++) {
            int64_t d = dilated ? up_to(2) : 1;
            query_cut.push_back({up_to(4), 0, d});
            key_cut.push_back({up_to(4), 0, d});
            for (int64_t x = 0; x < grid.size[i]; x++) {
                int64_t s = (int64_t)(random() % (uint64_t)(x + 1));
                start[i].push_back((int32_t)s);
                end[i].push_back((int32_t)(s + up_to(grid.size[i] - s)));
            }
            window[i] = {d, start[i].data(), end[i].data()};
        }
        order(query_cut, true);
        hd_plan &p = built.b.plan;
        p.grid[0] = grid.size[0];
        p.grid[1] = grid.size[1];
        p.grid[2] = grid.size[2];
        p.grid_token = grid.token;
        p.heads = up_to(2);
        const bool boxes = random() % 3 == 0;
        if (boxes)
            box_entries();
        else
            order(key_cut, false);
        if (random() % 2) p.window = window;
        if (!boxes && random() % 2) segments();
        if (!boxes && random() % 2) p.rest = HD_REST_PROXY;
        REQUIRE_OK(fill(boxes));
    }

    void order(const std::vector<hd_cut> &cut, bool queries)
    {
        hd_plan &p = built.b.plan;
        int64_t boxes = hd_order_boxes(&grid, cut.data());
        auto *o = static_cast<int32_t *>(hd_plan_take(&built.b, tokens, sizeof(int32_t)));
        auto *bound = static_cast<int32_t *>(hd_plan_take(&built.b, boxes + 1, sizeof(int32_t)));
        hd_order_windows(o, bound, &grid, cut.data());
        hd_order_tail(o, &grid, tokens);
        p.orders = 1;
        (queries ? p.query_order : p.key_order) = o;
        (queries ? p.query_bound : p.key_bound) = bound;
        (queries ? p.query_tile : p.key_tile) = hd_order_longest_box(&grid, cut.data());
        (queries ? p.query_tiles : p.key_tiles) = boxes;
        (queries ? p.query_ranks : p.key_ranks) = hd_grid_tokens(&grid);
    }

    void box_entries()
    {
        hd_plan &p = built.b.plan;
        order({{grid.size[0], 0, 0}, {grid.size[1], 0, 0}, {grid.size[2], 0, 0}}, false);
        p.key_tile = 1;
        for (int i = 0; i < 3; i++)
            p.key_tile *= p.box_extent[i] = up_to(3);
    }

    void segments()
    {
        hd_plan &p = built.b.plan;
        for (int64_t r = 0; r < p.query_ranks; r++) {
            query_label.push_back((uint8_t)(random() % 2));
            key_label.push_back((uint8_t)(random() % 2));
        }
        p.query_segment = query_label.data();
        p.key_segment = key_label.data();
    }

    // Boxes of an entry row do not overlap: every (extent)th line of the grid is an origin.
    std::vector<int64_t> places(bool boxes)
    {
        const hd_plan &p = built.b.plan;
        std::vector<int64_t> list;
        if (!boxes) {
            for (int64_t k = 0; k < p.key_tiles; k++)
                list.push_back(k);
            return list;
        }
        for (int64_t f = 0; f < grid.size[0]; f += p.box_extent[0])
            for (int64_t y = 0; y < grid.size[1]; y += p.box_extent[1])
                for (int64_t x = 0; x < grid.size[2]; x += p.box_extent[2])
                    list.push_back(grid.token + (f * grid.size[1] + y) * grid.size[2] + x);
        return list;
    }

    hd_status fill(bool boxes)
    {
        const unsigned all = HD_PLAN_ROW_MASKS | HD_PLAN_COLUMN_MASKS;
        const unsigned kinds = (unsigned)(random() % (all + 1));
        HD_TRY(hd_plan_begin(&built.b, 1, 1, kinds));
        for (int64_t row = 0; row < built.b.plan.heads * built.b.plan.query_tiles; row++) {
            for (int64_t key : places(boxes)) {
                int32_t mask = (int32_t)(random() % 4) - 3;
                if (mask == -3) continue;
                uint64_t *rows = nullptr, *columns = nullptr;
                if (mask == 0 && kinds) {
                    HD_TRY(hd_plan_mask(&built.b, &mask, &rows, &columns));
                    if (kinds & HD_PLAN_ROW_MASKS)
                        rows[0] = random() & ((1u << (built.b.plan.query_tile % 32)) - 1);
                    if (kinds & HD_PLAN_COLUMN_MASKS) columns[0] = random();
                } else if (mask == 0) {
                    mask = HD_VISIT_PARTIAL;
                }
                HD_TRY(hd_plan_add(&built.b, key, mask));
            }
            hd_plan_close_row(&built.b);
        }
        return hd_plan_end(&built.b);
    }
};

} // namespace

TEST_CASE("plan statistics: random plans against what they mean", "[planner]")
{
    const uint32_t seed = (uint32_t)GENERATE(range(0, 300));
    CAPTURE(seed);
    RandomPlan r(seed);
    const hd_plan &p = r.built.b.plan;
    const int64_t heads = p.heads == 1 ? 3 : p.heads;
    hd_plan_stats stats;
    REQUIRE_OK(hd_plan_measure(&stats, &p, heads, r.tokens, r.tokens, 8, 4, 2));
    int64_t entries = 0;
    double useful = 0, executed = 0;
    for (int64_t h = 0; h < heads; h++) {
        PlanMeaning m = plan_meaning(p, p.heads == 1 ? 0 : h, r.tokens, r.tokens);
        entries += m.entries;
        useful += (double)m.pairs();
        for (uint8_t seen : m.proxy)
            useful += seen;
        executed += (double)(r.tokens * r.tokens - p.query_ranks * p.key_ranks);
        if (p.rest == HD_REST_PROXY) executed += (double)(p.query_ranks * p.key_tiles);
        for (int64_t t = 0; t < p.query_tiles && p.box_extent[0] == 0; t++) {
            hd_visits row = hd_plan_row(&p, h, t);
            for (int64_t i = 0; i < row.count; i++)
                executed +=
                    (double)((p.query_bound[t + 1] - p.query_bound[t]) *
                             (p.key_bound[row.entry[i].key + 1] - p.key_bound[row.entry[i].key]));
        }
    }
    CHECK(stats.entries == entries);
    CHECK(stats.full + stats.partial == entries);
    CHECK(stats.useful_pairs == useful);
    CHECK(stats.dense_pairs == (double)(heads * r.tokens * r.tokens));
    if (p.box_extent[0] == 0) {
        CHECK(stats.executed_pairs == executed);
        CHECK(stats.density == executed / stats.dense_pairs);
        CHECK(stats.executed_flops == 2 * 12 * executed);
    }
    CHECK(stats.unique_bytes == (double)(heads * 2 * r.tokens * 12 * 2));
}

TEST_CASE("plan statistics: dense", "[planner]")
{
    hd_plan p = shape_of(3, 5, 1); // every tile, full
    hd_plan_stats stats;
    REQUIRE_OK(hd_plan_measure(&stats, &p, 2, 12, 20, 64, 64, 4));
    CHECK(stats.entries == 30);
    CHECK(stats.density == 1.0);
    CHECK(stats.executed_flops == 4.0 * 2 * 12 * 20 * 64);
    CHECK(stats.useful_flops == stats.executed_flops);
}
