// Options on top of a run's JSON: paths, exact numbers elsewhere, refusals.
#include <cstdlib>
#include <cstring>
#include <string>

#include "cli/settings.h"
#include "support/alloc_fail.h"
#include "support/catch.h"

namespace
{
struct Json {
    explicit Json(const char *start) : text(strdup(start))
    {
    }
    ~Json()
    {
        free(text);
    }
    char *text;
};

std::string put(const char *start, const char *path, const char *value)
{
    Json json(start);
    REQUIRE_OK(hd_setting_put(&json.text, "a.json", path, value));
    return json.text;
}

std::string assign(const char *start, const char *assignment)
{
    Json json(start);
    REQUIRE_OK(hd_setting_assign(&json.text, "a.json", assignment));
    return json.text;
}

// JSON texts are compared without the spaces that the writer puts.
std::string bare(std::string text)
{
    std::string out;
    for (char c : text)
        if (c != ' ' && c != '\n') out += c;
    return out;
}
} // namespace

TEST_CASE("settings: a value is put where its path says", "[cli]")
{
    CHECK(bare(put("{}", "steps", "20")) == R"({"steps":20})");
    CHECK(bare(put(R"({"steps": 5, "seed": 18446744073709551615})", "steps", "20")) ==
          R"({"steps":20,"seed":18446744073709551615})");
    CHECK(bare(put(R"({"a": [{"tau": 1, "b": 2}]})", "a[0].tau", "0.5")) ==
          R"({"a":[{"tau":0.5,"b":2}]})");
    CHECK(bare(put("{}", "processors[0].use", "\"x\"")) == R"({"processors":[{"use":"x"}]})");
    CHECK(bare(put(R"({"a": [1]})", "a[1]", "2")) == R"({"a":[1,2]})");
    CHECK(bare(put(R"({"a": 1})", "a", "{\"b\": []}")) == R"({"a":{"b":[]}})");
}

TEST_CASE("settings: --set reads a run's own fields as options and the rest as JSON", "[cli]")
{
    CHECK(bare(assign("{}", "prompt=42")) == R"({"prompt":"42"})");
    CHECK(bare(assign("{}", "seed=18446744073709551615")) == R"({"seed":18446744073709551615})");
    CHECK(bare(assign("{}", "guidance=7.5")) == R"({"guidance":7.5})");
    CHECK(assign("{}", "prompt=a=b \"c\"").find(R"("a=b \"c\"")") != std::string::npos);
    CHECK(bare(assign("{}", "processors[0].tau=0.8")) == R"({"processors":[{"tau":0.8}]})");
    CHECK(bare(assign("{}", "processors[0].steps=[0, 0.5]")) ==
          R"({"processors":[{"steps":[0,0.5]}]})");
    CHECK(bare(assign("{}", "processors[0].use=temperature")) ==
          R"({"processors":[{"use":"temperature"}]})");
    CHECK(bare(assign("{}", "processors[0].on=true")) == R"({"processors":[{"on":true}]})");
}

TEST_CASE("settings: what does not fit is refused and changes nothing", "[cli]")
{
    struct {
        const char *start, *assignment;
        hd_status status;
        const char *text;
    } cases[] = {
        {"{}", "steps", HD_ERR_ARGUMENT, "--set is \"steps\", must be a path, =, and a value"},
        {"{}", "=3", HD_ERR_ARGUMENT, "must be a path"},
        {"{}", "steps=0", HD_ERR_ARGUMENT, "--set steps is 0, must be 1 to 1000"},
        {"{}", "a..b=3", HD_ERR_ARGUMENT, "\"a..b\" is no path"},
        {"{}", "a[x]=3", HD_ERR_ARGUMENT, "\"a[x]\" is no path"},
        {"{}", "a[-1]=3", HD_ERR_ARGUMENT, "\"a[-1]\" is no path"},
        {"{}", "[0]=3", HD_ERR_ARGUMENT, "\"[0]\" is no path"},
        {"{}", "a[99999999999999999999]=3", HD_ERR_ARGUMENT, "is no path"},
        {"{\"a\": [1]}", "a[2]=3", HD_ERR_ARGUMENT, "the list has 1 entries; the next one is [1]"},
        {"{\"a\": [1]}", "a.b=3", HD_ERR_ARGUMENT, "a.b: a is not an object"},
        {"{\"a\": {}}", "a[0]=3", HD_ERR_ARGUMENT, "a[0]: a is not a list"},
        {"[1]", "steps=3", HD_ERR_ARGUMENT, "the run is not an object"},
        {"{\"a\": ", "steps=3", HD_ERR_FORMAT, "a.json"},
    };
    for (auto &c : cases) {
        Json json(c.start);
        INFO(c.assignment);
        CHECK_FAILS(hd_setting_assign(&json.text, "a.json", c.assignment), c.status, c.text);
        CHECK(std::string(json.text) == c.start);
    }
}

TEST_CASE("settings: an option's value is checked under the option's name", "[cli]")
{
    struct {
        const char *field, *text, *message;
    } cases[] = {
        {"steps", "many", "--steps is \"many\", must be a whole number"},
        {"steps", "1001", "--steps is 1001, must be 1 to 1000"},
        {"seed", "-1", "--seed is -1, must be a whole number from 0 to 18446744073709551615"},
        {"precision", "f16", "--precision is \"f16\", must be one of auto, f32, bf16"},
        {"strength", "1.5", "--strength is 1.5, must be 0 to 1"},
        {"guidance", "nan", "--guidance is \"nan\""},
    };
    for (auto &c : cases) {
        char *value = nullptr;
        std::string what = std::string("--") + c.field;
        CHECK_FAILS(hd_setting_value(&value, c.field, c.text, what.c_str()), HD_ERR_ARGUMENT,
                    c.message);
        CHECK(value == nullptr);
    }
    char *value = nullptr;
    CHECK_FAILS(hd_setting_value(&value, "prompt", "\xff", "--prompt"), HD_ERR_ARGUMENT,
                "--prompt is no UTF-8 text");
    CHECK(value == nullptr);
}

TEST_CASE("settings: no memory, at any allocation, changes nothing", "[cli]")
{
    for (auto assignment : {"processors[0].tau=0.5", "prompt=a red fish", "a.b[0]=no json"}) {
        const char *start = R"({"seed": 3, "processors": [{"use": "temperature"}]})";
        fail_each_allocation([&] {
            Json json(start);
            if (!json.text) return hd_fail(HD_ERR_NOMEM, "no memory for the test");
            hd_status status = hd_setting_assign(&json.text, "a.json", assignment);
            if (status != HD_OK) CHECK(std::string(json.text) == start);
            return status;
        });
    }
}
