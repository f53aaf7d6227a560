// The choice of the compute type, on made-up tables; the timing, that it is sane.
#include "engine/precision.h"

#include <cmath>

#include "support/catch.h"
#include "support/run.h"

TEST_CASE("precision: bf16 is chosen where it saves a tenth", "[precision]")
{
    double ratio = 0;
    const hd_precision_row twice[] = {{320, 320, 1, 0.5}, {1280, 1280, 16, 8}};
    CHECK(hd_precision_choose(2, twice, &ratio) == HD_BF16);
    CHECK(ratio == 0.5);
    const hd_precision_row half[] = {{320, 320, 1, 2}, {1280, 1280, 16, 31}};
    CHECK(hd_precision_choose(2, half, nullptr) == HD_F32);
    const hd_precision_row close[] = {{320, 320, 10, 9.1}};
    CHECK(hd_precision_choose(1, close, nullptr) == HD_F32);
    const hd_precision_row enough[] = {{320, 320, 10, 8.9}};
    CHECK(hd_precision_choose(1, enough, nullptr) == HD_BF16);
}

TEST_CASE("precision: a matrix weighs what it costs", "[precision]")
{
    const hd_precision_row large_wins[] = {{320, 320, 1, 3}, {1280, 10240, 100, 50}};
    CHECK(hd_precision_choose(2, large_wins, nullptr) == HD_BF16);
    const hd_precision_row small_wins[] = {{320, 320, 2, 1}, {1280, 10240, 50, 100}};
    CHECK(hd_precision_choose(2, small_wins, nullptr) == HD_F32);
}

TEST_CASE("precision: what cannot be compared is f32", "[precision]")
{
    double ratio = 0;
    CHECK(hd_precision_choose(0, nullptr, &ratio) == HD_F32);
    CHECK(ratio == 1);
    const hd_precision_row no_bf16[] = {{320, 320, 1, 0.5}, {640, 640, 4, INFINITY}};
    CHECK(hd_precision_choose(2, no_bf16, nullptr) == HD_F32);
    const hd_precision_row broken[] = {{320, 320, NAN, NAN}};
    CHECK(hd_precision_choose(1, broken, nullptr) == HD_F32);
}

TEST_CASE("precision: timing fills every row", "[precision]")
{
    Run run(hd_cpu_features(), 2);
    const int64_t shapes[3][2] = {{320, 320}, {640, 1000}, {24, 4}};
    hd_precision_row table[3];
    REQUIRE_OK(hd_precision_time(&run, 3, shapes, table));
    for (int i = 0; i < 3; i++) {
        CHECK(table[i].in == shapes[i][0]);
        CHECK(table[i].out == shapes[i][1]);
        CHECK(table[i].f32_ms > 0);
        CHECK(std::isfinite(table[i].f32_ms));
        CHECK(table[i].bf16_ms > 0);
    }
}
