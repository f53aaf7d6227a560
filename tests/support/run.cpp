#include "support/run.h"

#include <stdexcept>

Run::Run(unsigned has, int threads, size_t arena_bytes)
{
    exec.has = has;
    if (hd_pool_create(&exec.pool, threads) != HD_OK ||
        hd_arena_create(&exec.arena, arena_bytes) != HD_OK)
        throw std::runtime_error(hd_message());
}

Run::~Run()
{
    hd_pool_free(exec.pool);
    hd_arena_free(exec.arena);
}

std::vector<unsigned> every_isa()
{
    unsigned has = hd_cpu_features();
    std::vector<unsigned> list = {HD_CPU};
    for (unsigned level : {(unsigned)(HD_CPU | HD_AVX2), (unsigned)(HD_CPU | HD_AVX2 | HD_AVX512),
                           (unsigned)(HD_CPU | HD_AVX2 | HD_AVX512 | HD_AVX512_BF16), has})
        if ((has & level) == level && level != list.back()) list.push_back(level);
    return list;
}

std::vector<float> normal_values(int64_t count, uint64_t seed, float scale)
{
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> out((size_t)count);
    for (float &v : out)
        v = normal(rng);
    return out;
}
