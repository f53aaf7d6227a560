// The comparison of a network's step on the starter model: what changes nothing has no error, what
// changes something has one, also in whole pictures; refusals.
#include <cmath>

#include "benchmark/model.h"
#include "controls/all.h"
#include "sparse/all.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/run.h"

namespace
{

struct Comparison {
    Run run{hd_cpu_features(), 2};
    hd_model *model = nullptr;
    hd_bench_rows rows{};
    hd_bench_report report{};
    hd_bench_model_options o{};

    explicit Comparison(const char *rows_text, const hd_processor_list *list = &hd_all_controls)
    {
        const std::string path = source_path("models/starter-image");
        REQUIRE_OK(hd_model_open(&model, &run, path.c_str(), HD_PRECISION_F32, nullptr, nullptr));
        hd_bench_shape shape;
        REQUIRE_OK(hd_bench_model_shape(&shape, model, 0, 0));
        CHECK(shape.grid[1] == 16);
        REQUIRE_OK(hd_bench_rows_read(&rows, rows_text, &shape, true, list));
        o.model = model, o.prompt = "a red fish", o.seed = 3, o.steps = 2;
        o.rows = &rows, o.list = list, o.ex = &run.exec, o.repeats = 1;
    }
    ~Comparison()
    {
        hd_bench_report_free(&report);
        hd_bench_rows_free(&rows);
        hd_model_free(model);
    }
};

} // namespace

TEST_CASE("bench model: error of a step and of pictures", "[bench]")
{
    Comparison c(R"([{"use": "temperature", "tau": 1}, {"use": "temperature", "tau": 0.5}])");
    c.o.pictures = 2;
    REQUIRE_OK(hd_bench_model(&c.report, &c.o));
    REQUIRE(c.report.count == 3);
    for (int i = 0; i < 2; i++) { // dense, and what is dense by another name
        const double *f = c.report.result[i].figure;
        CHECK(f[HD_BENCH_REL_L1] == 0);
        CHECK(std::isinf(f[HD_BENCH_PSNR]));
        CHECK(f[HD_BENCH_SSIM] == Approx(1));
        CHECK(f[HD_BENCH_DENSITY] == 1);
        CHECK(f[HD_BENCH_MS_MIN] > 0);
    }
    const double *sharp = c.report.result[2].figure;
    CHECK(sharp[HD_BENCH_REL_L1] > 0);
    CHECK(sharp[HD_BENCH_COSINE] < 1);
    CHECK(sharp[HD_BENCH_PSNR] > 5);
    CHECK(sharp[HD_BENCH_PSNR] < 60);
    CHECK(sharp[HD_BENCH_SSIM] < 1);
}

TEST_CASE("bench model: paro gets the plan it lacks", "[bench][paro]")
{
    Comparison c(R"([{"use": "paro", "density": 0.5, "force_last": false, "sites": ["** self"]},
                     {"use": "paro", "density": 1, "sites": ["** self"]}])",
                 &hd_all_accelerators);
    c.o.pictures = 1;
    REQUIRE_OK(hd_bench_model(&c.report, &c.o));
    REQUIRE(c.report.count == 3);
    for (int i = 1; i < 3; i++) {
        INFO(c.report.result[i].why);
        REQUIRE(c.report.result[i].status == HD_OK);
    }
    const double *half = c.report.result[1].figure, *full = c.report.result[2].figure;
    CHECK(half[HD_BENCH_DENSITY] < 1);
    CHECK(half[HD_BENCH_REL_L1] > 1e-6);
    CHECK(half[HD_BENCH_PSNR] < 60);
    CHECK(full[HD_BENCH_DENSITY] == 1);
    CHECK(full[HD_BENCH_REL_L1] < 1e-5);
}

TEST_CASE("bench model: what cannot be done is said", "[bench]")
{
    Comparison c(R"([{"use": "temperature", "sites": ["block.3 joint"]}])");
    REQUIRE_OK(hd_bench_model(&c.report, &c.o));
    REQUIRE(c.report.count == 2);
    CHECK(c.report.result[1].status == HD_ERR_ARGUMENT);
    CHECK(std::string(c.report.result[1].why).find("matches no attention site") !=
          std::string::npos);
    c.o.width = 63;
    CHECK_FAILS(hd_bench_model(&c.report, &c.o), HD_ERR_ARGUMENT,
                "width is 63, must be a multiple");
}
