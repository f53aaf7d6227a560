/* tests/support/run.h: executors to run operators on: every instruction set of this machine,
 * several thread counts. */
#ifndef HD_TESTS_SUPPORT_RUN_H
#define HD_TESTS_SUPPORT_RUN_H

#include <random>
#include <vector>

#include "base/exec.h"
#include "engine/arena.h"

/* An executor with its own pool and arena. */
class Run
{
  public:
    explicit Run(unsigned has = hd_cpu_features(), int threads = 1, size_t arena_bytes = 64u << 20);
    ~Run();
    Run(const Run &) = delete;
    Run &operator=(const Run &) = delete;
    const hd_exec *operator&() const
    {
        return &exec;
    }
    hd_exec exec{};
};

/* Instruction-set ceilings this machine can run, the plainest (HD_CPU: the reference) first. */
std::vector<unsigned> every_isa();

std::vector<float> normal_values(int64_t count, uint64_t seed, float scale = 1.0f);

#endif
