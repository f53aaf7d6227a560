// The plan of every tile: nothing but the engine's fields.
#include <cstring>

#include "sparse/all.h"
#include "support/attention.h"

namespace
{
const hd_processor_class *const classes[] = {&hd_dense};
const hd_processor_list list = {1, classes};
} // namespace

TEST_CASE("dense: changes no bit in the run's own numbers", "[dense][sparse]")
{
    TestCall c(2, 70, 90, 2, 16);
    TestRun none(&list, "{}"),
        dense(&list,
              R"({"processors": [{"use": "dense", "rest": "proxy", "branches": ["cond"]}]})");
    REQUIRE_OK(dense.status);
    REQUIRE_OK(c.dry(none));
    auto plain = c.act(none);
    REQUIRE_OK(c.dry(dense));
    auto out = c.act(dense);
    CHECK(memcmp(plain.data(), out.data(), out.size() * sizeof(float)) == 0);
    CHECK(dense.chain() == "dense [0, 10): plan of dense [0, 10) with proxies, else streaming f32");
}

TEST_CASE("dense: int8 acts on its rows alone, or is refused before step 0", "[dense][sparse]")
{
    TestCall c(2, 70, 90, 2, 64);
    TestRun none(&list, "{}"),
        int8(&list, R"({"processors": [{"use": "dense", "qk": "int8", "branches": ["cond"]}]})");
    REQUIRE_OK(c.dry(none));
    REQUIRE_OK(c.try_act(none));
    auto plain = c.out;
    REQUIRE_OK(c.dry(int8));        // no instruction sets at all: the plain integers
    if (c.try_act(int8) != HD_OK) { // this machine has vectors but no int8 products
        CHECK_FAILS(c.try_act(int8), HD_ERR_UNSUPPORTED, "int8");
        return;
    }
    const size_t row = plain.size() / 2;
    CHECK(memcmp(plain.data(), c.out.data(), row * sizeof(float)) == 0);
    CHECK(memcmp(plain.data() + row, c.out.data() + row, row * sizeof(float)) != 0);
    double worst = 0, top = 0;
    for (size_t i = row; i < plain.size(); i++) {
        worst = std::fmax(worst, std::fabs((double)plain[i] - (double)c.out[i]));
        top = std::fmax(top, std::fabs((double)plain[i]));
    }
    CHECK(worst < 0.05 * top);
}
