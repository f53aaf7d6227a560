/* controls/prompt_to_prompt.h: what the files of Prompt-to-Prompt share: its options and what was
 * made of them before step 0. For controls/prompt_to_prompt*.c alone. */
#ifndef HD_CONTROLS_PROMPT_TO_PROMPT_H
#define HD_CONTROLS_PROMPT_TO_PROMPT_H

#include "controls/word_map.h"
#include "engine/attention/edit.h"
#include "engine/attention/processor.h"

HD_BEGIN_DECLS

#define P2P_MOST_TARGETS 8
#define P2P_INDICATORS   2 // words of the local blend, words subtracted from it

typedef enum p2p_inversion {
    P2P_INVERSION_DIRECT, // the source follows its trajectory (Ju et al., arXiv 2310.01506)
    P2P_INVERSION_DDIM,   // the source is sampled again from the end of it
    P2P_INVERSION_NPI,    // likewise, the source's prompt as negative prompt (Miyake et al.,
                          // 2305.16807)
} p2p_inversion;

typedef enum p2p_prox { P2P_PROX_NONE, P2P_PROX_HARD, P2P_PROX_SOFT } p2p_prox;
typedef enum p2p_mask_op { P2P_MASK_ONLY, P2P_MASK_AND, P2P_MASK_OR } p2p_mask_op;

// Calls first .. end - 1.
typedef struct p2p_range {
    int64_t first, end;
} p2p_range;

// A branch that inherits from the source.
typedef struct p2p_target {
    char branch[24];
    hd_word_map map;
    int64_t terms;                 // of the map: entries that are not 0, ascending by source column
    hd_edit_term *term;            // to: source column, from: target column
    hd_edit_term *inherited, *own; // of a call: B and C; room for terms and for columns
    float *weight;                 // [columns] of the target's words
    p2p_range *replace;            // [columns] when each column is inherited
    bool *blend, *subtract;        // [columns] words of the local blend
} p2p_target;

typedef struct p2p_blend {
    bool on;
    float threshold[2]; // of the words, of the subtracted words
    int64_t start;      // calls before it begins
    int64_t pool, factor;
} p2p_blend;

typedef struct prompt_to_prompt {
    // options
    hd_word_map_mode mode;
    enum { P2P_INHERIT, P2P_OWN } changed_words;
    const hd_json *cross_replace_steps, *self_replace_steps, *weights, *weight_steps, *local_blend;
    int64_t self_min_factor;
    char *source_prompt, *source_image, *mask_image;
    p2p_mask_op mask_op;
    p2p_inversion inversion;
    int64_t inversion_steps, fixed_point;
    char *inversion_file;
    p2p_prox prox;
    float prox_quantile, prox_recon_t, prox_recon_lr;
    bool compat_tail;
    // made before step 0
    char source[24];
    int64_t targets, columns;
    p2p_target target[P2P_MOST_TARGETS];
    p2p_range self_replace, weight_range;
    bool weight_range_given;
    p2p_blend blend;
    bool *source_blend, *source_subtract; // [columns]
    float *mask;                          // [latent height, width] or NULL
    bool real_image;
} prompt_to_prompt;

/* The target a row belongs to, or NULL: its rows with the prompt are edited. */
const p2p_target *p2p_target_of(const prompt_to_prompt *p, const hd_row *row);
/* The two matrices of a call's edit, out = P_source (B v) + P_own (C v). */
typedef struct p2p_edit {
    bool unchanged; // B = 0, C = 1
    const hd_edit_term *b, *c;
    int64_t b_terms, c_terms;
} p2p_edit;

/* Into the target's own memory: until the next call. */
p2p_edit p2p_edit_of(const prompt_to_prompt *p, const p2p_target *t, int64_t step);

/* prompt_to_prompt_words.c: what the options say of words; needs the prompts. */
HD_CHECKED hd_status p2p_read_words(prompt_to_prompt *p, const hd_begin_ctx *ctx);
void p2p_clear_words(prompt_to_prompt *p);

/* prompt_to_prompt_blend.c: local blend and user masks after a step. */
HD_CHECKED hd_status p2p_blend_latents(const hd_beside_ctx *ctx);
/* Does the local blend make its mask from words? */
bool p2p_blends_words(const prompt_to_prompt *p);
/* Refuses a factor that no site has. */
HD_CHECKED hd_status p2p_blend_sites(const hd_sites_ctx *ctx);
/* Does the local blend read the words of this site? */
bool p2p_blend_reads(const prompt_to_prompt *p, const hd_site *site);
/* Raises each place of a map [h, w] to the largest of its neighbours within pool / 2. */
void p2p_pool_max(float *out, const float *in, int64_t h, int64_t w, int64_t pool);
/* Adds to mask [height, width] the places where the map, divided by its largest value, is above the
 * threshold; or takes them away. */
void p2p_add_to_mask(uint8_t *mask, int64_t height, int64_t width, const float *map, int64_t h,
                     int64_t w, float threshold, bool take_away);

/* prompt_to_prompt_proximal.c (Han et al., arXiv 2306.05414). */
HD_CHECKED hd_status p2p_guide(const hd_beside_ctx *ctx);
/* The proximal operator of the l1 norm (soft) or l0 norm at one value. */
float p2p_proximal(float d, float threshold, bool soft);

HD_END_DECLS
#endif
