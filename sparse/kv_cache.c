/* sparse/kv_cache.c: keys and values of the frames that are finished, for a video made block by
 * block: each block of frames sees itself and what came before it.
 *
 * { "use": "kv_cache", "sites": ["** self"], "window_frames": 21, "sink_frames": 3 }
 *
 * Block-wise causal attention with a cache: Cheng et al., Next-Frame Diffusion (NeurIPS 2025);
 * Huang et al., Self Forcing (2025); sinks: Xiao et al., StreamingLLM (ICLR 2024). A softmax does
 * not care for the order of its keys, so the cache is a ring: the first `sink_frames` keep their
 * slots, a new frame takes the slot of the oldest other, and nothing is moved. A call writes its
 * own frames' slots and appends all others of the window to its keys; called again for the same
 * block (the next denoising step, the clean pass) it writes the same slots.
 *
 * Keys are kept as the network turned them, at their absolute positions. In the "relativistic" mode
 * positions stay inside the window. Scores of turned keys depend on differences alone, and those of
 * the moving frames are the same in both modes: only the sinks are turned on, by as much as the
 * window has moved.
 *
 * State: the ring, per site and row. The pipeline says in hd_step which frame a block begins with.
 */
#include <string.h>

#include "sparse/all.h"
#include "sparse/kv_cache.h"

typedef enum cache_positions { CACHE_ABSOLUTE, CACHE_RELATIVISTIC } cache_positions;

static const char *const cache_position_names[] = {"absolute", "relativistic", NULL};

typedef struct kv_cache {
    int64_t window_frames, sink_frames, block_frames, capacity_frames;
    cache_positions positions;
    int64_t rope_first, rope_channels;
    float rope_base;
    bool rope_interleaved;
} kv_cache;

static const hd_param kv_cache_params[] = {
    HD_PARAM_INT(kv_cache, window_frames, .def = 21, .min = -1, .max = 100000,
                 .help = "frames that are seen, the block's own among them; -1: all"),
    HD_PARAM_INT(kv_cache, sink_frames, .def = 0, .min = 0, .max = 100000,
                 .help = "first frames, which stay in the window"),
    HD_PARAM_INT(kv_cache, block_frames, .def = 0, .min = 0, .max = 1000,
                 .help = "frames of a block; 0: the model's"),
    HD_PARAM_INT(kv_cache, capacity_frames, .def = 21, .min = 1, .max = 100000,
                 .help = "room of a cache without a window (window_frames -1)"),
    HD_PARAM_ENUM(kv_cache, positions, .names = cache_position_names,
                  .help = "positions of the frames: as they are, or inside the window"),
    HD_PARAM_INT(kv_cache, rope_first, .def = 0, .min = 0, .max = 65536,
                 .help = "relativistic: first channel of a head that turns with the frame"),
    HD_PARAM_INT(kv_cache, rope_channels, .def = 0, .min = 0, .max = 65536,
                 .help = "relativistic: how many channels turn with the frame"),
    HD_PARAM_FLOAT(kv_cache, rope_base, .def = 10000, .min = 1, .max = 1e9,
                   .help = "relativistic: channel pair j turns by base^(-2 j / channels)"),
    HD_PARAM_BOOL(kv_cache, rope_interleaved, .def = 1,
                  .help = "relativistic: pairs are neighbours, else half the channels apart"),
    HD_PARAM_END,
};

static hd_status kv_cache_check(void *params)
{
    const kv_cache *p = params;
    const int64_t room = p->window_frames < 0 ? p->capacity_frames : p->window_frames;
    if (p->window_frames == 0)
        return hd_fail(HD_ERR_ARGUMENT, "window_frames is 0, must be -1 (all) or at least 1");
    if (p->sink_frames >= room)
        return hd_fail(HD_ERR_ARGUMENT,
                       "sink_frames is %lld, which leaves none of %lld frames to others",
                       (long long)p->sink_frames, (long long)room);
    if (p->positions == CACHE_RELATIVISTIC && (p->rope_channels < 2 || p->rope_channels % 2))
        return hd_fail(HD_ERR_ARGUMENT,
                       "positions \"relativistic\" needs rope_channels, an even number of channels "
                       "that turn with the frame; it is %lld",
                       (long long)p->rope_channels);
    return HD_OK;
}

/* The ring of one row; the keys stand behind it, then the values. */
typedef struct cache_state {
    int64_t end; // frames written so far, those that were overwritten counted once
} cache_state;

enum { CACHE_HEADER = 64 };

/* Shapes of a call. */
typedef struct cache_shape {
    int64_t room, sinks;           // frames
    int64_t block, tokens;         // frames of a block, tokens of a frame
    size_t key_bytes, value_bytes; // of a frame, all heads
} cache_shape;

static cache_shape shape_of(const kv_cache *p, const hd_attention_call *c)
{
    const hd_token_segment *grid = &c->q_layout.segment[0];
    const int64_t tokens = grid->height * grid->width;
    const int64_t size = (int64_t)hd_dtype_size(c->k.dtype);
    return (cache_shape){.room = p->window_frames < 0 ? p->capacity_frames : p->window_frames,
                         .sinks = p->sink_frames,
                         .block = grid->frames,
                         .tokens = tokens,
                         .key_bytes = (size_t)(tokens * c->k.dim[2] * c->k.dim[3] * size),
                         .value_bytes = (size_t)(tokens * c->v.dim[2] * c->v.dim[3] * size)};
}

static hd_status check_site(const kv_cache *p, const hd_attention_call *c)
{
    const hd_token_layout *layout = &c->q_layout;
    if (c->forward->step.frames == 0)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "this run does not make a video block by block: there is nothing to cache");
    if (layout->segments != 1 || layout->segment[0].kind != HD_TOKENS_GRID ||
        layout->segment[0].width == 0)
        return hd_fail(HD_ERR_UNSUPPORTED, "its tokens are not one grid of frames");
    if (c->site.kind == HD_SITE_CROSS || c->k.dim[1] != c->q.dim[1] || c->key_len || c->causal)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "it needs one key for each query: self attention, without padding, not "
                       "causal within a block");
    if (p->positions == CACHE_RELATIVISTIC && p->rope_first + p->rope_channels > c->k.dim[3])
        return hd_fail(HD_ERR_ARGUMENT, "channels %lld to %lld turn, a head has %lld",
                       (long long)p->rope_first, (long long)(p->rope_first + p->rope_channels - 1),
                       (long long)c->k.dim[3]);
    return HD_OK;
}

static hd_status kv_cache_prepare(hd_prepare_ctx *ctx)
{
    const kv_cache *p = ctx->params;
    HD_TRY(check_site(p, ctx->call));
    const cache_shape s = shape_of(p, ctx->call);
    const int64_t frames = ctx->call->forward->step.frames;
    if (p->block_frames && p->block_frames != s.block)
        return hd_fail(HD_ERR_ARGUMENT, "block_frames is %lld, the model's blocks have %lld",
                       (long long)p->block_frames, (long long)s.block);
    if (s.room - s.sinks < s.block)
        return hd_fail(HD_ERR_ARGUMENT,
                       "a window of %lld frames with %lld sinks has no room for a block of %lld",
                       (long long)s.room, (long long)s.sinks, (long long)s.block);
    if (p->window_frames < 0 && frames > s.room)
        return hd_fail(HD_ERR_ARGUMENT,
                       "the cache holds %lld frames and the video has %lld: set capacity_frames to "
                       "%lld, or window_frames to %lld to let old frames go",
                       (long long)s.room, (long long)frames, (long long)frames, (long long)s.room);
    ctx->state_bytes = CACHE_HEADER + (size_t)s.room * (s.key_bytes + s.value_bytes);
    ctx->extra_keys = (s.room - s.block) * s.tokens;
    return HD_OK;
}

static int64_t slot_of(const cache_shape *s, int64_t frame)
{
    return frame < s->sinks ? frame : s->sinks + (frame - s->sinks) % (s->room - s->sinks);
}

// Where a frame's keys (which 0) or values (1) are in a row's state.
static char *slot_bytes(const cache_shape *s, void *state, int64_t frame, int which)
{
    char *keys = (char *)state + CACHE_HEADER;
    const int64_t slot = slot_of(s, frame);
    if (which == 0) return keys + (size_t)slot * s->key_bytes;
    return keys + (size_t)s->room * s->key_bytes + (size_t)slot * s->value_bytes;
}

// Token `token` of a row of k or v; the engine's copies have no gaps inside a token.
static char *token_bytes(hd_tensor t, int64_t row, int64_t token)
{
    return (char *)t.data +
           (row * t.stride[0] + token * t.stride[1]) * (int64_t)hd_dtype_size(t.dtype);
}

// The oldest frame beside the sinks that a block from `frame` on still sees.
static int64_t oldest_of(const cache_shape *s, int64_t frame)
{
    const int64_t oldest = frame + s->block - (s->room - s->sinks);
    return oldest > s->sinks ? oldest : s->sinks;
}

static hd_status check_frame(const kv_cache *p, const cache_shape *s, int64_t end, int64_t frame)
{
    if (frame < 0 || frame > end)
        return hd_fail(HD_ERR_ARGUMENT,
                       "kv_cache: a block begins with frame %lld, and frame %lld was not made yet",
                       (long long)frame, (long long)end);
    if (p->window_frames < 0 && frame + s->block > s->room)
        return hd_fail(HD_ERR_ARGUMENT,
                       "kv_cache: the cache holds %lld frames and is full at frame %lld; set "
                       "window_frames to %lld to let old frames go, or capacity_frames higher",
                       (long long)s->room, (long long)frame, (long long)s->room);
    // going back further than the ring remembers
    if (frame > s->sinks && oldest_of(s, frame) < end - (s->room - s->sinks))
        return hd_fail(HD_ERR_ARGUMENT,
                       "kv_cache: back at frame %lld after %lld were made, frame %lld has left the "
                       "window",
                       (long long)frame, (long long)end, (long long)oldest_of(s, frame));
    return HD_OK;
}

// Appends one cached frame to a row; sinks are turned on by `shift` frames.
static void append_frame(const hd_hook_ctx *ctx, const cache_shape *s, hd_tokens *tokens,
                         int64_t row, int64_t frame, double shift)
{
    const kv_cache *p = ctx->params;
    char *key = token_bytes(tokens->k, row, tokens->key_len[row]);
    memcpy(key, slot_bytes(s, ctx->state[row], frame, 0), s->key_bytes);
    memcpy(token_bytes(tokens->v, row, tokens->key_len[row]),
           slot_bytes(s, ctx->state[row], frame, 1), s->value_bytes);
    if (shift > 0 && frame < s->sinks) {
        const hd_rope rope = {p->rope_first, p->rope_channels, (double)p->rope_base,
                              p->rope_interleaved};
        hd_rope_turn(&rope, key, tokens->k.dtype, s->tokens * tokens->k.dim[2], tokens->k.dim[3],
                     shift);
    }
    tokens->key_len[row] += s->tokens;
}

static hd_status kv_cache_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const kv_cache *p = ctx->params;
    const cache_shape s = shape_of(p, ctx->call);
    const int64_t frame = ctx->call->forward->step.frame, newest = frame + s.block - 1;
    double shift = 0;
    if (p->positions == CACHE_RELATIVISTIC && newest > s.room - 1)
        shift = (double)(newest - (s.room - 1));
    for (int64_t b = 0; b < tokens->k.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        cache_state *state = ctx->state[b];
        HD_TRY(check_frame(p, &s, state->end, frame));
        for (int64_t f = 0; f < s.block; f++) {
            memcpy(slot_bytes(&s, state, frame + f, 0), token_bytes(tokens->k, b, f * s.tokens),
                   s.key_bytes);
            memcpy(slot_bytes(&s, state, frame + f, 1), token_bytes(tokens->v, b, f * s.tokens),
                   s.value_bytes);
        }
        state->end = frame + s.block;
        for (int64_t f = 0; f < s.sinks && f < frame; f++)
            append_frame(ctx, &s, tokens, b, f, shift);
        for (int64_t f = oldest_of(&s, frame); f < frame; f++)
            append_frame(ctx, &s, tokens, b, f, shift);
    }
    return HD_OK;
}

const hd_processor_class hd_kv_cache = {
    .name = "kv_cache",
    .summary = "Keys and values of finished frames, for videos made block by block.",
    .params = kv_cache_params,
    .params_size = sizeof(kv_cache),
    .check = kv_cache_check,
    .prepare = kv_cache_prepare,
    .tokens = kv_cache_tokens,
};
