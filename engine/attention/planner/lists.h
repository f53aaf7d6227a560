/* engine/attention/planner/lists.h: a plan's visit list from bits: which key tiles each query tile
 * keeps, whole. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_LISTS_H
#define HD_ENGINE_ATTENTION_PLANNER_LISTS_H

#include "base/plan.h"
#include "engine/attention/planner/room.h"
#include "engine/attention/planner/select.h"

HD_BEGIN_DECLS

typedef struct hd_lists {
    int64_t *row_start; // [heads * query_tiles + 1]
    hd_visit *visit;    // [heads * query_tiles * key_tiles]
} hd_lists;

hd_lists hd_lists_take(hd_room *room, int64_t heads, int64_t query_tiles, int64_t key_tiles);

/* kept [heads * query_tiles][hd_bit_words(key_tiles)]: fills the lists and points the plan, whose
 * tiles are set, at them. */
HD_CHECKED hd_status hd_lists_fill(const hd_exec *ex, const hd_lists *lists, int64_t heads,
                                   const uint64_t *kept, hd_plan *plan);

/* A list that serves for several steps, in a processor's state. */
size_t hd_lists_state_bytes(int64_t heads, int64_t query_tiles, int64_t key_tiles);
/* Points the plan, whose tiles are set, at the state's list if one was made at most `steps` steps
 * before `step`. state: NULL for none. */
bool hd_lists_recall(void *state, int64_t step, int64_t steps, int64_t heads, hd_plan *plan);
void hd_lists_remember(void *state, int64_t step, const hd_plan *plan);

HD_END_DECLS
#endif
