/* controls/anagram.h: what the files of anagram share: views as tables, filters, and the weights of
 * predictions. For controls/anagram*.c alone. */
#ifndef HD_CONTROLS_ANAGRAM_H
#define HD_CONTROLS_ANAGRAM_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

#define ANAGRAM_MOST 8 // views

/* A view moves places and changes signs, or leaves the latent alone and filters the prediction. */
typedef enum anagram_kind {
    ANAGRAM_IDENTITY,
    ANAGRAM_FLIP,
    ANAGRAM_MIRROR,
    ANAGRAM_ROTATE_CW,
    ANAGRAM_ROTATE_CCW,
    ANAGRAM_ROTATE_180,
    ANAGRAM_NEGATE,
    ANAGRAM_SKEW,
    ANAGRAM_PATCHES,
    ANAGRAM_PIXELS,
    ANAGRAM_JIGSAW,
    ANAGRAM_INNER_CIRCLE,
    ANAGRAM_SQUARE_HINGE,
    ANAGRAM_LOW_PASS, // from here on filters
    ANAGRAM_HIGH_PASS,
    ANAGRAM_BAND_PASS,
    ANAGRAM_MOTION_BLUR,
    ANAGRAM_MOTION_REST,
    ANAGRAM_HALF,
    ANAGRAM_KINDS,
} anagram_kind;

extern const char *const anagram_kinds[]; // by anagram_kind, NULL-ended

typedef struct anagram_view {
    anagram_kind kind;
    float skew;     // columns' slope
    float sigma[2]; // of filters, in places of a latent of 64
    int64_t patches;
    uint64_t seed;
    char branch[24];
    const char *prompt; // NULL: the run's
    // out[p] = sign[p] * in[source[p]]; NULL: as it is
    int32_t *source;
    float *sign;
} anagram_view;

static inline bool anagram_filters(anagram_kind kind)
{
    return kind >= ANAGRAM_LOW_PASS;
}

/* anagram_views.c: fills source and sign for a latent of h x w, to be freed. HD_ERR_ARGUMENT with
 * the reason where the size does not allow the view. */
HD_CHECKED hd_status anagram_table(anagram_view *view, int64_t h, int64_t w);
/* Noise stays noise only if every place is there once, and signs are 1 or -1. */
bool anagram_keeps_noise(const int32_t *source, const float *sign, int64_t places);
/* What is seen through the view, and back; [channels, places]. */
void anagram_look(const anagram_view *view, float *out, const float *in, int64_t channels,
                  int64_t places);
void anagram_undo(const anagram_view *view, float *out, const float *in, int64_t channels,
                  int64_t places);
/* A filter applied to x [channels, h, w] in place; scratch [2, h, w]. */
void anagram_filter(const anagram_view *view, float *x, int64_t channels, int64_t h, int64_t w,
                    float *scratch);

/* anagram_weights.c */
/* similarity^(-a - b progress), of sum 1. */
void anagram_balance(float *weight, const float *similarity, int count, const double exponent[2],
                     double progress);
/* What brings the weighted sum of noises back to their own variance: from the mean products of
 * noises [count, count], taking each noise's own as 1 (Xu et al.); or as measured. */
double anagram_rectify_formula(const float *weight, const double *product, int count);
double anagram_rectify_measured(const double *variance, int count, double combined);
double anagram_variance(const float *x, int64_t count);
double anagram_mean_product(const float *a, const float *b, int64_t count);

HD_END_DECLS
#endif
