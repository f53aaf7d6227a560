/* engine/attention/planner/select.h: which tiles to keep, from their weights.
 *
 * Sums are f64 and equal weights go by their index, lower first: the same choice for any number of
 * threads. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_SELECT_H
#define HD_ENGINE_ATTENTION_PLANNER_SELECT_H

#include <stdbool.h>
#include <string.h>

#include "base/status.h"

HD_BEGIN_DECLS

static inline int64_t hd_bit_words(int64_t bits)
{
    return (bits + 63) / 64;
}

static inline void hd_bit_set(uint64_t *words, int64_t i)
{
    words[i / 64] |= (uint64_t)1 << (i % 64);
}

static inline bool hd_bit(const uint64_t *words, int64_t i)
{
    return words[i / 64] >> (i % 64) & 1;
}

int64_t hd_bits_count(const uint64_t *words, int64_t count); // ones in `count` words

/* key [n] ascending by its bytes first .. 7 (0: the lowest), equal ones as they were; item [n] goes
 * along (NULL: none). The other two are working memory of the same size. */
void hd_select_sort(uint64_t *key, int32_t *item, uint64_t *other_key, int32_t *other_item,
                    int64_t n, int first);

/* The indices of weight [n] into index [n], largest first. scratch: [2 n] */
void hd_select_order(int32_t *index, const float *weight, int64_t n, uint64_t *scratch);

/* How many of the first indices are kept: the r-th is, if the sum of those before it is below
 * share * the sum of all. At least one and at most `most` (>= 1). */
int64_t hd_select_share(const float *weight, const int32_t *index, int64_t n, double share,
                        int64_t most);

/* The last kept of a large set without sorting it: three passes over the set, each counting the
 * entries that are still in question by twelve more bits of their key. A key is an unsigned number
 * that ascends with the weight. */
enum { HD_RADIX_BINS = 4096, HD_RADIX_PASSES = 3 };

typedef struct hd_radix {
    int64_t count[HD_RADIX_BINS];
    double sum[HD_RADIX_BINS];
} hd_radix;

/* What to find: the fewest entries, largest keys first, that are `count` in number or, if `count`
 * is 0, whose weights sum to at least `sum` (at least one entry). */
typedef struct hd_radix_search {
    int64_t count;
    double sum;
    int pass;
    uint32_t key;  // its bits of the passes done
    int64_t above; // entries above the bin in question, and their sum
    double above_sum;
    int64_t ties;  // after the last pass: how many entries equal to `key` are kept; those above are
    int64_t equal; // entries equal to `key`
    bool all;      // everything together is not enough: all are kept
} hd_radix_search;

/* The key of a weight: -0 and 0 are equal. */
static inline uint32_t hd_radix_key(float weight)
{
    uint32_t bits;
    weight += 0.0f;
    memcpy(&bits, &weight, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The bin of a key in the search's pass; -1: not in question. */
int hd_radix_bin(const hd_radix_search *search, uint32_t key);
/* Ends a pass with the histogram of all entries in question. */
void hd_radix_next(hd_radix_search *search, const hd_radix *histogram);

HD_END_DECLS
#endif
