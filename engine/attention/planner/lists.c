/* engine/attention/planner/lists.c: bits to visit lists, head by head. */
#include "engine/attention/planner/lists.h"

hd_lists hd_lists_take(hd_room *room, int64_t heads, int64_t query_tiles, int64_t key_tiles)
{
    hd_lists lists;
    lists.row_start = hd_room_take(room, heads * query_tiles + 1, sizeof *lists.row_start);
    lists.visit = hd_room_take(room, heads * query_tiles * key_tiles, sizeof *lists.visit);
    return lists;
}

typedef struct fill_work {
    const hd_lists *lists;
    const uint64_t *kept;
    int64_t words, tiles;
} fill_work;

static hd_status fill_head(void *arg, int64_t head, int thread)
{
    const fill_work *w = arg;
    (void)thread;
    for (int64_t r = head * w->tiles; r < (head + 1) * w->tiles; r++) {
        hd_visit *to = w->lists->visit + w->lists->row_start[r];
        for (int64_t i = 0; i < w->words; i++)
            for (uint64_t word = w->kept[r * w->words + i]; word; word &= word - 1)
                *to++ = (hd_visit){(int32_t)(i * 64 + __builtin_ctzll(word)), HD_VISIT_FULL};
    }
    return HD_OK;
}

hd_status hd_lists_fill(const hd_exec *ex, const hd_lists *lists, int64_t heads,
                        const uint64_t *kept, hd_plan *plan)
{
    const int64_t words = hd_bit_words(plan->key_tiles);
    int64_t at = 0;
    for (int64_t r = 0; r < heads * plan->query_tiles; r++) {
        lists->row_start[r] = at;
        at += hd_bits_count(kept + r * words, words);
    }
    lists->row_start[heads * plan->query_tiles] = at;
    plan->heads = heads;
    plan->row_start = lists->row_start;
    plan->visit = lists->visit;
    fill_work w = {lists, kept, words, plan->query_tiles};
    return hd_parallel_for(ex->pool, heads, fill_head, &w);
}
