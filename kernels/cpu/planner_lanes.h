/* kernels/cpu/planner_lanes.h: kernels/planner.h over lanes; a file of one instruction set includes
 * it and names its table. */
#include <math.h>

#include "base/exec.h"
#include "kernels/cpu/lanes.h"

LANES_INLINE lanes product_dot(lanes sum, lanes a, lanes b)
{
    return lanes_fma(a, b, sum);
}

#include "kernels/cpu/planner_product.h"

// Longer lists of best rows than this are left to the reference: nobody keeps that many.
enum { TOP_MOST = 256 };

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
#endif

LANES_INLINE int lanes_left(int64_t n)
{
    return n < LANES ? (int)n : LANES;
}

// Four vectors of channels of all tokens of the sum.
LANES_INLINE void sum_channels(float *sum, const hd_planner_tokens *x, hd_dtype dtype,
                               int64_t first, int64_t count, int64_t d)
{
    lanes a = lanes_zero(), b = lanes_zero(), c = lanes_zero(), e = lanes_zero();
    for (int64_t i = 0; i < count; i++) {
        const void *token = hd_planner_token(x, first + i);
        a = lanes_add(a, lanes_read(token, dtype, d, LANES));
        b = lanes_add(b, lanes_read(token, dtype, d + LANES, LANES));
        c = lanes_add(c, lanes_read(token, dtype, d + 2 * LANES, LANES));
        e = lanes_add(e, lanes_read(token, dtype, d + 3 * LANES, LANES));
    }
    lanes_store(sum + d, a);
    lanes_store(sum + d + LANES, b);
    lanes_store(sum + d + 2 * LANES, c);
    lanes_store(sum + d + 3 * LANES, e);
}

LANES_INLINE void sum_of_type(float *sum, const hd_planner_tokens *x, hd_dtype dtype, int64_t first,
                              int64_t count)
{
    int64_t d = 0;
    for (; d + 4 * LANES <= x->dim; d += (int64_t)4 * LANES)
        sum_channels(sum, x, dtype, first, count, d);
    for (; d < x->dim; d += LANES) {
        const int n = lanes_left(x->dim - d);
        lanes a = lanes_zero();
        for (int64_t i = 0; i < count; i++)
            a = lanes_add(a, lanes_read(hd_planner_token(x, first + i), dtype, d, n));
        lanes_write(sum, HD_F32, d, n, a);
    }
}

static void sum_tokens(float *sum, const hd_planner_tokens *x, int64_t first, int64_t count)
{
    if (x->dtype == HD_BF16)
        sum_of_type(sum, x, HD_BF16, first, count);
    else
        sum_of_type(sum, x, HD_F32, first, count);
}

LANES_INLINE void pack_of_type(float *panel, const void *const *token, hd_dtype dtype, int64_t dim)
{
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES)
        for (int64_t d = 0; d < dim; d += LANES) {
            const int n = lanes_left(dim - d);
            lanes r[LANES];
            for (int j = 0; j < LANES; j++)
                r[j] = token[i + j] ? lanes_read(token[i + j], dtype, d, n) : lanes_zero();
            lanes_transpose(r);
            for (int j = 0; j < n; j++)
                lanes_store(panel + (d + j) * HD_PLANNER_LANES + i, r[j]);
        }
}

static void pack(float *panel, const void *const *token, hd_dtype dtype, int64_t dim)
{
    if (dtype == HD_BF16)
        pack_of_type(panel, token, HD_BF16, dim);
    else
        pack_of_type(panel, token, HD_F32, dim);
}

static void product(float *scores, int64_t rows, const float *a, int64_t a_stride,
                    const float *panel, int64_t units)
{
    product_all(scores, rows, a, a_stride, panel, units);
}

static void max_rows(float *max, const float *scores, int64_t rows)
{
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES) {
        lanes m = lanes_load(scores + i);
        for (int64_t r = 1; r < rows; r++)
            m = lanes_max(m, lanes_load(scores + r * HD_PLANNER_LANES + i));
        lanes_store(max + i, m);
    }
}

static void exp_sum(float *sum, const float *scores, int64_t rows, const float *max, float factor)
{
    const lanes f = lanes_set1(factor);
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES) {
        // -inf - 0 stays -inf and counts as 0
        const lanes top = lanes_load(max + i), none = lanes_set1(-INFINITY);
        const lanes shift = lanes_select(lanes_equal(top, none), lanes_zero(), top);
        lanes total = lanes_zero();
        for (int64_t r = 0; r < rows; r++) {
            lanes s = lanes_sub(lanes_load(scores + r * HD_PLANNER_LANES + i), shift);
            total = lanes_add(total, lanes_exp2(lanes_max(lanes_mul(s, f), lanes_set1(-200.0f))));
        }
        lanes_store(sum + i, total);
    }
}

// One vector of lanes: the last of the best scores first, then a bit for every row above it and for
// the first few that equal it.
LANES_INLINE void top_vector(uint64_t *words, const float *scores, int64_t rows, int best_count,
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

static void top(uint64_t *words, const float *scores, int64_t rows, int64_t keep,
                const int32_t *own)
{
    int64_t best = own ? keep - 1 : keep;
    if (best > rows - (own != NULL)) best = rows - (own != NULL);
    bool everyone = true; // a lane without a row of its own keeps one more: left to the reference
    for (int i = 0; own && i < HD_PLANNER_LANES; i++)
        everyone = everyone && own[i] >= 0;
    if (best > TOP_MOST || !everyone) {
        hd_planner_reference.top(words, scores, rows, keep, own);
        return;
    }
    memset(words, 0, (size_t)rows * sizeof *words);
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES)
        top_vector(words, scores + i, rows, best < 0 ? 0 : (int)best, own ? own + i : NULL, i);
}
