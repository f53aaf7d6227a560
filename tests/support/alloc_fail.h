/* tests/support/alloc_fail.h: makes one allocation fail, to see what the library does about it; or
 * notes how large they are.
 *
 * The test program's calls of malloc and its kin, the library's included, go through a counter (the
 * linker's --wrap), and so do the JSON parser's (its own hooks). C++'s new and what other shared
 * libraries do inside are not touched. */
#ifndef HD_TESTS_SUPPORT_ALLOC_FAIL_H
#define HD_TESTS_SUPPORT_ALLOC_FAIL_H

#include <cstdint>
#include <string>

#include "support/catch.h"

/* As long as it lives, allocation number `n` from its birth on (1 is the first) fails, once. */
class FailAllocation
{
  public:
    explicit FailAllocation(int64_t n);
    ~FailAllocation();
    FailAllocation(const FailAllocation &) = delete;
    FailAllocation &operator=(const FailAllocation &) = delete;
    bool failed() const; // it came to that allocation
};

/* As long as it lives, notes the largest allocation. */
class LargestAllocation
{
  public:
    LargestAllocation();
    ~LargestAllocation();
    LargestAllocation(const LargestAllocation &) = delete;
    LargestAllocation &operator=(const LargestAllocation &) = delete;
    size_t bytes() const;
};

/* Runs `run` (which returns an hd_status and cleans up after itself) with its first allocation
 * failing, its second, and so on, until it needs fewer: each time HD_ERR_NOMEM with a message, in
 * the end HD_OK. Gives the number of allocations. Leaks and crashes are the sanitizers' to see. */
template <class Run> int64_t fail_each_allocation(Run &&run)
{
    for (int64_t n = 1;; n++) {
        hd_status status;
        bool failed;
        {
            FailAllocation fail(n);
            status = run();
            failed = fail.failed();
        }
        CAPTURE(n);
        if (!failed) {
            REQUIRE_OK(status);
            return n - 1;
        }
        INFO(hd_message());
        REQUIRE(status == HD_ERR_NOMEM);
        REQUIRE(std::string(hd_message()).find("memory") != std::string::npos);
    }
}

#endif
