/* tests/fuzz/fuzz_json.c: any bytes are JSON or an error; a tree that was read answers every
 * question, and what is written of it is read again as the same tree. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/options/json.h"
#include "engine/options/json_write.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool holds)
{
    if (!holds) abort();
}

// Every typed read either succeeds or has a message.
static void read_all(const hd_json *node)
{
    int64_t whole;
    uint64_t large;
    double number;
    bool truth;
    const char *text;
    char small[16];
    if (hd_json_to_int(node, -5, 5, &whole) == HD_OK) require(whole >= -5 && whole <= 5);
    if (hd_json_to_u64(node, &large) != HD_OK) require(hd_message()[0] != 0);
    if (hd_json_to_double(node, -INFINITY, INFINITY, &number) == HD_OK) require(isfinite(number));
    if (hd_json_to_bool(node, &truth) == HD_OK) require(hd_json_kind(node) == HD_JSON_BOOL);
    if (hd_json_to_string(node, &text) == HD_OK) require(hd_json_kind(node) == HD_JSON_STRING);
    require(strlen(hd_json_path(node, small, sizeof small)) < sizeof small);
    require(strlen(hd_json_describe(node, small, sizeof small)) < sizeof small);
}

static void walk(const hd_json *node)
{
    read_all(node);
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        const hd_json *child = hd_json_at(node, i);
        const char *key = hd_json_key(child);
        if (key) require(hd_json_get(node, key) == child);
        walk(child);
    }
}

static void require_same(const hd_json *a, const hd_json *b)
{
    double number;
    // the writer says null for a number beyond the doubles
    bool beyond = hd_json_kind(a) == HD_JSON_NUMBER &&
                  hd_json_to_double(a, -INFINITY, INFINITY, &number) != HD_OK;
    require(beyond || hd_json_kind(a) == hd_json_kind(b));
    require(hd_json_count(a) == hd_json_count(b));
    uint64_t x = 0, y = 0;
    if (hd_json_to_u64(a, &x) == HD_OK) require(hd_json_to_u64(b, &y) == HD_OK && x == y);
    for (int64_t i = 0; i < hd_json_count(a); i++)
        require_same(hd_json_at(a, i), hd_json_at(b, i));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    hd_json_doc *doc, *again;
    hd_json_writer writer = {0};
    char *text;
    if (hd_json_parse(&doc, "fuzz", (const char *)data, bytes) != HD_OK) return 0;
    walk(hd_json_root(doc));
    hd_json_write_node(&writer, NULL, hd_json_root(doc));
    if (hd_json_writer_take(&writer, &text) == HD_OK) {
        require(hd_json_parse(&again, "again", text, strlen(text)) == HD_OK);
        require_same(hd_json_root(doc), hd_json_root(again));
        hd_json_free(again);
        free(text);
    }
    hd_json_free(doc);
    return 0;
}
