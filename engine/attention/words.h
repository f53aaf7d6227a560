/* engine/attention/words.h: the prompt of a row as processors see it: which key columns of a cross
 * or joint attention belong to which word.
 *
 * A pipeline fills it from its tokenizer; a processor selects words by their text, never by number:
 * "tiger cat" (a word or a phrase, spaces and case folded, punctuation around it left out),
 * "<cat>" (a learned token, another word than cat) or "cat#2" (its second occurrence). */
#ifndef HD_ENGINE_ATTENTION_WORDS_H
#define HD_ENGINE_ATTENTION_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_prompt_token {
    int64_t id;
    int64_t start, end; // bytes of the text; start == end: begin, end, padding
    int64_t word;       // 0, 1, ...: which word it is a piece of; -1: begin, end, padding
} hd_prompt_token;

/* Column j of the keys is token j. */
typedef struct hd_prompt {
    const char *text;       // as the user wrote it; borrowed
    int64_t count;          // columns, padding included
    int64_t used;           // columns before the padding: begin, tokens, end
    hd_prompt_token *token; // [count], borrowed
} hd_prompt;

/* columns [prompt->count]: true where a piece of the selected words is, all of their occurrences
 * unless the selector names one. HD_ERR_ARGUMENT if there is no such word in the prompt (with the
 * nearest one that is), or if a part of it lies beyond the columns. */
HD_CHECKED hd_status hd_prompt_find(const hd_prompt *prompt, const char *selector, bool *columns);

/* Columns of the padding become pieces of the word that column `of` is a piece of: whoever selects
 * that word selects them too. They are the last `count` that are still padding; *first is the
 * lowest. HD_ERR_ARGUMENT if there are not so many. */
HD_CHECKED hd_status hd_prompt_claim(const hd_prompt *prompt, int64_t of, int64_t count,
                                     int64_t *first);

HD_END_DECLS
#endif
