/* controls/attention_masks.h: what the files of attention_masks share: options, what was made of
 * them before step 0, and the arithmetic of maps. For controls/attention_masks*.c alone. */
#ifndef HD_CONTROLS_ATTENTION_MASKS_H
#define HD_CONTROLS_ATTENTION_MASKS_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

typedef enum masks_recipe {
    MASKS_DAAM,
    MASKS_P2P,
    MASKS_DIFFUMASK,
    MASKS_ATTENCRAFT,
} masks_recipe;
typedef enum masks_pieces { MASKS_MEAN, MASKS_SUM, MASKS_MAX } masks_pieces;
typedef enum masks_normalize {
    MASKS_NONE,
    MASKS_BY_MAX,
    MASKS_MINMAX,
    MASKS_COMPETE
} masks_normalize;
typedef enum masks_refine { MASKS_AS_IS, MASKS_POOL, MASKS_GUIDED } masks_refine;
typedef enum masks_rule { MASKS_FIXED, MASKS_OTSU, MASKS_AREA, MASKS_SEARCH } masks_rule;

/* Channels beside those of the words. */
enum { MASKS_BEGIN, MASKS_ALL_WORDS, MASKS_REST, MASKS_EXTRA };

#define MASKS_MOST_FACTORS 8
#define MASKS_MOST_BLOCKS  8
#define MASKS_MOST_POWER   HD_MAX_PASSES

/* A word that is looked at: its channels, one, or one for each piece. */
typedef struct masks_word {
    char name[64];
    int64_t first, channels;
} masks_word;

typedef struct attention_masks {
    // options
    masks_recipe recipe;
    const hd_json *words, *resolutions, *blocks, *threshold;
    char *branch, *background;
    masks_pieces pieces;
    masks_normalize normalize;
    masks_refine refine;
    bool pieces_given, normalize_given, power_given, per_head;
    bool shared_scale, fill;
    int64_t self_power, self_factor;
    float margin, min_area;
    // made before step 0
    char name[24]; // the branch's own
    int64_t columns, channels;
    float *indicator; // [columns, channels]
    int64_t count;    // words
    masks_word *word;
    int64_t background_word; // number of its entry in `word`, -1: none of them
    bool complement;
    int64_t factors, factor[MASKS_MOST_FACTORS];
    int64_t blocks_given;
    const char *block[MASKS_MOST_BLOCKS];
    masks_rule rule;
    float share;                     // the threshold, or the area
    int64_t self_height, self_width; // grid of the self attention maps are spread by
    int64_t latent_height, latent_width;
} attention_masks;

/* State of a row at a cross or joint site. The sums follow: [heads or 1, tokens, channels], over
 * calls, and over the heads where there is one of them. */
typedef struct masks_sums {
    int64_t calls, height, width, heads, summed_heads;
} masks_sums;

static inline float *masks_sums_values(masks_sums *s)
{
    return (float *)(s + 1);
}

/* State of a picture: what has been seen on the grid of the self attention, and what became of it.
 * Behind it [2, channels, self_height * self_width]. */
typedef struct masks_spread {
    int64_t seen, spread;
} masks_spread;

/* attention_masks_words.c: options and words, for the prompt of this run. */
HD_CHECKED hd_status masks_read_options(attention_masks *p, const hd_begin_ctx *ctx);
void masks_clear(void *params);

/* attention_masks_spread.c: maps multiplied by self attention. */
int64_t masks_spread_values(const attention_masks *p); // floats behind masks_spread
/* Adds the mean over the heads of `probed` [B, H, Lq, channels] of a row, a map [h, w] from token
 * `start` on, on the grid of the self attention. scratch [h w + self_height self_width]. */
void masks_spread_see(const attention_masks *p, masks_spread *to, hd_tensor probed, int64_t row,
                      int64_t start, int64_t h, int64_t w, float *scratch);
/* What is seen so far as values [.., tokens, heads, D] of row `row`; and the sum of what came out
 * of the last pass. scratch [self_height self_width]. */
void masks_spread_values_of(const attention_masks *p, masks_spread *s, hd_tensor v, int64_t row,
                            float *scratch);
void masks_spread_again(const attention_masks *p, hd_tensor v, hd_tensor out, int64_t row);
void masks_spread_add(const attention_masks *p, masks_spread *to, hd_tensor out, int64_t row);

/* attention_masks_show.c */
HD_CHECKED hd_status masks_show(const hd_show_ctx *ctx);
/* The maps of all channels [channels, latent places] of a branch, as the recipe takes their mean.
 */
HD_CHECKED hd_status masks_gather(const hd_beside_ctx *ctx, float *maps);
/* Of those the words' [count, places], with pieces joined and, with `compete`, as shares. */
void masks_join_words(const attention_masks *p, const float *maps, int64_t places, float *word);

/* attention_masks_maps.c: maps [h, w]. */
void masks_nearest(float *out, int64_t height, int64_t width, const float *in, int64_t h,
                   int64_t w);
/* a = -0.75, edges continued, what falls below 0 becomes 0. */
void masks_bicubic(float *out, int64_t height, int64_t width, const float *in, int64_t h,
                   int64_t w);
void masks_range(const float *x, int64_t count, float *least, float *most);
/* x = (x - least) / (most - least), 0 everywhere if they are equal. */
void masks_scale(float *x, int64_t count, float least, float most);
/* Each place the largest of its 3 x 3 neighbourhood. */
void masks_pool(float *out, const float *in, int64_t h, int64_t w);
/* The guided filter of He et al. (2013) by the brightness of rgb, radius 8, epsilon 1e-4. false: no
 * memory. */
bool masks_guided(float *map, const uint8_t *rgb, int64_t h, int64_t w);
/* The threshold of a map of 0 .. 1 by a rule. */
float masks_threshold(const float *x, int64_t count, masks_rule rule, float share);
/* Which of the values is above all others by more than `margin`; -1: none. */
int masks_class(const float *value, int count, float margin);
/* Takes away the connected parts smaller than `least` places. false: no memory. */
bool masks_drop_small(uint8_t *mask, int64_t h, int64_t w, int64_t least);

HD_END_DECLS
#endif
