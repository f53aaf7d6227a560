/* sparse/block_causal.c: attention of a video to its past, block of frames by block of frames
 * (Cheng et al., Next-Frame Diffusion, arXiv 2506.01380; Ren et al., Next Block Prediction, arXiv
 * 2502.07737).
 *
 * { "use": "block_causal", "block_frames": 3, "window_frames": 21, "sites": ["** self"] }
 *
 * A frame sees its own block whole and every earlier one, or with a window the last so many frames
 * up to its block's end. Whole sequences only: with a key and value cache no mask is needed. Needs
 * the plan hook; tokens beside the grid see everything and are seen by everything. The model must
 * have been trained this way. */
#include "engine/attention/planner/builder.h"
#include "engine/attention/planner/orders.h"
#include "sparse/all.h"

enum { TILE = 128 };
// Pieces between two borders of the mask that are shorter are not worth a tile of their own.
enum { PIECE_LEAST = 32 };

typedef struct block_causal {
    int64_t block_frames, window_frames;
} block_causal;

static const hd_param block_causal_params[] = {
    HD_PARAM_INT(block_causal, block_frames, .def = 1, .min = 1, .max = 1 << 20,
                 .help = "frames of a block, which see each other"),
    HD_PARAM_INT(block_causal, window_frames, .def = -1, .min = -1, .max = 1 << 20,
                 .help = "frames seen up to the end of one's block; -1: all"),
    HD_PARAM_END,
};

static hd_status block_causal_check(void *params)
{
    const block_causal *p = params;
    if (p->window_frames != -1 && p->window_frames < p->block_frames)
        return hd_fail(
            HD_ERR_ARGUMENT,
            "window_frames is %lld but block_frames is %lld: a block must see itself; use "
            "at least %lld, or -1 for all frames",
            (long long)p->window_frames, (long long)p->block_frames, (long long)p->block_frames);
    return HD_OK;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// First frame that is seen from each frame, and the one behind the last.
static void frame_window(const block_causal *p, int64_t frames, int32_t *start, int32_t *end)
{
    for (int64_t f = 0; f < frames; f++) {
        const int64_t behind = (f / p->block_frames + 1) * p->block_frames;
        const int64_t first = p->window_frames == -1 ? 0 : behind - p->window_frames;
        start[f] = (int32_t)(first > 0 ? first : 0);
        end[f] = (int32_t)least(behind, frames);
    }
}

// Tiles that end where the mask's borders are, so that none is partial, unless those lie too close.
static hd_status take_tiles(hd_plan_builder *b, const block_causal *p, const hd_grid *grid)
{
    const int64_t unit = p->window_frames == -1 ? p->block_frames
                                                : common_divisor(p->block_frames, p->window_frames);
    const int64_t tokens = hd_grid_tokens(grid), line = unit * grid->size[1] * grid->size[2];
    const int64_t piece = line < PIECE_LEAST ? tokens : line;
    int64_t tiles = 0;
    for (int64_t at = 0; at < tokens; at += piece)
        tiles += (least(piece, tokens - at) + TILE - 1) / TILE;
    int32_t *bound = hd_plan_take(b, tiles + 1, sizeof *bound);
    if (!bound) return HD_ERR_NOMEM;
    int64_t t = 0;
    for (int64_t at = 0; at < tokens; at += piece)
        for (int64_t first = at; first < least(at + piece, tokens); first += TILE)
            bound[t++] = (int32_t)first;
    bound[t] = (int32_t)tokens;
    b->plan.query_bound = b->plan.key_bound = bound;
    b->plan.query_tiles = b->plan.key_tiles = tiles;
    b->plan.query_tile = b->plan.key_tile = TILE;
    b->plan.query_ranks = b->plan.key_ranks = tokens;
    return HD_OK;
}

// Tokens stay in their order; the grid comes first.
static hd_status take_order(hd_plan_builder *b, const int32_t **out, const hd_grid *grid,
                            int64_t tokens)
{
    if (grid->token == 0) return HD_OK;
    int32_t *order = hd_plan_take(b, tokens, sizeof *order);
    if (!order) return HD_ERR_NOMEM;
    hd_order_axes(order, grid, 0);
    hd_order_tail(order, grid, tokens);
    *out = order;
    return HD_OK;
}

static hd_status take_window(hd_plan_builder *b, const block_causal *p, const hd_grid *grid)
{
    hd_plan_axis *window = hd_plan_take(b, 3, sizeof *window);
    if (!window) return HD_ERR_NOMEM;
    for (int i = 0; i < 3; i++) {
        int32_t *start = hd_plan_take(b, grid->size[i], sizeof *start);
        int32_t *end = hd_plan_take(b, grid->size[i], sizeof *end);
        if (!start || !end) return HD_ERR_NOMEM;
        for (int64_t x = 0; x < grid->size[i]; x++)
            end[x] = (int32_t)grid->size[i];
        if (i == 0) frame_window(p, grid->size[0], start, end);
        window[i] = (hd_plan_axis){1, start, end};
        b->plan.grid[i] = grid->size[i];
    }
    b->plan.window = window;
    b->plan.grid_token = grid->token;
    return HD_OK;
}

static hd_status add_rows(hd_plan_builder *b, const hd_grid *grid)
{
    const hd_plan *p = &b->plan;
    const int64_t frame = grid->size[1] * grid->size[2];
    const int32_t *bound = p->query_bound, *start = p->window[0].start, *end = p->window[0].end;
    HD_TRY(hd_plan_begin(b, p->query_tiles * 8, 0, 0));
    for (int64_t q = 0; q < p->query_tiles; q++) {
        const int64_t first = bound[q] / frame, last = (bound[q + 1] - 1) / frame;
        const int64_t low = start[first] * frame, high = end[last] * frame;
        const int64_t common_low = start[last] * frame, common_high = end[first] * frame;
        for (int64_t k = 0; k < p->key_tiles && bound[k] < high; k++) {
            if (bound[k + 1] <= low) continue;
            const bool full = bound[k] >= common_low && bound[k + 1] <= common_high;
            HD_TRY(hd_plan_add(b, k, full ? HD_VISIT_FULL : HD_VISIT_PARTIAL));
        }
        hd_plan_close_row(b);
    }
    return hd_plan_end(b);
}

static hd_status build(hd_plan_builder *b, const block_causal *p, const hd_grid *grid,
                       const hd_attention_call *call)
{
    b->plan.orders = b->plan.heads = 1;
    HD_TRY(take_tiles(b, p, grid));
    HD_TRY(take_order(b, &b->plan.query_order, grid, call->q.dim[1]));
    HD_TRY(take_order(b, &b->plan.key_order, grid, call->k.dim[1]));
    HD_TRY(take_window(b, p, grid));
    return add_rows(b, grid);
}

static hd_status block_causal_prepare(hd_prepare_ctx *ctx)
{
    const block_causal *p = ctx->params;
    hd_grid grid;
    HD_TRY(hd_grid_of_call(&grid, ctx->call));
    if (grid.size[0] <= p->block_frames) return HD_OK; // one block: dense
    hd_plan_builder *b;
    HD_TRY(hd_plan_builder_create(&b));
    const hd_status status = build(b, p, &grid, ctx->call);
    if (status == HD_OK)
        ctx->made = b;
    else
        hd_plan_builder_destroy(b);
    return status;
}

const hd_processor_class hd_block_causal = {
    .name = "block_causal",
    .summary = "Frames see their own block and earlier ones: causal video models.",
    .params = block_causal_params,
    .params_size = sizeof(block_causal),
    .check = block_causal_check,
    .prepare = block_causal_prepare,
    .plan = hd_plan_give_built,
    .release = hd_plan_builder_destroy,
    .static_plan = true,
    .rows_alike = true,
};
