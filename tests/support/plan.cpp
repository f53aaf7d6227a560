#include "support/plan.h"

#include <stdexcept>
#include <string>

namespace
{

std::vector<int64_t> order_of(const int32_t *order, int64_t orders, int64_t head, int64_t count)
{
    std::vector<int64_t> token((size_t)count);
    std::vector<bool> met((size_t)count);
    for (int64_t r = 0; r < count; r++) {
        int64_t t = order ? order[(orders == 1 ? 0 : head) * count + r] : r;
        if (t < 0 || t >= count || met[(size_t)t])
            throw std::runtime_error("rank " + std::to_string(r) + " is token " +
                                     std::to_string(t));
        met[(size_t)t] = true;
        token[(size_t)r] = t;
    }
    return token;
}

struct Coordinates {
    int64_t x[3];
};

Coordinates coordinates(const hd_plan &p, int64_t token)
{
    int64_t t = token - p.grid_token;
    return {{t / (p.grid[1] * p.grid[2]), t / p.grid[2] % p.grid[1], t % p.grid[2]}};
}

bool window_sees(const hd_plan &p, int64_t head, int64_t q, int64_t k)
{
    Coordinates a = coordinates(p, q), b = coordinates(p, k);
    for (int i = 0; i < 3; i++) {
        const hd_plan_axis &w = p.window[(p.windows > 1 ? head * 3 : 0) + i];
        if (b.x[i] < w.start[a.x[i]] || b.x[i] >= w.end[a.x[i]]) return false;
        if ((b.x[i] - a.x[i]) % w.dilation != 0) return false;
    }
    return true;
}

bool bit(const uint64_t *words, int64_t i)
{
    return words[i / 64] >> (i % 64) & 1;
}

// The keys of an entry: token and number within the entry.
std::vector<std::pair<int64_t, int64_t>> keys_of(const hd_plan &p, const hd_visit &e,
                                                 const std::vector<int64_t> &token)
{
    std::vector<std::pair<int64_t, int64_t>> list;
    if (p.box_extent[0] == 0) {
        if (e.key < 0 || e.key >= p.key_tiles) throw std::runtime_error("no such key tile");
        int64_t first = hd_plan_key_start(&p, e.key), end = hd_plan_key_start(&p, e.key + 1);
        for (int64_t r = first; r < end; r++)
            list.push_back({token[(size_t)r], r - first});
        return list;
    }
    Coordinates o = coordinates(p, e.key);
    int64_t n = 0;
    for (int64_t f = o.x[0]; f < o.x[0] + p.box_extent[0]; f++)
        for (int64_t y = o.x[1]; y < o.x[1] + p.box_extent[1]; y++)
            for (int64_t x = o.x[2]; x < o.x[2] + p.box_extent[2]; x++, n++)
                if (f < p.grid[0] && y < p.grid[1] && x < p.grid[2])
                    list.push_back({p.grid_token + (f * p.grid[1] + y) * p.grid[2] + x, n});
    return list;
}

} // namespace

int64_t PlanMeaning::pairs() const
{
    int64_t sum = 0;
    for (uint8_t s : sees)
        sum += s;
    return sum;
}

PlanMeaning plan_meaning(const hd_plan &p, int64_t head, int64_t queries, int64_t keys)
{
    PlanMeaning m{queries, keys, p.key_tiles, {}, {}, {}, 0};
    m.sees.assign((size_t)(queries * keys), 0);
    m.proxy.assign((size_t)(queries * p.key_tiles), p.rest == HD_REST_PROXY);
    std::vector<int64_t> qt = order_of(p.query_order, p.orders, head, queries);
    std::vector<int64_t> kt = order_of(p.key_order, p.orders, head, keys);
    const int64_t o = p.orders <= 1 ? 0 : head;
    std::vector<int64_t> key_rank((size_t)keys);
    for (int64_t r = 0; r < keys; r++)
        key_rank[(size_t)kt[(size_t)r]] = r;
    for (int64_t t = 0; t < p.key_tiles; t++) {
        m.tile_tokens.emplace_back();
        for (int64_t r = hd_plan_key_start(&p, t); r < hd_plan_key_start(&p, t + 1); r++)
            m.tile_tokens.back().push_back(kt[(size_t)r]);
        if (m.tile_tokens.back().empty()) throw std::runtime_error("empty key tile");
    }
    const int64_t query_words = (p.query_tile + 63) / 64, key_words = (p.key_tile + 63) / 64;
    for (int64_t t = 0; t < p.query_tiles; t++) {
        hd_visits row = hd_plan_row(&p, head, t);
        int64_t first = hd_plan_query_start(&p, t), end = hd_plan_query_start(&p, t + 1), last = -1;
        m.entries += row.count;
        for (int64_t i = 0; i < row.count; i++) {
            hd_visit e = hd_visits_entry(row, i);
            if (e.key <= last) throw std::runtime_error("entries do not ascend");
            last = e.key;
            for (int64_t r = first; r < end; r++) {
                const int64_t q = qt[(size_t)r];
                bool row_sees =
                    e.mask < 0 || !p.row_mask || bit(p.row_mask + e.mask * query_words, r - first);
                if (row_sees && p.box_extent[0] == 0 && p.rest == HD_REST_PROXY)
                    m.proxy[(size_t)(q * m.tiles + e.key)] = 0;
                for (auto [k, n] : keys_of(p, e, kt)) {
                    bool seen = row_sees;
                    if (e.mask != HD_VISIT_FULL) {
                        if (p.window) seen = seen && window_sees(p, head, q, k);
                        if (p.query_segment)
                            seen = seen && p.query_segment[o * p.query_ranks + r] ==
                                               p.key_segment[o * p.key_ranks + key_rank[(size_t)k]];
                        if (e.mask >= 0 && p.column_mask)
                            seen = seen && bit(p.column_mask + e.mask * key_words, n);
                    }
                    if (seen) m.sees[(size_t)(q * keys + k)] = 1;
                }
            }
        }
    }
    for (int64_t r = 0; r < queries; r++)
        for (int64_t j = 0; j < keys; j++)
            if (r >= p.query_ranks || j >= p.key_ranks)
                m.sees[(size_t)(qt[(size_t)r] * keys + kt[(size_t)j])] = 1;
    for (int64_t r = p.query_ranks; r < queries; r++)
        for (int64_t t = 0; t < m.tiles; t++)
            m.proxy[(size_t)(qt[(size_t)r] * m.tiles + t)] = 0;
    return m;
}
