/* codecs/tokenizer_folder.c: reads the files of a CLIP tokenizer's folder.
 *
 * Which files count, and in which order, follows transformers 5: a folder means the same tokenizer
 * here and there. What would change the ids and is not done here is refused by its key. */
#include "codecs/tokenizer_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "engine/options/json.h"

enum {
    FOLDER_MOST_BYTES = 64 << 20, // of merges.txt
    FOLDER_MOST_ADDED = 4096,
    FOLDER_MOST_LENGTH = 1 << 20,
};

static const char folder_end_of_word[] = "</w>";
static const char folder_bos[] = "<|startoftext|>", folder_eos[] = "<|endoftext|>";

/* A special token as a file spells it: a string or an object. */
typedef struct folder_token {
    const char *text; // borrowed from a document
    bool normalized;
    bool object;
    bool fixed; // declared with an id: no later mention changes it
    int64_t declared;
} folder_token;

typedef struct folder_reader {
    const char *folder;
    hd_json_doc *config, *map, *added_json, *full, *vocab;
    hd_bpe *bpe;
    folder_token *token;
    int64_t tokens, tokens_room;
    folder_token bos, eos, unk, pad;
} folder_reader;

static void folder_path(const folder_reader *r, const char *name, char path[4096])
{
    snprintf(path, 4096, "%s/%s", r->folder, name);
}

static bool folder_has(const folder_reader *r, const char *name)
{
    char path[4096];
    folder_path(r, name, path);
    return access(path, F_OK) == 0;
}

/* *doc stays NULL when the file is not there. */
static hd_status folder_open(const folder_reader *r, const char *name, hd_json_doc **doc)
{
    if (!folder_has(r, name)) return HD_OK;
    char path[4096];
    folder_path(r, name, path);
    HD_TRY(hd_json_read(doc, path));
    return hd_json_expect(hd_json_root(*doc), HD_JSON_OBJECT);
}

static hd_status folder_open_all(folder_reader *r)
{
    HD_TRY(folder_open(r, "tokenizer_config.json", &r->config));
    if (!r->config)
        return hd_fail(HD_ERR_IO,
                       "%s: no tokenizer_config.json there; the folder must be a CLIP tokenizer's",
                       r->folder);
    HD_TRY(folder_open(r, "special_tokens_map.json", &r->map));
    HD_TRY(folder_open(r, "added_tokens.json", &r->added_json));
    HD_TRY(folder_open(r, "tokenizer.json", &r->full));
    if (r->full) return HD_OK;
    if (!folder_has(r, "vocab.json") || !folder_has(r, "merges.txt"))
        return hd_fail(HD_ERR_IO,
                       "%s: it has neither tokenizer.json nor vocab.json with merges.txt",
                       r->folder);
    return folder_open(r, "vocab.json", &r->vocab);
}

static hd_status folder_read_vocab(folder_reader *r, const hd_json *vocab)
{
    HD_TRY(hd_json_expect(vocab, HD_JSON_OBJECT));
    if (hd_json_count(vocab) == 0)
        return hd_json_fail(vocab, HD_ERR_FORMAT, "is empty; a vocabulary is expected");
    for (int64_t i = 0; i < hd_json_count(vocab); i++) {
        const hd_json *entry = hd_json_at(vocab, i);
        const char *token = hd_json_key(entry);
        int64_t id;
        HD_TRY(hd_json_to_int(entry, 0, INT32_MAX, &id));
        HD_TRY(hd_note(hd_bpe_add_token(r->bpe, token, strlen(token), (int32_t)id), "in %s",
                       hd_json_name(vocab)));
    }
    return HD_OK;
}

/* "left right" */
static hd_status folder_merge_line(folder_reader *r, const char *line, size_t bytes)
{
    const char *space = memchr(line, ' ', bytes);
    size_t left = space ? (size_t)(space - line) : 0;
    if (!space || left == 0 || left + 1 == bytes || memchr(space + 1, ' ', bytes - left - 1))
        return hd_fail(HD_ERR_FORMAT, "\"%.*s\" is not two parts with one space between",
                       (int)(bytes < 80 ? bytes : 80), line);
    return hd_bpe_add_merge(r->bpe, line, left, space + 1, bytes - left - 1);
}

static hd_status folder_merges_txt(folder_reader *r)
{
    char path[4096], *text;
    size_t bytes;
    folder_path(r, "merges.txt", path);
    HD_TRY(hd_file_read(&text, &bytes, path, FOLDER_MOST_BYTES));
    hd_status status = HD_OK;
    int64_t number = 1;
    for (const char *line = text, *end = text + bytes; status == HD_OK && line < end; number++) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const char *next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        if (stop > line && stop[-1] == '\r') stop--;
        bool version = strncmp(line, "#version", 8) == 0;
        if (!version) status = folder_merge_line(r, line, (size_t)(stop - line));
        if (status != HD_OK)
            hd_note(status, "%s:%lld; is the file complete?", path, (long long)number);
        line = next;
    }
    free(text);
    return status;
}

static hd_status folder_merges_json(folder_reader *r, const hd_json *merges)
{
    HD_TRY(hd_json_expect(merges, HD_JSON_ARRAY));
    for (int64_t i = 0; i < hd_json_count(merges); i++) {
        const hd_json *merge = hd_json_at(merges, i);
        hd_status status;
        if (hd_json_kind(merge) == HD_JSON_ARRAY && hd_json_count(merge) == 2) {
            const char *left, *right;
            HD_TRY(hd_json_to_string(hd_json_at(merge, 0), &left));
            HD_TRY(hd_json_to_string(hd_json_at(merge, 1), &right));
            status = hd_bpe_add_merge(r->bpe, left, strlen(left), right, strlen(right));
        } else {
            const char *line;
            HD_TRY(hd_json_to_string(merge, &line));
            status = folder_merge_line(r, line, strlen(line));
        }
        char path[256];
        if (status != HD_OK)
            return hd_note(status, "%s: %s", hd_json_name(merge),
                           hd_json_path(merge, path, sizeof path));
    }
    return HD_OK;
}

/* A string that must be `only` where it is given. */
static hd_status folder_expect_text(const hd_json *node, const char *only, const char *why)
{
    const char *text;
    if (!node || hd_json_kind(node) == HD_JSON_NULL) return HD_OK;
    HD_TRY(hd_json_to_string(node, &text));
    if (strcmp(text, only) == 0) return HD_OK;
    return hd_json_fail(node, HD_ERR_UNSUPPORTED, "is \"%s\", only \"%s\" is supported%s", text,
                        only, why);
}

static hd_status folder_read_model(folder_reader *r)
{
    HD_TRY(hd_bpe_create(&r->bpe));
    if (!r->full) {
        HD_TRY(folder_read_vocab(r, hd_json_root(r->vocab)));
        return folder_merges_txt(r);
    }
    const hd_json *root = hd_json_root(r->full), *model = hd_json_get(root, "model");
    const hd_json *vocab = hd_json_get(model, "vocab"), *merges = hd_json_get(model, "merges");
    if (!vocab || !merges)
        return hd_json_fail(
            root, HD_ERR_FORMAT,
            "has no model.vocab with model.merges; a byte-pair encoding is expected");
    HD_TRY(folder_expect_text(hd_json_get(model, "type"), "BPE", ": is it CLIP's tokenizer?"));
    HD_TRY(folder_expect_text(hd_json_get(model, "end_of_word_suffix"), folder_end_of_word,
                              ": is it CLIP's tokenizer?"));
    HD_TRY(folder_read_vocab(r, vocab));
    return folder_merges_json(r, merges);
}

static hd_status folder_check_config(const folder_reader *r, int64_t *length)
{
    const hd_json *root = hd_json_root(r->config);
    const hd_json *class = hd_json_get(root, "tokenizer_class");
    const char *name = "";
    if (class) HD_TRY(hd_json_to_string(class, &name));
    if (strcmp(name, "CLIPTokenizerFast") != 0)
        HD_TRY(folder_expect_text(class, "CLIPTokenizer", " here"));
    HD_TRY(folder_expect_text(hd_json_get(root, "padding_side"), "right", ""));
    HD_TRY(folder_expect_text(hd_json_get(root, "truncation_side"), "right", ""));
    const hd_json *split = hd_json_get(root, "split_special_tokens");
    bool on = false;
    if (split) HD_TRY(hd_json_to_bool(split, &on));
    if (on) return hd_json_fail(split, HD_ERR_UNSUPPORTED, "is true, only false is supported");
    const hd_json *most = hd_json_get(root, "model_max_length");
    if (!most)
        return hd_json_fail(root, HD_ERR_FORMAT,
                            "has no \"model_max_length\"; it should be the text encoder's "
                            "max_position_embeddings, usually 77");
    return hd_json_to_int(most, 2, FOLDER_MOST_LENGTH, length);
}

/* A token from a string or an object. `normalized` is what an object means that does not say. */
static hd_status folder_token_read(const hd_json *node, bool normalized, folder_token *out)
{
    *out = (folder_token){.normalized = false};
    if (hd_json_kind(node) != HD_JSON_OBJECT) {
        HD_TRY(hd_json_to_string(node, &out->text));
    } else {
        const hd_json *content = hd_json_get(node, "content");
        if (!content) return hd_json_fail(node, HD_ERR_FORMAT, "has no \"content\"");
        HD_TRY(hd_json_to_string(content, &out->text));
        const hd_json *flag = hd_json_get(node, "normalized");
        out->object = true;
        out->normalized = normalized;
        if (flag) HD_TRY(hd_json_to_bool(flag, &out->normalized));
        static const char *const unsupported[] = {"lstrip", "rstrip", "single_word"};
        for (size_t i = 0; i < HD_COUNT(unsupported); i++) {
            const hd_json *strip = hd_json_get(node, unsupported[i]);
            bool on = false;
            if (strip) HD_TRY(hd_json_to_bool(strip, &on));
            if (on)
                return hd_json_fail(strip, HD_ERR_UNSUPPORTED, "is true, only false is supported");
        }
    }
    if (!*out->text) return hd_json_fail(node, HD_ERR_FORMAT, "is an empty token");
    return HD_OK;
}

static hd_status folder_append(folder_reader *r, folder_token t)
{
    if (r->tokens == FOLDER_MOST_ADDED)
        return hd_fail(HD_ERR_UNSUPPORTED, "%s: more than %d added tokens", r->folder,
                       FOLDER_MOST_ADDED);
    if (r->tokens == r->tokens_room) {
        int64_t room = r->tokens_room ? r->tokens_room * 2 : 8;
        folder_token *wider = realloc(r->token, (size_t)room * sizeof *wider);
        if (!wider) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its tokens", r->folder);
        r->token = wider;
        r->tokens_room = room;
    }
    r->token[r->tokens++] = t;
    return HD_OK;
}

/* A mention beside the declarations. Strings count once and objects count once, as in transformers,
 * which compares each with its like; of the two the later decides. */
static hd_status folder_mention(folder_reader *r, folder_token t)
{
    for (int64_t i = 0; i < r->tokens; i++) {
        const folder_token *old = &r->token[i];
        if (strcmp(old->text, t.text) == 0 && (old->fixed || old->object == t.object)) return HD_OK;
    }
    return folder_append(r, t);
}

static hd_status folder_declare(folder_reader *r, folder_token t, int64_t id)
{
    t.fixed = true;
    t.declared = id;
    for (int64_t i = 0; i < r->tokens; i++)
        if (r->token[i].declared == id) {
            r->token[i] = t;
            return HD_OK;
        }
    return folder_append(r, t);
}

static int folder_by_id(const void *left, const void *right)
{
    int64_t a = ((const folder_token *)left)->declared, b = ((const folder_token *)right)->declared;
    return a < b ? -1 : a > b;
}

static hd_status folder_token_flagged(const hd_json *node, folder_token *out)
{
    const hd_json *special = hd_json_get(node, "special");
    bool on = false;
    if (special) HD_TRY(hd_json_to_bool(special, &on));
    return folder_token_read(node, !on, out);
}

/* "added_tokens_decoder": { "49406": {...} } */
static hd_status folder_declare_decoder(folder_reader *r, const hd_json *decoder)
{
    HD_TRY(hd_json_expect(decoder, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(decoder); i++) {
        const hd_json *node = hd_json_at(decoder, i);
        char *end;
        long long id = strtoll(hd_json_key(node), &end, 10);
        if (*end || id < 0 || id > INT32_MAX)
            return hd_json_fail(node, HD_ERR_FORMAT, "must be named by a token's number");
        folder_token t;
        HD_TRY(folder_token_flagged(node, &t));
        HD_TRY(folder_declare(r, t, id));
    }
    return HD_OK;
}

/* added_tokens.json, then tokenizer.json's list. */
static hd_status folder_declare_files(folder_reader *r, const folder_token *named, int count)
{
    const hd_json *added = r->added_json ? hd_json_root(r->added_json) : NULL;
    int64_t id;
    for (int64_t i = 0; added && i < hd_json_count(added); i++) {
        const hd_json *node = hd_json_at(added, i);
        folder_token t = {.text = hd_json_key(node), .normalized = true};
        for (int k = 0; k < count; k++)
            if (strcmp(named[k].text, t.text) == 0) t.normalized = false;
        if (!*t.text) return hd_json_fail(node, HD_ERR_FORMAT, "is an empty token");
        HD_TRY(hd_json_to_int(node, 0, INT32_MAX, &id));
        HD_TRY(folder_declare(r, t, id));
    }
    const hd_json *list = r->full ? hd_json_get(hd_json_root(r->full), "added_tokens") : NULL;
    for (int64_t i = 0; list && i < hd_json_count(list); i++) {
        const hd_json *node = hd_json_at(list, i), *number = hd_json_get(node, "id");
        folder_token t;
        if (!number) return hd_json_fail(node, HD_ERR_FORMAT, "has no \"id\"");
        HD_TRY(hd_json_to_int(number, 0, INT32_MAX, &id));
        HD_TRY(folder_token_flagged(node, &t));
        HD_TRY(folder_declare(r, t, id));
    }
    return HD_OK;
}

/* The values of `key`: the map's before the configuration's. NULL if neither has one. */
static const hd_json *folder_get(const folder_reader *r, const char *key, bool *in_map)
{
    const hd_json *node = r->map ? hd_json_get(hd_json_root(r->map), key) : NULL;
    *in_map = node;
    return node ? node : hd_json_get(hd_json_root(r->config), key);
}

static hd_status folder_mention_extra(folder_reader *r, const char *key)
{
    bool in_map;
    const hd_json *list = folder_get(r, key, &in_map);
    if (!list || hd_json_kind(list) == HD_JSON_NULL) return HD_OK;
    HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    for (int64_t i = 0; i < hd_json_count(list); i++) {
        folder_token t;
        HD_TRY(folder_token_read(hd_json_at(list, i), !in_map, &t));
        HD_TRY(folder_mention(r, t));
    }
    return HD_OK;
}

enum { FOLDER_NAMED = 7 };
static const struct {
    const char *key, *otherwise;
} folder_named[FOLDER_NAMED] = {
    {"bos_token", folder_bos}, {"eos_token", folder_eos}, {"unk_token", folder_eos},
    {"sep_token", NULL},       {"pad_token", folder_eos}, {"cls_token", NULL},
    {"mask_token", NULL},
};

static hd_status folder_read_tokens(folder_reader *r)
{
    const hd_json *decoder = hd_json_get(hd_json_root(r->config), "added_tokens_decoder");
    if (decoder) { // a newer folder: what the older files say is not read
        hd_json_free(r->map);
        r->map = NULL;
    }
    folder_token named[FOLDER_NAMED];
    int count = 0;
    for (int i = 0; i < FOLDER_NAMED; i++) {
        bool in_map;
        const hd_json *node = folder_get(r, folder_named[i].key, &in_map);
        if (!folder_named[i].otherwise && (!node || hd_json_kind(node) == HD_JSON_NULL)) continue;
        folder_token *t = &named[count++];
        *t = (folder_token){.text = folder_named[i].otherwise};
        if (node) HD_TRY(folder_token_read(node, !in_map, t));
        t->declared = -1;
        if (i == 0) r->bos = *t;
        if (i == 1) r->eos = *t;
        if (i == 2) r->unk = *t;
        if (i == 4) r->pad = *t;
    }
    if (decoder)
        HD_TRY(folder_declare_decoder(r, decoder));
    else
        HD_TRY(folder_declare_files(r, named, count));
    if (r->tokens > 1) qsort(r->token, (size_t)r->tokens, sizeof *r->token, folder_by_id);
    for (int i = 0; i < count; i++)
        HD_TRY(folder_mention(r, named[i]));
    HD_TRY(folder_mention_extra(r, "additional_special_tokens"));
    return folder_mention_extra(r, "extra_special_tokens");
}

/* Each text once, with its number: the vocabulary's, else the next free one. */
static hd_status folder_number_tokens(const folder_reader *r, hd_tokenizer_folder *out)
{
    out->added = calloc((size_t)r->tokens, sizeof *out->added);
    if (!out->added) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its tokens", r->folder);
    int64_t next = hd_bpe_tokens(r->bpe);
    for (int64_t i = 0; i < r->tokens; i++) {
        const folder_token *t = &r->token[i];
        hd_added_token *into = NULL;
        for (int64_t k = 0; k < out->added_count && !into; k++)
            if (strcmp(out->added[k].text, t->text) == 0) into = &out->added[k];
        if (!into) {
            into = &out->added[out->added_count++];
            into->text = strdup(t->text);
            if (!into->text)
                return hd_fail(HD_ERR_NOMEM, "%s: no memory for its tokens", r->folder);
            into->id = hd_bpe_find(r->bpe, t->text, strlen(t->text));
            if (into->id < 0) into->id = next;
            if (into->id >= next) next = into->id + 1;
        }
        into->normalized = t->normalized;
    }
    return HD_OK;
}

static int64_t folder_id(const hd_tokenizer_folder *f, const folder_token *t)
{
    for (int64_t i = 0; i < f->added_count; i++)
        if (strcmp(f->added[i].text, t->text) == 0) return f->added[i].id;
    return -1;
}

static hd_status folder_read(folder_reader *r, hd_tokenizer_folder *out)
{
    HD_TRY(folder_open_all(r));
    HD_TRY(folder_check_config(r, &out->length));
    HD_TRY(folder_read_model(r));
    HD_TRY(folder_read_tokens(r));
    HD_TRY(hd_bpe_finish(r->bpe, folder_end_of_word, r->unk.text));
    HD_TRY(folder_number_tokens(r, out));
    out->bos = folder_id(out, &r->bos);
    out->eos = folder_id(out, &r->eos);
    out->pad = folder_id(out, &r->pad);
    HD_ENSURE(out->bos >= 0 && out->eos >= 0 && out->pad >= 0);
    return HD_OK;
}

void hd_tokenizer_folder_clear(hd_tokenizer_folder *folder)
{
    hd_bpe_free(folder->bpe);
    for (int64_t i = 0; i < folder->added_count; i++)
        free(folder->added[i].text);
    free(folder->added);
    *folder = (hd_tokenizer_folder){0};
}

hd_status hd_tokenizer_folder_read(hd_tokenizer_folder *out, const char *folder)
{
    folder_reader r = {.folder = folder};
    hd_tokenizer_folder f = {0};
    r.token = calloc(FOLDER_MOST_ADDED, sizeof *r.token);
    hd_status status =
        r.token ? folder_read(&r, &f) : hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", folder);
    f.bpe = r.bpe;
    hd_json_free(r.config);
    hd_json_free(r.map);
    hd_json_free(r.added_json);
    hd_json_free(r.full);
    hd_json_free(r.vocab);
    free(r.token);
    if (status != HD_OK) {
        hd_tokenizer_folder_clear(&f);
        return status;
    }
    *out = f;
    return HD_OK;
}
