// Calibration: what is measured tile by tile against whole maps in f64, and what is decided from it
// against the method's worked examples.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "engine/attention/planner/calibrate_internal.h"
#include "kernels/attention_map.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/plan_file.h"
#include "support/values.h"

namespace
{

/* A self-attention call of one row over random or given q and k, with its calibration. */
struct Calibrated {
    int64_t heads, key_heads, dim;
    hd_grid grid;
    int64_t tokens;
    Values q, k;
    hd_attention_call call{};
    std::vector<uint16_t> table;
    hd_calibration_options options{};
    hd_calibration *calibration = nullptr;
    hd_calibration_site *site = nullptr;

    Calibrated(std::array<int64_t, 3> g, int64_t tile, int64_t text = 0, int64_t h = 1,
               int64_t hk = 1, int64_t d = 4, hd_dtype dtype = HD_F32, uint64_t seed = 1)
        : heads(h), key_heads(hk), dim(d), grid{{g[0], g[1], g[2]}, text},
          tokens(g[0] * g[1] * g[2] + text),
          q(Values::normal(dtype, hd_shape4(1, tokens, h, d), seed, 2.0f)),
          k(Values::normal(dtype, hd_shape4(1, tokens, hk, d), seed + 1, 2.0f)), table(2)
    {
        call.site = plan_site("block.0", heads, text ? HD_SITE_JOINT : HD_SITE_SELF);
        call.q = q.t;
        call.k = k.t;
        call.scale = 0.5f;
        hd_token_layout layout{};
        if (text) layout.segment[layout.segments++] = {HD_TOKENS_TEXT, 0, text, 0, 0, 0};
        layout.segment[layout.segments++] = {HD_TOKENS_GRID, text, tokens - text, g[0], g[1], g[2]};
        call.q_layout = call.k_layout = layout;
        options.tile = tile;
        options.eps_rel = 0.3f;
        options.sigma = 0.5f;
        options.alpha = 0.5f;
        options.density = 0.5f;
        options.steps = 2;
        options.masks = 1;
        options.mask_of_step = table.data();
    }
    ~Calibrated()
    {
        hd_calibration_free(calibration);
    }
    Calibrated(const Calibrated &) = delete;
    Calibrated &operator=(const Calibrated &) = delete;

    void begin()
    {
        REQUIRE_OK(hd_calibration_create(&calibration, &options));
        REQUIRE_OK(hd_calibration_meet(calibration, &call, &site));
    }
    void observe(unsigned has = hd_cpu_features(), int threads = 1, int64_t step = 0)
    {
        Run run(has, threads);
        std::vector<char> scratch(hd_calibration_scratch(site));
        REQUIRE_OK(hd_calibration_observe(calibration, site, &run, &call, 0, step, scratch.data()));
    }
    PlanFilePtr finish(hd_calibration_report *report)
    {
        hd_plan_file *file = nullptr;
        REQUIRE_OK(hd_calibration_finish(calibration, &file, report));
        return PlanFilePtr(file, hd_plan_file_free);
    }

    /* The map of a head in f64. */
    std::vector<double> map(int64_t head) const
    {
        std::vector<double> p((size_t)(tokens * tokens));
        const int64_t key_head = head / (heads / key_heads);
        for (int64_t i = 0; i < tokens; i++) {
            double sum = 0;
            for (int64_t j = 0; j < tokens; j++) {
                double s = 0;
                for (int64_t d = 0; d < dim; d++)
                    s += q.at((i * heads + head) * dim + d) *
                         k.at((j * key_heads + key_head) * dim + d);
                sum += p[(size_t)(i * tokens + j)] = std::exp(s * 0.5);
            }
            for (int64_t j = 0; j < tokens; j++)
                p[(size_t)(i * tokens + j)] /= sum;
        }
        return p;
    }
};

struct Tile {
    double mass, max, sum;
    int64_t small, count;
};

Tile tile_of(const Calibrated &c, const std::vector<double> &p, const int32_t *order, int64_t i,
             int64_t j, double eps)
{
    const int64_t ranks = c.tokens - c.grid.token, side = c.options.tile;
    Tile t{};
    int64_t rows = std::min(ranks, (i + 1) * side) - i * side;
    for (int64_t a = i * side; a < std::min(ranks, (i + 1) * side); a++)
        for (int64_t b = j * side; b < std::min(ranks, (j + 1) * side); b++) {
            double x = p[(size_t)(order[a] * c.tokens + order[b])];
            t.sum += x;
            t.max = std::fmax(t.max, x);
            t.small += x < eps;
            t.count++;
        }
    t.mass = t.sum / (double)rows;
    return t;
}

std::vector<unsigned> map_isas()
{
    std::vector<unsigned> list = {HD_CPU};
    for (unsigned has : every_isa())
        if (has & (HD_AVX2 | HD_AVX512)) list.push_back(has);
    return list;
}

} // namespace

TEST_CASE("calibrate: tiles measured one by one are those of the whole map", "[calibrate]")
{
    struct {
        std::array<int64_t, 3> grid;
        int64_t tile, text, heads, key_heads, dim;
        hd_dtype dtype;
    } cases[] = {{{2, 3, 4}, 5, 0, 2, 1, 4, HD_F32},
                 {{1, 9, 15}, 64, 0, 1, 1, 40, HD_F32},
                 {{3, 4, 7}, 16, 9, 4, 2, 17, HD_BF16},
                 {{1, 13, 11}, 64, 70, 1, 1, 64, HD_BF16}};
    for (unsigned has : map_isas())
        for (auto &c : cases) {
            CAPTURE(has, c.grid[0], c.grid[1], c.grid[2], c.tile);
            Calibrated x(c.grid, c.tile, c.text, c.heads, c.key_heads, c.dim, c.dtype);
            x.begin();
            REQUIRE(x.site->orders == (c.grid[0] == 1 ? 2 : 6));
            x.observe(has);
            const double eps = 0.3 / (double)x.tokens;
            double worst = 0;
            int64_t near = 0; // tiles where a weight is too near eps for f32 to tell
            for (int64_t h = 0; h < c.heads; h++) {
                auto p = x.map(h);
                for (int o = 0; o < x.site->orders; o++) {
                    const int32_t *order = x.site->order + o * x.site->ranks;
                    for (int64_t i = 0; i < x.site->tiles; i++) {
                        double sparse = 0, uneven = 0;
                        for (int64_t j = 0; j < x.site->tiles; j++) {
                            Tile t = tile_of(x, p, order, i, j, eps);
                            double found =
                                (double)hd_calibration_mass(x.site, 0, o, h)[i * x.site->tiles + j];
                            worst = std::fmax(worst, std::fabs(found - t.mass));
                            sparse += (double)t.small >= 0.5 * (double)t.count;
                            uneven += t.max * (double)t.count / t.sum;
                        }
                        int64_t at = (o * c.heads + h) * x.site->tiles + i;
                        near += std::fabs(x.site->sparse[at] - sparse) > 0.5;
                        CHECK(x.site->uneven[at] == Approx(uneven).epsilon(1e-4));
                    }
                }
            }
            CHECK(worst < 2e-6);
            CHECK(near <= 1);
        }
}

TEST_CASE("calibrate: threads change no bit", "[calibrate][threads]")
{
    Calibrated one({2, 5, 9}, 16, 3, 2, 2, 24), three({2, 5, 9}, 16, 3, 2, 2, 24);
    one.begin();
    three.begin();
    one.observe(hd_cpu_features(), 1);
    three.observe(hd_cpu_features(), 3);
    size_t maps = (size_t)(one.site->orders * 2 * one.site->tiles * one.site->tiles);
    CHECK(memcmp(one.site->mass, three.site->mass, maps * sizeof(float)) == 0);
    CHECK(std::equal(one.site->uneven, one.site->uneven + one.site->orders * 2 * one.site->tiles,
                     three.site->uneven));
}

TEST_CASE("calibrate: the method's example picks the order with f innermost", "[calibrate]")
{
    for (unsigned has : map_isas()) {
        Calibrated c({2, 1, 2}, 2);
        c.call.scale = 1.0f;
        c.options.eps_rel = 4e-3f;
        c.options.sigma = 0.9f;
        c.options.density = 0.5f;
        for (int64_t i = 0; i < 4; i++) // tokens of one x look at each other: .5 0 .5 0 ...
            for (int64_t d = 0; d < 4; d++) {
                c.q.set(i * 4 + d, d == i % 2 ? 200.0f : 0.0f);
                c.k.set(i * 4 + d, d == i % 2 ? 1.0f : 0.0f);
            }
        c.begin();
        c.observe(has);
        const hd_calibration_site *s = c.site;
        REQUIRE(s->orders == 2);
        CHECK(s->number[0] == 0);
        CHECK(s->number[1] == 2);
        auto mean = [&](const double *value, int order) {
            return (value[order * 2] + value[order * 2 + 1]) / 4;
        };
        CHECK(mean(s->sparse, 0) == 0.0);
        CHECK(mean(s->uneven, 0) == Approx(2.0));
        CHECK(mean(s->sparse, 1) == Approx(0.5));
        CHECK(mean(s->uneven, 1) == Approx(1.0));
        for (int i = 0; i < 4; i++) {
            CHECK((double)hd_calibration_mass(s, 0, 0, 0)[i] * 2 == Approx(1.0));
            CHECK((double)hd_calibration_mass(s, 0, 1, 0)[i] * 2 ==
                  Approx(i % 3 ? 0.0 : 2.0).margin(1e-6));
        }
        hd_calibration_report report;
        PlanFilePtr file = c.finish(&report);
        CHECK(file->site[0].order[0] == 2);
        CHECK(report.orders[2] == 1);
        CHECK(report.density == Approx(0.5));
        CHECK(report.retained == Approx(1.0));
    }
}

TEST_CASE("calibrate: scores of the orders", "[calibrate]")
{
    const double sparse[6] = {0, 0, 0.5, 0.5, 0.5, 0}, uneven[6] = {2, 2, 1, 1, 1, 2};
    const double two_sparse[2] = {0, 0.5}, two_uneven[2] = {2, 1};
    double score[6];
    hd_calibration_score(score, two_sparse, two_uneven, 2, 0.5);
    CHECK(score[0] == Approx(2.0 / 3));
    CHECK(score[1] == Approx(1.0 / 3));
    hd_calibration_score(score, sparse, uneven, 6, 0.5);
    for (int i = 0; i < 6; i++)
        CHECK(score[i] == Approx(sparse[i] > 0 ? 1.0 / 9 : 2.0 / 9));
    CHECK(std::min_element(score, score + 6) == score + 2);
    const double all_sparse[2] = {1, 1}, flat[2] = {3, 1};
    hd_calibration_score(score, all_sparse, flat, 2, 0.5);
    CHECK(score[0] == Approx(0.375)); // a sum of zero gives nothing
    CHECK(score[1] == Approx(0.125));
}

namespace
{
// Three tiles of two tokens with these masses, as one observed call.
void set_masses(Calibrated &c, const std::array<float, 9> &mass)
{
    c.begin();
    for (int o = 0; o < c.site->orders; o++)
        std::copy(mass.begin(), mass.end(), hd_calibration_mass(c.site, 0, o, 0));
    c.site->calls[0] = 1;
}

std::string rows_of(const hd_plan_file *file)
{
    std::string text;
    for (int64_t i = 0; i < 3; i++, text += i < 3 ? " " : "")
        for (int64_t j = 0; j < 3; j++)
            text += hd_plan_bit(file->site[0].bits, i * 3 + j) ? '1' : '0';
    return text;
}

const std::array<float, 9> example = {.6f, .1f, .3f, .2f, .7f, .1f, .05f, .05f, .9f};
} // namespace

TEST_CASE("calibrate: tiles above the threshold are kept, the last ones always", "[calibrate]")
{
    hd_calibration_report report;
    Calibrated plain({1, 2, 3}, 2), forced({1, 2, 3}, 2), floor({1, 2, 3}, 2), none({1, 2, 3}, 2);
    plain.options.density = 0.6f;
    set_masses(plain, example);
    PlanFilePtr file = plain.finish(&report);
    CHECK(rows_of(file.get()) == "101 110 001");
    CHECK(report.theta > 0.1);
    CHECK(report.theta <= 0.2);
    CHECK(report.density == Approx(5.0 / 9));
    CHECK(report.retained == Approx((.6 + .3 + .2 + .7 + .9) / 3).epsilon(1e-6));
    CHECK((double)file->site[0].density[0] == Approx(5.0 / 9));
    forced.options.density = 0.9f;
    forced.options.force_last = true;
    set_masses(forced, example);
    CHECK(rows_of(forced.finish(&report).get()) == "101 111 111");
    CHECK(report.density == Approx(8.0 / 9));
    floor.options.density = 0.2f;
    floor.options.density_min = 0.2f; // two tiles of nine are the least that reach it
    set_masses(floor, example);
    CHECK(rows_of(floor.finish(&report).get()) == "000 010 001");
    none.options.force_last = true;
    set_masses(none, example);
    none.site->calls[0] = 0; // nothing was observed: nothing is known to be small
    CHECK(rows_of(none.finish(&report).get()) == "111 111 111");
}

TEST_CASE("calibrate: calls and their heads are averaged, masks are apart", "[calibrate]")
{
    Calibrated c({1, 4, 6}, 8, 0, 2, 2, 8);
    c.options.masks = 2;
    c.table = {0, 1};
    c.options.mask_of_step = c.table.data();
    c.options.density = 0.4f;
    c.begin();
    c.observe(hd_cpu_features(), 1, 0);
    c.observe(hd_cpu_features(), 1, 1);
    c.observe(hd_cpu_features(), 1, 1); // the same again: the mean is the same
    hd_calibration_report report;
    PlanFilePtr file = c.finish(&report);
    REQUIRE(file->masks == 2);
    CHECK(file->mask_of_step[1] == 1);
    const hd_plan_file_site &s = file->site[0];
    for (int64_t h = 0; h < 2; h++)
        CHECK(memcmp(hd_plan_file_bits(&s, 0, h), hd_plan_file_bits(&s, 1, h),
                     (size_t)s.bitmap_bytes) == 0);
    CHECK(report.density <= 0.4);
    CHECK(report.density > 0.2);
    CHECK(report.heads == 2);
}

TEST_CASE("calibrate: every allocation may fail", "[calibrate]")
{
    fail_each_allocation([] {
        Calibrated c({1, 4, 6}, 8);
        hd_status status = hd_calibration_create(&c.calibration, &c.options);
        if (status == HD_OK) status = hd_calibration_meet(c.calibration, &c.call, &c.site);
        hd_plan_file *file = nullptr;
        hd_calibration_report report;
        if (status == HD_OK) status = hd_calibration_finish(c.calibration, &file, &report);
        if (status == HD_OK) hd_plan_file_free(file);
        return status;
    });
}

TEST_CASE("calibrate: calls that have no map over one grid are refused", "[calibrate]")
{
    Calibrated c({1, 4, 6}, 8), large({1, 2, 2}, 2, 0, 1, 1, 257);
    c.begin();
    Calibrated other({1, 6, 4}, 8);
    CHECK_FAILS(hd_calibration_meet(c.calibration, &other.call, &other.site), HD_ERR_ARGUMENT,
                "another size than before");
    REQUIRE_OK(hd_calibration_create(&large.calibration, &large.options));
    CHECK_FAILS(hd_calibration_meet(large.calibration, &large.call, &large.site),
                HD_ERR_UNSUPPORTED, "heads of 257 channels, at most 256");
    c.call.k_layout = hd_layout_text(24);
    CHECK_FAILS(hd_calibration_meet(c.calibration, &c.call, &c.site), HD_ERR_UNSUPPORTED,
                "its keys are not one grid");
}
