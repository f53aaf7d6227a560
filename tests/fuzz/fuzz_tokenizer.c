/* tests/fuzz/fuzz_tokenizer.c: any bytes are a prompt or an error, and any folder is a tokenizer or
 * an error.
 *
 * Input "p" + prompt: encoded with a small vocabulary; the places of the tokens must make sense.
 * Input "f" + tokenizer_config.json, 0, vocab.json, 0, merges.txt, 0, tokenizer.json: opened, and
 * used on a prompt. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codecs/tokenizer_clip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { LENGTH = 24 };

static char folder[64];

static void write_file(const char *name, const uint8_t *data, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes || close(fd) != 0) abort();
}

static void write_text(const char *name, const char *text)
{
    write_file(name, (const uint8_t *)text, strlen(text));
}

static const char *const names[] = {"tokenizer_config.json", "vocab.json", "merges.txt",
                                    "tokenizer.json"};

static void remove_folder(void)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void make_folder(void)
{
    if (folder[0]) return;
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/heddle-fuzz-XXXXXX"
                                                 : "/tmp/heddle-fuzz-XXXXXX");
    if (!mkdtemp(folder) || atexit(remove_folder) != 0) abort();
}

static void encode(const hd_tokenizer *t, const char *text, size_t bytes)
{
    int64_t ids[LENGTH];
    hd_token tokens[LENGTH];
    hd_encoding info;
    char warning[80];
    if (hd_tokenizer_encode(t, text, bytes, LENGTH, ids, tokens, &info) != HD_OK) return;
    if (info.count < 2 || info.count > LENGTH || ids[0] != hd_tokenizer_bos(t)) abort();
    for (int64_t i = 1; i + 1 < info.count; i++) {
        const hd_token *k = &tokens[i];
        if (k->start < 0 || k->end <= k->start || (size_t)k->end > bytes) abort();
        if (k->word < tokens[i - 1].word || k->word >= info.words || k->id != ids[i]) abort();
    }
    if (info.ignored && (size_t)info.ignored_from >= bytes) abort();
    hd_tokenizer_warning(warning, sizeof warning, text, bytes, LENGTH, &info);
}

static void fuzz_prompt(const uint8_t *data, size_t bytes)
{
    static hd_tokenizer *small;
    if (!small) {
        write_text("tokenizer_config.json",
                   "{\"model_max_length\": 24, \"pad_token\": \"!\", \"eos_token\": "
                   "{\"content\": \"<|endoftext|>\", \"normalized\": true}}");
        write_text("vocab.json", "{\"a\": 1, \"b\": 2, \"b</w>\": 3, \"ab\": 4, \"ab</w>\": 5, "
                                 "\"abab</w>\": 6, \"!\": 0, \"<|endoftext|>\": 7, "
                                 "\"<|startoftext|>\": 8}");
        write_text("merges.txt", "a b</w>\na b\nab ab</w>\n");
        if (hd_tokenizer_open(&small, folder) != HD_OK) abort();
    }
    encode(small, (const char *)data, bytes);
}

static void fuzz_folder(const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const uint8_t *stop = bytes ? memchr(data, 0, bytes) : NULL;
        size_t length = stop ? (size_t)(stop - data) : bytes;
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (length)
            write_file(names[i], data, length);
        else
            unlink(path);
        data += stop ? length + 1 : length;
        bytes -= stop ? length + 1 : length;
    }
    hd_tokenizer *t = NULL;
    if (hd_tokenizer_open(&t, folder) == HD_OK) encode(t, "ab <|endoftext|> \xc3\x89!", 20);
    hd_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    make_folder();
    if (bytes && data[0] == 'f')
        fuzz_folder(data + 1, bytes - 1);
    else if (bytes)
        fuzz_prompt(data + 1, bytes - 1);
    return 0;
}
