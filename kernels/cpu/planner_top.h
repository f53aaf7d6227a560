/* kernels/cpu/planner_top.h: the best rows of each column, over lanes; part of planner_lanes.h.
 *
 * A few best rows are found by a sorted list; many by a search for the score that as many rows are
 * above as are wanted, which takes some passes over the rows however many those are. Where equal
 * scores lie on the border no such score exists, and the list decides. */

// Up to so many best rows the list is cheaper; longer lists than TOP_MOST are left to the
// reference.
enum { TOP_FEW = 8, TOP_MOST = 256, TOP_PASSES = 24 };
// A search copies its column if it is at most so long: it stays in the first-level cache.
enum { TOP_COPIED = 384 };

#ifdef __AVX512F__
LANES_INLINE uint64_t lanes_bits(lanes_mask m)
{
    return m;
}

LANES_INLINE lanes_mask lanes_above(lanes a, lanes b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

LANES_INLINE lanes lanes_min(lanes a, lanes b)
{
    return _mm512_min_ps(a, b);
}

LANES_INLINE lanes_mask lanes_number(const int32_t *own, int32_t row)
{
    return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(own), _mm512_set1_epi32(row));
}

LANES_INLINE lanes lanes_div(lanes a, lanes b)
{
    return _mm512_div_ps(a, b);
}
#else
LANES_INLINE uint64_t lanes_bits(lanes_mask m)
{
    return (uint64_t)(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(m));
}

LANES_INLINE lanes_mask lanes_above(lanes a, lanes b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

LANES_INLINE lanes lanes_min(lanes a, lanes b)
{
    return _mm256_min_ps(a, b);
}

LANES_INLINE lanes_mask lanes_number(const int32_t *own, int32_t row)
{
    return _mm256_cmpeq_epi32(_mm256_loadu_si256((const __m256i *)own), _mm256_set1_epi32(row));
}

LANES_INLINE lanes lanes_div(lanes a, lanes b)
{
    return _mm256_div_ps(a, b);
}
#endif

// By a list, one vector of lanes: the last of the best scores first, then a bit for every row above
// it and for the first few that equal it.
LANES_INLINE void top_by_list(uint64_t *words, const float *scores, int64_t rows, int best_count,
                              const int32_t *own, int shift)
{
    lanes best[TOP_MOST], room = lanes_zero();
    const lanes none = lanes_set1(-INFINITY), one = lanes_set1(1.0f);
    for (int j = 0; j < best_count; j++)
        best[j] = none;
    for (int64_t r = 0; r < rows && best_count; r++) {
        lanes x = lanes_load(scores + r * HD_PLANNER_LANES);
        if (own) x = lanes_select(lanes_number(own, (int32_t)r), none, x);
        if (!lanes_any_above(x, best[best_count - 1])) continue;
        for (int j = 0; j < best_count; j++) {
            lanes high = lanes_max(best[j], x);
            x = lanes_min(best[j], x);
            best[j] = high;
        }
    }
    const lanes last = best_count ? best[best_count - 1] : lanes_set1(INFINITY);
    for (int j = 0; j < best_count; j++) // those that equal the last one
        room = lanes_add(room, lanes_select(lanes_above(best[j], last), lanes_zero(), one));
    for (int64_t r = 0; r < rows; r++) {
        const lanes x = lanes_load(scores + r * HD_PLANNER_LANES);
        uint64_t mine = own ? lanes_bits(lanes_number(own, (int32_t)r)) : 0;
        uint64_t taken = lanes_bits(lanes_above(x, last)) | mine;
        const lanes_mask equal = lanes_equal(x, last);
        if (lanes_bits(equal) & ~mine) {
            const lanes_mask fits = lanes_and(equal, lanes_above(room, lanes_zero()));
            taken |= lanes_bits(fits);
            lanes less = lanes_select(fits, one, lanes_zero());
            if (own) less = lanes_select(lanes_number(own, (int32_t)r), lanes_zero(), less);
            room = lanes_sub(room, less);
        }
        words[r] |= taken << shift;
    }
}

// What a search knows of its lanes: a score that too many rows are above, one that too few are, and
// by how many.
typedef struct top_bracket {
    lanes low, high, too_many, too_few;
} top_bracket;

// From the least score to the largest; copies the column if there is room.
LANES_INLINE top_bracket top_begin(const float *scores, int64_t rows, lanes wanted, float *copy)
{
    const lanes first = lanes_load(scores);
    top_bracket b = {first, first, lanes_sub(lanes_set1((float)rows), wanted),
                     lanes_sub(lanes_zero(), wanted)};
    for (int64_t r = 0; r < rows; r++) {
        const lanes x = lanes_load(scores + r * HD_PLANNER_LANES);
        b.low = lanes_min(b.low, x);
        b.high = lanes_max(b.high, x);
        if (copy) lanes_store(copy + r * LANES, x);
    }
    return b;
}

// The next score to try: where the line through both ends meets what is wanted, and every other
// time in the middle, which cannot creep.
LANES_INLINE lanes top_guess(const top_bracket *b, int pass)
{
    const lanes middle = lanes_mul(lanes_add(b->low, b->high), lanes_set1(0.5f));
    const lanes share = lanes_div(b->too_many, lanes_sub(b->too_many, b->too_few));
    const lanes line = lanes_fma(lanes_sub(b->high, b->low), share, b->low);
    // both ends of a lane that is done are one
    return lanes_select(lanes_equal(b->low, b->high), b->low, pass > 4 && pass % 2 ? middle : line);
}

LANES_INLINE lanes top_count(lanes count, const float *x, lanes at)
{
    return lanes_select(lanes_above(lanes_load(x), at), lanes_add(count, lanes_set1(1.0f)), count);
}

// How many of the column's rows are above `at`.
LANES_INLINE lanes top_above(const float *column, int64_t stride, int64_t rows, lanes at)
{
    lanes a = lanes_zero(), b = a, c = a, d = a;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4, column += 4 * stride) {
        a = top_count(a, column, at);
        b = top_count(b, column + stride, at);
        c = top_count(c, column + 2 * stride, at);
        d = top_count(d, column + 3 * stride, at);
    }
    for (; r < rows; r++, column += stride)
        a = top_count(a, column, at);
    return lanes_add(lanes_add(a, b), lanes_add(c, d));
}

// By a search, one vector of lanes; false: equal scores lie on the border. own_score: of the own
// rows, which do not count.
LANES_INLINE bool top_by_search(uint64_t *words, const float *scores, int64_t rows, lanes wanted,
                                const int32_t *own, lanes own_score, int shift)
{
    float copy[TOP_COPIED * LANES];
    const bool copied = rows <= TOP_COPIED;
    const float *column = copied ? copy : scores;
    const int64_t stride = copied ? LANES : HD_PLANNER_LANES;
    top_bracket b = top_begin(scores, rows, wanted, copied ? copy : NULL);
    for (int pass = 0; pass < TOP_PASSES; pass++) {
        const lanes at = top_guess(&b, pass);
        lanes more = lanes_sub(top_above(column, stride, rows, at), wanted);
        if (own)
            more =
                lanes_select(lanes_above(own_score, at), lanes_sub(more, lanes_set1(1.0f)), more);
        const lanes_mask many = lanes_above(more, lanes_zero());
        const lanes_mask few = lanes_above(lanes_zero(), more);
        if (lanes_bits(many) | lanes_bits(few)) {
            b.low = lanes_select(few, b.low, at);
            b.high = lanes_select(many, b.high, at);
            b.too_many = lanes_select(few, b.too_many, more);
            b.too_few = lanes_select(many, b.too_few, more);
            continue;
        }
        for (int64_t r = 0; r < rows; r++)
            words[r] |= lanes_bits(lanes_above(lanes_load(column + r * stride), at)) << shift;
        for (int i = 0; own && i < LANES; i++)
            words[own[i]] |= (uint64_t)1 << (shift + i);
        return true;
    }
    return false;
}

static void top(uint64_t *words, const float *scores, int64_t rows, int64_t keep,
                const int32_t *own)
{
    const int64_t others = rows - (own != NULL);
    int64_t best = own ? keep - 1 : keep;
    if (best > others) best = others;
    bool done = true; // a lane without a row of its own keeps one more: left to the reference
    for (int i = 0; own && i < HD_PLANNER_LANES; i++)
        done = done && own[i] >= 0;
    memset(words, 0, (size_t)rows * sizeof *words);
    for (int i = 0; done && i < HD_PLANNER_LANES; i += LANES) {
        const int32_t *mine = own ? own + i : NULL;
        float own_score[LANES] = {0.0f};
        for (int j = 0; own && j < LANES; j++)
            own_score[j] = scores[mine[j] * HD_PLANNER_LANES + i + j];
        if (best > TOP_FEW && best < others &&
            top_by_search(words, scores + i, rows, lanes_set1((float)best), mine,
                          lanes_load(own_score), i))
            continue;
        done = best <= TOP_MOST;
        if (done) top_by_list(words, scores + i, rows, best < 0 ? 0 : (int)best, mine, i);
    }
    if (!done) hd_planner_reference.top(words, scores, rows, keep, own);
}
