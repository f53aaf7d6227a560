/* controls/word_map.c: aligns two prompts. */
#include "controls/word_map.h"

#include <stdlib.h>
#include <string.h>

// Tokens first .. end - 1 of a prompt.
typedef struct span {
    int64_t first, end;
} span;

static int64_t span_count(span s)
{
    return s.end - s.first;
}

// One sequence to be aligned: words, or single tokens.
typedef struct sequence {
    const hd_prompt *prompt;
    span *item;
    int64_t count;
} sequence;

static bool same_item(const sequence *a, int64_t i, const sequence *b, int64_t j)
{
    span s = a->item[i], t = b->item[j];
    if (span_count(s) != span_count(t)) return false;
    for (int64_t k = 0; k < span_count(s); k++)
        if (a->prompt->token[s.first + k].id != b->prompt->token[t.first + k].id) return false;
    return true;
}

// Words without begin, end and padding; or every token before the padding.
static hd_status read_sequence(sequence *s, const hd_prompt *p, bool words)
{
    *s = (sequence){p, calloc((size_t)p->count + 1, sizeof *s->item), 0};
    if (!s->item)
        return hd_fail(HD_ERR_NOMEM, "word map: no memory for %lld tokens", (long long)p->count);
    for (int64_t j = 0; j < p->used; j++) {
        int64_t word = p->token[j].word;
        if (words && word < 0) continue;
        if (words && s->count > 0 && p->token[j - 1].word == word)
            s->item[s->count - 1].end = j + 1;
        else
            s->item[s->count++] = (span){j, j + 1};
    }
    return HD_OK;
}

// Global alignment: match +1, mismatch -1, gap 0; where scores tie the way back goes through an
// added target item first, then through a dropped source item. partner [target items]: the source
// item at the same place, or -1.
static hd_status align(const sequence *s, const sequence *t, int64_t *partner)
{
    const int64_t rows = s->count + 1, columns = t->count + 1;
    int32_t *score = calloc((size_t)(rows * columns), sizeof *score);
    if (!score)
        return hd_fail(HD_ERR_NOMEM, "word map: no memory for %lld x %lld words", (long long)rows,
                       (long long)columns);
    for (int64_t i = 1; i < rows; i++)
        for (int64_t j = 1; j < columns; j++) {
            int32_t left = score[i * columns + j - 1], up = score[(i - 1) * columns + j];
            int32_t diagonal =
                score[(i - 1) * columns + j - 1] + (same_item(s, i - 1, t, j - 1) ? 1 : -1);
            int32_t best = left > up ? left : up;
            score[i * columns + j] = best > diagonal ? best : diagonal;
        }
    for (int64_t j = 0; j < t->count; j++)
        partner[j] = -1;
    for (int64_t i = rows - 1, j = columns - 1; i > 0 && j > 0;) {
        int32_t here = score[i * columns + j];
        if (here == score[i * columns + j - 1])
            j--;
        else if (here == score[(i - 1) * columns + j])
            i--;
        else
            partner[--j] = --i;
    }
    free(score);
    return HD_OK;
}

static void link(hd_word_map *map, int64_t i, int64_t j, float share)
{
    if (i >= map->source || j >= map->target) return;
    map->m[i * map->target + j] += share;
    map->a[j] = 1.0f;
}

// Each token to its own where there are as many, else every one to every one, evenly spread.
static void link_spans(hd_word_map *map, span s, span t)
{
    if (span_count(s) == span_count(t)) {
        for (int64_t k = 0; k < span_count(s); k++)
            link(map, s.first + k, t.first + k, 1.0f);
        return;
    }
    for (int64_t i = s.first; i < s.end; i++)
        for (int64_t j = t.first; j < t.end; j++)
            link(map, i, j, 1.0f / (float)span_count(t));
}

// End to end and padding to padding, from columns i and j on.
static void link_tail(hd_word_map *map, int64_t i, int64_t j)
{
    for (; i < map->source && j < map->target; i++, j++)
        link(map, i, j, 1.0f);
}

// As the authors' code: behind the last changed word every target column takes the source column of
// its own number.
static void map_replace_compat(hd_word_map *map, const sequence *s, const sequence *t)
{
    int64_t behind = 0;
    for (int64_t w = 0; w < s->count; w++)
        if (!same_item(s, w, t, w)) behind = w + 1;
    int64_t i = behind ? s->item[behind - 1].end : 0, j = behind ? t->item[behind - 1].end : 0;
    if (behind) link(map, 0, 0, 1.0f);
    for (int64_t w = 0; w < behind; w++)
        link_spans(map, s->item[w], t->item[w]);
    for (; i < map->source && j < map->target; i++, j++)
        link(map, j, j, 1.0f);
    for (j = 0; j < map->target; j++)
        map->a[j] = 1.0f;
}

static hd_status map_replace(hd_word_map *map, const sequence *s, const sequence *t, bool compat)
{
    if (s->count != t->count)
        return hd_fail(HD_ERR_ARGUMENT,
                       "\"%s\" has %lld words and \"%s\" %lld; \"replace\" needs as many, use "
                       "\"auto\" or \"refine\"",
                       s->prompt->text, (long long)s->count, t->prompt->text, (long long)t->count);
    if (compat) {
        map_replace_compat(map, s, t);
        return HD_OK;
    }
    link(map, 0, 0, 1.0f);
    for (int64_t w = 0; w < s->count; w++)
        link_spans(map, s->item[w], t->item[w]);
    link_tail(map, s->prompt->used - 1, t->prompt->used - 1);
    return HD_OK;
}

static hd_status map_refine(hd_word_map *map, const sequence *s, const sequence *t,
                            int64_t *partner)
{
    HD_TRY(align(s, t, partner));
    for (int64_t j = 0; j < t->count; j++)
        if (partner[j] >= 0) link(map, partner[j], j, 1.0f);
    link_tail(map, t->count, t->count); // the padding, by its number
    return HD_OK;
}

// The tokens between two matched words of both prompts.
static void map_block(hd_word_map *map, span s, span t, bool own, bool *swapped)
{
    if (span_count(s) == 0 || span_count(t) == 0) return;
    *swapped = true;
    if (!own) link_spans(map, s, t);
}

static hd_status map_auto(hd_word_map *map, const sequence *s, const sequence *t, bool own,
                          int64_t *partner)
{
    HD_TRY(align(s, t, partner));
    bool swapped = false;
    int64_t i = 1, j = 1; // first tokens of the block that is open
    link(map, 0, 0, 1.0f);
    for (int64_t w = 0; w < t->count; w++) {
        if (partner[w] < 0) continue;
        span a = s->item[partner[w]], b = t->item[w];
        map_block(map, (span){i, a.first}, (span){j, b.first}, own, &swapped);
        link_spans(map, a, b); // the same word
        i = a.end, j = b.end;
    }
    const int64_t source_end = s->prompt->used - 1, target_end = t->prompt->used - 1;
    map_block(map, (span){i, source_end}, (span){j, target_end}, own, &swapped);
    if (swapped) {
        link_tail(map, source_end, target_end);
        return HD_OK;
    }
    link(map, source_end, target_end, 1.0f); // words were only added or dropped: as "refine"
    link_tail(map, target_end + 1, target_end + 1);
    return HD_OK;
}

hd_status hd_word_map_create(hd_word_map *out, hd_word_map_mode mode, bool own_changed,
                             bool compat_tail, const hd_prompt *source, const hd_prompt *target)
{
    hd_word_map map = {.source = source->count, .target = target->count};
    map.m = calloc((size_t)(map.source * map.target) + 1, sizeof *map.m);
    map.a = calloc((size_t)map.target + 1, sizeof *map.a);
    int64_t *partner = calloc((size_t)map.target + 1, sizeof *partner);
    sequence s = {0}, t = {0};
    hd_status status = HD_OK;
    if (!map.m || !map.a || !partner)
        status = hd_fail(HD_ERR_NOMEM, "word map: no memory for %lld x %lld columns",
                         (long long)map.source, (long long)map.target);
    const bool words = mode != HD_WORD_MAP_REFINE;
    if (status == HD_OK) status = read_sequence(&s, source, words);
    if (status == HD_OK) status = read_sequence(&t, target, words);
    if (status == HD_OK && mode == HD_WORD_MAP_REPLACE)
        status = map_replace(&map, &s, &t, compat_tail);
    if (status == HD_OK && mode == HD_WORD_MAP_REFINE) status = map_refine(&map, &s, &t, partner);
    if (status == HD_OK && mode == HD_WORD_MAP_AUTO)
        status = map_auto(&map, &s, &t, own_changed, partner);
    free(partner);
    free(s.item);
    free(t.item);
    if (status != HD_OK) {
        hd_word_map_free(&map);
        return status;
    }
    *out = map;
    return HD_OK;
}

void hd_word_map_free(hd_word_map *map)
{
    free(map->m);
    free(map->a);
    *map = (hd_word_map){0};
}
