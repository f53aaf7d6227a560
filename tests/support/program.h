/* tests/support/program.h: runs the built heddle program. */
#ifndef HD_TESTS_SUPPORT_PROGRAM_H
#define HD_TESTS_SUPPORT_PROGRAM_H

#include <functional>
#include <string>
#include <vector>

/* What a run of the program said. */
struct Said {
    int code; // exit status, or 128 + the signal
    std::string out, err;
};

/* heddle with these arguments in `folder`. `meanwhile` is called about every 20 ms with the process
 * while it runs; 120 seconds at most. */
Said heddle(const std::string &folder, const std::vector<std::string> &arguments,
            const std::function<void(int pid)> &meanwhile = nullptr);

#endif
