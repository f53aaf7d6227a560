// Command lines: what is read, what is refused and with which words; the help that the same table
// prints.
#include <cstdlib>
#include <string>
#include <vector>

#include "cli/args.h"
#include "support/catch.h"

namespace
{
const char *const colours[] = {"red", "blue", nullptr};
struct Fields {
    int64_t width;
    int colour;
};
const hd_param fields[] = {
    {HD_PARAM_TYPE_INT, "width", offsetof(Fields, width), 512, 8, 4096, nullptr, nullptr,
     "of the picture", false, false, 0},
    {HD_PARAM_TYPE_ENUM, "colour", offsetof(Fields, colour), 0, 0, 0, "red", colours,
     "of the paint", false, false, 0},
    {},
};

const hd_option options[] = {
    {0, nullptr, nullptr, nullptr, "Sizes:"},
    {'W', "width", "N", "width", nullptr},
    {'p', "prompt", "TEXT", nullptr, "what it shows"},
    {0, "colour", "NAME", "colour", nullptr},
    {'q', "quiet", nullptr, nullptr, "says nothing"},
    {'v', "verbose", nullptr, nullptr, "says a lot"},
    {0, "a-name-that-is-too-long-for-its-column", "VALUE", nullptr, "on the next line"},
    {},
};

struct Line {
    explicit Line(std::vector<std::string> list) : words(std::move(list))
    {
        for (auto &w : words)
            argv.push_back(w.data());
        status = hd_args_parse(&args, options, (int)argv.size(), argv.data());
    }
    ~Line()
    {
        hd_args_free(&args);
    }
    std::string value(const char *name) const
    {
        const char *v = hd_args_value(&args, name);
        return v ? v : "(none)";
    }
    std::vector<std::string> words;
    std::vector<char *> argv;
    hd_args args{};
    hd_status status;
};

std::string help(int columns)
{
    char *text = nullptr;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    hd_options_print(options, fields, columns, to);
    fclose(to);
    std::string out(text, bytes);
    free(text);
    return out;
}
} // namespace

TEST_CASE("args: the four ways to give a value are one", "[cli]")
{
    for (auto words : std::vector<std::vector<std::string>>{
             {"-W", "64"}, {"-W64"}, {"--width", "64"}, {"--width=64"}}) {
        Line line(words);
        REQUIRE_OK(line.status);
        CHECK(line.value("width") == "64");
        CHECK(line.args.count == 1);
    }
}

TEST_CASE("args: a value is literal, whatever it looks like", "[cli]")
{
    Line line({"-p", "-starts with a dash", "--width", "-5", "--prompt", "--quiet"});
    REQUIRE_OK(line.status);
    CHECK(line.value("prompt") == "--quiet"); // the last one counts
    CHECK(line.value("width") == "-5");
    CHECK(!hd_args_has(&line.args, "quiet"));
    CHECK(Line({"--prompt=@file=x"}).value("prompt") == "@file=x");
    CHECK(Line({"--prompt="}).value("prompt") == "");
    CHECK(Line({"-p", ""}).value("prompt") == "");
}

TEST_CASE("args: switches may be joined, and end with an option that takes a value", "[cli]")
{
    Line line({"-qvW7"});
    REQUIRE_OK(line.status);
    CHECK(hd_args_has(&line.args, "quiet"));
    CHECK(hd_args_has(&line.args, "verbose"));
    CHECK(line.value("width") == "7");
    CHECK(line.value("quiet") == "(none)");
}

TEST_CASE("args: words that are no options", "[cli]")
{
    const char *word = nullptr;
    Line one({"-q", "picture.png", "-v"});
    REQUIRE_OK(hd_args_word(&one.args, "a preset", &word));
    CHECK(std::string(word) == "picture.png");
    Line dashes({"--", "--quiet"});
    REQUIRE_OK(hd_args_word(&dashes.args, "a preset", &word));
    CHECK(std::string(word) == "--quiet");
    Line single({"-"});
    REQUIRE_OK(hd_args_word(&single.args, "a preset", &word));
    CHECK(std::string(word) == "-");
    Line none({"-q"}), two({"a", "b"});
    CHECK_FAILS(hd_args_word(&none.args, "a preset", &word), HD_ERR_ARGUMENT,
                "a preset is missing");
    CHECK_FAILS(hd_args_word(&two.args, "a preset", &word), HD_ERR_ARGUMENT,
                "one of a preset is wanted, found \"a\" and \"b\"");
}

TEST_CASE("args: what is wrong is said with its cure", "[cli]")
{
    struct {
        std::vector<std::string> words;
        const char *text;
    } cases[] = {
        {{"--witdh", "64"}, "unknown option --witdh; did you mean --width?"},
        {{"--widt=64"}, "unknown option --widt; did you mean --width?"},
        {{"--zzzzzzzzzz"}, "unknown option --zzzzzzzzzz"},
        {{"-x"}, "unknown option -x"},
        {{"-width", "3"}, "unknown option -w; long options begin with two dashes"},
        {{"--width"}, "--width needs a value: --width N"},
        {{"-q", "-W"}, "--width needs a value"},
        {{"--quiet=yes"}, "--quiet takes no value, found \"yes\""},
    };
    for (auto &c : cases) {
        Line line(c.words);
        CHECK_FAILS(line.status, HD_ERR_ARGUMENT, c.text);
        CHECK(line.args.list == nullptr);
    }
}

TEST_CASE("args: help says every option with its range and default, within the columns", "[cli]")
{
    std::string text = help(60);
    CHECK(text.find("\nSizes:\n  -W, --width N") != std::string::npos);
    CHECK(text.find("of the picture (8 to") != std::string::npos);
    CHECK(text.find("default 512)") != std::string::npos);
    CHECK(text.find("red, blue") != std::string::npos);
    CHECK(text.find("      --a-name-that-is-too-long-for-its-column VALUE\n") != std::string::npos);
    size_t start = 0;
    for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1)
        if (text.compare(start, 12, "      --a-na") != 0) CHECK(end - start <= 60);
}
