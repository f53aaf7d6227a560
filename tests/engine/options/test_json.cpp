// JSON to the letter: what is refused and where, exact integers, paths.
#include "engine/options/json.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <unistd.h>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/folder.h"

using Doc = std::unique_ptr<hd_json_doc, void (*)(hd_json_doc *)>;

static hd_status parse(const std::string &text)
{
    hd_json_doc *doc = nullptr;
    hd_status status = hd_json_parse(&doc, "a.json", text.data(), text.size());
    CHECK((doc != nullptr) == (status == HD_OK));
    hd_json_free(doc);
    return status;
}

static Doc good(const std::string &text)
{
    hd_json_doc *doc = nullptr;
    REQUIRE_OK(hd_json_parse(&doc, "a.json", text.data(), text.size()));
    return Doc(doc, hd_json_free);
}

static const hd_json *root(const Doc &doc)
{
    return hd_json_root(doc.get());
}

TEST_CASE("json: text that is none says where and what was expected", "[json]")
{
    struct {
        std::string text, message;
    } const cases[] = {
        {"", "a.json: is empty"},
        {" \n ", "a.json: is empty"},
        {"\xef\xbb\xbf", "a.json: is empty"},
        {"{\n  \"a\": 1,\n  \"b\" 2\n}", "a.json: line 3, column 7: found \"2\", expected the :"},
        {"{\"a\": 1 \"b\": 2}", "line 1, column 9: found a \", expected a comma or }"},
        {"[1 2]", "line 1, column 4: found \"2\", expected a comma or ]"},
        {"[1,]", "column 3: a comma after the last entry"},
        {"{\"a\":1,\n}", "line 1, column 7: a comma after the last entry"},
        {"[,1]", "column 2: found \",\", expected a value"},
        {"{a: 1}", "column 2: found \"a\", expected a key in \""},
        {"{'a': 1}", "a text takes \""},
        {"{\"a\": 1", "column 8: the text ends, expected a comma or }"},
        {"[", "the text ends, expected a value"},
        {"{", "the text ends, expected a key"},
        {"{\"a\"", "the text ends, expected the :"},
        {"{\"a\":", "the text ends, expected a value"},
        {"[1}", "found \"}\", expected a comma or ]"},
        {"1 2", "column 3: found \"2\", expected the end of the text"},
        {"{} x", "column 4: found \"x\", expected the end"},
        {"// no\n{}", "JSON has no comments"},
        {"[NaN]", "NaN is no JSON number; numbers are finite"},
        {"[-Infinity]", "-Infinity is no JSON number"},
        {"[01]", "01 is no JSON number"},
        {"[+1]", "+1 is no JSON number"},
        {"[.5]", ".5 is no JSON number"},
        {"[1.]", "1. is no JSON number"},
        {"[1e]", "1e is no JSON number"},
        {"[-]", "- is no JSON number"},
        {"[0x10]", "0x10 is no JSON number"},
        {"[" + std::string(64, '1') + "]", "a number of more than 63 characters"},
        {"[True]", "True is no JSON value"},
        {"[nul]", "nul is no JSON value"},
        {"[\"a\nb\"]", "column 4: the control character 0x0a inside a text"},
        {"[\"abc", "the text ends, expected the closing \""},
        {"[\"\\x\"]", "column 3: an escape that JSON does not have"},
        {"[\"\\u12g4\"]", "four hexadecimal digits"},
        {"[\"\\u0000\"]", "\\u0000 in a text is not supported"},
        {"[\"\\ud800\"]", "half of a surrogate pair"},
        {"[\"\\ud800\\u0041\"]", "half of a surrogate pair"},
        {"[\"\\udc00\"]", "half of a surrogate pair"},
        {std::string("[1]\0", 4), "found the byte 0x00, expected the end"},
        {std::string("[\"a\0b\"]", 7), "the control character 0x00 inside a text"},
        {std::string("\0", 1), "found the byte 0x00, expected a value"},
        {"[\"\xff\"]", "column 3: the byte 0xff is not UTF-8"},
        {"[\"\xc0\x80\"]", "the byte 0xc0 is not UTF-8"},              // too long a form of 0
        {"[\"\xe0\x80\x80\"]", "the byte 0xe0 is not UTF-8"},          // too long
        {"[\"\xed\xa0\x80\"]", "the byte 0xed is not UTF-8"},          // a surrogate
        {"[\"\xf0\x80\x80\x80\"]", "the byte 0xf0 is not UTF-8"},      // too long
        {"[\"\xf4\x90\x80\x80\"]", "the byte 0xf4 is not UTF-8"},      // beyond U+10FFFF
        {"[\"\xf5\x80\x80\x80\"]", "the byte 0xf5 is not UTF-8"},      // no first byte
        {"[\"\xe4\xb8\"]", "the byte 0xe4 is not UTF-8"},              // cut
        {"[\"\xc3\xa4\", x]", "line 1, column 7: x is no JSON value"}, // columns are characters
        {std::string(201, '[') + std::string(201, ']'), "nested deeper than 200"},
        {"{\"a\": 1, \"b\": {\"x\": 1, \"y\": 2, \"x\": 3}}", "a.json: b has \"x\" twice"},
        {"{\"a\": 1, \"\\u0061\": 1}", "a.json: the top level has \"a\" twice"},
    };
    for (const auto &c : cases) {
        CAPTURE(c.text);
        CHECK_FAILS(parse(c.text), HD_ERR_FORMAT, c.message);
    }
}

TEST_CASE("json: legal text of every kind", "[json]")
{
    for (const char *text :
         {"1", "-0", "0.5e-3", "1E+2", "\"\"", "[]", "{}", "null", " [ ] ", "[[],{}]", "true",
          "\"\xf0\x9f\x90\x9f \\ud83d\\udc1f \\\" \\\\ \\/ \\b\\f\\n\\r\\t\"", "\xef\xbb\xbf{}",
          "[\"\xed\x9f\xbf \xee\x80\x80 \xf4\x8f\xbf\xbf \xe0\xa0\x80 \xf0\x90\x80\x80\"]"}) {
        CAPTURE(text);
        REQUIRE_OK(parse(text));
    }
    REQUIRE_OK(parse(std::string(200, '[') + std::string(200, ']')));
    Doc doc = good("{\"z\": [true, null, \"a\\u00e4\\ud83d\\udc1f\"], \"a\": {\"k\": false}}");
    const hd_json *z = hd_json_get(root(doc), "z"), *a = hd_json_get(root(doc), "a");
    REQUIRE(z);
    REQUIRE(a);
    CHECK(hd_json_kind(root(doc)) == HD_JSON_OBJECT);
    CHECK(hd_json_at(root(doc), 0) == z); // in the order of the text
    CHECK(hd_json_at(root(doc), 1) == a);
    CHECK(hd_json_at(root(doc), 2) == nullptr);
    CHECK(hd_json_at(root(doc), -1) == nullptr);
    CHECK(hd_json_count(z) == 3);
    CHECK(hd_json_get(z, "a") == nullptr);
    CHECK(hd_json_get(nullptr, "a") == nullptr);
    CHECK(hd_json_get(root(doc), "b") == nullptr);
    bool flag = false;
    const char *text = nullptr;
    REQUIRE_OK(hd_json_to_bool(hd_json_at(z, 0), &flag));
    CHECK(flag);
    REQUIRE_OK(hd_json_to_string(hd_json_at(z, 2), &text));
    CHECK(std::string(text) == "a\xc3\xa4\xf0\x9f\x90\x9f");
    CHECK(hd_json_kind(hd_json_at(z, 1)) == HD_JSON_NULL);
    CHECK(std::string(hd_json_key(a)) == "a");
    CHECK(hd_json_key(hd_json_at(z, 0)) == nullptr);
    CHECK(hd_json_key(root(doc)) == nullptr);
    CHECK(std::string(hd_json_name(a)) == "a.json");
    hd_json_free(nullptr);
}

TEST_CASE("json: integers are exact to both ends of 64 bits", "[json]")
{
    Doc doc = good("[9007199254740993, 18446744073709551615, -9223372036854775808, "
                   "9223372036854775807, 1e3, 25.0, -0]");
    uint64_t u = 0;
    int64_t i = 0;
    REQUIRE_OK(hd_json_to_u64(hd_json_at(root(doc), 0), &u));
    CHECK(u == 9007199254740993u); // 2^53 + 1: no double
    REQUIRE_OK(hd_json_to_int(hd_json_at(root(doc), 0), 0, INT64_MAX, &i));
    CHECK(i == 9007199254740993);
    REQUIRE_OK(hd_json_to_u64(hd_json_at(root(doc), 1), &u));
    CHECK(u == UINT64_MAX);
    REQUIRE_OK(hd_json_to_int(hd_json_at(root(doc), 2), INT64_MIN, INT64_MAX, &i));
    CHECK(i == INT64_MIN);
    REQUIRE_OK(hd_json_to_int(hd_json_at(root(doc), 3), INT64_MIN, INT64_MAX, &i));
    CHECK(i == INT64_MAX);
    REQUIRE_OK(hd_json_to_int(hd_json_at(root(doc), 4), 0, 1000, &i));
    CHECK(i == 1000);
    REQUIRE_OK(hd_json_to_u64(hd_json_at(root(doc), 5), &u));
    CHECK(u == 25);
    REQUIRE_OK(hd_json_to_u64(hd_json_at(root(doc), 6), &u));
    CHECK(u == 0);
}

TEST_CASE("json: a value of the wrong type or size is named with its path", "[json]")
{
    Doc doc = good("{\"seed\": [-1, 18446744073709551616, 1.5, \"7\", 1e300, 1e400, null],"
                   " \"odd key\": {\"k\": true}}");
    const hd_json *seed = hd_json_get(root(doc), "seed");
    uint64_t u;
    int64_t i;
    double d;
    bool b;
    const char *text;
    CHECK_FAILS(hd_json_to_u64(hd_json_at(seed, 0), &u), HD_ERR_ARGUMENT,
                "a.json: seed[0] is -1, must be a whole number from 0 to 18446744073709551615");
    CHECK_FAILS(hd_json_to_u64(hd_json_at(seed, 1), &u), HD_ERR_ARGUMENT,
                "a.json: seed[1] is 1.8446744073709552e+19, must be");
    CHECK_FAILS(hd_json_to_u64(hd_json_at(seed, 2), &u), HD_ERR_ARGUMENT, "seed[2] is 1.5, must");
    CHECK_FAILS(hd_json_to_u64(hd_json_at(seed, 3), &u), HD_ERR_ARGUMENT, "seed[3] is \"7\", must");
    CHECK_FAILS(hd_json_to_u64(hd_json_at(seed, 4), &u), HD_ERR_ARGUMENT, "seed[4] is 1e+300");
    CHECK_FAILS(hd_json_to_int(hd_json_at(seed, 0), 1, 1000, &i), HD_ERR_ARGUMENT,
                "a.json: seed[0] is -1, must be a whole number from 1 to 1000");
    CHECK_FAILS(hd_json_to_double(hd_json_at(seed, 5), -INFINITY, INFINITY, &d), HD_ERR_ARGUMENT,
                "a.json: seed[5] is inf, must be a finite number");
    CHECK_FAILS(hd_json_to_double(hd_json_at(seed, 2), 2, 20, &d), HD_ERR_ARGUMENT,
                "a.json: seed[2] is 1.5, must be 2 to 20");
    CHECK_FAILS(hd_json_to_double(seed, 2, 20, &d), HD_ERR_ARGUMENT,
                "a.json: seed is an array, must be a number, 2 to 20");
    CHECK_FAILS(hd_json_to_bool(hd_json_at(seed, 6), &b), HD_ERR_ARGUMENT,
                "seed[6] is null, must be true or false");
    const hd_json *k = hd_json_get(hd_json_get(root(doc), "odd key"), "k");
    CHECK_FAILS(hd_json_to_string(k, &text), HD_ERR_ARGUMENT,
                "a.json: [\"odd key\"].k is true, must be a text");
    CHECK_FAILS(hd_json_expect(root(doc), HD_JSON_ARRAY), HD_ERR_ARGUMENT,
                "a.json: the top level is an object, must be an array");
    REQUIRE_OK(hd_json_expect(seed, HD_JSON_ARRAY));
    char small[8];
    CHECK(std::string(hd_json_path(k, small, sizeof small)) == "[\"odd k");
}

TEST_CASE("json: a file that cannot be read is named", "[json]")
{
    Folder folder;
    hd_json_doc *doc;
    CHECK_FAILS(hd_json_read(&doc, folder.path("none.json").c_str()), HD_ERR_IO,
                folder.path("none.json") + ": there is no such file");
    CHECK_FAILS(hd_json_read(&doc, folder.path().c_str()), HD_ERR_IO, "is a folder");
    folder.write("bad.json", "{\n\"a\": }");
    CHECK_FAILS(hd_json_read(&doc, folder.path("bad.json").c_str()), HD_ERR_FORMAT,
                folder.path("bad.json") + ": line 2, column 6: found \"}\", expected a value");
    folder.write("empty.json", "");
    CHECK_FAILS(hd_json_read(&doc, folder.path("empty.json").c_str()), HD_ERR_FORMAT,
                "empty.json: is empty");
    folder.write("huge.json", "");
    REQUIRE(truncate(folder.path("huge.json").c_str(), (64 << 20) + 1) == 0);
    CHECK_FAILS(hd_json_read(&doc, folder.path("huge.json").c_str()), HD_ERR_FORMAT,
                "huge.json: is larger than 67108864 bytes");
    folder.write("good.json", "{\"a\": 1}\n");
    REQUIRE_OK(hd_json_read(&doc, folder.path("good.json").c_str()));
    CHECK(hd_json_count(hd_json_root(doc)) == 1);
    hd_json_free(doc);
}

TEST_CASE("json: a vocabulary's worth of keys is found one by one", "[json]")
{
    std::string text = "{";
    for (int i = 0; i < 50000; i++)
        text += (i ? ",\"" : "\"") + std::to_string(i * 7919 % 50000) + "\":" + std::to_string(i);
    Doc doc = good(text + "}");
    for (int i = 0; i < 50000; i++) {
        int64_t value = -1;
        const hd_json *node = hd_json_get(root(doc), std::to_string(i * 7919 % 50000).c_str());
        if (!node || hd_json_to_int(node, 0, 50000, &value) != HD_OK || value != i) FAIL(i);
    }
}

TEST_CASE("json: lists, where a value alone is a list of one", "[json]")
{
    Doc doc = good(
        "{\"window\": [3, -1, 5], \"stride\": 2, \"tau\": [0.5, 1], \"causal\": [true, false]}");
    auto at = [&](const char *key) { return hd_json_get(root(doc), key); };
    int64_t count = 0, ints[3];
    double doubles[2];
    bool bools[2];
    REQUIRE(hd_json_to_ints(at("window"), -1, 8, 1, 3, ints, &count) == HD_OK);
    CHECK((count == 3 && ints[0] == 3 && ints[1] == -1 && ints[2] == 5));
    REQUIRE(hd_json_to_ints(at("stride"), 1, 8, 1, 3, ints, &count) == HD_OK);
    CHECK((count == 1 && ints[0] == 2));
    REQUIRE(hd_json_to_doubles(at("tau"), 0, 1, 2, 2, doubles, &count) == HD_OK);
    CHECK((count == 2 && doubles[0] == 0.5 && doubles[1] == 1.0));
    REQUIRE(hd_json_to_bools(at("causal"), 1, 2, bools, &count) == HD_OK);
    CHECK((count == 2 && bools[0] && !bools[1]));
    CHECK_FAILS(hd_json_to_ints(at("window"), 1, 8, 1, 3, ints, &count), HD_ERR_ARGUMENT,
                "window[1] is -1, must be a whole number from 1 to 8");
    CHECK_FAILS(hd_json_to_ints(at("window"), -1, 8, 1, 2, ints, &count), HD_ERR_ARGUMENT,
                "window has 3 entries, must have 1 to 2");
    CHECK_FAILS(hd_json_to_doubles(at("stride"), 0, 9, 2, 2, doubles, &count), HD_ERR_ARGUMENT,
                "stride has 1 entries, must have 2");
    CHECK_FAILS(hd_json_to_bools(at("stride"), 1, 2, bools, &count), HD_ERR_ARGUMENT,
                "stride is 2");
}

TEST_CASE("json: the nearest name", "[json]")
{
    const char *const names[] = {"tau", "rows", "guidance_rescale", "steps"};
    auto nearest = [&](const char *word) {
        const char *name = hd_nearest_name(word, names, 4);
        return std::string(name ? name : "-");
    };
    CHECK(nearest("taw") == "tau");
    CHECK(nearest("atu") == "tau");
    CHECK(nearest("Guidance-Rescale") == "guidance_rescale");
    CHECK(nearest("guidence_rescal") == "guidance_rescale");
    CHECK(nearest("step") == "steps");
    CHECK(nearest("x") == "-");
    CHECK(nearest("prompt") == "-");
    CHECK(nearest("") == "-");
    CHECK(nearest(std::string(100, 'a').c_str()) == "-");
}

TEST_CASE("json: each allocation in turn fails", "[json][nomem]")
{
    Folder folder;
    std::string text =
        "{\"list\": [1, 2.5, \"three\", null, true], \"deep\": {\"a\": {\"b\": []}}}";
    std::string path = folder.write("a.json", text);
    CHECK(fail_each_allocation([&] {
              hd_json_doc *doc = nullptr;
              HD_TRY(hd_json_read(&doc, path.c_str()));
              hd_json_free(doc);
              return HD_OK;
          }) > 20);
}
