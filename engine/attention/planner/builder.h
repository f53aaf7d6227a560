/* engine/attention/planner/builder.h: builds a plan row by row, and says what a plan costs.
 *
 * A static plan is built once, by malloc, in a prepare hook; an online planner builds into memory
 * that it asked for (scratch, state), where nothing grows. Either way: init; fill plan's sizes,
 * orders and rules, with arrays from hd_plan_take; begin; per row (head by head, query tile by
 * query tile) add its entries ascending by key and close it; end. Then `plan` is complete and lives
 * as long as the builder. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_BUILDER_H
#define HD_ENGINE_ATTENTION_PLANNER_BUILDER_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

enum { // masks that entries may carry
    HD_PLAN_ROW_MASKS = 1u << 0,
    HD_PLAN_COLUMN_MASKS = 1u << 1,
};

typedef struct hd_plan_builder {
    hd_plan plan;
    int64_t row, visits, visit_room, masks, mask_room;
    int64_t *row_start;
    hd_visit *visit;
    uint64_t *row_mask, *column_mask; // NULL: none of that kind
    char *memory;                     // NULL: malloc
    size_t bytes, used;
    struct hd_plan_block *blocks; // what malloc gave
} hd_plan_builder;

/* Empty. memory: NULL, or [bytes], borrowed, aligned to 64. */
void hd_plan_builder_init(hd_plan_builder *b, void *memory, size_t bytes);
void hd_plan_builder_free(hd_plan_builder *b);

/* A builder over malloc on the heap, for hd_prepare_ctx.made; destroy is a class's `release` and
 * takes NULL. */
HD_CHECKED hd_status hd_plan_builder_create(hd_plan_builder **out);
void hd_plan_builder_destroy(void *builder);
/* A class's `plan`: what is built in ctx->made for every active row; made NULL: dense. */
HD_CHECKED hd_status hd_plan_give_built(const hd_hook_ctx *ctx, const hd_tokens *tokens,
                                        const hd_plan **plan);

/* `count` zeroed elements of `size` bytes that live as long as the plan; NULL (with a message) if
 * there is no memory. */
void *hd_plan_take(hd_plan_builder *b, int64_t count, size_t size);

/* Memory that rows of `plan` need: that many entries and masks, at most. */
size_t hd_plan_rows_bytes(const hd_plan *plan, int64_t visits, int64_t masks, unsigned kinds);
/* Rows follow. visits, masks: room for so many; without fixed memory it grows. */
HD_CHECKED hd_status hd_plan_begin(hd_plan_builder *b, int64_t visits, int64_t masks,
                                   unsigned kinds);
/* One more entry of the open row; mask: HD_VISIT_FULL, HD_VISIT_PARTIAL or hd_plan_mask's. */
HD_CHECKED hd_status hd_plan_add(hd_plan_builder *b, int64_t key, int32_t mask);
/* A new mask, all bits 0: *row [ceil(query_tile / 64)], *column [ceil(key_tile / 64)], to be filled
 * before the next one is asked for; NULL: not wanted, or no such kind. */
HD_CHECKED hd_status hd_plan_mask(hd_plan_builder *b, int32_t *mask, uint64_t **row,
                                  uint64_t **column);
void hd_plan_close_row(hd_plan_builder *b);
/* All rows have been closed. */
HD_CHECKED hd_status hd_plan_end(hd_plan_builder *b);

/* Coordinates first, first + step, ... of one axis of the grid. */
typedef struct hd_plan_line {
    int64_t first, count, step;
} hd_plan_line;

/* How many pairs (query coordinate, key coordinate) the window rule of one axis lets through. The
 * product over the axes is that of a box of queries and a box of keys. */
int64_t hd_plan_axis_pairs(const hd_plan_axis *axis, hd_plan_line queries, hd_plan_line keys);

/* What one call over a plan costs, all heads of one row. Pairs are of a query and a key. */
typedef struct hd_plan_stats {
    int64_t entries, full, partial;      // visited by the query tiles of all heads
    double dense_pairs;                  // queries x keys x heads
    double executed_pairs;               // entries as a whole, dense tail and proxies
    double useful_pairs;                 // those that are seen, with tail and proxies
    double tail_pairs, proxy_pairs;      // executed ones, in the above
    double density;                      // executed / dense
    double executed_flops, useful_flops; // of both products
    double streamed_bytes;               // q and out once, k and v as often as they are visited
    double unique_bytes;                 // q, k, v and out once
} hd_plan_stats;

/* heads: of the call. dim, value_dim: of a head; size: bytes of an element. Takes time: it looks at
 * every partial entry. HD_ERR_UNSUPPORTED for key boxes under a segment rule with a key order. */
HD_CHECKED hd_status hd_plan_measure(hd_plan_stats *out, const hd_plan *plan, int64_t heads,
                                     int64_t queries, int64_t keys, int64_t dim, int64_t value_dim,
                                     size_t size);

HD_END_DECLS
#endif
