// heddle calibrate as people meet it.
#include <cJSON.h>

#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/program.h"

namespace
{
const std::string model = source_path("models/starter-image");
const std::string quick = "{\"prompt\": \"a red fish\", \"steps\": 2, \"seed\": 3, \"precision\": "
                          "\"f32\", \"width\": 96, \"height\": 96, \"model\": \"" +
                          model + "\"}";

bool holds(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}
} // namespace

TEST_CASE("heddle calibrate: makes a plan file, and a run takes it", "[cli][paro]")
{
    Folder f;
    f.write("fish.json", quick);
    f.write("prompts.txt", "a red fish\na yellow moon\n");
    Said said = heddle(f.path(), {"calibrate", "fish.json", "-o", "fish.hdplan", "--density", "0.6",
                                  "--prompts", "prompts.txt", "-v"});
    INFO(said.err);
    REQUIRE(said.code == 0);
    CHECK(holds(said.out, "fish.hdplan  "));
    CHECK(holds(said.out, "retained mass"));
    CHECK(holds(said.err, "unet:up.2.attn.0 self"));
    CHECK(f.names() == std::vector<std::string>{"fish.hdplan", "fish.json", "prompts.txt"});
    Said run = heddle(
        f.path(), {"run", "fish.json", "-o", "a.png", "--set", "processors[0].use=paro", "--set",
                   "processors[0].plan=fish.hdplan", "--set", "processors[0].sites=[\"self\"]"});
    INFO(run.err);
    CHECK(run.code == 0);
    Said json = heddle(f.path(), {"calibrate", "fish.json", "-o", "fish.hdplan", "--json"});
    cJSON *root = cJSON_Parse(json.out.c_str());
    REQUIRE(root);
    CHECK(std::string(cJSON_GetObjectItem(root, "plan")->valuestring) == "fish.hdplan");
    CHECK(cJSON_GetObjectItem(root, "steps")->valueint == 2);
    CHECK(cJSON_GetObjectItem(root, "prompts")->valueint == 1);
    CHECK(cJSON_GetObjectItem(root, "target")->valuedouble == Approx(0.3));
    cJSON *site = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "sites"), 0);
    REQUIRE(site);
    CHECK(cJSON_GetObjectItem(site, "retained")->valuedouble <= 1.0);
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(site, "grid")) == 3);
    cJSON_Delete(root);
}

TEST_CASE("heddle calibrate: help, and what it refuses", "[cli][paro]")
{
    Folder f;
    f.write("fish.json", quick);
    f.write("empty.txt", "\n");
    Said help = heddle(f.path(), {"help", "calibrate"});
    CHECK(help.code == 0);
    CHECK(help.out == heddle(f.path(), {"calibrate", "--help"}).out);
    CHECK(holds(help.out, "--density"));
    CHECK(holds(heddle(f.path(), {"help"}).out, "calibrate"));
    struct {
        std::vector<std::string> words;
        int code;
        const char *text;
    } cases[] = {
        {{"calibrate"}, 2, "a preset or a picture is missing"},
        {{"calibrate", "fish.json"}, 2, "--output is missing: -o my.hdplan"},
        {{"calibrate", "fish.json", "-o", "a", "--density", "0"},
         2,
         "--density is \"0\", must be above 0 and at most 1"},
        {{"calibrate", "fish.json", "-o", "a", "--density", "much"}, 2, "--density is \"much\""},
        {{"calibrate", "none.json", "-o", "a"}, 1, "none.json"},
        {{"calibrate", "fish.json", "-o", "no/such/a"}, 1, "no/such"},
        {{"calibrate", "fish.json", "-o", "a", "--prompts", "none.txt"}, 1, "none.txt"},
        {{"calibrate", "fish.json", "-o", "a", "--prompts", "empty.txt"},
         2,
         "empty.txt: has no prompt"},
        {{"calibrate", "fish.json", "-o", "a", "--steps", "0"}, 2, "--steps is 0"},
    };
    for (auto &c : cases) {
        Said said = heddle(f.path(), c.words);
        INFO(said.err);
        CHECK(said.code == c.code);
        CHECK(said.out == "");
        CHECK(holds(said.err, c.text));
        CHECK(f.names() == std::vector<std::string>{"empty.txt", "fish.json"});
    }
    Said json = heddle(f.path(), {"calibrate", "fish.json", "--json"});
    CHECK(json.code == 2);
    CHECK(holds(json.out, "\"error\""));
}
