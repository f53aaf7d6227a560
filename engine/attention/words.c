/* engine/attention/words.c: finds words of a prompt. */
#include "engine/attention/words.h"

#include <stdlib.h>
#include <string.h>

#include "engine/options/json.h"

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// Bytes of characters beyond ASCII belong to words, and so do the brackets of learned tokens:
// "<cat>" is another word than "cat".
static bool is_letter(char c)
{
    return (unsigned char)c >= 0x80 || c == '<' || c == '>' || (c >= '0' && c <= '9') ||
           (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static char folded(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

// The length of the text at `at` that reads like `phrase` [bytes], or -1.
static int64_t reads_like(const char *at, const char *phrase, int64_t bytes)
{
    int64_t n = 0;
    for (int64_t i = 0; i < bytes;) {
        if (is_space(phrase[i])) {
            if (!is_space(at[n])) return -1;
            while (i < bytes && is_space(phrase[i]))
                i++;
            while (is_space(at[n]))
                n++;
            continue;
        }
        if (folded(at[n]) != folded(phrase[i])) return -1;
        i++, n++;
    }
    return n;
}

// The phrase of a selector without what surrounds it, and which occurrence it means; 0: all.
static hd_status read_selector(const char *selector, const char **phrase, int64_t *bytes,
                               int64_t *which)
{
    int64_t end = (int64_t)strlen(selector);
    *which = 0;
    const char *mark = strrchr(selector, '#');
    if (mark && mark[1] >= '0' && mark[1] <= '9') {
        char *rest;
        long long n = strtoll(mark + 1, &rest, 10);
        if (*rest == 0 && n < 1)
            return hd_fail(HD_ERR_ARGUMENT, "\"%s\": occurrences are counted from #1", selector);
        if (*rest == 0) *which = n, end = mark - selector;
    }
    int64_t start = 0;
    while (start < end && !is_letter(selector[start]))
        start++;
    while (end > start && !is_letter(selector[end - 1]))
        end--;
    if (start == end)
        return hd_fail(HD_ERR_ARGUMENT, "\"%s\" names no word of the prompt", selector);
    *phrase = selector + start;
    *bytes = end - start;
    return HD_OK;
}

// The words of the prompt as texts of their own, for a hint. names [most].
static int64_t list_words(const hd_prompt *p, char *room, const char **names, int64_t most)
{
    int64_t count = 0;
    strcpy(room, p->text);
    for (char *at = room; *at && count < most;) {
        if (!is_letter(*at)) {
            at++;
            continue;
        }
        names[count++] = at;
        while (is_letter(*at))
            at++;
        if (*at) *at++ = 0;
    }
    return count;
}

static hd_status no_such_word(const hd_prompt *p, const char *selector, int64_t found)
{
    const char *names[128], *near = NULL;
    char *room = malloc(strlen(p->text) + 1);
    if (room && found == 0)
        near = hd_nearest_name(selector, names, (size_t)list_words(p, room, names, 128));
    if (found > 0)
        (void)hd_fail(HD_ERR_ARGUMENT, "\"%s\": the prompt \"%s\" has only %lld of it", selector,
                      p->text, (long long)found);
    else
        (void)hd_fail(HD_ERR_ARGUMENT, "\"%s\" is not in the prompt \"%s\"%s%s%s", selector,
                      p->text, near ? "; did you mean \"" : "", near ? near : "",
                      near ? "\"?" : "");
    free(room);
    return HD_ERR_ARGUMENT;
}

// The pieces that overlap bytes start .. end; false if some of those bytes have no column.
static bool mark_columns(const hd_prompt *p, int64_t start, int64_t end, bool *columns)
{
    int64_t reached = start;
    for (int64_t j = 0; j < p->count; j++) {
        const hd_prompt_token *t = &p->token[j];
        if (t->word < 0 || t->start >= end || t->end <= start) continue;
        columns[j] = true;
        if (t->end > reached) reached = t->end;
    }
    return reached >= end;
}

hd_status hd_prompt_find(const hd_prompt *p, const char *selector, bool *columns)
{
    const char *phrase = NULL;
    int64_t bytes = 0, which = 0, found = 0;
    HD_TRY(read_selector(selector, &phrase, &bytes, &which));
    memset(columns, 0, (size_t)p->count * sizeof *columns);
    for (int64_t at = 0; p->text[at]; at++) {
        if (at > 0 && is_letter(p->text[at - 1])) continue;
        int64_t n = reads_like(p->text + at, phrase, bytes);
        if (n < 0 || is_letter(p->text[at + n])) continue;
        found++;
        if (which && found != which) continue;
        if (!mark_columns(p, at, at + n, columns))
            return hd_fail(HD_ERR_ARGUMENT,
                           "\"%s\" lies beyond the %lld tokens that the text encoder takes",
                           selector, (long long)p->count - 2);
    }
    if (found == 0 || found < which) return no_such_word(p, selector, found);
    return HD_OK;
}

hd_status hd_prompt_claim(const hd_prompt *p, int64_t of, int64_t count, int64_t *first)
{
    int64_t end = p->count;
    while (end > p->used && p->token[end - 1].word >= 0)
        end--;
    if (end - count < p->used)
        return hd_fail(
            HD_ERR_ARGUMENT,
            "the prompt \"%s\" leaves %lld of its %lld tokens free, %lld more are needed; "
            "shorten it",
            p->text, (long long)(end - p->used), (long long)p->count, (long long)count);
    *first = end - count;
    for (int64_t j = *first; j < end; j++) {
        const hd_prompt_token *like = &p->token[of];
        p->token[j].start = like->start, p->token[j].end = like->end;
        p->token[j].word = like->word;
    }
    return HD_OK;
}
