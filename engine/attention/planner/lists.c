/* engine/attention/planner/lists.c: bits to visit lists, head by head. */
#include "engine/attention/planner/lists.h"

#include <string.h>

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

typedef struct lists_memory {
    int64_t next; // the step behind the one that made it; 0: none
} lists_memory;

static lists_memory *memory_of(hd_room *room, int64_t heads, int64_t query_tiles, int64_t key_tiles,
                               hd_lists *lists)
{
    lists_memory *memory = hd_room_take(room, 1, sizeof *memory);
    *lists = hd_lists_take(room, heads, query_tiles, key_tiles);
    return memory;
}

size_t hd_lists_state_bytes(int64_t heads, int64_t query_tiles, int64_t key_tiles)
{
    hd_room room = {0};
    hd_lists lists;
    memory_of(&room, heads, query_tiles, key_tiles, &lists);
    return room.used;
}

bool hd_lists_recall(void *state, int64_t step, int64_t steps, int64_t heads, hd_plan *plan)
{
    hd_room room = {state, 0};
    hd_lists lists;
    if (!state) return false;
    const lists_memory *memory =
        memory_of(&room, heads, plan->query_tiles, plan->key_tiles, &lists);
    if (memory->next == 0 || step < memory->next - 1 || step >= memory->next + steps) return false;
    plan->heads = heads;
    plan->row_start = lists.row_start;
    plan->visit = lists.visit;
    return true;
}

void hd_lists_remember(void *state, int64_t step, const hd_plan *plan)
{
    hd_room room = {state, 0};
    hd_lists lists;
    if (!state) return;
    const int64_t rows = plan->heads * plan->query_tiles;
    lists_memory *memory =
        memory_of(&room, plan->heads, plan->query_tiles, plan->key_tiles, &lists);
    memcpy(lists.row_start, plan->row_start, (size_t)(rows + 1) * sizeof *lists.row_start);
    memcpy(lists.visit, plan->visit, (size_t)plan->row_start[rows] * sizeof *lists.visit);
    memory->next = step + 1;
}
