/* codecs/tokenizer_clip.h: a prompt to the numbers a CLIP text encoder was trained with.
 *
 * Byte-pair encoding of a `tokenizer` folder: tokenizer.json, or vocab.json with merges.txt, beside
 * tokenizer_config.json (which must say model_max_length) and, in older folders,
 * special_tokens_map.json and added_tokens.json. The numbers equal those of transformers'
 * CLIPTokenizer: composition (NFC), white space collapsed, lower case, words, merges; special
 * tokens written in a prompt ("<|endoftext|>") are taken for what they are, as there. Where a
 * folder pads with "!", every "!" in a prompt is that special token: that too is as there.
 *
 * Text that is not UTF-8 is refused with the place of the first wrong byte. */
#ifndef HD_CODECS_TOKENIZER_CLIP_H
#define HD_CODECS_TOKENIZER_CLIP_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_tokenizer hd_tokenizer;

/* The caller owns *out. hd_tokenizer_free(NULL) does nothing. */
HD_CHECKED hd_status hd_tokenizer_open(hd_tokenizer **out, const char *folder);
void hd_tokenizer_free(hd_tokenizer *tokenizer);

/* A word that a run brings along: wherever its text is in a prompt (case folded, also inside other
 * words) it stands for `count` ids from `id` on: the vectors of a learned embedding. */
typedef struct hd_tokenizer_word {
    const char *text;
    int64_t id, count;
} hd_tokenizer_word;

/* `base` with more words; it must outlive *out, which the caller owns. HD_ERR_ARGUMENT for a word
 * that is empty, has white space in it, is not UTF-8 or is a token already; *failed is its number.
 */
HD_CHECKED hd_status hd_tokenizer_extend(hd_tokenizer **out, const hd_tokenizer *base,
                                         int64_t count, const hd_tokenizer_word *words,
                                         int64_t *failed);

int64_t hd_tokenizer_length(const hd_tokenizer *tokenizer); // model_max_length
int64_t hd_tokenizer_bos(const hd_tokenizer *tokenizer);
int64_t hd_tokenizer_eos(const hd_tokenizer *tokenizer);
int64_t hd_tokenizer_pad(const hd_tokenizer *tokenizer);

#define HD_TOKENIZER_MOST_BYTES 65536 // of a prompt

typedef struct hd_token {
    int64_t id;
    int64_t start,
        end;      // the bytes of the prompt it covers, whole characters; 0, 0: start, end, pad
    int64_t word; // 0, 1, 2 ...: which piece between spaces, letters and signs it belongs to;
                  // -1: start, end, pad
} hd_token;

typedef struct hd_encoding {
    int64_t count;        // ids before the padding, start and end counted
    int64_t words;        // in the whole prompt
    int64_t ignored;      // tokens that did not fit; 0: all is there
    int64_t ignored_from; // byte of the prompt where the first word begins that is not wholly there
} hd_encoding;

/* ids [length]: start, tokens, end, padding; what is beyond length - 2 tokens is left out. length
 * is 2 or more, usually hd_tokenizer_length. tokens [length] and info may be NULL. May be called by
 * several threads at once. HD_ERR_ARGUMENT for text that is not UTF-8 or too long. */
HD_CHECKED hd_status hd_tokenizer_encode(const hd_tokenizer *tokenizer, const char *text,
                                         size_t bytes, int64_t length, int64_t *ids,
                                         hd_token *tokens, hd_encoding *info);
/* "the prompt is longer than 75 tokens; ignored: a lighthouse at dawn" into `out`, "" if all
 * fitted; cut with "..." where it does not fit. Returns out. */
char *hd_tokenizer_warning(char *out, size_t out_bytes, const char *text, size_t bytes,
                           int64_t length, const hd_encoding *info);

HD_END_DECLS
#endif
