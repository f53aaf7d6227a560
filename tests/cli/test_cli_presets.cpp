// heddle presets, presets by name, and heddle inspect attention.
#include <cJSON.h>
#include <filesystem>

#include "codecs/png.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/program.h"

namespace
{

bool holds(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

const char *const little = R"({"description": "Something little.", "prompt": "a red fish",
    "seed": 4, "steps": 2, "width": 48, "height": 32, "precision": "f32",
    "processors": [{"use": "temperature", "tau": 0.75}]})";

// A folder with presets of its own.
struct Presets {
    Folder folder;
    Presets()
    {
        std::filesystem::create_directories(folder.path("presets/a"));
        std::filesystem::create_directories(folder.path("presets/b"));
        folder.write("presets/a/little.json", little);
        folder.write("presets/a/twice.json", little);
        folder.write("presets/b/twice.json", little);
        folder.write("presets/schema.json", "{}");
    }
    Said said(std::vector<std::string> words) const
    {
        return heddle(folder.path(), words);
    }
};

} // namespace

TEST_CASE("heddle presets: what is there, with descriptions and parameters", "[cli]")
{
    Folder empty;
    Said all = heddle(empty.path(), {"presets"}); // those that came with the program
    CHECK(all.code == 0);
    for (const char *part : {"edit/prompt-to-prompt\n", "accelerate/gna\n", "Edit a picture",
                             "prompt_to_prompt: cross_replace_steps 0.8"}) {
        INFO(part);
        CHECK(holds(all.out, part));
    }
    CHECK(!holds(all.out, "schema"));
    Presets p;
    CHECK(p.said({"presets"}).out == "a/little\n    Something little.\n      temperature: tau "
                                     "0.75\n\na/twice\n    Something little.\n      temperature: "
                                     "tau 0.75\n\nb/twice\n    Something little.\n      "
                                     "temperature: tau 0.75\n\n");
    Said one = p.said({"presets", "little"});
    CHECK(one.code == 0);
    CHECK(holds(one.out, "score divisor"));
    CHECK(holds(one.out, "presets/a/little.json"));
    CHECK(!holds(one.out, "twice"));
    Said json =
        heddle(empty.path(), {"presets", "--json", "--presets-dir", p.folder.path("presets")});
    cJSON *root = cJSON_Parse(json.out.c_str());
    REQUIRE(root);
    CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(root, "presets")) == 3);
    cJSON_Delete(root);

    Said none = p.said({"presets", "--presets-dir", "nowhere"});
    CHECK(none.code == 2);
    CHECK(holds(none.err, "no such folder of presets"));
    Said wrong = p.said({"presets", "litle"});
    CHECK(wrong.code == 2);
    CHECK(holds(wrong.err, "did you mean \"little\"?"));
    CHECK(holds(p.said({"presets", "twice"}).err, "may be a/twice or b/twice"));
}

TEST_CASE("heddle run: a preset by name", "[cli]")
{
    Presets p;
    const std::string model = source_path("models/starter-image");
    CHECK(p.said({"run", "little", "-m", model, "-o", "one.png"}).code == 0);
    CHECK(p.said({"run", "presets/a/little.json", "-m", model, "-o", "two.png"}).code == 0);
    CHECK(p.said({"run", "b/twice", "-m", model, "-o", "three.png"}).code == 0);
    CHECK(p.folder.read("one.png") == p.folder.read("two.png"));
    CHECK(p.folder.read("one.png") == p.folder.read("three.png"));
    CHECK(p.said({"inspect", "chain", "little", "-m", model}).code == 0);
    p.folder.write("little", "no preset"); // a file is a file
    CHECK(p.said({"run", "little", "-m", model, "-o", "no.png"}).code == 1);
    Said none = p.said({"run", "litte", "-m", model});
    CHECK(none.code == 2);
    CHECK(holds(none.err, "litte is no file"));
    CHECK(holds(none.err, "did you mean"));
    CHECK(holds(p.said({"run", "there.json"}).err, "there.json"));
}

TEST_CASE("heddle inspect attention: maps over the picture of any preset", "[cli]")
{
    Presets p;
    const std::string model = source_path("models/starter-image");
    Said said = p.said({"inspect", "attention", "little", "-m", model, "-o", "maps.png", "--masks",
                        "mask.png", "--picture", "fish.png"});
    INFO(said.err);
    CHECK(said.code == 0);
    CHECK(p.folder.names() == std::vector<std::string>{"fish.png", "maps.png", "mask-a.png",
                                                       "mask-fish.png", "mask-red.png", "presets"});
    for (const char *file : {"maps.png\n", "mask-a.png\n", "mask-red.png\n", "mask-fish.png\n"})
        CHECK(holds(said.out, file));
    // the picture itself is that of the preset alone
    CHECK(p.said({"run", "little", "-m", model, "-o", "plain.png"}).code == 0);
    hd_png with = {}, without = {};
    REQUIRE_OK(hd_png_read(&with, p.folder.path("fish.png").c_str()));
    REQUIRE_OK(hd_png_read(&without, p.folder.path("plain.png").c_str()));
    CHECK(std::string((char *)with.image.rgb, hd_image_bytes(&with.image)) ==
          std::string((char *)without.image.rgb, hd_image_bytes(&without.image)));
    hd_png_free(&with);
    hd_png_free(&without);

    CHECK(p.said({"inspect", "attention", "fish.png", "-o", "again.png", "--words", "fish, red",
                  "--recipe", "diffumask", "--json"})
              .code == 0);
    Said word =
        p.said({"inspect", "attention", "little", "-m", model, "-o", "m.png", "--words", "fsh"});
    CHECK(word.code == 2);
    CHECK(holds(word.err, "processors[1].words[0]"));
    Said nothing = p.said({"inspect", "attention", "little", "-m", model});
    CHECK(nothing.code == 2);
    CHECK(holds(nothing.err, "-o maps.png"));
    CHECK(holds(p.said({"inspect", "attention", "--help"}).out, "--recipe"));
}
