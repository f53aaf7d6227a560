// PARO: orders, tiles and steps of its plans against their definitions, and what it refuses before
// step 0.
#include <algorithm>
#include <array>
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
#include "tests/engine/ops/sdpa_call.h"

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
        REQUIRE_OK(hd_static_plans_make(&plans, file.get(), entry, &grid,
                                        {force_text, force_last, false}));
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

namespace
{

// A copy whose lists the call owns.
OwnedPlan own(const hd_plan &plan)
{
    OwnedPlan o;
    o.p = plan;
    const int64_t rows = plan.heads * plan.query_tiles;
    o.row_start.assign(plan.row_start, plan.row_start + rows + 1);
    o.visit.assign(plan.visit, plan.visit + plan.row_start[rows]);
    return o;
}

void add_orders(OwnedPlan &o, const hd_plan &plan, int64_t tokens)
{
    if (!plan.query_order) return;
    o.query_order.assign(plan.query_order, plan.query_order + plan.orders * tokens);
    o.key_order.assign(plan.key_order, plan.key_order + plan.orders * tokens);
}

/* A call of one row over the plan of `p`. */
Call call_over(Plans &p, int64_t dim, hd_dtype dtype, bool force_last = false)
{
    const int64_t tokens = p.entry->site.tokens, heads = p.entry->site.heads;
    Call c({1, tokens, tokens, heads, heads, dim, dim, dtype});
    const hd_plan &plan = p.make(false, force_last);
    c.owned.push_back(own(plan));
    add_orders(c.owned.back(), plan, tokens);
    return c;
}

void run_plan(Call &c, unsigned has = hd_cpu_features())
{
    Run run(has, 2, (size_t)256 << 20);
    hd_sdpa a = c.args();
    REQUIRE_OK(hd_sdpa_run(&run, &a));
}

// max |a - b| / max |b|, for outputs of one row.
double difference(const Call &a, const Call &b)
{
    double worst = 0, top = 0;
    for (int64_t i = 0; i < a.n.lq; i++)
        for (int64_t h = 0; h < a.n.h; h++)
            for (int64_t d = 0; d < a.n.dv; d++) {
                worst = std::fmax(worst, std::fabs(a.out.at(0, i, h, d) - b.out.at(0, i, h, d)));
                top = std::fmax(top, std::fabs(b.out.at(0, i, h, d)));
            }
    return worst / top;
}

} // namespace

TEST_CASE("paro: with every tile it is dense attention, in every order", "[paro]")
{
    struct {
        Grid3 grid;
        int64_t text;
        bool first;
    } cases[] = {{{3, 7, 9}, 0, false},
                 {{3, 7, 9}, 26, false},
                 {{2, 5, 11}, 26, true},
                 {{1, 12, 13}, 0, false}};
    for (auto &c : cases)
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            CAPTURE(c.grid, c.text, c.first, hd_dtype_name(dtype));
            Plans p(64, c.grid, 6, c.text, c.first);
            for (int h = 0; h < 6; h++)
                p.entry->order[h] = (uint8_t)h;
            p.full();
            Call planned = call_over(p, 16, dtype);
            Call dense({1, planned.n.lq, planned.n.lq, 6, 6, 16, 16, dtype});
            run_plan(planned);
            run_plan(dense);
            CHECK(planned.visited == 6 * p.entry->tiles * p.entry->tiles);
            CHECK(difference(planned, dense) < (dtype == HD_F32 ? 2e-6 : 1e-2));
        }
}

TEST_CASE("paro: with every tile it is dense attention, at the size of a video", "[paro]")
{
    Plans p(64, {13, 30, 45}, 1, 226); // 17,776 tokens with their text
    REQUIRE(p.entry->site.tokens == 17776);
    p.entry->order[0] = 2;
    p.full();
    Call planned = call_over(p, 8, HD_F32), dense({1, 17776, 17776, 1, 1, 8, 8, HD_F32});
    run_plan(planned);
    run_plan(dense);
    CHECK(difference(planned, dense) < 1e-5);
}

TEST_CASE("paro: what is left out is renormalised over", "[paro]")
{
    Plans p(2, {1, 1, 4}, 1);
    for (auto [i, j] : {std::pair{0, 0}, {1, 0}, {1, 1}})
        p.keep(0, i, j);
    Call c = call_over(p, 2, HD_F32);
    for (int64_t i = 0; i < 4; i++)
        for (int64_t d = 0; d < 2; d++) {
            c.q.set(0, i, 0, d, 0.0f); // all scores 0
            c.v.set(0, i, 0, d, (float)(i + 1));
        }
    for (unsigned has : every_isa()) {
        run_plan(c, has);
        for (int64_t i = 0; i < 4; i++)
            CHECK(c.out.at(0, i, 0, 0) == Approx(i < 2 ? 1.5 : 2.5));
    }
}

TEST_CASE("paro: every pattern of kept and dropped tiles in a row", "[paro]")
{
    for (int64_t n = 1; n <= 12; n++) {
        const int64_t patterns = (int64_t)1 << (n - 1), heads = (patterns + n - 1) / n;
        CAPTURE(n);
        Plans p(3, {1, 1, 3 * n - 1}, heads); // the last tile is short
        for (int64_t r = 0; r < heads * n; r++)
            for (int64_t j = 0; j < n; j++)
                if (j == n - 1 || (r % patterns) >> j & 1) p.keep(r / n, r % n, j);
        Call c = call_over(p, 4, HD_F32);
        run_plan(c);
        check_against_f64(c);
    }
}

TEST_CASE("paro: a constant value comes out of any mask, and nothing out of none", "[paro]")
{
    struct {
        hd_dtype dtype;
        hd_attention_number qk, pv;
        double tolerance;
    } cases[] = {{HD_F32, HD_NUMBER_NATIVE, HD_NUMBER_NATIVE, 1e-6},
                 {HD_BF16, HD_NUMBER_NATIVE, HD_NUMBER_NATIVE, 4e-3},
                 {HD_BF16, HD_NUMBER_INT8, HD_NUMBER_INT8, 1e-2}};
    for (auto &n : cases) {
        CAPTURE(hd_dtype_name(n.dtype), (int)n.pv);
        Plans p(16, {2, 5, 9}, 4, 7);
        randomise(p.file.get(), p.entry, 0.3, 5);
        for (int64_t j = 0; j < p.entry->tiles; j++) // a row of tiles that keeps nothing
            hd_plan_file_bits(p.entry, 0, 1)[j / 8] &= (uint8_t) ~(1u << (j % 8));
        Call c = call_over(p, 32, n.dtype);
        for (int64_t i = 0; i < c.n.lk; i++)
            for (int64_t h = 0; h < 4; h++)
                for (int64_t d = 0; d < 32; d++)
                    c.v.set(0, i, h, d, 1.75f);
        hd_sdpa a = c.args();
        a.qk = n.qk;
        a.pv = n.pv;
        Run run(hd_cpu_features(), 2);
        hd_status status = hd_sdpa_run(&run, &a);
        if (n.pv == HD_NUMBER_INT8 && status == HD_ERR_UNSUPPORTED) continue; // no such CPU
        REQUIRE_OK(status);
        double worst = 0;
        for (int64_t i = 0; i < c.n.lq; i++)
            for (int64_t h = 0; h < 4; h++)
                for (int64_t d = 0; d < 32; d++)
                    worst = std::fmax(worst, std::fabs(c.out.at(0, i, h, d) - 1.75));
        CHECK(worst <= n.tolerance * 1.75); // the text's columns are never dropped
    }
    Plans none(2, {1, 1, 4}, 1);
    none.keep(0, 1, 1);
    Call c = call_over(none, 2, HD_F32);
    run_plan(c);
    for (int64_t d = 0; d < 2; d++) {
        CHECK(c.out.at(0, 0, 0, d) == 0.0);
        CHECK(c.out.at(0, 1, 0, d) == 0.0);
        CHECK(c.out.at(0, 3, 0, d) != 0.0);
    }
}

namespace
{

/* A call of a network's site and a run of the preset's processors over it. */
struct Sited {
    std::vector<float> values;
    hd_row row{};
    hd_forward forward{};
    hd_attention_call call{};
    hd_json_doc *doc = nullptr;
    hd_attention_run *run = nullptr;
    int64_t steps;

    Sited(const std::string &processors, int64_t height = 6, int64_t width = 9, int64_t heads = 2,
          int64_t count = 3)
        : steps(count)
    {
        const int64_t tokens = height * width;
        values = normal_values(4 * tokens * heads * 4, 3);
        strcpy(row.branch, "main");
        strcpy(row.role, "cond");
        forward.rows = {1, &row};
        forward.step = {0, steps, 999.0, 1.0, HD_PHASE_SAMPLING};
        forward.model_key = 77;
        call.site = plan_site("mid.attn.0", heads);
        call.site.tokens = tokens;
        call.site.factor = 1;
        call.x = hd_tensor_none();
        hd_tensor *part[4] = {&call.q, &call.k, &call.v, &call.out};
        for (int64_t i = 0; i < 4; i++)
            *part[i] = hd_tensor_of(values.data() + i * tokens * heads * 4, HD_F32,
                                    hd_shape4(1, tokens, heads, 4));
        call.q_layout = call.k_layout = hd_layout_grid(1, height, width);
        call.scale = 0.5f;
        REQUIRE_OK(hd_json_parse(&doc, "test.json", processors.data(), processors.size()));
    }
    ~Sited()
    {
        hd_attention_run_free(run);
        hd_json_free(doc);
    }
    Sited(const Sited &) = delete;
    Sited &operator=(const Sited &) = delete;

    hd_status dry()
    {
        HD_TRY(hd_attention_run_create(&run, &hd_all_accelerators,
                                       hd_json_get(hd_json_root(doc), "processors"), steps));
        forward.run = run;
        call.forward = &forward;
        Run ex;
        ex.exec.recording = true;
        HD_TRY(hd_attention(&ex, &call));
        return hd_attention_run_finish(run);
    }
    std::vector<float> act(int64_t step)
    {
        Run ex;
        forward.step.index = step;
        REQUIRE_OK(hd_attention(&ex, &call));
        const float *out = static_cast<const float *>(call.out.data);
        return std::vector<float>(out, out + hd_tensor_count(call.out));
    }
};

// A file for Sited's default call: tiles of 64 do not divide a grid of 6 x 9, so there is one.
PlanFilePtr sited_file(int64_t height = 6, int64_t width = 9, int64_t masks = 1)
{
    hd_plan_file *made = nullptr;
    hd_plan_file_site *entry = nullptr;
    REQUIRE_OK(hd_plan_file_create(&made, 64, 3, masks, 1));
    PlanFilePtr file(made, hd_plan_file_free);
    hd_site site = plan_site("mid.attn.0", 2);
    int64_t grid[3] = {1, height, width};
    REQUIRE_OK(hd_plan_file_add(made, &site, grid, 0, false, &entry));
    for (int64_t i = 0; i < masks * 2; i++)
        memset(entry->bits + i * entry->bitmap_bytes, 0, (size_t)entry->bitmap_bytes);
    made->model = 77;
    made->target = 0.25f;
    return file;
}

std::string paro(const std::string &path, const std::string &more = "")
{
    return R"({"processors": [{"use": "paro", "plan": ")" + path + "\"" + more + "}]}";
}

} // namespace

TEST_CASE("paro: each step has its mask, in a run", "[paro]")
{
    Folder folder;
    PlanFilePtr file = sited_file(16, 9, 2); // three tiles, the last of 16 tokens
    hd_plan_file_site *entry = &file->site[0];
    file->mask_of_step[1] = 1;
    entry->order[1] = 1;
    for (int64_t h = 0; h < 2; h++)
        for (int64_t i = 0; i < 9; i++) // mask 1: every tile; mask 0: those that are forced
            hd_plan_file_bits(entry, 1, h)[i / 8] |= (uint8_t)(1u << (i % 8));
    std::string path = folder.path("a.hdplan");
    REQUIRE_OK(hd_plan_file_write(file.get(), path.c_str()));
    Sited planned(paro(path), 16, 9), dense("{}", 16, 9),
        loose(paro(path, ", \"force_last\": false"), 16, 9);
    REQUIRE_OK(planned.dry());
    REQUIRE_OK(dense.dry());
    REQUIRE_OK(loose.dry());
    auto distance = [](const std::vector<float> &a, const std::vector<float> &b) {
        double worst = 0;
        for (size_t i = 0; i < a.size(); i++)
            worst = std::fmax(worst, std::fabs((double)a[i] - (double)b[i]));
        return worst;
    };
    auto truth = dense.act(0);
    CHECK(distance(planned.act(0), truth) > 1e-3);
    CHECK(distance(planned.act(1), truth) < 1e-5);
    CHECK(planned.act(2) == planned.act(0));
    CHECK(distance(loose.act(1), truth) < 1e-5);
    auto nothing = loose.act(0); // no tile at all
    CHECK(std::all_of(nothing.begin(), nothing.end(), [](float x) { return x == 0.0f; }));
}

TEST_CASE("paro: weights that stay dense attention's", "[paro]")
{
    Folder folder;
    PlanFilePtr file = sited_file(16, 9); // three tiles, the last of 16 tokens
    for (int64_t h = 0; h < 2; h++)       // tile i sees tile i, and the last what is forced
        for (int64_t i = 0; i < 3; i++)
            hd_plan_file_bits(&file->site[0], 0, h)[i * 4 / 8] |= (uint8_t)(1u << (i * 4 % 8));
    std::string path = folder.path("a.hdplan");
    REQUIRE_OK(hd_plan_file_write(file.get(), path.c_str()));
    const std::string loose = ", \"force_last\": false, \"renormalise\": ";
    Sited apart(paro(path, loose + "false"), 16, 9), together(paro(path, loose + "true"), 16, 9);
    // all scores equal: a query sees the 64 or 16 keys of its tile, of 144
    for (Sited *s : {&apart, &together}) {
        float *q = s->values.data(), *v = q + 2 * 144 * 2 * 4;
        std::fill(q, q + 144 * 2 * 4, 0.0f);
        std::fill(v, v + 144 * 2 * 4, 3.0f);
        REQUIRE_OK(s->dry());
    }
    const std::vector<float> out = apart.act(0), plain = together.act(0);
    for (size_t i = 0; i < out.size(); i++) {
        const double share = i / 8 < 128 ? 64.0 / 144 : 16.0 / 144;
        CHECK((double)out[i] == Approx(3 * share).epsilon(1e-5));
        CHECK((double)plain[i] == Approx(3).epsilon(1e-5));
    }
}

TEST_CASE("paro: two tiles, one dropped, without renormalising", "[paro]")
{
    // the smallest plan of 64 tokens a tile: 128 of them, v = 1 .. 4 in four equal parts
    Folder folder;
    PlanFilePtr file = sited_file(8, 16);
    for (int64_t h = 0; h < 2; h++)
        *hd_plan_file_bits(&file->site[0], 0, h) = 1 | 4 | 8; // (0, 0), (1, 0), (1, 1)
    std::string path = folder.path("a.hdplan");
    REQUIRE_OK(hd_plan_file_write(file.get(), path.c_str()));
    for (bool renormalise : {true, false}) {
        Sited s(paro(path, std::string(", \"force_last\": false, \"renormalise\": ") +
                               (renormalise ? "true" : "false")),
                8, 16);
        float *q = s.values.data(), *v = q + 2 * 128 * 2 * 4;
        std::fill(q, q + 128 * 2 * 4, 0.0f);
        for (int64_t i = 0; i < 128 * 8; i++)
            v[i] = 1.0f + (float)(i / 8 / 32);
        REQUIRE_OK(s.dry());
        const std::vector<float> out = s.act(0);
        for (size_t i = 0; i < out.size(); i++)
            CHECK((double)out[i] == Approx(i / 8 >= 64   ? 2.5
                                           : renormalise ? 1.5
                                                         : 0.75)
                                        .epsilon(1e-5));
    }
}

TEST_CASE("paro: heads without a tile can be left without any", "[paro]")
{
    Folder folder;
    PlanFilePtr file = sited_file(16, 9);
    *hd_plan_file_bits(&file->site[0], 0, 0) = 1; // head 0 has one, head 1 none
    std::string path = folder.path("a.hdplan");
    REQUIRE_OK(hd_plan_file_write(file.get(), path.c_str()));
    Sited off(paro(path), 16, 9), zero(paro(path, ", \"empty_heads\": \"zero\""), 16, 9);
    REQUIRE_OK(off.dry());
    REQUIRE_OK(zero.dry());
    const std::vector<float> forced = off.act(0), none = zero.act(0);
    for (size_t i = 0; i < forced.size(); i++) {
        CHECK(forced[i] != 0.0f);
        CHECK(none[i] == (i / 4 % 2 == 1 ? 0.0f : forced[i]));
    }
}

TEST_CASE("paro: what cannot be honoured is refused before step 0", "[paro]")
{
    Folder folder;
    std::string path = folder.path("a.hdplan");
    REQUIRE_OK(hd_plan_file_write(sited_file().get(), path.c_str()));
    struct {
        std::string json;
        hd_status status;
        std::string message;
    } cases[] = {
        {R"({"processors": [{"use": "paro"}]})", HD_ERR_ARGUMENT,
         "test.json: processors[0] (paro) lacks \"plan\": the file that heddle calibrate made"},
        {paro(folder.path("none")), HD_ERR_IO, "none"},
        {paro(folder.write("text", "not a plan at all, but long enough to look like one, perhaps")),
         HD_ERR_FORMAT, "text: is no plan file; heddle calibrate makes one"},
        {paro(folder.write("cut", folder.read("a.hdplan").substr(0, 99))), HD_ERR_FORMAT,
         "cut: says it has"},
        {paro(path, R"(, "tile": 128)"), HD_ERR_UNSUPPORTED,
         "tile is 128, this build's tiles are 64 by 64"},
        {paro(path, R"(, "density": 0.3)"), HD_ERR_ARGUMENT,
         "density is 0.3, " + path + " was made for 0.25; calibrate again, or leave density out"},
        {paro(path, R"(, "density": 0)"), HD_ERR_ARGUMENT, "processors[0].density is 0"},
        {paro(path, R"(, "density": 0.2, "density_min": 0.3)"), HD_ERR_ARGUMENT,
         "density_min is 0.3, must be 0 to density, which is 0.2"},
        {paro(path, R"(, "empty_heads": "uniform")"), HD_ERR_UNSUPPORTED,
         "empty_heads is \"uniform\", which spreads the weight"},
        {paro(path, R"(, "skip_text_quant": true)"), HD_ERR_UNSUPPORTED, "skip_text_quant is true"},
        {paro(path, R"(, "force_text": false)"), HD_ERR_UNSUPPORTED, "force_text is false"},
        {paro(path, R"(, "q_group": 32)"), HD_ERR_ARGUMENT, "has no \"q_group\""},
    };
    for (auto &c : cases) {
        INFO(c.json);
        Sited s(c.json);
        CHECK_FAILS(s.dry(), c.status, c.message);
    }
    Sited right(paro(path)), turned(paro(path), 9, 6), heads(paro(path), 6, 9, 1),
        model(paro(path)), place(paro(path)), cross(paro(path));
    REQUIRE_OK(right.dry());
    CHECK_FAILS(turned.dry(), HD_ERR_ARGUMENT,
                "test.json: processors[0] (paro) cannot act at unet:mid.attn.0 self: " + path +
                    " was made for a grid of 1x6x9 with 0 tokens of text, this run's is 1x9x6 with "
                    "0; make one for this size with heddle calibrate");
    CHECK_FAILS(heads.dry(), HD_ERR_ARGUMENT, "was made for 2 heads, there are 1 here");
    model.forward.model_key = 78;
    CHECK_FAILS(model.dry(), HD_ERR_ARGUMENT,
                "was made for another model (key 000000000000004d, this one's is "
                "000000000000004e)");
    place.call.site = plan_site("mid.attn.1", 2);
    CHECK_FAILS(place.dry(), HD_ERR_ARGUMENT, "has no plan for this place");
    cross.call.site.kind = HD_SITE_CROSS;
    cross.call.k_layout = hd_layout_text(54);
    CHECK_FAILS(cross.dry(), HD_ERR_UNSUPPORTED, "its keys are not one grid");
}
