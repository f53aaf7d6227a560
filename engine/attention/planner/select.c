/* engine/attention/planner/select.c: order by weight, cumulative thresholds. */
#include "engine/attention/planner/select.h"

#include <string.h>

int64_t hd_bits_count(const uint64_t *words, int64_t count)
{
    int64_t ones = 0;
    for (int64_t i = 0; i < count; i++)
        ones += __builtin_popcountll(words[i]);
    return ones;
}

// Ascending as unsigned: descending weights, then ascending indices. NaN sinks to the end.
static uint64_t sort_key(float weight, int64_t index)
{
    uint32_t bits;
    if (weight != weight) return (uint64_t)UINT32_MAX << 32 | (uint64_t)index;
    weight += 0.0f; // -0 is 0
    memcpy(&bits, &weight, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)~bits << 32 | (uint64_t)index;
}

// One pass of a radix sort.
static void sort_pass(const uint64_t *key, const int32_t *item, uint64_t *to_key, int32_t *to_item,
                      int64_t n, int byte, const int32_t count[256])
{
    int32_t at[256], next = 0;
    for (int i = 0; i < 256; i++) {
        at[i] = next;
        next += count[i];
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t to = at[key[i] >> 8 * byte & 255]++;
        to_key[to] = key[i];
        if (item) to_item[to] = item[i];
    }
}

void hd_select_sort(uint64_t *key, int32_t *item, uint64_t *other_key, int32_t *other_item,
                    int64_t n, int first)
{
    int32_t count[8][256] = {{0}};
    uint64_t *from = key, *to = other_key;
    int32_t *from_item = item, *to_item = other_item;
    for (int64_t i = 0; i < n; i++)
        for (int byte = first; byte < 8; byte++)
            count[byte][key[i] >> 8 * byte & 255]++;
    for (int byte = first; byte < 8 && n > 1; byte++) {
        if (count[byte][key[0] >> 8 * byte & 255] == n) continue; // a byte that all share
        sort_pass(from, from_item, to, to_item, n, byte, count[byte]);
        uint64_t *swap = from;
        int32_t *swap_item = from_item;
        from = to, to = swap;
        from_item = to_item, to_item = swap_item;
    }
    if (from == key) return;
    memcpy(key, from, (size_t)n * sizeof *key);
    if (item) memcpy(item, from_item, (size_t)n * sizeof *item);
}

void hd_select_order(int32_t *index, const float *weight, int64_t n, uint64_t *scratch)
{
    for (int64_t i = 0; i < n; i++)
        scratch[i] = sort_key(weight[i], i);
    hd_select_sort(scratch, NULL, scratch + n, NULL, n, 4);
    for (int64_t i = 0; i < n; i++)
        index[i] = (int32_t)(scratch[i] & UINT32_MAX);
}

int64_t hd_select_share(const float *weight, const int32_t *index, int64_t n, double share,
                        int64_t most)
{
    double all = 0, before = 0;
    for (int64_t i = 0; i < n; i++)
        all += (double)weight[index[i]];
    int64_t kept = 0;
    if (most > n) most = n;
    for (; kept < most && (kept == 0 || before < share * all); kept++)
        before += (double)weight[index[kept]];
    return kept;
}

static const int radix_shift[HD_RADIX_PASSES] = {20, 8, 0};

int hd_radix_bin(const hd_radix_search *search, uint32_t key)
{
    const int shift = radix_shift[search->pass];
    if (search->pass > 0 && (key ^ search->key) >> radix_shift[search->pass - 1]) return -1;
    return (int)(key >> shift & (search->pass == 2 ? 0xffu : 0xfffu));
}

// How many entries of equal weight make up what is missing.
static int64_t ties_needed(const hd_radix_search *s, int64_t count, double sum)
{
    if (s->count > 0) return s->count - s->above;
    const double weight = sum / (double)count;
    int64_t lower = s->above == 0; // at least one entry in all
    int64_t upper = count;
    while (lower < upper) {
        int64_t middle = lower + (upper - lower) / 2;
        if (s->above_sum + weight * (double)middle >= s->sum)
            upper = middle;
        else
            lower = middle + 1;
    }
    return lower;
}

void hd_radix_next(hd_radix_search *s, const hd_radix *h)
{
    int bin = HD_RADIX_BINS - 1, last = -1;
    for (; bin >= 0; bin--) {
        if (h->count[bin] == 0) continue;
        last = bin;
        if (s->count > 0 ? s->above + h->count[bin] >= s->count
                         : s->above_sum + h->sum[bin] >= s->sum)
            break;
        s->above += h->count[bin];
        s->above_sum += h->sum[bin];
    }
    if (bin < 0 && s->pass == 0) {
        s->all = true;
    } else if (bin < 0) { // the sums of the passes differ by a rounding: the whole bin is kept
        s->above -= h->count[last];
        s->above_sum -= h->sum[last];
        bin = last;
    }
    if (!s->all) {
        s->key |= (uint32_t)bin << radix_shift[s->pass];
        s->equal = h->count[bin];
        if (s->pass == HD_RADIX_PASSES - 1) s->ties = ties_needed(s, h->count[bin], h->sum[bin]);
    }
    s->pass++;
}
