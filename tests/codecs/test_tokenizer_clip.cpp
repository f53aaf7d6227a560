// The CLIP tokenizer against transformers' (tools/fixtures/tokenizer.py): 12,076 prompts on two
// vocabularies, folders of several ages, the places of tokens, and damaged folders.
#include "codecs/tokenizer_clip.h"

#include <cJSON.h>
#include <cstdio>
#include <memory>
#include <vector>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/inflated.h"

static const std::string small = fixture_path("tokenizer/small");

struct TokenizerFree {
    void operator()(hd_tokenizer *t) const
    {
        hd_tokenizer_free(t);
    }
};
using Tokenizer = std::unique_ptr<hd_tokenizer, TokenizerFree>;

static Tokenizer open_tokenizer(const std::string &folder)
{
    hd_tokenizer *t = nullptr;
    REQUIRE_OK(hd_tokenizer_open(&t, folder.c_str()));
    return Tokenizer(t);
}

static std::vector<std::string> prompts()
{
    Reader in(inflated("tokenizer/strings.z"));
    std::vector<std::string> out;
    while (!in.done())
        out.push_back(in.string(in.number<uint32_t>()));
    return out;
}

static std::string text_of(const std::vector<int64_t> &ids)
{
    std::string out;
    for (int64_t id : ids)
        out += std::to_string(id) + " ";
    return out;
}

static void check_ids(const hd_tokenizer *t, const std::string &ids_fixture)
{
    Reader in(inflated(ids_fixture));
    int64_t wrong = 0, count = 0;
    for (const std::string &prompt : prompts()) {
        std::vector<int64_t> truth(in.number<uint32_t>());
        for (int64_t &id : truth)
            id = in.number<uint16_t>();
        std::vector<int64_t> ids(truth.size());
        hd_encoding info;
        REQUIRE_OK(hd_tokenizer_encode(t, prompt.data(), prompt.size(), (int64_t)ids.size(),
                                       ids.data(), nullptr, &info));
        count++;
        if (ids == truth && info.ignored == 0 && info.count == (int64_t)ids.size()) continue;
        if (wrong++ == 0) {
            INFO("prompt " << count - 1 << ": " << prompt);
            CHECK(text_of(ids) == text_of(truth));
            CHECK(info.ignored == 0);
        }
    }
    CHECK(wrong == 0);
    CHECK(count >= 10000);
    CHECK(in.done());
}

TEST_CASE("tokenizer: a small vocabulary gives transformers' ids", "[codecs][tokenizer]")
{
    check_ids(open_tokenizer(small).get(), "tokenizer/small.z");
}

// The small vocabulary is a copy of the starter's, which another model may replace.
TEST_CASE("tokenizer: the starter's opens, and is the one that was tested", "[codecs][tokenizer]")
{
    const std::string folder = "models/starter-image/tokenizer";
    Tokenizer t = open_tokenizer(source_path(folder));
    std::vector<int64_t> ids(8);
    REQUIRE_OK(hd_tokenizer_encode(t.get(), "fish", 4, 8, ids.data(), nullptr, nullptr));
    CHECK((ids[0] == hd_tokenizer_bos(t.get()) && ids[7] == hd_tokenizer_pad(t.get())));
    for (std::string name : {"tokenizer.json", "tokenizer_config.json"})
        if (fixture_text("tokenizer/small/" + name) != fixture_text("../../" + folder + "/" + name))
            WARN("the starter's tokenizer is another one: run tools/fixtures/tokenizer.py");
}

// CLIP's vocabulary follows from its merges: the bytes, the bytes at the end of a word, what each
// merge makes, the two special tokens.
static std::string clip_vocab(const std::string &merges)
{
    std::vector<std::string> tokens;
    std::vector<std::string> alphabet;
    auto utf8 = [](int c) {
        return c < 0x80 ? std::string(1, (char)c)
                        : std::string{(char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
    };
    for (int b = 0; b < 256; b++)
        if ((b > 32 && b < 127) || (b > 160 && b != 173)) alphabet.push_back(utf8(b));
    for (int i = 0; alphabet.size() < 256; i++)
        alphabet.push_back(utf8(256 + i));
    tokens = alphabet;
    for (const std::string &c : alphabet)
        tokens.push_back(c + "</w>");
    for (size_t at = merges.find('\n') + 1; at < merges.size();) {
        size_t space = merges.find(' ', at), end = merges.find('\n', at);
        tokens.push_back(merges.substr(at, space - at) + merges.substr(space + 1, end - space - 1));
        at = end + 1;
    }
    tokens.push_back("<|startoftext|>");
    tokens.push_back("<|endoftext|>");
    cJSON *root = cJSON_CreateObject();
    for (size_t i = 0; i < tokens.size(); i++)
        cJSON_AddItemToObject(root, tokens[i].c_str(), cJSON_CreateNumber((double)i));
    std::unique_ptr<char, void (*)(void *)> text(cJSON_PrintUnformatted(root), free);
    cJSON_Delete(root);
    return text.get();
}

TEST_CASE("tokenizer: CLIP's own 49,408 entries give transformers' ids", "[codecs][tokenizer]")
{
    Folder folder;
    std::string merges = inflated("tokenizer/clip_merges.z");
    folder.write("merges.txt", merges);
    folder.write("vocab.json", clip_vocab(merges));
    folder.write("tokenizer_config.json", R"({"model_max_length": 77})");
    Tokenizer t = open_tokenizer(folder.path());
    std::vector<int64_t> ids(7);
    REQUIRE_OK(
        hd_tokenizer_encode(t.get(), "a photo of a cat", 16, 7, ids.data(), nullptr, nullptr));
    CHECK(text_of(ids) == "49406 320 1125 539 320 2368 49407 "); // as published
    check_ids(t.get(), "tokenizer/clip.z");
}

struct Cases {
    explicit Cases(const std::string &text) : root(cJSON_Parse(text.c_str()))
    {
        REQUIRE(root != nullptr);
    }
    ~Cases()
    {
        cJSON_Delete(root);
    }
    Cases(const Cases &) = delete;
    Cases &operator=(const Cases &) = delete;
    cJSON *root;
};

static void check_folder(const cJSON *item)
{
    INFO(cJSON_GetObjectItem(item, "name")->valuestring);
    Folder folder;
    for (const char *name : {"vocab.json", "merges.txt"})
        folder.write(name, fixture_text("tokenizer/small/" + std::string(name)));
    if (cJSON_IsTrue(cJSON_GetObjectItem(item, "full")))
        folder.write("tokenizer.json", fixture_text("tokenizer/small/tokenizer.json"));
    for (const cJSON *f = cJSON_GetObjectItem(item, "files")->child; f; f = f->next)
        folder.write(f->string, f->valuestring);
    Tokenizer t = open_tokenizer(folder.path());
    int64_t length = (int64_t)cJSON_GetObjectItem(item, "length")->valuedouble;
    CHECK(hd_tokenizer_length(t.get()) == length);
    CHECK((double)hd_tokenizer_bos(t.get()) == cJSON_GetObjectItem(item, "bos")->valuedouble);
    CHECK((double)hd_tokenizer_eos(t.get()) == cJSON_GetObjectItem(item, "eos")->valuedouble);
    CHECK((double)hd_tokenizer_pad(t.get()) == cJSON_GetObjectItem(item, "pad")->valuedouble);
    const cJSON *row = cJSON_GetObjectItem(item, "ids")->child;
    for (const cJSON *p = cJSON_GetObjectItem(item, "prompts")->child; p;
         p = p->next, row = row->next) {
        std::string prompt = p->valuestring;
        std::vector<int64_t> ids((size_t)length), truth;
        for (const cJSON *id = row->child; id; id = id->next)
            truth.push_back((int64_t)id->valuedouble);
        REQUIRE_OK(hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), length, ids.data(),
                                       nullptr, nullptr));
        INFO(prompt);
        CHECK(text_of(ids) == text_of(truth));
    }
}

TEST_CASE("tokenizer: folders of every age mean what they mean to transformers",
          "[codecs][tokenizer]")
{
    Cases all(fixture_text("tokenizer/folders.json"));
    for (const cJSON *item = all.root->child; item; item = item->next)
        check_folder(item);
}

TEST_CASE("tokenizer: each token knows its bytes and its word", "[codecs][tokenizer]")
{
    Tokenizer t = open_tokenizer(small);
    std::string prompt = "A  big re\xcc\x81"
                         "d\tfish, don't<|endoftext|>\xf0\x9f\x98\x80";
    std::vector<int64_t> ids(32);
    std::vector<hd_token> tokens(32);
    hd_encoding info;
    REQUIRE_OK(hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), 32, ids.data(),
                                   tokens.data(), &info));
    std::vector<std::string> words((size_t)info.words);
    int64_t reached = 0;
    for (int64_t i = 0; i < info.count; i++) {
        const hd_token &token = tokens[(size_t)i];
        CHECK(token.id == ids[(size_t)i]);
        if (i == 0 || i == info.count - 1) {
            CHECK(token.word == -1);
            continue;
        }
        REQUIRE((token.word >= 0 && token.word < info.words));
        std::string &word = words[(size_t)token.word];
        int64_t from = token.start > reached ? token.start : reached; // bytes of one character
        if (token.end > from) word += prompt.substr((size_t)from, (size_t)(token.end - from));
        reached = token.end > reached ? token.end : reached;
    }
    CHECK(words == std::vector<std::string>{"A", "big",
                                            "re\xcc\x81"
                                            "d",
                                            "fish", ",", "don", "'t", "<|endoftext|>",
                                            "\xf0\x9f\x98\x80"});
    for (int64_t i = info.count; i < 32; i++)
        CHECK((ids[(size_t)i] == hd_tokenizer_pad(t.get()) && tokens[(size_t)i].word == -1));
}

TEST_CASE("tokenizer: a long prompt is cut, and the rest is named", "[codecs][tokenizer]")
{
    Tokenizer t = open_tokenizer(small);
    std::string prompt = "a red fish on a blue background with two yellow l\xc3\xa4mps";
    std::vector<int64_t> ids(8), whole(40);
    hd_encoding info;
    char text[256];
    REQUIRE_OK(hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), 40, whole.data(), nullptr,
                                   &info));
    CHECK(hd_tokenizer_warning(text, sizeof text, prompt.data(), prompt.size(), 40, &info) ==
          std::string());
    int64_t all = info.count;
    REQUIRE_OK(
        hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), 8, ids.data(), nullptr, &info));
    CHECK(info.count == 8);
    CHECK(info.ignored == all - 8);
    CHECK(std::equal(ids.begin(), ids.end() - 1, whole.begin()));
    CHECK(ids[7] == hd_tokenizer_eos(t.get()));
    CHECK(hd_tokenizer_warning(text, sizeof text, prompt.data(), prompt.size(), 8, &info) ==
          "the prompt is longer than 6 tokens; ignored: " + prompt.substr(21));
    // Cut, but not inside the two bytes of the a with dots.
    size_t room = strlen("the prompt is longer than 6 tokens; ignored: ") + prompt.size() - 21 - 1;
    hd_tokenizer_warning(text, room, prompt.data(), prompt.size(), 8, &info);
    CHECK(std::string(text) ==
          "the prompt is longer than 6 tokens; ignored: background with two yellow l...");
}

TEST_CASE("tokenizer: a word of 65536 letters takes no time", "[codecs][tokenizer]")
{
    Tokenizer t = open_tokenizer(small);
    std::vector<int64_t> ids(77);
    hd_encoding info;
    for (std::string unit : {"on", "\xcc\x80\xcc\x96", "'"}) {
        std::string prompt;
        while (prompt.size() + unit.size() <= HD_TOKENIZER_MOST_BYTES)
            prompt += unit;
        REQUIRE_OK(hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), 77, ids.data(),
                                       nullptr, &info));
        CHECK(info.words == 1);
        CHECK(info.ignored > 16000);
    }
    std::string prompt(HD_TOKENIZER_MOST_BYTES + 1, 'a');
    CHECK_FAILS(hd_tokenizer_encode(t.get(), prompt.data(), prompt.size(), 77, ids.data(), nullptr,
                                    nullptr),
                HD_ERR_ARGUMENT, "the prompt has 65537 bytes, at most 65536 are allowed");
}

TEST_CASE("tokenizer: text that is not UTF-8 is refused with its place", "[codecs][tokenizer]")
{
    Tokenizer t = open_tokenizer(small);
    std::vector<int64_t> ids(32);
    CHECK_FAILS(hd_tokenizer_encode(t.get(), "a caf\xe9", 6, 32, ids.data(), nullptr, nullptr),
                HD_ERR_ARGUMENT, "the prompt is not UTF-8: byte 5 is 0xe9");
    CHECK_FAILS(hd_tokenizer_encode(t.get(), "a", 1, 1, ids.data(), nullptr, nullptr),
                HD_ERR_ARGUMENT, "length is 1");
}

/* A folder with a small vocabulary, one of whose files is replaced. */
class Damaged
{
  public:
    Damaged()
    {
        folder.write("vocab.json", R"({"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3, "<|endoftext|>": 4,
                                      "<|startoftext|>": 5})");
        folder.write("merges.txt", "#version: 0.2\na b</w>\n");
        folder.write("tokenizer_config.json", R"({"model_max_length": 8})");
    }
    void refuses(const std::string &file, const std::string &text, hd_status status,
                 const std::string &message)
    {
        folder.write(file, text);
        hd_tokenizer *t = nullptr;
        CHECK_FAILS(hd_tokenizer_open(&t, folder.path().c_str()), status, message);
        CHECK(t == nullptr);
    }
    Folder folder;
};

TEST_CASE("tokenizer: damaged vocabularies and merges name file and place", "[codecs][tokenizer]")
{
    auto refuses = [](const char *file, const char *text, hd_status status, const char *message) {
        Damaged().refuses(file, text, status, message);
    };
    open_tokenizer(Damaged().folder.path()); // whole, it opens
    refuses("vocab.json", "{\"a\": 0,\n\"b\"", HD_ERR_FORMAT, "vocab.json");
    refuses("vocab.json", "[1]", HD_ERR_ARGUMENT, "vocab.json");
    refuses("vocab.json", "{}", HD_ERR_FORMAT, "is empty");
    refuses("vocab.json", R"({"a": -1})", HD_ERR_ARGUMENT, "vocab.json");
    refuses("vocab.json", R"({"a": 99999999999})", HD_ERR_ARGUMENT, "vocab.json");
    refuses("vocab.json", R"({"a": "b"})", HD_ERR_ARGUMENT, "vocab.json");
    refuses("merges.txt", "#version: 0.2\na b</w>\na", HD_ERR_FORMAT, "merges.txt:3");
    refuses("merges.txt", "#version: 0.2\n\na b</w>\n", HD_ERR_FORMAT, "merges.txt:2");
    refuses("merges.txt", "a b c\n", HD_ERR_FORMAT,
            "\"a b c\" is not two parts with one space between");
    refuses("merges.txt", "a b</w>\nb b</w>\n", HD_ERR_FORMAT,
            "the merge \"b b</w>\" needs \"bb</w>\", which the vocabulary does not have");
    refuses("merges.txt", "a x\n", HD_ERR_FORMAT, "needs \"x\"");
    refuses("tokenizer.json", "{}", HD_ERR_FORMAT, "model.vocab");
    refuses("tokenizer.json", R"({"model": {"type": "Unigram", "vocab": {}, "merges": []}})",
            HD_ERR_UNSUPPORTED, "model.type is \"Unigram\", only \"BPE\" is supported");
    refuses("tokenizer.json",
            R"({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", ["b", "a"]]}})",
            HD_ERR_FORMAT, "model.merges[1]");
    refuses("tokenizer.json", R"({"model": {"vocab": {"a": 0}, "merges": [["a", 1]]}})",
            HD_ERR_ARGUMENT, "model.merges[0][1]");
}

TEST_CASE("tokenizer: what a folder says and we do not do is refused by key", "[codecs][tokenizer]")
{
    auto refuses = [](const char *text, hd_status status, const char *message) {
        Damaged().refuses("tokenizer_config.json", text, status, message);
    };
    refuses("{}", HD_ERR_FORMAT, "has no \"model_max_length\"");
    refuses(R"({"model_max_length": 1})", HD_ERR_ARGUMENT, "model_max_length");
    refuses(R"({"model_max_length": 1000000000000000019884624838656})", HD_ERR_ARGUMENT,
            "model_max_length");
    refuses(R"({"model_max_length": 77, "tokenizer_class": "T5Tokenizer"})", HD_ERR_UNSUPPORTED,
            "tokenizer_class is \"T5Tokenizer\", only \"CLIPTokenizer\" is supported");
    refuses(R"({"model_max_length": 77, "padding_side": "left"})", HD_ERR_UNSUPPORTED,
            "padding_side is \"left\"");
    refuses(R"({"model_max_length": 77, "split_special_tokens": true})", HD_ERR_UNSUPPORTED,
            "split_special_tokens is true");
    refuses(R"({"model_max_length": 77, "bos_token": {"content": "x", "lstrip": true}})",
            HD_ERR_UNSUPPORTED, "bos_token.lstrip is true");
    refuses(R"({"model_max_length": 77, "bos_token": {}})", HD_ERR_FORMAT,
            "bos_token has no \"content\"");
    refuses(R"({"model_max_length": 77, "pad_token": null})", HD_ERR_ARGUMENT, "pad_token");
    refuses(R"({"model_max_length": 77, "pad_token": ""})", HD_ERR_FORMAT,
            "pad_token is an empty token");
    refuses(R"({"model_max_length": 77, "added_tokens_decoder": {"x": {"content": "y"}}})",
            HD_ERR_FORMAT, "must be named by a token's number");
    Folder empty;
    hd_tokenizer *t = nullptr;
    CHECK_FAILS(hd_tokenizer_open(&t, empty.path().c_str()), HD_ERR_IO, "no tokenizer_config.json");
    empty.write("tokenizer_config.json", R"({"model_max_length": 77})");
    CHECK_FAILS(hd_tokenizer_open(&t, empty.path().c_str()), HD_ERR_IO,
                "neither tokenizer.json nor vocab.json with merges.txt");
}

TEST_CASE("tokenizer: a byte without a token and without a stand-in is an error",
          "[codecs][tokenizer]")
{
    Damaged d;
    d.folder.write("tokenizer_config.json", R"({"model_max_length": 8, "unk_token": "none"})");
    Tokenizer t = open_tokenizer(d.folder.path());
    std::vector<int64_t> ids(8);
    REQUIRE_OK(hd_tokenizer_encode(t.get(), "ab", 2, 8, ids.data(), nullptr, nullptr));
    CHECK(ids[1] == 3);
    CHECK_FAILS(hd_tokenizer_encode(t.get(), "az", 2, 8, ids.data(), nullptr, nullptr),
                HD_ERR_FORMAT, "neither byte 0x7a at the end of a word nor the unknown token");
}

TEST_CASE("tokenizer: each allocation in turn fails", "[codecs][tokenizer][nomem]")
{
    Damaged d;
    std::string folder = d.folder.path(), prompt = "ab <|endoftext|> b";
    CHECK(fail_each_allocation([&] {
              hd_tokenizer *t = nullptr;
              int64_t ids[8];
              hd_status status = hd_tokenizer_open(&t, folder.c_str());
              if (status == HD_OK)
                  status = hd_tokenizer_encode(t, prompt.data(), prompt.size(), 8, ids, nullptr,
                                               nullptr);
              hd_tokenizer_free(t);
              return status;
          }) > 20);
}
