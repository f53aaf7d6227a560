/* pipelines/clock.h: seconds that only go forwards. */
#ifndef HD_PIPELINES_CLOCK_H
#define HD_PIPELINES_CLOCK_H

#include <time.h>

static inline double hd_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
