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

static void insertion_sort(uint64_t *key, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        uint64_t x = key[i];
        int64_t j = i;
        for (; j > 0 && key[j - 1] > x; j--)
            key[j] = key[j - 1];
        key[j] = x;
    }
}

static void merge(uint64_t *to, const uint64_t *a, int64_t na, const uint64_t *b, int64_t nb)
{
    int64_t i = 0, j = 0;
    while (i < na && j < nb) {
        const uint64_t x = a[i], y = b[j], first = x <= y;
        *to++ = first ? x : y;
        i += (int64_t)first;
        j += (int64_t)!first;
    }
    memcpy(to, a + i, (size_t)(na - i) * sizeof *to);
    memcpy(to + (na - i), b + j, (size_t)(nb - j) * sizeof *to);
}

// Runs of eight, then merges back and forth; returns where the result is.
static const uint64_t *merge_sort(uint64_t *key, uint64_t *other, int64_t n)
{
    int64_t run = 8;
    for (int64_t i = 0; i < n; i += run)
        insertion_sort(key + i, n - i < run ? n - i : run);
    for (; run < n; run *= 2) {
        for (int64_t i = 0; i < n; i += 2 * run) {
            int64_t na = n - i < run ? n - i : run;
            int64_t nb = n - i - na < run ? n - i - na : run;
            merge(other + i, key + i, na, key + i + na, nb);
        }
        uint64_t *swap = key;
        key = other, other = swap;
    }
    return key;
}

void hd_select_order(int32_t *index, const float *weight, int64_t n, uint64_t *scratch)
{
    for (int64_t i = 0; i < n; i++)
        scratch[i] = sort_key(weight[i], i);
    const uint64_t *sorted = merge_sort(scratch, scratch + n, n);
    for (int64_t i = 0; i < n; i++)
        index[i] = (int32_t)(sorted[i] & UINT32_MAX);
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
