/* tests/support/plan.h: what a plan means, key by key: the truth that kernels and planners are
 * compared with. Written from base/plan.h's words, slow on purpose. */
#ifndef HD_TESTS_SUPPORT_PLAN_H
#define HD_TESTS_SUPPORT_PLAN_H

#include <cstdint>
#include <vector>

#include "base/plan.h"

struct PlanMeaning {
    int64_t queries, keys, tiles; // tokens; proxies: one per key tile
    std::vector<uint8_t> sees;    // [queries][keys] by token
    std::vector<uint8_t> proxy;   // [queries][tiles]: the mean of that tile's keys stands in
    std::vector<std::vector<int64_t>> tile_tokens; // [tiles]
    int64_t entries = 0;                           // visited
    bool at(int64_t q, int64_t k) const
    {
        return sees[(size_t)(q * keys + k)] != 0;
    }
    int64_t pairs() const;
};

/* One head of a plan over `queries` and `keys` tokens. Throws a text if an entry is out of order or
 * out of range, an order is no permutation or a tile is empty. */
PlanMeaning plan_meaning(const hd_plan &plan, int64_t head, int64_t queries, int64_t keys);

#endif
