/* codecs/tokenizer_clip.c: prompt -> special tokens and text -> words -> bytes -> merges -> ids.
 *
 * The steps and their order are those of transformers' CLIPTokenizer:
 *   1. special tokens are found in the text as it is written;
 *   2. what lies between is composed (NFC), white space becomes one space, letters lower case;
 *   3. added tokens that are declared `normalized` are found in the result;
 *   4. the rest is cut into words: contractions, runs of letters, single digits, runs of signs;
 *   5. each word's bytes are merged.
 * Every character carries the bytes of the prompt it comes from, and so does every token. */
#include "codecs/tokenizer_clip.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/tokenizer_folder.h"
#include "codecs/unicode.h"

/* An added token as characters, `normalized` ones in normal form. */
typedef struct clip_special {
    hd_char *text;
    int64_t count;
    bool normalized;
    int64_t id, ids; // it stands for so many, from `id` on
} clip_special;

struct hd_tokenizer {
    const hd_tokenizer_folder *folder; // `own`, or that of the tokenizer it extends
    hd_tokenizer_folder own;
    clip_special *special;
    int64_t specials;
};

/* The state of one encoding. */
typedef struct clip_encoder {
    const hd_tokenizer *tokenizer;
    hd_char *text;   // the prompt
    hd_char *normal; // of one stretch between special tokens
    uint8_t *bytes;  // of one word
    int32_t *owner;  // which character of the word each byte is of
    int64_t word_room;
    hd_bpe_work work;
    int64_t length; // of ids
    int64_t *ids;
    hd_token *tokens; // may be NULL
    hd_encoding info;
} clip_encoder;

/* White space as one space each; in place. */
static int64_t clip_collapse(hd_char *text, int64_t count)
{
    int64_t n = 0;
    bool space = false;
    for (int64_t i = 0; i < count; i++) {
        bool again = space;
        space = hd_unicode_class_of(text[i].c) == HD_UNICODE_SPACE;
        if (space && again) {
            text[n - 1].end = text[i].end;
            continue;
        }
        text[n] = text[i];
        if (space) text[n].c = ' ';
        n++;
    }
    return n;
}

/* Lower case, in place, from the end because a character may become two. The room suffices: what
 * becomes two had been two before it was composed. */
static int64_t clip_lower(hd_char *text, int64_t count)
{
    uint32_t lower[2];
    int64_t longer = count;
    for (int64_t i = 0; i < count; i++)
        longer += hd_unicode_lower(text[i].c, lower) - 1;
    int64_t n = longer;
    for (int64_t i = count - 1; i >= 0; i--) {
        hd_char c = text[i];
        for (int k = hd_unicode_lower(c.c, lower) - 1; k >= 0; k--) {
            c.c = lower[k];
            text[--n] = c;
        }
    }
    return longer;
}

/* in[0 .. count) in normal form into out, with room for HD_UNICODE_NFC_ROOM * count. */
static int64_t clip_normalize(hd_char *out, const hd_char *in, int64_t count)
{
    return clip_lower(out, clip_collapse(out, hd_unicode_nfc(out, in, count)));
}

/* Characters of text into out [bytes]; returns how many, or -1 - the place of the first wrong byte.
 */
static int64_t clip_decode(hd_char *out, const char *text, size_t bytes)
{
    int64_t n = 0;
    for (size_t at = 0; at < bytes; n++) {
        int used = hd_utf8_decode(text + at, bytes - at, &out[n].c);
        if (!used) return -1 - (int64_t)at;
        out[n].start = (int32_t)at;
        at += (size_t)used;
        out[n].end = (int32_t)at;
    }
    return n;
}

static hd_status clip_special_make(clip_special *out, const hd_added_token *token)
{
    size_t bytes = strlen(token->text);
    hd_char *raw = malloc(bytes * sizeof *raw);
    out->text = malloc(bytes * HD_UNICODE_NFC_ROOM * sizeof *out->text);
    out->normalized = token->normalized;
    out->id = token->id;
    out->ids = 1;
    hd_status status = HD_OK;
    if (!raw || !out->text) {
        status = hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for \"%s\"", token->text);
    } else {
        int64_t count = clip_decode(raw, token->text, bytes);
        if (count < 0)
            status = hd_fail(HD_ERR_FORMAT, "tokenizer: an added token is not UTF-8");
        else if (token->normalized)
            out->count = clip_normalize(out->text, raw, count);
        else
            memcpy(out->text, raw, (size_t)(out->count = count) * sizeof *raw);
    }
    free(raw);
    return status;
}

// Room for `room` special tokens, of which those of the folder are made.
static hd_status clip_specials_make(hd_tokenizer *t, int64_t room)
{
    t->special = calloc((size_t)room + 1, sizeof *t->special);
    if (!t->special)
        return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for %lld tokens", (long long)room);
    while (t->specials < t->folder->added_count) {
        const int64_t i = t->specials++; // counted first: what it holds is freed also when it fails
        HD_TRY(clip_special_make(&t->special[i], &t->folder->added[i]));
    }
    return HD_OK;
}

hd_status hd_tokenizer_open(hd_tokenizer **out, const char *folder)
{
    hd_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return hd_fail(HD_ERR_NOMEM, "%s: no memory for the tokenizer", folder);
    t->folder = &t->own;
    hd_status status = hd_tokenizer_folder_read(&t->own, folder);
    if (status == HD_OK)
        status = hd_note(clip_specials_make(t, t->own.added_count), "while opening %s", folder);
    if (status != HD_OK) {
        hd_tokenizer_free(t);
        return status;
    }
    *out = t;
    return HD_OK;
}

// Is there a token of that name in the vocabulary, in the middle or at the end of a word?
static hd_status clip_known(const hd_tokenizer_folder *f, const char *text, bool *known)
{
    const size_t bytes = strlen(text);
    char *ending = malloc(bytes + sizeof "</w>");
    if (!ending) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for \"%s\"", text);
    memcpy(ending, text, bytes);
    memcpy(ending + bytes, "</w>", sizeof "</w>");
    *known = hd_bpe_find(f->bpe, text, bytes) >= 0 ||
             hd_bpe_find(f->bpe, ending, bytes + strlen("</w>")) >= 0;
    free(ending);
    return HD_OK;
}

static bool clip_same(const clip_special *a, const clip_special *b)
{
    bool same = a->count == b->count;
    for (int64_t i = 0; same && i < a->count; i++)
        same = a->text[i].c == b->text[i].c;
    return same;
}

static hd_status clip_add_word(hd_tokenizer *t, const hd_tokenizer_word *word)
{
    const hd_added_token token = {(char *)word->text, true, word->id};
    clip_special *s = &t->special[t->specials++];
    bool known = false;
    HD_TRY(clip_special_make(s, &token));
    s->ids = word->count;
    for (int64_t i = 0; i < s->count; i++)
        if (hd_unicode_class_of(s->text[i].c) == HD_UNICODE_SPACE)
            return hd_fail(HD_ERR_ARGUMENT, "the token \"%s\" has white space in it", word->text);
    if (s->count == 0) return hd_fail(HD_ERR_ARGUMENT, "the token has no characters");
    HD_TRY(clip_known(t->folder, word->text, &known));
    for (int64_t i = 0; i < t->specials - 1; i++)
        known |= clip_same(s, &t->special[i]);
    if (known)
        return hd_fail(HD_ERR_ARGUMENT,
                       "the token \"%s\" exists already; give another, like \"<my-%s>\"",
                       word->text, word->text[0] == '<' ? "word" : word->text);
    return HD_OK;
}

hd_status hd_tokenizer_extend(hd_tokenizer **out, const hd_tokenizer *base, int64_t count,
                              const hd_tokenizer_word *words, int64_t *failed)
{
    hd_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory");
    t->folder = base->folder;
    hd_status status = clip_specials_make(t, t->folder->added_count + count);
    for (*failed = 0; status == HD_OK && *failed < count; ++*failed)
        if ((status = clip_add_word(t, &words[*failed])) != HD_OK) break;
    if (status != HD_OK) {
        hd_tokenizer_free(t);
        return status;
    }
    *out = t;
    return HD_OK;
}

void hd_tokenizer_free(hd_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    for (int64_t i = 0; i < tokenizer->specials; i++)
        free(tokenizer->special[i].text);
    free(tokenizer->special);
    hd_tokenizer_folder_clear(&tokenizer->own);
    free(tokenizer);
}

int64_t hd_tokenizer_length(const hd_tokenizer *tokenizer)
{
    return tokenizer->folder->length;
}

int64_t hd_tokenizer_bos(const hd_tokenizer *tokenizer)
{
    return tokenizer->folder->bos;
}

int64_t hd_tokenizer_eos(const hd_tokenizer *tokenizer)
{
    return tokenizer->folder->eos;
}

int64_t hd_tokenizer_pad(const hd_tokenizer *tokenizer)
{
    return tokenizer->folder->pad;
}

/* The bytes of the prompt that text[0 .. count) comes from. Composition may have moved marks. */
static void clip_span(const hd_char *text, int64_t count, int64_t *start, int64_t *end)
{
    *start = text[0].start;
    *end = text[0].end;
    for (int64_t i = 1; i < count; i++) {
        if (text[i].start < *start) *start = text[i].start;
        if (text[i].end > *end) *end = text[i].end;
    }
}

/* One token of text[0 .. count), in a word that begins at byte `word_start`. */
static void clip_emit(clip_encoder *e, int64_t id, const hd_char *text, int64_t count,
                      int64_t word_start)
{
    int64_t place = e->info.count + 1;
    if (place > e->length - 2) {
        if (e->info.ignored++ == 0) e->info.ignored_from = word_start;
        return;
    }
    e->ids[place] = id;
    if (e->tokens) {
        hd_token *t = &e->tokens[place];
        *t = (hd_token){.id = id, .word = e->info.words};
        clip_span(text, count, &t->start, &t->end);
    }
    e->info.count++;
}

static hd_status clip_reserve_word(clip_encoder *e, int64_t bytes)
{
    if (bytes <= e->word_room) return HD_OK;
    free(e->bytes);
    free(e->owner);
    e->word_room = 0;
    e->bytes = malloc((size_t)bytes * 2);
    e->owner = malloc((size_t)bytes * 2 * sizeof *e->owner);
    if (!e->bytes || !e->owner)
        return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for a word of %lld bytes",
                       (long long)bytes);
    e->word_room = bytes * 2;
    return HD_OK;
}

static hd_status clip_word(clip_encoder *e, const hd_char *text, int64_t count)
{
    HD_TRY(clip_reserve_word(e, count * 4));
    int64_t bytes = 0, start, end;
    for (int64_t i = 0; i < count; i++) {
        char utf8[4];
        int length = hd_utf8_encode(text[i].c, utf8);
        for (int k = 0; k < length; k++, bytes++) {
            e->bytes[bytes] = (uint8_t)utf8[k];
            e->owner[bytes] = (int32_t)i;
        }
    }
    HD_TRY(hd_bpe_encode(e->tokenizer->folder->bpe, e->bytes, bytes, &e->work));
    clip_span(text, count, &start, &end);
    for (int32_t i = 0; i >= 0; i = e->work.symbol[i].next) {
        const hd_bpe_symbol *s = &e->work.symbol[i];
        int32_t first = e->owner[s->first], last = e->owner[s->first + s->bytes - 1];
        clip_emit(e, s->id, text + first, last - first + 1, start);
    }
    e->info.words++;
    return HD_OK;
}

/* Does text begin with `literal`? Returns its length, or 0. */
static int64_t clip_starts(const hd_char *text, int64_t count, const char *literal)
{
    int64_t n = (int64_t)strlen(literal);
    if (n > count) return 0;
    for (int64_t i = 0; i < n; i++)
        if (text[i].c != (unsigned char)literal[i]) return 0;
    return n;
}

/* The length of the word that begins with the character text[0], which is no space. */
static int64_t clip_word_length(const hd_char *text, int64_t count)
{
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; text[0].c == '\'' && i < HD_COUNT(contractions); i++) {
        int64_t n = clip_starts(text, count, contractions[i]);
        if (n) return n;
    }
    hd_unicode_class class = hd_unicode_class_of(text[0].c);
    if (class == HD_UNICODE_NUMBER) return 1;
    int64_t n = 1;
    while (n < count && hd_unicode_class_of(text[n].c) == class)
        n++;
    return n;
}

static hd_status clip_words(clip_encoder *e, const hd_char *text, int64_t count)
{
    for (int64_t i = 0; i < count;) {
        if (text[i].c == ' ') { // all white space is that
            i++;
            continue;
        }
        // Lower-cased special tokens are not special, but their signs are cut off from what
        // follows.
        int64_t end = clip_starts(text + i, count - i, "<|startoftext|>");
        if (!end) end = clip_starts(text + i, count - i, "<|endoftext|>");
        end = end ? i + end : count;
        do {
            int64_t n = clip_word_length(text + i, end - i);
            HD_TRY(clip_word(e, text + i, n));
            i += n;
        } while (end < count && i < end);
    }
    return HD_OK;
}

/* The longest special token of that kind that text begins with, or NULL. */
static const clip_special *clip_special_at(const hd_tokenizer *t, bool normalized,
                                           const hd_char *text, int64_t count)
{
    const clip_special *best = NULL;
    for (int64_t i = 0; i < t->specials; i++) {
        const clip_special *s = &t->special[i];
        if (s->normalized != normalized || s->count > count || s->count == 0) continue;
        int64_t n = 0;
        while (n < s->count && s->text[n].c == text[n].c)
            n++;
        if (n == s->count && (!best || n > best->count)) best = s;
    }
    return best;
}

typedef hd_status (*clip_stretch)(clip_encoder *e, const hd_char *text, int64_t count);

/* Emits the special tokens of one kind in text and hands on each stretch between them. */
static hd_status clip_split(clip_encoder *e, bool normalized, const hd_char *text, int64_t count,
                            clip_stretch stretch)
{
    int64_t from = 0;
    for (int64_t i = 0; i < count;) {
        const clip_special *s = clip_special_at(e->tokenizer, normalized, text + i, count - i);
        if (!s) {
            i++;
            continue;
        }
        if (i > from) HD_TRY(stretch(e, text + from, i - from));
        for (int64_t k = 0; k < s->ids; k++)
            clip_emit(e, s->id + k, text + i, s->count, text[i].start);
        e->info.words++;
        from = i += s->count;
    }
    return count > from ? stretch(e, text + from, count - from) : HD_OK;
}

static hd_status clip_normal_stretch(clip_encoder *e, const hd_char *text, int64_t count)
{
    int64_t n = clip_normalize(e->normal, text, count);
    return clip_split(e, true, e->normal, n, clip_words);
}

static hd_status clip_run(clip_encoder *e, const char *text, size_t bytes)
{
    e->text = malloc((bytes + 1) * sizeof *e->text);
    e->normal = malloc((bytes + 1) * HD_UNICODE_NFC_ROOM * sizeof *e->normal);
    if (!e->text || !e->normal)
        return hd_fail(HD_ERR_NOMEM, "tokenizer: no memory for a prompt of %zu bytes", bytes);
    int64_t count = clip_decode(e->text, text, bytes);
    if (count < 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "the prompt is not UTF-8: byte %lld is 0x%02x; give it in UTF-8",
                       (long long)(-1 - count), (unsigned char)text[-1 - count]);
    HD_TRY(clip_split(e, false, e->text, count, clip_normal_stretch));
    const hd_tokenizer_folder *f = e->tokenizer->folder;
    int64_t end = e->info.count + 1;
    for (int64_t i = 0; i < e->length; i++) {
        if (i > 0 && i < end) continue;
        e->ids[i] = i == 0 ? f->bos : i == end ? f->eos : f->pad;
        if (e->tokens) e->tokens[i] = (hd_token){.id = e->ids[i], .word = -1};
    }
    e->info.count += 2;
    return HD_OK;
}

hd_status hd_tokenizer_encode(const hd_tokenizer *tokenizer, const char *text, size_t bytes,
                              int64_t length, int64_t *ids, hd_token *tokens, hd_encoding *info)
{
    if (bytes > HD_TOKENIZER_MOST_BYTES)
        return hd_fail(HD_ERR_ARGUMENT, "the prompt has %zu bytes, at most %d are allowed", bytes,
                       HD_TOKENIZER_MOST_BYTES);
    if (length < 2)
        return hd_fail(HD_ERR_ARGUMENT, "tokenizer: length is %lld, must be 2 or more",
                       (long long)length);
    clip_encoder e = {.tokenizer = tokenizer, .length = length, .ids = ids, .tokens = tokens};
    hd_status status = clip_run(&e, text, bytes);
    if (status == HD_OK && info) *info = e.info;
    free(e.text);
    free(e.normal);
    free(e.bytes);
    free(e.owner);
    hd_bpe_work_free(&e.work);
    return status;
}

char *hd_tokenizer_warning(char *out, size_t out_bytes, const char *text, size_t bytes,
                           int64_t length, const hd_encoding *info)
{
    if (out_bytes == 0) return out;
    out[0] = 0;
    if (info->ignored == 0) return out;
    size_t from = (size_t)info->ignored_from;
    int used = snprintf(out, out_bytes, "the prompt is longer than %lld tokens; ignored: %.*s",
                        (long long)length - 2, (int)(bytes - from), text + from);
    if (used < 0 || (size_t)used < out_bytes) return out;
    size_t end = out_bytes > 4 ? out_bytes - 4 : 0;
    while (end > 0 && ((unsigned char)out[end] & 0xc0) == 0x80) // not inside a character
        end--;
    snprintf(out + end, out_bytes - end, "...");
    return out;
}
