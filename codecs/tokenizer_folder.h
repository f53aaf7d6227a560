/* codecs/tokenizer_folder.h: what a CLIP tokenizer's folder says: vocabulary, merges, special
 * tokens, length. Read as transformers reads it: tokenizer.json before vocab.json and merges.txt,
 * and of the special tokens added_tokens_decoder in tokenizer_config.json before the older files.
 */
#ifndef HD_CODECS_TOKENIZER_FOLDER_H
#define HD_CODECS_TOKENIZER_FOLDER_H

#include <stdbool.h>

#include "codecs/bpe.h"

HD_BEGIN_DECLS

/* A token that is found in the text before words are. */
typedef struct hd_added_token {
    char *text;
    bool normalized; // looked for in the text after composition and lower case
    int64_t id;
} hd_added_token;

typedef struct hd_tokenizer_folder {
    hd_bpe *bpe;
    hd_added_token *added;
    int64_t added_count;
    int64_t length, bos, eos, pad;
} hd_tokenizer_folder;

/* Fills *out, which hd_tokenizer_folder_clear empties; on failure there is nothing to empty. */
HD_CHECKED hd_status hd_tokenizer_folder_read(hd_tokenizer_folder *out, const char *folder);
void hd_tokenizer_folder_clear(hd_tokenizer_folder *folder);

HD_END_DECLS
#endif
