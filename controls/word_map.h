/* controls/word_map.h: which columns of a source prompt's attention a target prompt inherits.
 *
 * E = P_source M, and column j of the edited map is a_j E_j + (1 - a_j) P_target_j:
 * Prompt-to-Prompt (Hertz et al., arXiv 2208.01626), section 3 and the authors' aligner, with the
 * tail behind the last word kept aligned (theirs shifts it where the number of tokens changes). */
#ifndef HD_CONTROLS_WORD_MAP_H
#define HD_CONTROLS_WORD_MAP_H

#include "engine/attention/words.h"

HD_BEGIN_DECLS

typedef enum hd_word_map_mode {
    HD_WORD_MAP_AUTO,    // words are aligned; a swapped word inherits (or keeps) its place
    HD_WORD_MAP_REPLACE, // word by word: as many words in both prompts
    HD_WORD_MAP_REFINE,  // token by token: words are added
    HD_WORD_MAP_NONE,    // nothing is inherited
} hd_word_map_mode;

typedef struct hd_word_map {
    int64_t source, target; // columns
    float *m;               // [source, target]
    float *a;               // [target] 0 or 1
} hd_word_map;

/* own_changed: with AUTO, a changed word keeps its own map instead of inheriting. compat_tail:
 * REPLACE as the authors' code has it, for comparisons. The caller owns what *out holds. */
HD_CHECKED hd_status hd_word_map_create(hd_word_map *out, hd_word_map_mode mode, bool own_changed,
                                        bool compat_tail, const hd_prompt *source,
                                        const hd_prompt *target);
void hd_word_map_free(hd_word_map *map);

HD_END_DECLS
#endif
