/* controls/anagram_views.c: views as tables of places and signs, and the filters of factorised
 * ones. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/anagram.h"

const char *const anagram_kinds[] = {"identity",      "flip",          "mirror",    "rotate_cw",
                                     "rotate_ccw",    "rotate_180",    "negate",    "skew",
                                     "patch_permute", "pixel_permute", "jigsaw",    "inner_circle",
                                     "square_hinge",  "low_pass",      "high_pass", "band_pass",
                                     "motion_blur",   "motion_rest",   "half",      NULL};

typedef struct place {
    int64_t y, x;
} place;

// Of a square of n x n: the place that is seen at (y, x) after a turn by 90 degrees.
static place turned(int64_t y, int64_t x, int64_t n, bool clockwise)
{
    return clockwise ? (place){n - 1 - x, y} : (place){x, n - 1 - y};
}

static int64_t wrapped(int64_t i, int64_t count)
{
    return ((i % count) + count) % count;
}

// The middle turned by 180 degrees: half-pixel centre, radius 3/8 of the side.
static place inner_circle(int64_t y, int64_t x, int64_t n)
{
    const double half = ((double)n - 1) / 2, r = 0.375 * (double)n;
    const double dy = (double)y - half, dx = (double)x - half;
    return dy * dy + dx * dx < r * r ? (place){n - 1 - y, n - 1 - x} : (place){y, x};
}

// 3 x 3 squares that turn like cogwheels; what is left over at the end of each axis stays.
static place square_hinge(int64_t y, int64_t x, int64_t n)
{
    const int64_t side = n / 3, i = side ? y / side : 3, j = side ? x / side : 3;
    if (i > 2 || j > 2) return (place){y, x};
    const place p = turned(y - i * side, x - j * side, side, (i + j) % 2 == 0);
    return (place){i * side + p.y, j * side + p.x};
}

static place moved(const anagram_view *v, int64_t y, int64_t x, int64_t h, int64_t w)
{
    switch (v->kind) {
    case ANAGRAM_FLIP:
        return (place){h - 1 - y, x};
    case ANAGRAM_MIRROR:
        return (place){y, w - 1 - x};
    case ANAGRAM_ROTATE_180:
        return (place){h - 1 - y, w - 1 - x};
    case ANAGRAM_ROTATE_CW:
    case ANAGRAM_ROTATE_CCW:
        return turned(y, x, h, v->kind == ANAGRAM_ROTATE_CW);
    case ANAGRAM_SKEW: // towards zero, so that opposite slopes cancel
        return (place){wrapped(y - (int64_t)((double)v->skew * (double)(x - w / 2)), h), x};
    case ANAGRAM_INNER_CIRCLE:
        return inner_circle(y, x, h);
    case ANAGRAM_SQUARE_HINGE:
        return square_hinge(y, x, h);
    default:
        return (place){y, x};
    }
}

/* --- random views --- */

// splitmix64: the same order on every machine.
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(int32_t *item, int64_t count, uint64_t *state)
{
    for (int64_t i = count - 1; i > 0; i--) {
        const int64_t j = (int64_t)(next_random(state) % (uint64_t)(i + 1));
        const int32_t keep = item[i];
        item[i] = item[j];
        item[j] = keep;
    }
}

// order [n * n] of the patches becomes places.
static void place_patches(anagram_view *v, const int32_t *order, int64_t n, int64_t h, int64_t w)
{
    const int64_t tall = h / n, wide = w / n;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            const int64_t from = order[y / tall * n + x / wide];
            v->source[y * w + x] =
                (int32_t)((from / n * tall + y % tall) * w + from % n * wide + x % wide);
        }
}

static hd_status patches(anagram_view *v, int64_t n, int64_t h, int64_t w)
{
    int32_t *order = malloc((size_t)(n * n) * sizeof *order);
    if (!order) return hd_fail(HD_ERR_NOMEM, "anagram: no memory for a view");
    uint64_t state = v->seed;
    for (int64_t i = 0; i < n * n; i++)
        order[i] = (int32_t)i;
    shuffle(order, n * n, &state);
    place_patches(v, order, n, h, w);
    free(order);
    return HD_OK;
}

enum { PIECES = 4, KINDS = 3 };

// A piece of the jigsaw: 0 corner, 1 edge, 2 inside; and how many quarter turns clockwise bring the
// kind's first piece (outer edges left and top, or top) to where this one lies.
static int piece_kind(int64_t i, int64_t j, int *turns)
{
    const int64_t last = PIECES - 1;
    const bool top = i == 0, bottom = i == last, left = j == 0, right = j == last;
    if ((top || bottom) && (left || right)) {
        *turns = top ? (left ? 0 : 1) : (right ? 2 : 3);
        return 0;
    }
    *turns = top ? 0 : right ? 1 : bottom ? 2 : left ? 3 : 0;
    return top || bottom || left || right ? 1 : 2;
}

// Pieces change places with pieces of their kind and turn so that outer edges stay outside.
static void jigsaw(anagram_view *v, int64_t n)
{
    const int64_t side = n / PIECES;
    int32_t member[KINDS][PIECES * PIECES], mixed[KINDS][PIECES * PIECES];
    int count[KINDS] = {0}, turns_of[PIECES * PIECES], kind_of[PIECES * PIECES];
    uint64_t state = v->seed;
    for (int32_t p = 0; p < PIECES * PIECES; p++) {
        const int kind = kind_of[p] = piece_kind(p / PIECES, p % PIECES, &turns_of[p]);
        member[kind][count[kind]++] = p;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        memcpy(mixed[kind], member[kind], sizeof mixed[kind]);
        shuffle(mixed[kind], count[kind], &state);
    }
    for (int kind = 0; kind < KINDS; kind++)
        for (int k = 0; k < count[kind]; k++) {
            const int32_t to = member[kind][k], from = mixed[kind][k];
            const int extra = kind == 2 ? (int)(next_random(&state) % 4) : 0;
            const int turns = (turns_of[to] - turns_of[from] + extra + 8) % 4;
            for (int64_t y = 0; y < side; y++)
                for (int64_t x = 0; x < side; x++) {
                    place p = {y, x};
                    for (int t = 0; t < turns; t++)
                        p = turned(p.y, p.x, side, true);
                    v->source[(to / PIECES * side + y) * n + to % PIECES * side + x] =
                        (int32_t)((from / PIECES * side + p.y) * n + from % PIECES * side + p.x);
                }
        }
}

/* --- tables --- */

static hd_status check_size(const anagram_view *v, int64_t h, int64_t w)
{
    static const bool square[ANAGRAM_KINDS] = {
        [ANAGRAM_ROTATE_CW] = true,    [ANAGRAM_ROTATE_CCW] = true,   [ANAGRAM_JIGSAW] = true,
        [ANAGRAM_INNER_CIRCLE] = true, [ANAGRAM_SQUARE_HINGE] = true,
    };
    const char *name = anagram_kinds[v->kind];
    if (square[v->kind] && h != w)
        return hd_fail(HD_ERR_ARGUMENT, "\"%s\" needs a square; the latent is %lld x %lld", name,
                       (long long)w, (long long)h);
    const int64_t n = v->kind == ANAGRAM_JIGSAW ? PIECES : v->patches;
    if ((v->kind == ANAGRAM_PATCHES || v->kind == ANAGRAM_JIGSAW) && (h % n || w % n))
        return hd_fail(HD_ERR_ARGUMENT,
                       "\"%s\" cuts the latent into %lld x %lld pieces, which do not divide its "
                       "%lld x %lld places",
                       name, (long long)n, (long long)n, (long long)w, (long long)h);
    return HD_OK;
}

bool anagram_keeps_noise(const int32_t *source, const float *sign, int64_t places)
{
    bool keeps = true;
    unsigned char *seen = calloc((size_t)places, 1);
    if (!seen) return false;
    for (int64_t p = 0; p < places && keeps; p++) {
        keeps = source[p] >= 0 && source[p] < places && !seen[source[p]] &&
                (sign[p] == 1.0f || sign[p] == -1.0f);
        if (keeps) seen[source[p]] = 1;
    }
    free(seen);
    return keeps;
}

hd_status anagram_table(anagram_view *v, int64_t h, int64_t w)
{
    HD_TRY(check_size(v, h, w));
    if (v->kind == ANAGRAM_IDENTITY || anagram_filters(v->kind)) return HD_OK;
    v->source = malloc((size_t)(h * w) * sizeof *v->source);
    v->sign = malloc((size_t)(h * w) * sizeof *v->sign);
    if (!v->source || !v->sign) return hd_fail(HD_ERR_NOMEM, "anagram: no memory for a view");
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            const place p = moved(v, y, x, h, w);
            v->source[y * w + x] = (int32_t)(p.y * w + p.x);
            v->sign[y * w + x] = v->kind == ANAGRAM_NEGATE ? -1.0f : 1.0f;
        }
    if (v->kind == ANAGRAM_PATCHES) HD_TRY(patches(v, v->patches, h, w));
    if (v->kind == ANAGRAM_PIXELS) {
        uint64_t state = v->seed;
        shuffle(v->source, h * w, &state);
    }
    if (v->kind == ANAGRAM_JIGSAW) jigsaw(v, h);
    if (!anagram_keeps_noise(v->source, v->sign, h * w))
        return hd_fail(HD_ERR_INTERNAL, "\"%s\" does not keep noise what it is",
                       anagram_kinds[v->kind]);
    return HD_OK;
}

void anagram_look(const anagram_view *v, float *out, const float *in, int64_t channels,
                  int64_t places)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < places; p++)
            out[c * places + p] =
                v->source ? v->sign[p] * in[c * places + v->source[p]] : in[c * places + p];
}

void anagram_undo(const anagram_view *v, float *out, const float *in, int64_t channels,
                  int64_t places)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < places; p++)
            out[c * places + (v->source ? v->source[p] : p)] =
                v->source ? v->sign[p] * in[c * places + p] : in[c * places + p];
}

/* --- filters --- */

// Beyond the edge the picture is mirrored.
static int64_t mirrored(int64_t i, int64_t count)
{
    if (count == 1) return 0;
    i = wrapped(i, 2 * (count - 1));
    return i < count ? i : 2 * (count - 1) - i;
}

static void smooth_line(float *out, const float *in, int64_t count, int64_t stride,
                        const double *kernel, int64_t reach)
{
    for (int64_t i = 0; i < count; i++) {
        double sum = 0;
        for (int64_t k = -reach; k <= reach; k++)
            sum += kernel[k < 0 ? -k : k] * (double)in[mirrored(i + k, count) * stride];
        out[i * stride] = (float)sum;
    }
}

enum { REACH_MOST = 256 };

// out = x smoothed by a Gaussian of `sigma` places of a latent of 64; scratch [h, w].
static void gaussian(float *out, const float *x, int64_t h, int64_t w, double sigma, float *scratch)
{
    double kernel[REACH_MOST + 1], sum = 0;
    const double here = sigma * (double)h / 64;
    int64_t reach = (int64_t)ceil(16 * (double)h / 64);
    if (reach > REACH_MOST) reach = REACH_MOST;
    for (int64_t k = 0; k <= reach; k++) {
        kernel[k] = exp(-0.5 * (double)(k * k) / (here * here));
        sum += k ? 2 * kernel[k] : kernel[k];
    }
    for (int64_t k = 0; k <= reach; k++)
        kernel[k] /= sum;
    for (int64_t y = 0; y < h; y++)
        smooth_line(scratch + y * w, x + y * w, w, 1, kernel, reach);
    for (int64_t i = 0; i < w; i++)
        smooth_line(out + i, scratch + i, h, w, kernel, reach);
}

// The mean of 7 neighbours along the rows.
static void motion(float *out, const float *x, int64_t h, int64_t w)
{
    const double kernel[4] = {1.0 / 7, 1.0 / 7, 1.0 / 7, 1.0 / 7};
    for (int64_t y = 0; y < h; y++)
        smooth_line(out + y * w, x + y * w, w, 1, kernel, 3);
}

static void filter_plane(const anagram_view *v, float *x, int64_t h, int64_t w, float *scratch)
{
    const int64_t places = h * w;
    float *smooth = scratch, *room = scratch + places;
    switch (v->kind) {
    case ANAGRAM_LOW_PASS:
        gaussian(smooth, x, h, w, (double)v->sigma[0], room);
        memcpy(x, smooth, (size_t)places * sizeof *x);
        break;
    case ANAGRAM_HIGH_PASS:
        gaussian(smooth, x, h, w, (double)v->sigma[0], room);
        for (int64_t i = 0; i < places; i++)
            x[i] -= smooth[i];
        break;
    case ANAGRAM_BAND_PASS: // what the finer one keeps and the coarser one does not
        gaussian(smooth, x, h, w, (double)v->sigma[1], room);
        gaussian(x, x, h, w, (double)v->sigma[0], room);
        for (int64_t i = 0; i < places; i++)
            x[i] -= smooth[i];
        break;
    case ANAGRAM_MOTION_BLUR:
        motion(smooth, x, h, w);
        memcpy(x, smooth, (size_t)places * sizeof *x);
        break;
    case ANAGRAM_MOTION_REST:
        motion(smooth, x, h, w);
        for (int64_t i = 0; i < places; i++)
            x[i] -= smooth[i];
        break;
    case ANAGRAM_HALF:
        for (int64_t i = 0; i < places; i++)
            x[i] *= 0.5f;
        break;
    default:
        break;
    }
}

void anagram_filter(const anagram_view *v, float *x, int64_t channels, int64_t h, int64_t w,
                    float *scratch)
{
    for (int64_t c = 0; c < channels; c++)
        filter_plane(v, x + c * h * w, h, w, scratch);
}
