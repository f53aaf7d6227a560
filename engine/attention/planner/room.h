/* engine/attention/planner/room.h: a planner's working memory, and its loops over the pool.
 *
 * Planners do not allocate: the same function that lays out its arrays runs once in prepare, on no
 * memory, to learn their size, and once per call on the scratch or state that the engine made. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_ROOM_H
#define HD_ENGINE_ATTENTION_PLANNER_ROOM_H

#include "base/exec.h"

HD_BEGIN_DECLS

typedef struct hd_room {
    char *base; // NULL: only count
    size_t used;
} hd_room;

/* count elements of `size` bytes, 64-byte aligned (if the base is); NULL while counting. */
void *hd_room_take(hd_room *room, int64_t count, size_t size);

/* Work is handed out in at most so many shares; a share has scratch of its own. */
enum { HD_PLANNER_SHARES = 32 };

typedef hd_status (*hd_share_work)(void *arg, int64_t item, int64_t share);

/* work(arg, i, share) for every i in [0, count), item i in share i % HD_PLANNER_SHARES. Items of a
 * share never run at the same time. */
HD_CHECKED hd_status hd_share_for(const hd_exec *ex, int64_t count, hd_share_work work, void *arg);

HD_END_DECLS
#endif
