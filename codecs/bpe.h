/* codecs/bpe.h: byte-pair encoding over bytes, with a mark at the end of a word.
 *
 * A vocabulary of strings in the byte alphabet of GPT-2 and CLIP (each of the 256 bytes has a
 * printable character of its own) and a list of merges, the earlier the stronger. Filled once,
 * then read by any number of threads. */
#ifndef HD_CODECS_BPE_H
#define HD_CODECS_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_bpe hd_bpe;

/* The caller owns *out. hd_bpe_free(NULL) does nothing. */
HD_CHECKED hd_status hd_bpe_create(hd_bpe **out);
void hd_bpe_free(hd_bpe *bpe);

/* Messages of both name no file: the caller adds the place. */
HD_CHECKED hd_status hd_bpe_add_token(hd_bpe *bpe, const char *token, size_t bytes, int32_t id);
/* After all tokens. HD_ERR_FORMAT if the vocabulary lacks a part or what they make. */
HD_CHECKED hd_status hd_bpe_add_merge(hd_bpe *bpe, const char *left, size_t left_bytes,
                                      const char *right, size_t right_bytes);
/* After all merges: looks up the bytes, as they are and with `end_of_word` behind them. `unknown`
 * stands for a byte that is not in the vocabulary; it may be absent until it is needed. */
HD_CHECKED hd_status hd_bpe_finish(hd_bpe *bpe, const char *end_of_word, const char *unknown);

int32_t hd_bpe_find(const hd_bpe *bpe, const char *token, size_t bytes); // its id, or -1
int64_t hd_bpe_tokens(const hd_bpe *bpe);                                // in the vocabulary

/* What encoding needs for a while; zero it before the first use, hd_bpe_work_free after the last.
 */
typedef struct hd_bpe_work {
    struct hd_bpe_symbol *symbol; // the result of hd_bpe_encode
    struct hd_bpe_candidate *heap;
    int64_t room;
} hd_bpe_work;
void hd_bpe_work_free(hd_bpe_work *work);

typedef struct hd_bpe_symbol {
    int32_t id;
    int32_t first, bytes; // which bytes of the word; bytes 0: joined to an earlier symbol
    int32_t prev, next;   // numbers of the neighbours, -1 for none
} hd_bpe_symbol;

/* One word of `count` >= 1 bytes: time n log n. The result is the chain in work->symbol from number
 * 0 along `next`. */
HD_CHECKED hd_status hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, int64_t count,
                                   hd_bpe_work *work);

HD_END_DECLS
#endif
