// heddle bench as people meet it: a table, files, refusals, a stop.
#include <cJSON.h>
#include <csignal>
#include <set>

#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/program.h"

namespace
{
using Words = std::vector<std::string>;

bool holds(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}
} // namespace

TEST_CASE("heddle bench attention: a table and its files", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), {"bench",  "attention",   "--grid",   "2,6,8",      "--text",
                                  "5",      "--heads",     "2",        "--head-dim", "16",
                                  "--rows", "temperature", "--repeat", "2",          "--json",
                                  "a.json", "--csv",       "a.csv",    "--plot",     "a.svg"});
    INFO(said.err);
    CHECK(said.code == 0);
    CHECK(holds(said.out, "2x6x8 + 5 text, 2 heads of 16"));
    CHECK(holds(said.out, "effective keys"));
    CHECK(holds(said.out, "ratio"));
    CHECK(holds(said.out, "\ntemperature"));
    CHECK(f.names() == Words{"a.csv", "a.json", "a.svg"});
    cJSON *root = cJSON_Parse(f.read("a.json").c_str());
    REQUIRE(root);
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(root, "rows")) == 2);
    cJSON_Delete(root);
    Said quiet = heddle(f.path(), {"bench", "attention", "--grid", "4,4", "--rows", "[]", "-q"});
    CHECK(quiet.code == 0);
    CHECK(quiet.out == "");
}

TEST_CASE("heddle bench attention: the accelerators of a shape are all measured", "[cli]")
{
    Folder f;
    const std::string shape = GENERATE("flux-1k", "cogvideox", "wan-480p");
    INFO(shape);
    Said said =
        heddle(f.path(), {"bench", "attention", "--shape", shape, "--scale", "0.4", "--heads", "1",
                          "--head-dim", "32", "--text", "7", "--repeat", "1", "--json", "a.json"});
    INFO(said.err);
    cJSON *root = cJSON_Parse(f.read("a.json").c_str()), *row;
    REQUIRE(root);
    std::set<std::string> names;
    cJSON_ArrayForEach(row, cJSON_GetObjectItem(root, "rows"))
    {
        cJSON *first = cJSON_GetArrayItem(cJSON_GetObjectItem(row, "processors"), 0);
        cJSON *error = cJSON_GetObjectItem(row, "error");
        if (error) { // only what this processor has no instructions for
            INFO(cJSON_GetObjectItem(error, "message")->valuestring);
            CHECK(std::string(cJSON_GetObjectItem(row, "name")->valuestring).find("int8") !=
                  std::string::npos);
            continue;
        }
        const double density = cJSON_GetObjectItem(row, "density")->valuedouble;
        CHECK(density > 0);
        CHECK(density <= 1.1);
        CHECK(cJSON_GetObjectItem(row, "rel_l1")->valuedouble < 1);
        if (cJSON *mass = cJSON_GetObjectItem(row, "retained_mass")) CHECK(mass->valuedouble > 0.2);
        if (first) names.insert(cJSON_GetObjectItem(first, "use")->valuestring);
    }
    cJSON_Delete(root);
    for (auto name :
         {"gna", "paro", "proxy", "vmoba", "xattention", "swin_windows", "dynamic_mask"})
        CHECK(names.count(name) == 1);
}

TEST_CASE("heddle bench attention: random and scaled", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), {"bench", "attention", "--shape", "wan-480p", "--scale", "0.2",
                                  "--heads", "1", "--input", "random", "--rows", "[]",
                                  "--precision", "f32", "--repeat", "1"});
    INFO(said.err);
    CHECK(said.code == 0);
    CHECK(holds(said.out, "wan-480p 4x6x10, 1 head of 128"));
    CHECK(holds(said.out, "scaled by 0.2: 21x30x52 was the grid"));
    CHECK(holds(said.out, "inputs: random, seed 1"));
    CHECK(holds(said.out, "f32"));
}

TEST_CASE("heddle bench model: a step of the starter model", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), {"bench", "model", "-m", source_path("models/starter-image"),
                                  "--rows", "temperature", "--precision", "f32", "--repeat", "1",
                                  "--pictures", "1", "--steps", "1", "--json", "a.json"});
    INFO(said.err);
    CHECK(said.code == 0);
    CHECK(holds(said.out, "a guided step, 16x16 tokens at the first level"));
    CHECK(holds(said.out, "PSNR"));
    CHECK(holds(said.out, "\ntemperature"));
    CHECK(holds(f.read("a.json"), "\"bench\": \"model\""));
    Said none = heddle(f.path(), {"bench", "model", "-m", "absent"});
    CHECK(none.code == 1);
    CHECK(holds(none.err, "absent"));
}

TEST_CASE("heddle bench: a wrong command line ends with 2 and says what is right", "[cli]")
{
    Folder f;
    struct {
        Words words;
        const char *text;
    } cases[] = {
        {{}, "attention or model is missing"},
        {{"attenton"}, "\"attenton\" cannot be measured; attention or model"},
        {{"attention", "--shape", "hunyaun"}, "did you mean \"hunyuan\"?"},
        {{"attention", "--grid", "4"}, "--grid is \"4\", must be F,H,W or H,W"},
        {{"attention", "--grid", "4,0"}, "--grid is \"4,0\""},
        {{"attention", "--grid", "4,4", "--shape", "hunyuan"}, "not both"},
        {{"attention", "--scale", "0"}, "--scale is 0, must be 0.01 to 16"},
        {{"attention", "--repeat", "0"}, "--repeat is 0, must be 1 to"},
        {{"attention", "--input", "tidy"}, "--input is \"tidy\", must be random, structured or a"},
        {{"attention", "--rows", "temprature"}, "did you mean \"temperature\"?"},
        {{"attention", "--plot", "a.jpg"}, "must end in .png or .svg"},
        {{"attention", "--pictures", "2"}, "--pictures belongs to bench model"},
        {{"model", "--scale", "2"}, "--scale belongs to bench attention"},
        {{"attention", "--rows", "[{\"use\": \"temperature\", \"tau\": 900}]", "--grid", "4,4"},
         "tau is 900, must be 0.05 to 20"},
    };
    for (auto &c : cases) {
        Words words = {"bench"};
        words.insert(words.end(), c.words.begin(), c.words.end());
        Said said = heddle(f.path(), words);
        INFO(said.err);
        CHECK(said.code == 2);
        CHECK(holds(said.err, c.text));
        CHECK(f.names().empty());
    }
}

TEST_CASE("heddle bench: Ctrl-C ends it with 130 and leaves no file", "[cli]")
{
    Folder f;
    bool sent = false;
    int looks = 0;
    Said said = heddle(
        f.path(),
        {"bench", "attention", "--shape", "sd15-512", "--repeat", "10000", "--json", "a.json"},
        [&](int pid) {
            if (++looks > 40 && !sent) sent = kill(pid, SIGINT) == 0;
        });
    CHECK(said.code == 130);
    CHECK(f.names().empty());
}
