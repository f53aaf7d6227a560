/* sparse/vmoba_layout.c: words of kept blocks to a plan, and the sort that makes queries agree. */
#include "sparse/vmoba_layout.h"

#include <stdlib.h>
#include <string.h>

#include "engine/attention/planner/select.h"

enum { LANES = HD_PLANNER_LANES, KEY_TILE = 128 };

void hd_vmoba_tiles_free(hd_vmoba_tiles *tiles)
{
    free(tiles->bound);
    free(tiles->block_start);
}

// Blocks longer than a tile are cut into even parts.
hd_status hd_vmoba_tiles_make(hd_vmoba_tiles *out, const hd_vmoba_shape *s)
{
    hd_vmoba_tiles t = {0};
    const int64_t most = s->blocks + s->ranks / KEY_TILE + 1;
    t.bound = malloc((size_t)(most + 1) * sizeof *t.bound);
    t.block_start = malloc((size_t)(s->blocks + 1) * sizeof *t.block_start);
    if (!t.bound || !t.block_start) {
        hd_vmoba_tiles_free(&t);
        return hd_fail(HD_ERR_NOMEM, "no memory for %lld key tiles", (long long)most);
    }
    for (int64_t c = 0; c < s->blocks; c++) {
        const int64_t first = s->bound[c], count = s->bound[c + 1] - first;
        const int64_t parts = (count + KEY_TILE - 1) / KEY_TILE;
        t.block_start[c] = (int32_t)t.tiles;
        for (int64_t i = 0; i < parts; i++) {
            const int64_t from = count * i / parts, to = count * (i + 1) / parts;
            t.bound[t.tiles++] = (int32_t)(first + from);
            if (to - from > t.tile) t.tile = to - from;
        }
    }
    t.block_start[s->blocks] = (int32_t)t.tiles;
    t.bound[t.tiles] = (int32_t)s->ranks;
    *out = t;
    return HD_OK;
}

static int64_t set_words(const hd_vmoba_shape *s)
{
    return (s->blocks + 63) / 64;
}

hd_vmoba_layout hd_vmoba_layout_take(hd_room *room, const hd_vmoba_shape *s,
                                     const hd_vmoba_tiles *tiles, bool sorted, int64_t queries,
                                     int64_t keys)
{
    const int64_t rows = s->heads * s->panels;
    hd_vmoba_layout l = {0};
    l.row_start = hd_room_take(room, rows + 1, sizeof *l.row_start);
    l.visit = hd_room_take(room, rows * tiles->tiles, sizeof *l.visit);
    if (!sorted) return l;
    l.words = hd_room_take(room, rows * s->blocks, sizeof *l.words);
    l.set = hd_room_take(room, rows * LANES * set_words(s), sizeof *l.set);
    l.sort = hd_room_take(room, s->heads * 2 * s->ranks, sizeof *l.sort);
    l.rank = hd_room_take(room, s->heads * 2 * s->ranks, sizeof *l.rank);
    l.query_order = hd_room_take(room, s->heads * queries, sizeof *l.query_order);
    l.key_order = hd_room_take(room, s->heads * keys, sizeof *l.key_order);
    return l;
}

bool hd_vmoba_sortable(const hd_vmoba_shape *s)
{
    for (int64_t c = 0; c < s->blocks; c++)
        if (s->bound[c] / LANES != (s->bound[c + 1] - 1) / LANES) return true;
    return false;
}

int64_t hd_vmoba_pairs(const hd_vmoba_shape *s, const uint64_t *words, bool exactly)
{
    int64_t pairs = 0;
    for (int64_t p = 0; p < s->heads * s->panels; p++)
        for (int64_t c = 0; c < s->blocks; c++) {
            const uint64_t word = words[p * s->blocks + c];
            const int64_t queries = exactly ? __builtin_popcountll(word) : word ? LANES : 0;
            pairs += queries * (s->bound[c + 1] - s->bound[c]);
        }
    return pairs;
}

// Bit j of word i and bit i of word j change places (Warren, Hacker's Delight, 7-3).
static void transpose_bits(uint64_t word[64])
{
    uint64_t mask = 0x00000000ffffffffu;
    for (int step = 32; step; step >>= 1, mask ^= mask << step)
        for (int i = 0; i < 64; i = (i + step + 1) & ~step) {
            const uint64_t swap = (word[i] >> step ^ word[i + step]) & mask;
            word[i] ^= swap << step;
            word[i + step] ^= swap;
        }
}

typedef struct sort_work {
    const hd_vmoba_shape *s;
    const hd_tiling *tiling;
    const uint64_t *words;
    const hd_vmoba_layout *l;
    int64_t queries, keys;
} sort_work;

// Per query the blocks it keeps: 64 x 64 bits at a time.
static void make_sets(const sort_work *w, int64_t head)
{
    const hd_vmoba_shape *s = w->s;
    for (int64_t g = 0; g < set_words(s); g++)
        for (int64_t p = 0; p < s->panels; p++) {
            uint64_t *set = w->l->set + ((head * set_words(s) + g) * s->panels + p) * LANES;
            const uint64_t *words = w->words + (head * s->panels + p) * s->blocks;
            for (int64_t c = 0; c < 64; c++)
                set[c] = g * 64 + c < s->blocks ? words[g * 64 + c] : 0;
            transpose_bits(set);
        }
}

// What queries of one own block are sorted by: their set; of more than 64 blocks the first four.
static uint64_t sort_key(const sort_work *w, int64_t head, int64_t rank)
{
    const int64_t groups = set_words(w->s), length = w->s->panels * LANES;
    const uint64_t *set = w->l->set + head * groups * length + rank;
    uint64_t key = 0;
    if (groups == 1) return *set;
    int found = 0;
    for (int64_t g = 0; g < groups && found < 4; g++)
        for (uint64_t word = set[g * length]; word && found < 4; word &= word - 1, found++)
            key = key << 16 | (uint64_t)(g * 64 + __builtin_ctzll(word) + 1);
    return key << 16 * (4 - found) % 64;
}

// The words of the sorted order.
static void sorted_words(const sort_work *w, int64_t head, const int32_t *rank)
{
    const hd_vmoba_shape *s = w->s;
    for (int64_t g = 0; g < set_words(s); g++) {
        const uint64_t *set = w->l->set + (head * set_words(s) + g) * s->panels * LANES;
        for (int64_t p = 0; p < s->panels; p++) {
            uint64_t *words = w->l->words + (head * s->panels + p) * s->blocks;
            uint64_t square[64];
            for (int64_t i = 0; i < 64; i++)
                square[i] = p * 64 + i < s->ranks ? set[rank[p * 64 + i]] : 0;
            transpose_bits(square);
            for (int64_t c = 0; c < 64 && g * 64 + c < s->blocks; c++)
                words[g * 64 + c] = square[c];
        }
    }
}

static hd_status sort_head(void *arg, int64_t head, int thread)
{
    const sort_work *w = arg;
    const hd_vmoba_shape *s = w->s;
    uint64_t *key = w->l->sort + head * 2 * s->ranks;
    int32_t *rank = w->l->rank + head * 2 * s->ranks;
    (void)thread;
    make_sets(w, head);
    for (int64_t r = 0; r < s->ranks; r++) {
        rank[r] = (int32_t)r;
        key[r] = sort_key(w, head, r);
    }
    for (int64_t c = 0; c < s->blocks; c++) {
        const int64_t first = s->bound[c], count = s->bound[c + 1] - first;
        hd_select_sort(key + first, rank + first, key + s->ranks + first, rank + s->ranks + first,
                       count, 0);
    }
    sorted_words(w, head, rank);
    int32_t *query_order = w->l->query_order + head * w->queries;
    for (int64_t r = 0; r < w->queries; r++)
        query_order[r] = w->tiling->order[r < s->ranks ? rank[r] : r];
    memcpy(w->l->key_order + head * w->keys, w->tiling->order,
           (size_t)w->keys * sizeof *w->l->key_order);
    return HD_OK;
}

hd_status hd_vmoba_sort(const hd_exec *ex, const hd_vmoba_shape *s, const hd_tiling *tiling,
                        const uint64_t *words, const hd_vmoba_layout *layout, int64_t queries,
                        int64_t keys)
{
    sort_work w = {s, tiling, words, layout, queries, keys};
    return hd_parallel_for(ex->pool, s->heads, sort_head, &w);
}

typedef struct list_work {
    const hd_vmoba_shape *s;
    const hd_vmoba_tiles *tiles;
    const uint64_t *words;
    const hd_vmoba_layout *l;
} list_work;

// Of blocks that are a tile each: no branches, which the processor could not foresee.
static void list_blocks(hd_visit *to, const uint64_t *words, int64_t row, int64_t blocks,
                        uint64_t everyone)
{
    int64_t at = 0, end = blocks;
    while (end > 0 && !words[end - 1]) // so that nothing is written behind the last entry
        end--;
    for (int64_t c = 0; c < end; c++) {
        const hd_visit entry = {(int32_t)c,
                                words[c] == everyone ? HD_VISIT_FULL : (int32_t)(row * blocks + c)};
        to[at] = entry;
        at += words[c] != 0;
    }
}

static hd_status list_head(void *arg, int64_t head, int thread)
{
    const list_work *w = arg;
    const hd_vmoba_shape *s = w->s;
    (void)thread;
    for (int64_t p = 0; p < s->panels; p++) {
        const int64_t row = head * s->panels + p, left = s->ranks - p * LANES;
        const uint64_t everyone = left >= LANES ? ~(uint64_t)0 : ((uint64_t)1 << left) - 1;
        hd_visit *to = w->l->visit + w->l->row_start[row];
        const uint64_t *words = w->words + row * s->blocks;
        if (w->tiles->tiles == s->blocks) {
            list_blocks(to, words, row, s->blocks, everyone);
            continue;
        }
        for (int64_t c = 0; c < s->blocks; c++) {
            const uint64_t word = words[c];
            if (!word) continue;
            const int32_t mask = word == everyone ? HD_VISIT_FULL : (int32_t)(row * s->blocks + c);
            for (int32_t t = w->tiles->block_start[c]; t < w->tiles->block_start[c + 1]; t++)
                *to++ = (hd_visit){t, mask};
        }
    }
    return HD_OK;
}

hd_status hd_vmoba_list(const hd_exec *ex, const hd_vmoba_shape *s, const hd_vmoba_tiles *tiles,
                        const uint64_t *words, const hd_vmoba_layout *layout, hd_plan *plan)
{
    int64_t at = 0;
    for (int64_t row = 0; row < s->heads * s->panels; row++) {
        layout->row_start[row] = at;
        for (int64_t c = 0; c < s->blocks; c++) {
            const int64_t parts = tiles->block_start[c + 1] - tiles->block_start[c];
            at += words[row * s->blocks + c] ? parts : 0;
        }
    }
    layout->row_start[s->heads * s->panels] = at;
    plan->query_tile = LANES;
    plan->query_tiles = s->panels;
    plan->query_bound = NULL;
    plan->key_tile = tiles->tile;
    plan->key_tiles = tiles->tiles;
    plan->key_bound = tiles->bound;
    plan->heads = s->heads;
    plan->row_start = layout->row_start;
    plan->visit = layout->visit;
    plan->row_mask = words;
    list_work w = {s, tiles, words, layout};
    return hd_parallel_for(ex->pool, s->heads, list_head, &w);
}
