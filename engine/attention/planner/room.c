/* engine/attention/planner/room.c: working memory and shares of work. */
#include "engine/attention/planner/room.h"

void *hd_room_take(hd_room *room, int64_t count, size_t size)
{
    const size_t at = room->used; // whole cache lines: the sum is the same in any order
    room->used += ((size_t)count * size + 63) & ~(size_t)63;
    return room->base ? room->base + at : NULL;
}

typedef struct share_loop {
    int64_t count;
    hd_share_work work;
    void *arg;
} share_loop;

static hd_status run_share(void *arg, int64_t share, int thread)
{
    const share_loop *loop = arg;
    (void)thread;
    for (int64_t i = share; i < loop->count; i += HD_PLANNER_SHARES)
        HD_TRY(loop->work(loop->arg, i, share));
    return HD_OK;
}

hd_status hd_share_for(const hd_exec *ex, int64_t count, hd_share_work work, void *arg)
{
    share_loop loop = {count, work, arg};
    int64_t shares = count < HD_PLANNER_SHARES ? count : HD_PLANNER_SHARES;
    return hd_parallel_for(ex->pool, shares, run_share, &loop);
}
