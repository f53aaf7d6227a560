/* codecs/bpe.c: byte-pair encoding. Vocabulary and merges are hash tables of open addressing; a
 * word is a chain of symbols, and a heap holds the merges that its neighbours allow: the strongest
 * first, among equals the leftmost. */
#include "codecs/bpe.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/unicode.h"

enum { BPE_MOST_TOKENS = 1 << 24 };

typedef struct bpe_token {
    size_t text, bytes; // in hd_bpe.texts
    int32_t id;         // -1: an empty place
} bpe_token;

typedef struct bpe_merge {
    int32_t left, right; // left -1: an empty place
    int32_t rank, id;
} bpe_merge;

struct hd_bpe {
    char *texts;
    size_t texts_bytes, texts_room;
    bpe_token *token; // [tokens_room], a power of two
    int64_t tokens, tokens_room;
    bpe_merge *merge; // [merges_room], a power of two
    int64_t merges, merges_room;
    int32_t rank;                      // of the next merge
    int32_t byte_id[256], end_id[256]; // -1: not in the vocabulary
    int32_t unknown;
};

typedef struct hd_bpe_candidate {
    int32_t rank, position, id;
} hd_bpe_candidate;

hd_status hd_bpe_create(hd_bpe **out)
{
    hd_bpe *b = calloc(1, sizeof *b);
    if (!b) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for its vocabulary");
    b->unknown = -1;
    *out = b;
    return HD_OK;
}

void hd_bpe_free(hd_bpe *bpe)
{
    if (!bpe) return;
    free(bpe->texts);
    free(bpe->token);
    free(bpe->merge);
    free(bpe);
}

int64_t hd_bpe_tokens(const hd_bpe *bpe)
{
    return bpe->tokens;
}

static uint64_t bpe_hash_text(const char *text, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325u; // FNV-1a
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

static uint64_t bpe_hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

/* The place of a token, or the empty place where it would go. The table is never full. */
static bpe_token *bpe_token_place(const hd_bpe *b, const char *text, size_t bytes)
{
    uint64_t mask = (uint64_t)b->tokens_room - 1;
    for (uint64_t i = bpe_hash_text(text, bytes) & mask;; i = (i + 1) & mask) {
        bpe_token *t = &b->token[i];
        if (t->id < 0) return t;
        if (t->bytes == bytes && memcmp(b->texts + t->text, text, bytes) == 0) return t;
    }
}

static bpe_merge *bpe_merge_place(const hd_bpe *b, int32_t left, int32_t right)
{
    uint64_t mask = (uint64_t)b->merges_room - 1;
    for (uint64_t i = bpe_hash_pair(left, right) & mask;; i = (i + 1) & mask) {
        bpe_merge *m = &b->merge[i];
        if (m->left < 0 || (m->left == left && m->right == right)) return m;
    }
}

static hd_status bpe_grow_tokens(hd_bpe *b)
{
    hd_bpe wider = *b;
    wider.tokens_room = b->tokens_room ? b->tokens_room * 2 : 1024;
    wider.token = malloc((size_t)wider.tokens_room * sizeof *wider.token);
    if (!wider.token) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for its vocabulary");
    for (int64_t i = 0; i < wider.tokens_room; i++)
        wider.token[i].id = -1;
    for (int64_t i = 0; i < b->tokens_room; i++) {
        const bpe_token *t = &b->token[i];
        if (t->id >= 0) *bpe_token_place(&wider, b->texts + t->text, t->bytes) = *t;
    }
    free(b->token);
    *b = wider;
    return HD_OK;
}

static hd_status bpe_grow_merges(hd_bpe *b)
{
    hd_bpe wider = *b;
    wider.merges_room = b->merges_room ? b->merges_room * 2 : 1024;
    wider.merge = malloc((size_t)wider.merges_room * sizeof *wider.merge);
    if (!wider.merge) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for its merges");
    for (int64_t i = 0; i < wider.merges_room; i++)
        wider.merge[i].left = -1;
    for (int64_t i = 0; i < b->merges_room; i++) {
        const bpe_merge *m = &b->merge[i];
        if (m->left >= 0) *bpe_merge_place(&wider, m->left, m->right) = *m;
    }
    free(b->merge);
    *b = wider;
    return HD_OK;
}

/* A copy of left + right at the end of the texts, not counted yet. */
static hd_status bpe_text(hd_bpe *b, const char *left, size_t left_bytes, const char *right,
                          size_t right_bytes)
{
    size_t need = b->texts_bytes + left_bytes + right_bytes;
    if (need >= b->texts_room) {
        size_t room = need * 2 + 4096;
        char *wider = realloc(b->texts, room);
        if (!wider) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for its vocabulary");
        b->texts = wider;
        b->texts_room = room;
    }
    memcpy(b->texts + b->texts_bytes, left, left_bytes);
    memcpy(b->texts + b->texts_bytes + left_bytes, right, right_bytes);
    return HD_OK;
}

hd_status hd_bpe_add_token(hd_bpe *bpe, const char *token, size_t bytes, int32_t id)
{
    if (bpe->tokens >= BPE_MOST_TOKENS)
        return hd_fail(HD_ERR_FORMAT, "more than %d tokens", BPE_MOST_TOKENS);
    if (bpe->tokens * 2 >= bpe->tokens_room) HD_TRY(bpe_grow_tokens(bpe));
    HD_TRY(bpe_text(bpe, token, bytes, "", 0));
    bpe_token *place = bpe_token_place(bpe, token, bytes);
    if (place->id < 0) bpe->tokens++;
    *place = (bpe_token){bpe->texts_bytes, bytes, id};
    bpe->texts_bytes += bytes;
    return HD_OK;
}

int32_t hd_bpe_find(const hd_bpe *bpe, const char *token, size_t bytes)
{
    return bpe->tokens ? bpe_token_place(bpe, token, bytes)->id : -1;
}

hd_status hd_bpe_add_merge(hd_bpe *bpe, const char *left, size_t left_bytes, const char *right,
                           size_t right_bytes)
{
    HD_TRY(bpe_text(bpe, left, left_bytes, right, right_bytes));
    const char *both = bpe->texts + bpe->texts_bytes;
    bpe_merge m = {hd_bpe_find(bpe, left, left_bytes), hd_bpe_find(bpe, right, right_bytes),
                   bpe->rank, hd_bpe_find(bpe, both, left_bytes + right_bytes)};
    if (m.left < 0 || m.right < 0 || m.id < 0) {
        size_t bytes = m.left < 0    ? left_bytes
                       : m.right < 0 ? right_bytes
                                     : left_bytes + right_bytes;
        const char *missing = m.left < 0 ? left : m.right < 0 ? right : both;
        return hd_fail(HD_ERR_FORMAT,
                       "the merge \"%.*s %.*s\" needs \"%.*s\", which the vocabulary does not have",
                       (int)(left_bytes < 60 ? left_bytes : 60), left,
                       (int)(right_bytes < 60 ? right_bytes : 60), right,
                       (int)(bytes < 120 ? bytes : 120), missing);
    }
    if (bpe->rank >= BPE_MOST_TOKENS)
        return hd_fail(HD_ERR_FORMAT, "more than %d merges", BPE_MOST_TOKENS);
    if (bpe->merges * 2 >= bpe->merges_room) HD_TRY(bpe_grow_merges(bpe));
    bpe_merge *place = bpe_merge_place(bpe, m.left, m.right);
    if (place->left < 0) bpe->merges++;
    *place = m; // of two equal merges the later counts
    bpe->rank++;
    return HD_OK;
}

/* GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others, in order, for U+0100
 * and up. */
static uint32_t bpe_byte_char(int byte)
{
    bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    if (printable) return (uint32_t)byte;
    if (byte <= ' ') return 0x100u + (uint32_t)byte;
    return byte == 0xad ? 0x143u : 0x121u + (uint32_t)(byte - 0x7f);
}

hd_status hd_bpe_finish(hd_bpe *bpe, const char *end_of_word, const char *unknown)
{
    size_t end_bytes = strlen(end_of_word);
    for (int byte = 0; byte < 256; byte++) {
        char text[4 + 32];
        HD_ENSURE(end_bytes <= 32);
        int bytes = hd_utf8_encode(bpe_byte_char(byte), text);
        memcpy(text + bytes, end_of_word, end_bytes);
        bpe->byte_id[byte] = hd_bpe_find(bpe, text, (size_t)bytes);
        bpe->end_id[byte] = hd_bpe_find(bpe, text, (size_t)bytes + end_bytes);
    }
    bpe->unknown = hd_bpe_find(bpe, unknown, strlen(unknown));
    return HD_OK;
}

void hd_bpe_work_free(hd_bpe_work *work)
{
    free(work->symbol);
    free(work->heap);
    *work = (hd_bpe_work){0};
}

static hd_status bpe_work_reserve(hd_bpe_work *work, int64_t count)
{
    if (count <= work->room) return HD_OK;
    hd_bpe_work_free(work);
    int64_t room = count < 64 ? 64 : count * 2;
    work->symbol = malloc((size_t)room * sizeof *work->symbol);
    // One candidate for each pair at first, two more after each merge.
    work->heap = malloc((size_t)room * 3 * sizeof *work->heap);
    if (!work->symbol || !work->heap)
        return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for a word of %lld bytes",
                       (long long)count);
    work->room = room;
    return HD_OK;
}

static bool bpe_before(hd_bpe_candidate a, hd_bpe_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.position < b.position;
}

/* Offers the pair that starts at symbol `position` to the heap. */
static void bpe_offer(const hd_bpe *b, hd_bpe_work *w, int64_t *count, int32_t position)
{
    const hd_bpe_symbol *s = &w->symbol[position];
    if (!b->merges || s->next < 0) return;
    const bpe_merge *m = bpe_merge_place(b, s->id, w->symbol[s->next].id);
    if (m->left < 0) return;
    hd_bpe_candidate c = {m->rank, position, m->id};
    int64_t i = (*count)++;
    for (; i > 0 && bpe_before(c, w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static hd_bpe_candidate bpe_take(hd_bpe_work *w, int64_t *count)
{
    hd_bpe_candidate top = w->heap[0], last = w->heap[--*count];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < *count; i = child) {
        if (child + 1 < *count && bpe_before(w->heap[child + 1], w->heap[child])) child++;
        if (!bpe_before(w->heap[child], last)) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* Does the pair at the candidate's position still make what it made when it was offered? */
static bool bpe_still_there(const hd_bpe *b, const hd_bpe_work *w, hd_bpe_candidate c)
{
    const hd_bpe_symbol *s = &w->symbol[c.position];
    if (s->bytes == 0 || s->next < 0) return false;
    const bpe_merge *m = bpe_merge_place(b, s->id, w->symbol[s->next].id);
    return m->left >= 0 && m->id == c.id;
}

hd_status hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, int64_t count, hd_bpe_work *work)
{
    HD_ENSURE(count >= 1 && count < INT32_MAX / 4);
    HD_TRY(bpe_work_reserve(work, count));
    hd_bpe_symbol *symbol = work->symbol;
    for (int32_t i = 0; i < (int32_t)count; i++) {
        bool last = i + 1 == count;
        int32_t id = (last ? bpe->end_id : bpe->byte_id)[word[i]];
        if (id < 0) id = bpe->unknown;
        if (id < 0)
            return hd_fail(HD_ERR_FORMAT,
                           "tokenizer: its vocabulary has neither byte 0x%02x%s nor the unknown "
                           "token; is vocab.json complete?",
                           word[i], last ? " at the end of a word" : "");
        symbol[i] = (hd_bpe_symbol){id, i, 1, i - 1, last ? -1 : i + 1};
    }
    int64_t candidates = 0;
    for (int32_t i = 0; i + 1 < (int32_t)count; i++)
        bpe_offer(bpe, work, &candidates, i);
    while (candidates > 0) {
        hd_bpe_candidate c = bpe_take(work, &candidates);
        if (!bpe_still_there(bpe, work, c)) continue;
        hd_bpe_symbol *left = &symbol[c.position], *right = &symbol[left->next];
        left->id = c.id;
        left->bytes += right->bytes;
        left->next = right->next;
        right->bytes = 0;
        if (left->next >= 0) symbol[left->next].prev = c.position;
        if (left->prev >= 0) bpe_offer(bpe, work, &candidates, left->prev);
        bpe_offer(bpe, work, &candidates, c.position);
    }
    return HD_OK;
}
