/* tests/support/catch.h: Catch2, whichever of its two generations the system has. */
#ifndef HD_TESTS_SUPPORT_CATCH_H
#define HD_TESTS_SUPPORT_CATCH_H

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx; // as the older generation has it
#else
#include <catch2/catch.hpp>
#endif

#include "base/status.h"

/* The call succeeds, or the test stops with its message. */
#define REQUIRE_OK(call)                                                                           \
    do {                                                                                           \
        hd_status require_ok_status_ = (call);                                                     \
        INFO((require_ok_status_ == HD_OK ? "" : hd_message()));                                   \
        REQUIRE(require_ok_status_ == HD_OK);                                                      \
    } while (0)

/* The call fails with this status and a message that holds `text`. */
#define CHECK_FAILS(call, status, text)                                                            \
    do {                                                                                           \
        CHECK((call) == (status));                                                                 \
        INFO(hd_message());                                                                        \
        CHECK(std::string(hd_message()).find(text) != std::string::npos);                          \
    } while (0)

#endif
