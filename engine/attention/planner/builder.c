/* engine/attention/planner/builder.c: plans row by row, from malloc or in fixed memory. */
#include "engine/attention/planner/builder.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

typedef struct hd_plan_block {
    struct hd_plan_block *next;
    size_t bytes;
    _Alignas(ALIGNMENT) char data[];
} hd_plan_block;

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

void hd_plan_builder_init(hd_plan_builder *b, void *memory, size_t bytes)
{
    *b = (hd_plan_builder){.memory = memory, .bytes = bytes};
}

void hd_plan_builder_free(hd_plan_builder *b)
{
    for (hd_plan_block *block = b->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *b = (hd_plan_builder){.memory = NULL};
}

hd_status hd_plan_builder_create(hd_plan_builder **out)
{
    hd_plan_builder *b = malloc(sizeof *b);
    if (!b) return hd_fail(HD_ERR_NOMEM, "plan: no memory for a plan");
    hd_plan_builder_init(b, NULL, 0);
    *out = b;
    return HD_OK;
}

void hd_plan_builder_destroy(void *builder)
{
    if (builder) hd_plan_builder_free(builder);
    free(builder);
}

hd_status hd_plan_give_built(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    const hd_plan_builder *b = ctx->made;
    for (int64_t row = 0; row < tokens->q.dim[0]; row++)
        if (ctx->active[row]) plan[row] = b ? &b->plan : NULL;
    return HD_OK;
}

static void *take(hd_plan_builder *b, size_t bytes)
{
    bytes = aligned(bytes ? bytes : 1);
    if (b->memory) {
        if (bytes > b->bytes - b->used) {
            (void)hd_fail(HD_ERR_NOMEM, "plan: its memory of %zu bytes is too small by %zu",
                          b->bytes, bytes - (b->bytes - b->used));
            return NULL;
        }
        b->used += bytes;
        return b->memory + b->used - bytes;
    }
    hd_plan_block *block = aligned_alloc(ALIGNMENT, sizeof *block + bytes);
    if (!block) {
        (void)hd_fail(HD_ERR_NOMEM, "plan: no memory for %zu bytes", bytes);
        return NULL;
    }
    block->next = b->blocks;
    block->bytes = bytes;
    b->blocks = block;
    return block->data;
}

void *hd_plan_take(hd_plan_builder *b, int64_t count, size_t size)
{
    size_t bytes;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) || bytes > PTRDIFF_MAX) {
        (void)hd_fail(HD_ERR_NOMEM, "plan: no memory for %lld x %zu bytes", (long long)count, size);
        return NULL;
    }
    void *data = take(b, bytes);
    if (data && bytes) memset(data, 0, bytes);
    return data;
}

// `old` with its first `kept` bytes moved to a place of `bytes`; the old place is given back.
static void *moved(hd_plan_builder *b, void *old, size_t kept, size_t bytes)
{
    void *fresh = take(b, bytes);
    if (!fresh || !old) return fresh;
    memcpy(fresh, old, kept);
    if (b->memory) return fresh;
    for (hd_plan_block **at = &b->blocks->next; *at; at = &(*at)->next) { // the first is fresh
        hd_plan_block *block = *at;
        if ((void *)block->data != old) continue;
        *at = block->next;
        free(block);
        break;
    }
    return fresh;
}

static int64_t words(int64_t bits)
{
    return (bits + 63) / 64;
}

size_t hd_plan_rows_bytes(const hd_plan *plan, int64_t visits, int64_t masks, unsigned kinds)
{
    size_t bytes = aligned((size_t)(plan->heads * plan->query_tiles + 1) * sizeof(int64_t)) +
                   aligned((size_t)(visits ? visits : 1) * sizeof(hd_visit));
    if (kinds & HD_PLAN_ROW_MASKS)
        bytes +=
            aligned((size_t)((masks ? masks : 1) * words(plan->query_tile)) * sizeof(uint64_t));
    if (kinds & HD_PLAN_COLUMN_MASKS)
        bytes += aligned((size_t)((masks ? masks : 1) * words(plan->key_tile)) * sizeof(uint64_t));
    return bytes;
}

static hd_status grow_masks(hd_plan_builder *b, int64_t room, unsigned kinds)
{
    const size_t row = (size_t)words(b->plan.query_tile) * sizeof(uint64_t);
    const size_t column = (size_t)words(b->plan.key_tile) * sizeof(uint64_t);
    if (kinds & HD_PLAN_ROW_MASKS) {
        uint64_t *fresh = moved(b, b->row_mask, (size_t)b->masks * row, (size_t)room * row);
        if (!fresh) return HD_ERR_NOMEM;
        b->row_mask = fresh;
    }
    if (kinds & HD_PLAN_COLUMN_MASKS) {
        uint64_t *fresh =
            moved(b, b->column_mask, (size_t)b->masks * column, (size_t)room * column);
        if (!fresh) return HD_ERR_NOMEM;
        b->column_mask = fresh;
    }
    b->mask_room = room;
    return HD_OK;
}

static hd_status grow_visits(hd_plan_builder *b, int64_t room)
{
    hd_visit *fresh =
        moved(b, b->visit, (size_t)b->visits * sizeof *fresh, (size_t)room * sizeof *fresh);
    if (!fresh) return HD_ERR_NOMEM;
    b->visit = fresh;
    b->visit_room = room;
    return HD_OK;
}

hd_status hd_plan_begin(hd_plan_builder *b, int64_t visits, int64_t masks, unsigned kinds)
{
    HD_ENSURE(b->plan.heads >= 1 && b->plan.query_tiles >= 0);
    b->row = b->visits = b->masks = 0;
    b->row_start = take(b, (size_t)(b->plan.heads * b->plan.query_tiles + 1) * sizeof(int64_t));
    if (!b->row_start) return HD_ERR_NOMEM;
    b->row_start[0] = 0;
    b->visit = NULL;
    b->row_mask = b->column_mask = NULL;
    HD_TRY(grow_visits(b, visits > 0 ? visits : 1));
    return kinds ? grow_masks(b, masks > 0 ? masks : 1, kinds) : HD_OK;
}

hd_status hd_plan_add(hd_plan_builder *b, int64_t key, int32_t mask)
{
    HD_ENSURE(key >= 0 && key <= INT32_MAX);
    if (b->visits == b->visit_room) {
        if (b->memory)
            return hd_fail(HD_ERR_NOMEM, "plan: more than the %lld entries its memory is for",
                           (long long)b->visit_room);
        HD_TRY(grow_visits(b, b->visit_room * 2));
    }
    b->visit[b->visits++] = (hd_visit){(int32_t)key, mask};
    return HD_OK;
}

hd_status hd_plan_mask(hd_plan_builder *b, int32_t *mask, uint64_t **row, uint64_t **column)
{
    HD_ENSURE(b->row_mask || b->column_mask);
    if (b->masks == b->mask_room) {
        if (b->memory || b->mask_room > INT32_MAX / 2)
            return hd_fail(HD_ERR_NOMEM, "plan: more than the %lld masks its memory is for",
                           (long long)b->mask_room);
        HD_TRY(grow_masks(b, b->mask_room * 2,
                          (b->row_mask ? HD_PLAN_ROW_MASKS : 0u) |
                              (b->column_mask ? HD_PLAN_COLUMN_MASKS : 0u)));
    }
    const int64_t row_words = words(b->plan.query_tile), column_words = words(b->plan.key_tile);
    if (b->row_mask) {
        uint64_t *at = b->row_mask + b->masks * row_words;
        memset(at, 0, (size_t)row_words * sizeof *at);
        if (row) *row = at;
    }
    if (b->column_mask) {
        uint64_t *at = b->column_mask + b->masks * column_words;
        memset(at, 0, (size_t)column_words * sizeof *at);
        if (column) *column = at;
    }
    *mask = (int32_t)b->masks++;
    return HD_OK;
}

void hd_plan_close_row(hd_plan_builder *b)
{
    if (b->row < b->plan.heads * b->plan.query_tiles) b->row_start[b->row + 1] = b->visits;
    b->row++;
}

hd_status hd_plan_end(hd_plan_builder *b)
{
    HD_ENSURE(b->row == b->plan.heads * b->plan.query_tiles);
    b->plan.row_start = b->row_start;
    b->plan.visit = b->visit;
    b->plan.row_mask = b->row_mask;
    b->plan.column_mask = b->column_mask;
    return HD_OK;
}
