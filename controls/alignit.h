/* controls/alignit.h: what the files of AlignIT share. For controls/alignit*.c and its tests alone.
 */
#ifndef HD_CONTROLS_ALIGNIT_H
#define HD_CONTROLS_ALIGNIT_H

#include "engine/attention/processor.h"
#include "engine/weights/text_kv_file.h"

HD_BEGIN_DECLS

#define ALIGNIT_MOST_CONCEPTS 8

typedef enum alignit_align {
    ALIGNIT_INSERT, // every piece of the concept; those too many take columns of the padding
    ALIGNIT_LAST,   // its last pieces
    ALIGNIT_MEAN,   // the mean of all pieces
} alignit_align;

// A column of a prompt that takes over from the concept's own prompt.
typedef struct alignit_place {
    int64_t column, class_column; // the second: whose norm caps it
    int64_t from, count;          // columns of the concept's prompt: their mean
} alignit_place;

typedef struct alignit_concept {
    char *words, *class_words, *prompt; // prompt: the dummy prompt
    int text;
} alignit_concept;

// The places in the prompt of one branch.
typedef struct alignit_branch {
    char branch[24];
    int concept_of[64]; // by place
    alignit_place place[64];
    int64_t places;
} alignit_branch;

typedef struct alignit {
    // options
    const hd_json *concept_words, *class_words;
    char *dummy_template, *kv;
    alignit_align align;
    float eta_k, eta_v;
    bool norm_cap;
    enum { ALIGNIT_CUSTOM, ALIGNIT_BASE } unet;
    enum { ALIGNIT_CONCEPT, ALIGNIT_PROMPT } scope;
    // made before step 0
    hd_text_kv_file *file;
    int64_t concepts, branches;
    alignit_concept concept[ALIGNIT_MOST_CONCEPTS];
    alignit_branch branch[HD_MAX_BRANCHES];
    int whole[2]; // scope prompt: the texts of the negative prompt and the prompt
} alignit;

/* Which piece of a concept of `pieces` columns from `from` on each of the class words' `count`
 * columns takes over: place [most]; returns how many places, of which those from `count` on still
 * want a column of the padding. */
int64_t alignit_pair(alignit_place *place, int64_t most, alignit_align align, int64_t column,
                     int64_t count, int64_t from, int64_t pieces);
/* Row `row` of keys or values `to` [B, L, H, D] at a place, from those of the concept's prompt
 * [1, L, H, D]. vector [H * D] is scratch. */
void alignit_infuse(hd_tensor to, int64_t row, hd_tensor own, const alignit_place *place, float eta,
                    bool cap, float *vector);

HD_END_DECLS
#endif
