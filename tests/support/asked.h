/* tests/support/asked.h: a control of a preset with its branches asked for, without a pipeline. */
#ifndef HD_TESTS_SUPPORT_ASKED_H
#define HD_TESTS_SUPPORT_ASKED_H

#include <string>
#include <vector>

#include "engine/attention/beside_run.h"
#include "support/attention.h"

/* A class of a test's own without parameters. */
hd_processor_class class_named(const char *name);

/* The control `use` with `options` behind it, in a run that has main and `others`, whose latents
 * are 4 x 64 x 64. */
struct AskedRun {
    hd_branches branches{};
    hd_features *features = nullptr;
    hd_beside_run *beside = nullptr;
    TestRun run;

    AskedRun(const std::string &use, const std::string &options,
             const std::vector<const char *> &others, int64_t steps, float guidance);
    ~AskedRun();
    AskedRun(const AskedRun &) = delete;
    AskedRun &operator=(const AskedRun &) = delete;
};

#endif
