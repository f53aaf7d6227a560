// Option tables: defaults, JSON, command line, and the words of every refusal.
#include "engine/options/param.h"

#include <algorithm>
#include <limits>

#include "support/alloc_fail.h"
#include "support/catch.h"

// As in C, what a row does not name is zero.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace
{
const char *const kinds[] = {"all", "video", "text", nullptr};

struct Options {
    float tau, free_float;
    int64_t steps, at_least;
    bool loop;
    uint64_t seed;
    char *model, *name;
    int rows;
    bool seed_given;
};

const hd_param table[] = {
    HD_PARAM_FLOAT(Options, tau, .def = 1.0, .min = 0.05, .max = 20.0, .help = "score divisor"),
    HD_PARAM_FLOAT(Options, free_float, .help = "any"),
    HD_PARAM_INT(Options, steps, .def = 50, .min = 1, .max = 1000, .help = "how many"),
    HD_PARAM_INT(Options, at_least, .def = 3, .min = 1,
                 .max = std::numeric_limits<double>::infinity()),
    HD_PARAM_BOOL(Options, loop, .def = 1),
    HD_PARAM_U64(Options, seed, .given_flag = true, .given_offset = offsetof(Options, seed_given)),
    HD_PARAM_STRING(Options, model, .help = "a folder", .required = true),
    HD_PARAM_STRING(Options, name, .def_text = "none"),
    HD_PARAM_ENUM(Options, rows, .def_text = "video", .names = kinds, .help = "query tokens"),
    HD_PARAM_END,
};

class Filled
{
  public:
    Filled()
    {
        REQUIRE_OK(hd_params_default(table, &o));
    }
    ~Filled()
    {
        hd_params_free(table, &o);
    }
    hd_status read(const std::string &text, const char *const *also = nullptr)
    {
        hd_json_doc *doc;
        HD_TRY(hd_json_parse(&doc, "p.json", text.data(), text.size()));
        const hd_json *list = hd_json_get(hd_json_root(doc), "processors");
        const hd_json *object = list ? hd_json_at(list, 0) : hd_json_root(doc);
        hd_status status = hd_params_read(table, &o, object, also);
        hd_json_free(doc);
        return status;
    }
    hd_status set(const char *name, const char *text)
    {
        return hd_params_set(table, &o, name, text, (std::string("--") + name).c_str());
    }
    Options o{};
};
} // namespace

TEST_CASE("params: defaults, then what JSON says", "[options]")
{
    Filled f;
    CHECK(f.o.tau == 1.0f);
    CHECK(f.o.steps == 50);
    CHECK(f.o.loop);
    CHECK(f.o.model == nullptr);
    CHECK(std::string(f.o.name) == "none");
    CHECK(f.o.rows == 1);
    CHECK(!f.o.seed_given);
    REQUIRE_OK(f.read("{\"tau\": 0.05, \"steps\": 1000, \"loop\": false, \"model\": \"m\","
                      " \"seed\": 18446744073709551615, \"name\": \"x\", \"rows\": \"text\","
                      " \"free_float\": -1e30, \"at_least\": 9007199254740993}"));
    CHECK(f.o.tau == 0.05f);
    CHECK(f.o.steps == 1000);
    CHECK(!f.o.loop);
    CHECK(f.o.seed == UINT64_MAX);
    CHECK(f.o.seed_given);
    CHECK(std::string(f.o.model) == "m");
    CHECK(std::string(f.o.name) == "x");
    CHECK(f.o.rows == 2);
    CHECK(f.o.free_float == -1e30f);
    CHECK(f.o.at_least == 9007199254740993);
    REQUIRE_OK(hd_params_default(table, &f.o));
    CHECK(f.o.model == nullptr);
    CHECK(!f.o.seed_given);
}

TEST_CASE("params: a value that is not allowed says where, what, and the way out", "[options]")
{
    struct {
        const char *text, *message;
    } const cases[] = {
        {"\"tau\": 40", "p.json: processors[0].tau is 40, must be 0.05 to 20 (default 1)"},
        {"\"tau\": \"hot\"", "tau is \"hot\", must be a number, 0.05 to 20 (default 1)"},
        {"\"tau\": null", "tau is null, must be a number, 0.05 to 20 (default 1)"},
        {"\"free_float\": 1e39", "free_float is 1e+39, must be a number (default 0)"},
        {"\"free_float\": 1e999", "free_float is inf, must be a number (default 0)"},
        {"\"steps\": 0", "steps is 0, must be 1 to 1000 (default 50)"},
        {"\"steps\": 2.5", "steps is 2.5, must be a whole number, 1 to 1000 (default 50)"},
        {"\"at_least\": 0", "at_least is 0, must be at least 1 (default 3)"},
        {"\"loop\": 1", "loop is 1, must be true or false (default true)"},
        {"\"seed\": -1", "seed is -1, must be a whole number from 0 to 18446744073709551615"},
        {"\"seed\": 18446744073709551616", "seed is 1.8446744073709552e+19, must be"},
        {"\"model\": 3", "model is 3, must be a text"},
        {"\"name\": [1]", "name is an array, must be a text (default none)"},
        {"\"rows\": \"vidio\"", "rows is \"vidio\", must be one of all, video, text (default "
                                "video); did you mean \"video\"?"},
        {"\"rows\": \"x\"", "rows is \"x\", must be one of all, video, text (default video)"},
        {"\"rows\": 1", "rows is 1, must be one of all, video, text"},
    };
    for (const auto &c : cases) {
        Filled f;
        CAPTURE(c.text);
        CHECK_FAILS(f.read(std::string("{\"processors\": [{") + c.text + "}]}"), HD_ERR_ARGUMENT,
                    c.message);
    }
}

TEST_CASE("params: unknown and missing keys", "[options]")
{
    Filled f;
    const char *const also[] = {"use", "sites", nullptr};
    CHECK_FAILS(
        f.read("{\"processors\": [{\"use\": \"temperature\", \"sites\": [], \"taw\": 1}]}", also),
        HD_ERR_ARGUMENT,
        "p.json: processors[0] (temperature) has no \"taw\"; did you mean \"tau\"? It has: tau, "
        "free_float, steps, at_least, loop, seed, model, name, rows");
    CHECK_FAILS(f.read("{\"site\": []}", also), HD_ERR_ARGUMENT,
                "p.json: the top level has no \"site\"; did you mean \"sites\"? It has: tau");
    CHECK_FAILS(f.read("{\"wholly\": []}", also), HD_ERR_ARGUMENT,
                "has no \"wholly\". It has: tau");
    CHECK_FAILS(f.read("{\"use\": 1}"), HD_ERR_ARGUMENT, "has no \"use\"");
    CHECK_FAILS(f.read("{}"), HD_ERR_ARGUMENT, "p.json: the top level lacks \"model\": a folder");
    CHECK_FAILS(f.read("[]"), HD_ERR_ARGUMENT, "the top level is an array, must be an object");
}

TEST_CASE("params: text from a command line", "[options]")
{
    Filled f;
    REQUIRE_OK(f.set("tau", ".5"));
    CHECK(f.o.tau == 0.5f);
    REQUIRE_OK(f.set("tau", "+2e-1"));
    CHECK(f.o.tau == 0.2f);
    REQUIRE_OK(f.set("steps", "7"));
    CHECK(f.o.steps == 7);
    REQUIRE_OK(f.set("seed", "9007199254740993"));
    CHECK(f.o.seed == 9007199254740993u);
    CHECK(f.o.seed_given);
    REQUIRE_OK(f.set("loop", "off"));
    CHECK(!f.o.loop);
    REQUIRE_OK(f.set("loop", "Yes"));
    CHECK(f.o.loop);
    REQUIRE_OK(f.set("rows", "all"));
    CHECK(f.o.rows == 0);
    REQUIRE_OK(f.set("name", "{\"not\": json"));
    CHECK(std::string(f.o.name) == "{\"not\": json");
    struct {
        const char *name, *text, *message;
    } const cases[] = {
        {"tau", "40", "--tau is 40, must be 0.05 to 20 (default 1)"},
        {"tau", "warm", "--tau is \"warm\", must be a number, 0.05 to 20"},
        {"tau", "", "--tau is \"\", must be a number"},
        {"tau", "nan", "--tau is \"nan\", must be a number"},
        {"tau", "1 2", "--tau is \"1 2\", must be a number"},
        {"tau", "\"1\"", "must be a number"},
        {"tau", "0x1", "must be a number"},
        {"steps", "1e9", "--steps is 1e+09, must be 1 to 1000 (default 50)"},
        {"seed", "-1", "--seed is -1, must be a whole number from 0 to 18446744073709551615"},
        {"seed", "18446744073709551616", "--seed is 1.8446744073709552e+19, must be"},
        {"loop", "maybe", "--loop is \"maybe\", must be true or false"},
        {"rows", "txt",
         "--rows is \"txt\", must be one of all, video, text (default video); did "
         "you mean \"text\"?"},
        {"taw", "1", "--taw: there is no \"taw\"; did you mean \"tau\"? It has: tau"},
    };
    for (const auto &c : cases) {
        CAPTURE(c.name, c.text);
        CHECK_FAILS(f.set(c.name, c.text), HD_ERR_ARGUMENT, c.message);
    }
    CHECK_FAILS(f.set("tau", std::string(300, '1').c_str()), HD_ERR_ARGUMENT, "must be a number");
}

TEST_CASE("params: the table is its own documentation", "[options]")
{
    char *text = nullptr;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    hd_params_print(table, to);
    fclose(to);
    std::string all(text);
    free(text);
    CHECK(all.find("tau         float   0.05 to 20, default 1         score divisor\n") !=
          std::string::npos);
    CHECK(all.find("all, video, text, default video") != std::string::npos);
    CHECK(all.find("required") != std::string::npos);
    CHECK(std::count(all.begin(), all.end(), '\n') == 9);
}

TEST_CASE("params: each allocation in turn fails", "[options][nomem]")
{
    CHECK(fail_each_allocation([] {
              Options o{};
              hd_json_doc *doc = nullptr;
              const std::string text = "{\"model\": \"m\", \"name\": \"x\", \"tau\": 2}";
              hd_status status = hd_params_default(table, &o);
              if (status == HD_OK) status = hd_json_parse(&doc, "p", text.data(), text.size());
              if (status == HD_OK) status = hd_params_read(table, &o, hd_json_root(doc), nullptr);
              if (status == HD_OK) status = hd_params_set(table, &o, "steps", "7", "--steps");
              hd_json_free(doc);
              hd_params_free(table, &o);
              return status;
          }) > 10);
}
