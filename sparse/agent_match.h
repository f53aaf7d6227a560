/* sparse/agent_match.h: which tokens of a grid are alike enough to be one: bipartite matching of
 * ToMe (Bolya and Hoffman, Token Merging for Fast Stable Diffusion, 2023), as Agent attention uses
 * it.
 *
 * The grid is cut into cells of whole strides; one token of each cell is a destination, all others
 * (the ragged margin too) are sources. Each source finds its most similar destination; the most
 * similar sources are merged into theirs. */
#ifndef HD_SPARSE_AGENT_MATCH_H
#define HD_SPARSE_AGENT_MATCH_H

#include "base/dtype.h"
#include "engine/attention/planner/room.h"

HD_BEGIN_DECLS

typedef struct hd_match_grid {
    int64_t size[3], stride[3]; // frames, height, width
    int64_t cells[3];           // floor(size / stride)
    int64_t tokens, targets, sources;
} hd_match_grid;

/* targets 0: a stride is longer than its axis. */
hd_match_grid hd_match_grid_of(const int64_t size[3], const int64_t stride[3]);

/* The token that stands for each cell, target [targets]: its first one, or (seed given) any, drawn
 * by Philox from the seed, the step and the site's number. */
void hd_match_targets(const hd_match_grid *grid, const uint64_t *seed, int64_t step, uint32_t site,
                      int32_t *target);

/* The lists of one row. */
typedef struct hd_match {
    int32_t *source; // [sources] tokens that are no target, ascending
    int32_t *best;   // [sources] number of the most similar target, the lowest of equal ones
    float *alike;    // [sources] their cosine similarity
    int32_t *order;  // [sources] most similar first, of equal ones the lower first
    // The tokens of each group: the target, then the sources merged into it, in their order.
    int32_t *start, *list; // [targets + 1] into [tokens]
    // [tokens] where a token's result is: sources that stay, then targets; the caller's memory
    int32_t *place;
} hd_match;

/* Features of the tokens of one row. */
typedef struct hd_match_features {
    const void *data; // [tokens][channels]
    hd_dtype dtype;   // f32 or bf16
    int64_t stride, channels;
} hd_match_features;

/* Takes the lists but `place` from `room` (which may only count). */
void hd_match_take(hd_room *room, hd_match *match, const hd_match_grid *grid);
/* Scratch of hd_match_find. */
typedef struct hd_match_work {
    float *target;       // [targets][channels] of length 1
    float *panel, *dots; // [shares] each
    uint64_t *key;       // [2 sources]
} hd_match_work;
void hd_match_work_take(hd_room *room, hd_match_work *work, const hd_match_grid *grid,
                        int64_t channels);

/* source, best, alike and order. A token without length is alike to nothing: 0. */
HD_CHECKED hd_status hd_match_find(const hd_exec *ex, hd_match *match, const hd_match_grid *grid,
                                   const hd_match_features *x, const int32_t *target,
                                   const hd_match_work *work);
/* start, list and place for the first `merged` sources. */
void hd_match_lists(hd_match *match, const hd_match_grid *grid, const int32_t *target,
                    int64_t merged);

HD_END_DECLS
#endif
