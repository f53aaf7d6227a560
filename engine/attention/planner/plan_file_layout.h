/* engine/attention/planner/plan_file_layout.h: the constants of the format that reader and writer
 * share. plan_file.h describes it. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_PLAN_FILE_LAYOUT_H
#define HD_ENGINE_ATTENTION_PLANNER_PLAN_FILE_LAYOUT_H

#include <stdint.h>

#include "engine/attention/site.h"

static const uint8_t hd_plan_magic[8] = {'H', 'D', 'P', 'L', 'A', 'N', 0x1a, 0x0a};

enum {
    PLAN_VERSION = 1,
    PLAN_HEADER_BYTES = 48 + 8, // with the checksum: the least that a file has
    PLAN_SITE_BYTES = HD_SITE_PATH_BYTES + 8 * 4,
    PLAN_SUM_BYTES = 8,
};

// Far beyond any model's, and small enough that no product of them leaves 64 bits.
enum {
    PLAN_MOST_TILE = 4096,
    PLAN_MOST_STEPS = 10000,
    PLAN_MOST_SITES = 4096,
    PLAN_MOST_HEADS = 1024,
    PLAN_MOST_AXIS = 1 << 16,
    PLAN_MOST_TOKENS = 1 << 30,
    PLAN_MOST_TILES = 1 << 15,
};
#define PLAN_MOST_BYTES ((size_t)4 << 30)

#endif
