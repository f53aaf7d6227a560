// Learned words: the layouts of their files, what is refused, and a tokenizer that knows them.
// Fixtures: tools/fixtures/learned.py.
#include "codecs/textual_inversion.h"

#include "codecs/tokenizer_clip.h"
#include "engine/attention/words.h"
#include "support/alloc_fail.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/safetensors.h"

namespace
{

struct Tokenizer {
    hd_tokenizer *base = nullptr, *extended = nullptr;
    Tokenizer()
    {
        REQUIRE_OK(hd_tokenizer_open(&base, source_path("models/starter-image/tokenizer").c_str()));
    }
    ~Tokenizer()
    {
        hd_tokenizer_free(extended);
        hd_tokenizer_free(base);
    }
    hd_status extend(const std::vector<hd_tokenizer_word> &words, int64_t *failed)
    {
        hd_tokenizer_free(extended);
        extended = nullptr;
        return hd_tokenizer_extend(&extended, base, (int64_t)words.size(), words.data(), failed);
    }
    std::vector<int64_t> ids(const hd_tokenizer *t, const std::string &prompt,
                             std::vector<hd_token> *tokens = nullptr) const
    {
        std::vector<int64_t> out(16);
        std::vector<hd_token> token(16);
        REQUIRE_OK(hd_tokenizer_encode(t, prompt.data(), prompt.size(), 16, out.data(),
                                       token.data(), nullptr));
        if (tokens) *tokens = token;
        return out;
    }
};

std::string zero_bytes(size_t n)
{
    return std::string(n, '\0');
}

} // namespace

TEST_CASE("textual_inversion: both layouts, one vector and several", "[codecs][embeddings]")
{
    Folder folder;
    const std::vector<float> values = {1, 2, 3, 4, 5, 6};
    struct {
        std::string name;
        std::vector<RawTensor> tensors;
        const char *given, *token;
        int64_t count;
    } cases[] = {
        {"cat.safetensors", {raw_f32("<cat>", {2, 3}, values)}, nullptr, "<cat>", 2},
        {"cat.safetensors", {raw_f32("<cat>", {2, 3}, values)}, "<dog>", "<dog>", 2},
        {"cat.safetensors", {raw_f32("<cat>", {6}, values)}, nullptr, "<cat>", 1},
        {"learned.v1.safetensors",
         {raw_f32("emb_params", {2, 3}, values)},
         nullptr,
         "learned.v1",
         2},
        {"x.safetensors",
         {raw_f32("string_to_param.*", {2, 3}, values), raw_f32("step", {1}, {500})},
         "<x>",
         "<x>",
         2},
    };
    for (const auto &c : cases) {
        CAPTURE(c.name, c.token);
        std::string path = folder.write(c.name, raw_safetensors(c.tensors));
        hd_textual_inversion t;
        REQUIRE_OK(hd_textual_inversion_open(&t, path.c_str(), c.given, c.count == 1 ? 6 : 3));
        CHECK(std::string(t.token) == c.token);
        CHECK(t.count == c.count);
        CHECK(std::vector<float>(t.vectors, t.vectors + 6) == values);
        hd_textual_inversion_clear(&t);
    }
    // halves hold what they hold
    std::string halves =
        raw_safetensors({{"<h>", "F16", {1, 2}, std::string("\x00\x3c\x00\xc0", 4)}});
    hd_textual_inversion t;
    REQUIRE_OK(
        hd_textual_inversion_open(&t, folder.write("h.safetensors", halves).c_str(), nullptr, 2));
    CHECK(t.vectors[0] == 1.0f);
    CHECK(t.vectors[1] == -2.0f);
    hd_textual_inversion_clear(&t);
    std::string path =
        folder.write("a.safetensors", raw_safetensors({raw_f32("<cat>", {2, 3}, values)}));
    CHECK(fail_each_allocation([&] {
              hd_status status = hd_textual_inversion_open(&t, path.c_str(), nullptr, 3);
              if (status == HD_OK) hd_textual_inversion_clear(&t);
              return status;
          }) > 4);
}

TEST_CASE("textual_inversion: what is no embedding for this model is refused by file and tensor",
          "[codecs][embeddings]")
{
    Folder folder;
    std::string sound = raw_safetensors({raw_f32("<cat>", {2, 3}, {1, 2, 3, 4, 5, 6})});
    struct {
        std::string bytes;
        hd_status status;
        std::vector<std::string> says;
    } cases[] = {
        {raw_safetensors({raw_f32("<cat>", {1, 4}, {1, 2, 3, 4})}),
         HD_ERR_SHAPE,
         {"<cat> is [1, 4]", "vectors of 3"}},
        {raw_safetensors({raw_f32("<cat>", {1, 1, 3}, {1, 2, 3})}),
         HD_ERR_FORMAT,
         {"<cat> is [1, 1, 3]", "[vectors, 3]"}},
        {raw_safetensors({raw_f32("a", {3}, {1, 2, 3}), raw_f32("b", {3}, {1, 2, 3})}),
         HD_ERR_FORMAT,
         {"is no embedding", "2 tensors (a, b)"}},
        {raw_safetensors({raw_f32("clip_l", {1, 1}, {1}), raw_f32("clip_g", {1, 1}, {1})}),
         HD_ERR_UNSUPPORTED,
         {"SDXL"}},
        {raw_safetensors({raw_f32("<cat>", {3}, {1, NAN, 3})}),
         HD_ERR_FORMAT,
         {"<cat> holds a value that is no finite number"}},
        {raw_safetensors({{"<cat>", "I32", {1, 3}, zero_bytes(12)}}),
         HD_ERR_UNSUPPORTED,
         {"<cat>", "must be F32, F16 or BF16"}},
        {sound.substr(0, sound.size() - 5), HD_ERR_FORMAT, {"<cat>"}},
        {sound.substr(0, 30), HD_ERR_FORMAT, {"is it cut"}},
        {"PK\3\4" + zero_bytes(60),
         HD_ERR_UNSUPPORTED,
         {"pickle", "tools/pickle_to_safetensors.py"}},
        {"\x80\x02}q" + zero_bytes(60), HD_ERR_UNSUPPORTED, {"pickle"}},
    };
    for (const auto &c : cases) {
        std::string path = folder.write("cat.safetensors", c.bytes);
        hd_textual_inversion t;
        CHECK(hd_textual_inversion_open(&t, path.c_str(), nullptr, 3) == c.status);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(path) != std::string::npos);
        for (const std::string &text : c.says)
            CHECK(std::string(hd_message()).find(text) != std::string::npos);
        CHECK(t.vectors == nullptr);
    }
    hd_textual_inversion t;
    CHECK_FAILS(hd_textual_inversion_open(&t, "/nowhere.safetensors", nullptr, 3), HD_ERR_IO,
                "/nowhere.safetensors");
}

TEST_CASE("tokenizer: a learned word stands for its ids", "[codecs][tokenizer][embeddings]")
{
    Tokenizer t;
    int64_t failed;
    REQUIRE_OK(t.extend({{"<toy>", 900, 3}, {"<Hat>", 903, 1}}, &failed));
    std::vector<int64_t> a = t.ids(t.base, "a red"), cat = t.ids(t.base, "cat");
    std::vector<hd_token> tokens;
    std::vector<int64_t> got = t.ids(t.extended, "a red <TOY>cat <hat>", &tokens);
    CHECK(std::vector<int64_t>(got.begin(), got.begin() + 3) ==
          std::vector<int64_t>(a.begin(), a.begin() + 3));
    CHECK(std::vector<int64_t>(got.begin() + 3, got.begin() + 6) ==
          std::vector<int64_t>{900, 901, 902});
    CHECK(got[6] == cat[1]);
    CHECK(tokens[3].word == tokens[5].word);
    CHECK((tokens[5].start == 6 && tokens[5].end == 11));
    CHECK(std::find(got.begin(), got.end(), 903) != got.end());
    CHECK(t.ids(t.extended, "a cat at night") == t.ids(t.base, "a cat at night"));
    // the base does not know them
    CHECK(t.ids(t.base, "<toy>")[1] < 900);
    struct {
        std::vector<hd_tokenizer_word> words;
        int64_t number;
        const char *says;
    } bad[] = {
        {{{"<a>", 900, 1}, {"cat", 901, 1}}, 1, "\"cat\" exists already"},
        {{{"<|endoftext|>", 900, 1}}, 0, "exists already"},
        {{{"<a>", 900, 1}, {"<b>", 901, 1}, {"<A>", 902, 1}}, 2, "exists already"},
        {{{"my cat", 900, 1}}, 0, "white space"},
        {{{"", 900, 1}}, 0, "no characters"},
        {{{"\xff", 900, 1}}, 0, "UTF-8"},
    };
    for (const auto &b : bad) {
        CHECK(t.extend(b.words, &failed) != HD_OK);
        INFO(hd_message());
        CHECK(failed == b.number);
        CHECK(std::string(hd_message()).find(b.says) != std::string::npos);
    }
}

TEST_CASE("words: a learned token is another word than the one in its brackets",
          "[attention][words][embeddings]")
{
    hd_prompt_token token[] = {{0, 0, 0, -1}, {1, 0, 1, 0},  {2, 2, 7, 1}, {3, 2, 7, 1},
                               {4, 8, 11, 2}, {5, 0, 0, -1}, {5, 0, 0, -1}};
    hd_prompt prompt = {"a <cat> cat", 7, 6, token};
    auto find = [&](const char *selector) {
        bool columns[7];
        REQUIRE_OK(hd_prompt_find(&prompt, selector, columns));
        std::string text;
        for (bool c : columns)
            text += c ? '1' : '0';
        return text;
    };
    CHECK(find("<cat>") == "0011000");
    CHECK(find("cat") == "0000100");
    CHECK(find("<cat> cat") == "0011100");
}
