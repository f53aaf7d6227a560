// PARO: orders, tiles and steps of its plans against their definitions, and what it refuses before
// step 0.
#include <algorithm>
#include <cstring>

#include "engine/attention/planner/static_plan.h"
#include "engine/attention/run.h"
#include "sparse/all.h"
#include "sparse/paro.h"
#include "support/catch.h"
#include "support/folder.h"
#include "support/plan.h"
#include "support/plan_file.h"
#include "support/run.h"

namespace
{

using Grid3 = std::array<int64_t, 3>;

// Position of token (f, y, x) in an order of the axes, from the table of the method.
int64_t position(int order, const Grid3 &g, int64_t f, int64_t y, int64_t x)
{
    switch (order) {
    case 0:
        return (f * g[1] + y) * g[2] + x;
    case 1:
        return (f * g[2] + x) * g[1] + y;
    case 2:
        return (y * g[2] + x) * g[0] + f;
    case 3:
        return (y * g[0] + f) * g[2] + x;
    case 4:
        return (x * g[1] + y) * g[0] + f;
    default:
        return (x * g[0] + f) * g[1] + y;
    }
}

/* A file with one site, and its plans. */
struct Plans {
    PlanFilePtr file{nullptr, hd_plan_file_free};
    hd_plan_file_site *entry = nullptr;
    hd_static_plans *plans = nullptr;
    hd_grid grid{};

    Plans(int64_t tile, Grid3 g, int64_t heads, int64_t text = 0, bool text_first = false,
          int64_t masks = 1)
    {
        hd_plan_file *made = nullptr;
        REQUIRE_OK(hd_plan_file_create(&made, tile, masks, masks, 1));
        file.reset(made);
        hd_site site = plan_site("block.0", heads, text ? HD_SITE_JOINT : HD_SITE_SELF);
        REQUIRE_OK(hd_plan_file_add(made, &site, g.data(), text, text_first, &entry));
        grid = {{g[0], g[1], g[2]}, text_first ? text : 0};
        for (int64_t m = 0; m < masks; m++)
            made->mask_of_step[m] = (uint16_t)m;
    }
    ~Plans()
    {
        hd_static_plans_free(plans);
    }
    Plans(const Plans &) = delete;
    Plans &operator=(const Plans &) = delete;

    void full()
    {
        for (int64_t m = 0; m < file->masks; m++)
            for (int64_t h = 0; h < entry->site.heads; h++)
                for (int64_t i = 0; i < entry->tiles * entry->tiles; i++)
                    hd_plan_file_bits(entry, m, h)[i / 8] |= (uint8_t)(1u << (i % 8));
    }
    void keep(int64_t head, int64_t i, int64_t j)
    {
        int64_t at = i * entry->tiles + j;
        hd_plan_file_bits(entry, 0, head)[at / 8] |= (uint8_t)(1u << (at % 8));
    }
    const hd_plan &make(bool force_text = false, bool force_last = false, int64_t mask = 0)
    {
        hd_static_plans_free(plans);
        plans = nullptr;
        REQUIRE_OK(
            hd_static_plans_make(&plans, file.get(), entry, &grid, {force_text, force_last}));
        return *hd_static_plans_at(plans, mask);
    }
};

} // namespace

TEST_CASE("paro: the six orders, and their inverses", "[paro]")
{
    const int32_t first[6][8] = {{0, 1, 2, 3, 4, 5, 6, 7},     {0, 4, 8, 1, 5, 9, 2, 6},
                                 {0, 12, 1, 13, 2, 14, 3, 15}, {0, 1, 2, 3, 12, 13, 14, 15},
                                 {0, 12, 4, 16, 8, 20, 1, 13}, {0, 4, 8, 12, 16, 20, 1, 5}};
    const int64_t lands[6] = {14, 18, 5, 6, 13, 15}; // token (1, 0, 2)
    Plans p(5, {2, 3, 4}, 6);
    for (int h = 0; h < 6; h++)
        p.entry->order[h] = (uint8_t)h;
    const hd_plan &plan = p.make();
    REQUIRE(plan.orders == 6);
    CHECK(plan.query_order == plan.key_order);
    for (int h = 0; h < 6; h++) {
        CAPTURE(h);
        const int32_t *order = plan.query_order + h * 24;
        CHECK(std::equal(first[h], first[h] + 8, order));
        CHECK(order[lands[h]] == 14);
        for (int64_t f = 0; f < 2; f++)
            for (int64_t y = 0; y < 3; y++)
                for (int64_t x = 0; x < 4; x++)
                    CHECK(order[position(h, {2, 3, 4}, f, y, x)] == (f * 3 + y) * 4 + x);
    }
}

TEST_CASE("paro: a picture has two orders, and the first needs no list", "[paro]")
{
    Plans p(4, {1, 3, 5}, 2);
    const hd_plan &rows = p.make();
    CHECK(rows.query_order == nullptr);
    CHECK(rows.orders == 1);
    p.entry->order[0] = p.entry->order[1] = 1;
    const hd_plan &columns = p.make();
    REQUIRE(columns.orders == 1);
    CHECK(std::vector<int32_t>(columns.query_order, columns.query_order + 4) ==
          std::vector<int32_t>{0, 5, 10, 1});
}

TEST_CASE("paro: plans mean what the bits say, against brute force", "[paro]")
{
    uint64_t seed = GENERATE(range(1, 101));
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    auto upto = [&](int64_t n) { return 1 + (int64_t)(random() % (uint64_t)n); };
    Grid3 g = {upto(3), upto(6), upto(6)};
    int64_t tile = upto(9), heads = upto(3), text = (int64_t)(random() % 8), masks = upto(2);
    bool text_first = text > 0 && random() % 2, force_text = random() % 2,
         force_last = random() % 2;
    Plans p(tile, g, heads, text, text_first, masks);
    randomise(p.file.get(), p.entry, 0.4, seed);
    const int64_t tokens = p.entry->site.tokens, before = text_first ? text : 0;
    for (int64_t m = 0; m < masks; m++) {
        const hd_plan &plan = p.make(force_text, force_last, m);
        for (int64_t h = 0; h < heads; h++) {
            PlanMeaning meaning = plan_meaning(plan, h, tokens, tokens);
            // tile of a token; -1: the dense tail
            std::vector<int64_t> tile_of((size_t)tokens, -1);
            for (int64_t i = 0; i < before; i++)
                tile_of[(size_t)i] = i / tile;
            for (int64_t f = 0; f < g[0]; f++)
                for (int64_t y = 0; y < g[1]; y++)
                    for (int64_t x = 0; x < g[2]; x++)
                        tile_of[(size_t)(before + (f * g[1] + y) * g[2] + x)] =
                            (before + position(p.entry->order[h], g, f, y, x)) / tile;
            const int64_t tiles = p.entry->tiles, text_tiles = (before + tile - 1) / tile;
            int64_t wrong = 0;
            for (int64_t q = 0; q < tokens; q++)
                for (int64_t k = 0; k < tokens; k++) {
                    int64_t i = tile_of[(size_t)q], j = tile_of[(size_t)k];
                    bool sees = i < 0 || j < 0 ||
                                hd_plan_bit(hd_plan_file_bits(p.entry, m, h), i * tiles + j) ||
                                (force_last && (i == tiles - 1 || j == tiles - 1)) ||
                                (force_text && (i < text_tiles || j < text_tiles));
                    wrong += meaning.at(q, k) != sees;
                }
            CHECK(wrong == 0);
            if (!force_text && !force_last)
                CHECK(hd_plan_file_density(p.entry, tile, hd_plan_file_bits(p.entry, m, h)) ==
                      Approx((double)meaning.pairs() / (double)(tokens * tokens)));
        }
    }
}

TEST_CASE("paro: the last row and column of tiles are forced", "[paro]")
{
    Plans p(2, {1, 2, 3}, 1);
    for (auto [i, j] : {std::pair{0, 0}, {0, 2}, {1, 0}, {1, 1}, {2, 2}})
        p.keep(0, i, j);
    auto rows = [](const hd_plan &plan) {
        std::string text;
        for (int64_t i = 0; i < plan.query_tiles; i++) {
            std::string row(3, '0');
            hd_visits visits = hd_plan_row(&plan, 0, i);
            for (int64_t e = 0; e < visits.count; e++)
                row[(size_t)hd_visits_entry(visits, e).key] = '1';
            text += row + " ";
        }
        return text;
    };
    CHECK(rows(p.make(false, false)) == "101 110 001 ");
    CHECK(hd_plan_file_density(p.entry, 2, p.entry->bits) == Approx(5.0 / 9.0));
    CHECK(rows(p.make(false, true)) == "101 111 111 ");
}

TEST_CASE("paro: buckets of steps", "[paro]")
{
    auto table = [](const char *buckets, int64_t steps) {
        std::string text = buckets ? "{\"b\": " + std::string(buckets) + "}" : "{}";
        hd_json_doc *doc = nullptr;
        REQUIRE_OK(hd_json_parse(&doc, "test.json", text.data(), text.size()));
        hd_paro_options p{};
        p.buckets = hd_json_get(hd_json_root(doc), "b");
        std::vector<uint16_t> mask((size_t)steps);
        int64_t masks = 0;
        hd_status status = hd_paro_buckets(&p, steps, mask.data(), &masks);
        hd_json_free(doc);
        REQUIRE_OK(status);
        CHECK(masks == 1 + *std::max_element(mask.begin(), mask.end()));
        return mask;
    };
    auto lengths = [](const std::vector<uint16_t> &mask) {
        std::vector<int> count(mask.back() + 1u);
        for (uint16_t m : mask)
            count[m]++;
        return count;
    };
    CHECK(lengths(table("10", 50)) == std::vector<int>(10, 5));
    CHECK(lengths(table("4", 30)) == std::vector<int>{8, 7, 8, 7});
    auto own = table("50", 50);
    for (int s = 0; s < 50; s++)
        CHECK(own[(size_t)s] == s);
    CHECK(table("[0, 1, 1, 0]", 4) == std::vector<uint16_t>{0, 1, 1, 0});
    CHECK(table(nullptr, 5) == std::vector<uint16_t>{0, 1, 2, 2, 2});
    CHECK(table(nullptr, 1) == std::vector<uint16_t>{0});
}
