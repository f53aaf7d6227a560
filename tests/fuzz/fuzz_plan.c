/* tests/fuzz/fuzz_plan.c: any bytes are a plan file or an error; one that was accepted expands to
 * plans whose entries lie inside, and is written as the same bytes. The checksum and the length are
 * made right first, so that what lies behind them is reached. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/attention/planner/static_plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { LENGTH_AT = 16, LENGTH_BYTES = 8, SUM_BYTES = 8, LEAST = 56 };

static void put(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

// A copy, exactly as large as it is: the sanitizer sees a byte too much.
static uint8_t *mended(const uint8_t *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) abort();
    memcpy(copy, data, bytes);
    if (bytes < LEAST) return copy;
    put(copy + LENGTH_AT, bytes, LENGTH_BYTES);
    put(copy + bytes - SUM_BYTES, XXH64(copy, bytes - SUM_BYTES, 0), SUM_BYTES);
    return copy;
}

static void expand(const hd_plan_file *file, const hd_plan_file_site *site)
{
    // a grid is a few bytes, its order is not: what a real run has anyway is not claimed here
    if (site->site.tokens > 1 << 16 || site->site.tokens * site->site.heads > 1 << 20) return;
    hd_grid grid = {{site->grid[0], site->grid[1], site->grid[2]}, 0};
    hd_static_plans *plans;
    if (hd_static_plans_make(&plans, file, site, &grid, (hd_static_forced){true, true, true}) !=
        HD_OK)
        abort();
    for (int64_t m = 0; m < file->masks; m++) {
        const hd_plan *plan = hd_static_plans_at(plans, m);
        int64_t rows = plan->heads * plan->query_tiles;
        for (int64_t e = 0; e < plan->row_start[rows]; e++)
            if (plan->visit[e].key < 0 || plan->visit[e].key >= plan->key_tiles) abort();
        for (int64_t r = 0; plan->query_order && r < plan->orders * site->site.tokens; r++)
            if (plan->query_order[r] < 0 || plan->query_order[r] >= site->site.tokens) abort();
    }
    hd_static_plans_free(plans);
}

static void write_again(hd_plan_file *file, const uint8_t *data, size_t bytes)
{
    int fd = memfd_create("fuzz", 0);
    char path[64];
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    uint8_t *again = malloc(bytes);
    if (!again || hd_plan_file_write(file, path) != HD_OK) abort();
    if (lseek(fd, 0, SEEK_END) != (off_t)bytes) abort();
    if (pread(fd, again, bytes, 0) != (ssize_t)bytes) abort();
    if (memcmp(again, data, bytes) != 0) abort();
    free(again);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    hd_plan_file *file;
    if (hd_plan_file_parse(&file, "fuzz", data, bytes) == HD_OK) hd_plan_file_free(file);
    uint8_t *copy = mended(data, bytes);
    if (hd_plan_file_parse(&file, "fuzz", copy, bytes) == HD_OK) {
        for (int64_t i = 0; i < file->sites; i++)
            expand(file, &file->site[i]);
        write_again(file, copy, bytes);
        hd_plan_file_free(file);
    }
    free(copy);
    return 0;
}
