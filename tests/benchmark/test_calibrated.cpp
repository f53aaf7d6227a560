// Bench rows of "paro" that name no plan: one is made from another draw of the inputs.
#include "benchmark/calibrated.h"
#include "sparse/all.h"
#include "support/catch.h"
#include "support/run.h"

namespace
{

// The report of these rows on a grid of 16 x 24: six tiles.
struct Measured {
    Run run{hd_cpu_features(), 2};
    hd_bench_shape shape{};
    hd_bench_inputs inputs{}, other{};
    hd_bench_rows rows{};
    hd_bench_report report{};
    hd_bench_attention_options o{};

    explicit Measured(const char *text)
    {
        shape.network = HD_NETWORK_DIT;
        shape.grid[0] = 1, shape.grid[1] = 16, shape.grid[2] = 24;
        std::copy(shape.grid, shape.grid + 3, shape.base);
        shape.scale = 1, shape.heads = 2, shape.head_dim = 16;
        REQUIRE_OK(hd_bench_inputs_field(&inputs, &run, &shape, HD_F32, 8, 3));
        REQUIRE_OK(hd_bench_inputs_field(&other, &run, &shape, HD_F32, 8, 4));
        REQUIRE_OK(hd_bench_rows_read(&rows, text, &shape, false, &hd_all_accelerators));
        o.shape = &shape, o.inputs = &inputs, o.other = &other, o.rows = &rows;
        o.list = &hd_all_accelerators, o.ex = &run, o.repeats = 1;
    }
    ~Measured()
    {
        hd_bench_report_free(&report);
        hd_bench_rows_free(&rows);
        hd_bench_inputs_free(&inputs);
        hd_bench_inputs_free(&other);
    }
};

} // namespace

TEST_CASE("bench attention: paro gets the plan it lacks", "[bench][paro]")
{
    Measured m(R"([{"use": "paro", "density": 0.5}, {"use": "paro", "density": 1}])");
    CHECK(hd_bench_needs_calibration(&m.rows));
    REQUIRE_OK(hd_bench_attention(&m.report, &m.o));
    REQUIRE(m.report.count == 3);
    for (int i = 1; i < 3; i++) {
        INFO(m.report.result[i].why);
        REQUIRE(m.report.result[i].status == HD_OK);
    }
    const double *half = m.report.result[1].figure, *full = m.report.result[2].figure;
    CHECK(half[HD_BENCH_DENSITY] <= 0.5);
    CHECK(half[HD_BENCH_DENSITY] > 0.3);
    CHECK(half[HD_BENCH_MASS] < 1);
    CHECK(half[HD_BENCH_MASS] > half[HD_BENCH_DENSITY]); // it is better than chance
    CHECK(full[HD_BENCH_DENSITY] == 1);
    CHECK(full[HD_BENCH_REL_L1] < 1e-5);
    // what is reported is what was asked for: no path of a file that is gone
    CHECK(std::string(m.rows.row[1].json).find("/dev/fd") == std::string::npos);
}

TEST_CASE("bench attention: a plan that cannot be made is a row's own failure", "[bench][paro]")
{
    Measured m(R"([{"use": "paro", "tile": 32}, {"use": "paro", "plan": "no such plan"}])");
    REQUIRE_OK(hd_bench_attention(&m.report, &m.o));
    REQUIRE(m.report.count == 3);
    CHECK(m.report.result[1].status == HD_ERR_UNSUPPORTED);
    CHECK(std::string(m.report.result[1].why).find("tile is 32") != std::string::npos);
    CHECK(m.report.result[2].status == HD_ERR_IO);
    Measured none(R"([{"use": "gna", "window": [4, 8]}])");
    CHECK(!hd_bench_needs_calibration(&none.rows));
}
