/* engine/options/nearest.c: "did you mean": edit distance, with a swap of neighbours as one edit.
 *
 * Upper and lower case are the same letter, and so are - and _: they cost nothing. */
#include "engine/options/json.h"

#include <string.h>

enum { WORD_MOST = 64 };

static char fold(char c)
{
    if (c >= 'A' && c <= 'Z') return (char)(c - 'A' + 'a');
    return c == '-' ? '_' : c;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

// Both words are at most WORD_MOST long.
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    // Rows of the table for the last three letters of a.
    size_t row[3][WORD_MOST + 1];
    for (size_t j = 0; j <= b_length; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *now = row[i % 3];
        const size_t *above = row[(i - 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            bool same = fold(a[i - 1]) == fold(b[j - 1]);
            now[j] = least(least(now[j - 1], above[j]) + 1, above[j - 1] + !same);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) &&
                fold(a[i - 2]) == fold(b[j - 1]))
                now[j] = least(now[j], row[(i - 2) % 3][j - 2] + 1);
        }
    }
    return row[a_length % 3][b_length];
}

const char *hd_nearest_name(const char *word, const char *const *names, size_t count)
{
    size_t length = strlen(word), best = SIZE_MAX;
    const char *nearest = NULL;
    if (length > WORD_MOST) return NULL;
    for (size_t i = 0; i < count; i++) {
        size_t name_length = strlen(names[i]);
        if (name_length > WORD_MOST) continue;
        size_t distance = edit_distance(word, length, names[i], name_length);
        // One wrong letter in three at most: further away it is another word.
        size_t longer = length > name_length ? length : name_length;
        if (distance > (longer + 1) / 3 || distance >= best) continue;
        best = distance;
        nearest = names[i];
    }
    return nearest;
}
