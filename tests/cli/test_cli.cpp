// The program as people meet it: what it says and with which exit status it ends, for good input
// and for bad. Pictures are drawn with two steps on the starter model; nothing depends on what they
// show.
#include <cJSON.h>
#include <csignal>
#include <cstdlib>

#include "codecs/png.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/program.h"

namespace
{
const std::string model = source_path("models/starter-image");
using Words = std::vector<std::string>;

bool holds(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

// Two steps in f32: seconds, also with the sanitizers.
Words quick(Words more)
{
    Words words = {"generate", "-m", model, "--steps", "2", "--precision", "f32", "-s", "7"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

struct Json {
    explicit Json(const std::string &text) : root(cJSON_Parse(text.c_str()))
    {
    }
    ~Json()
    {
        cJSON_Delete(root);
    }
    cJSON *at(const char *key) const
    {
        return cJSON_GetObjectItem(root, key);
    }
    std::string text(const char *object, const char *key) const
    {
        cJSON *item = cJSON_GetObjectItem(at(object), key);
        return cJSON_IsString(item) ? item->valuestring : "(none)";
    }
    cJSON *root;
};

std::string picture_text(const Folder &folder, const std::string &name, const char *key)
{
    hd_png png = {};
    REQUIRE_OK(hd_png_read(&png, folder.path(name).c_str()));
    const char *text = hd_png_find_text(&png, key);
    std::string out = text ? text : "";
    hd_png_free(&png);
    return out;
}
} // namespace

TEST_CASE("heddle: help and version", "[cli]")
{
    Folder f;
    CHECK(heddle(f.path(), {"version"}).code == 0);
    CHECK(holds(heddle(f.path(), {"--version"}).out, "heddle 0."));
    Said help = heddle(f.path(), {"help"});
    CHECK(help.code == 0);
    for (auto name : {"generate", "run", "inspect", "bench", "version"}) {
        INFO(name);
        CHECK(holds(help.out, name));
    }
    for (auto name : {"generate", "run", "inspect", "bench"}) {
        Said a = heddle(f.path(), {"help", name}), b = heddle(f.path(), {name, "--help"});
        CHECK(a.code == 0);
        CHECK(a.out == b.out);
        CHECK(holds(a.out, "--json"));
    }
    CHECK(holds(heddle(f.path(), {"help", "generate"}).out, "--guidance-rescale"));
    CHECK(holds(heddle(f.path(), {"help", "generate"}).out, "euler"));
    CHECK(holds(heddle(f.path(), {"help", "processors"}).out, "temperature: "));
    Said none = heddle(f.path(), {});
    CHECK(none.code == 2);
    CHECK(none.out == "");
    CHECK(holds(none.err, "usage: heddle COMMAND"));
}

TEST_CASE("heddle: a wrong command line ends with 2 and says what is right", "[cli]")
{
    Folder f;
    struct {
        Words words;
        const char *text;
    } cases[] = {
        {{"genrate"}, "unknown command \"genrate\"; did you mean \"generate\"?"},
        {{"help", "rum"}, "did you mean \"run\"?"},
        {{"generate"}, "--prompt is missing"},
        {{"generate", "a red fish"}, "unexpected \"a red fish\"; a prompt is given with --prompt"},
        {{"generate", "-p", "x", "--stpes", "3"}, "unknown option --stpes; did you mean --steps?"},
        {{"generate", "-p"}, "--prompt needs a value"},
        {{"generate", "-p", "x", "--steps", "0"}, "--steps is 0, must be 1 to 1000"},
        {{"generate", "-p", "x", "--steps", "1.5"}, "--steps is 1.5, must be a whole number"},
        {{"generate", "-p", "x", "-s", "-1"}, "--seed is -1, must be a whole number from 0"},
        {{"generate", "-p", "x", "-s", "18446744073709551616"},
         "--seed is 1.8446744073709552e+19, must be a whole"},
        {{"generate", "-p", "x", "--precision", "f16"}, "must be one of auto, f32, bf16"},
        {{"generate", "-p", "x", "--set", "stpes=3"}, "has no \"stpes\"; did you mean \"steps\"?"},
        {{"generate", "-p", "x", "-m", model, "-W", "63"}, "width"},
        {{"generate", "-p", "x", "-m", model, "--sampler", "eular"}, "eular"},
        {quick({"-p", "x", "-o", "fish.jpg"}), "output is \"fish.jpg\", but only PNG is written"},
        {{"generate", "-p", "\xff\xfe", "-m", model}, "--prompt is no UTF-8 text"},
        {{"run"}, "a preset or a picture is missing"},
        {{"run", "a", "b"}, "found \"a\" and \"b\""},
        {{"inspect"}, "is missing"},
    };
    for (auto &c : cases) {
        Said said = heddle(f.path(), c.words);
        INFO(said.err);
        CHECK(said.code == 2);
        CHECK(said.out == "");
        CHECK(holds(said.err, c.text));
        CHECK(f.names().empty());
    }
}

TEST_CASE("heddle: files that cannot be used end with 1 and are named", "[cli]")
{
    Folder f;
    f.write("broken.json", "{\n  \"prompt\": \"x\",\n  \"steps\": }\n");
    f.write("list.json", "[1, 2]");
    f.write("typo.json", "{\"prompt\": \"x\", \"stesp\": 3, \"model\": \"" + model + "\"}");
    f.write("type.json", "{\"prompt\": 3, \"model\": \"" + model + "\"}");
    f.write("noise.json", std::string("\0\1\2", 3));
    f.write("plain.png", fixture_text("png/c2_8.png"));
    f.write("cut.png", fixture_text("png/c2_8.png").substr(0, 60));
    struct {
        Words words;
        int code;
        const char *text;
    } cases[] = {
        {{"run", "absent.json"}, 1, "absent.json: "},
        {{"run", "broken.json"}, 1, "broken.json: line 3"},
        {{"run", "list.json"}, 2, "list.json: "},
        {{"run", "typo.json"}, 2, "has no \"stesp\"; did you mean \"steps\"?"},
        {{"run", "type.json"}, 2, "type.json: prompt is 3, must be a text"},
        {{"run", "noise.json"}, 1, "noise.json: neither JSON nor a PNG file"},
        {{"run", "plain.png"}, 1, "plain.png: the picture does not say how it was made"},
        {{"run", "cut.png"}, 1, "cut.png: the PNG is cut short"},
        {{"run", "."}, 1, ": "},
        {{"inspect", "absent"}, 1, "absent"},
        {{"inspect", "plain.png"}, 1, "plain.png"},
        {quick({"-p", "x", "-m", "absent"}), 1, "absent"},
        {quick({"-p", "x", "-m", f.path()}), 1, "model_index.json"},
        {quick({"-p", "x", "-o", "no/such/folder.png"}), 1, "no/such/folder.png"},
        // before the model is looked for
        {quick({"-p", "x", "-m", "absent", "-o", "no/such/folder.png"}), 1, "no/such/folder.png"},
        {quick({"-p", "x", "-m", "absent", "-o", "."}), 1, "."},
        {quick({"-p", "x", "-o", "/dev/full"}), 1, "/dev/full"},
        {quick({"-p", "x", "-i", "absent.png"}), 1, "absent.png"},
        {quick({"-p", "x", "-i", "cut.png"}), 1, "cut.png"},
        {quick({"-p", "x", "--latents-in", "absent.safetensors"}), 1, "absent.safetensors"},
    };
    auto before = f.names();
    for (auto &c : cases) {
        Said said = heddle(f.path(), c.words);
        INFO(said.err);
        CHECK(said.code == c.code);
        CHECK(holds(said.err, c.text));
        CHECK(f.names() == before);
    }
}

TEST_CASE("heddle: failures are JSON for those who ask", "[cli]")
{
    Folder f;
    for (auto words : std::vector<Words>{{"generate", "--json", "--stpes", "3"},
                                         {"generate", "-p", "x", "--steps", "0", "--json"}}) {
        Said said = heddle(f.path(), words);
        CHECK(said.code == 2);
        Json json(said.out);
        CHECK(json.text("error", "kind") == "bad value");
        CHECK(holds(json.text("error", "message"), "steps"));
    }
    Said said = heddle(f.path(), {"run", "absent.json", "--json"});
    CHECK(said.code == 1);
    CHECK(Json(said.out).text("error", "kind") == "input/output");
}

TEST_CASE("heddle: a picture is drawn, says how, and is repeated byte for byte", "[cli]")
{
    Folder f;
    const std::string prompt = "-\u00e9 \"red\" \u9b5a\n@fish";
    Said said = heddle(f.path(), quick({"-p", prompt, "-o", "first.png", "--guidance", "3.3",
                                        "--latents-out", "first.safetensors"}));
    INFO(said.err);
    REQUIRE(said.code == 0);
    CHECK(said.err == ""); // no terminal, no progress
    CHECK(holds(said.out, "first.png"));
    CHECK(holds(said.out, "seed 7"));
    CHECK(f.names() == Words{"first.png", "first.safetensors"});

    Json run(picture_text(f, "first.png", "heddle"));
    CHECK(std::string(cJSON_GetStringValue(run.at("prompt"))) == prompt);
    for (auto key : {"output", "latents_out", "preview"})
        CHECK(run.at(key) == nullptr);
    CHECK(holds(picture_text(f, "first.png", "parameters"), "Steps: 2, Sampler: "));

    Said again = heddle(f.path(), {"run", "first.png", "-o", "second.png"});
    INFO(again.err);
    REQUIRE(again.code == 0);
    CHECK(f.read("second.png") == f.read("first.png"));
    CHECK(f.names() == Words{"first.png", "first.safetensors", "second.png"});
}

TEST_CASE("heddle: a name nobody chose never replaces a file; one that was chosen does", "[cli]")
{
    Folder f;
    f.write("heddle-7.png", "mine");
    f.write("given.png", "mine");
    REQUIRE(heddle(f.path(), quick({"-p", "x"})).code == 0);
    CHECK(f.read("heddle-7.png") == "mine");
    REQUIRE(heddle(f.path(), quick({"-p", "x", "-o", "given.png"})).code == 0);
    CHECK(f.read("given.png") == f.read("heddle-7_2.png"));
    CHECK(f.names() == Words{"given.png", "heddle-7.png", "heddle-7_2.png"});
}

TEST_CASE("heddle: a batch numbers its pictures, each equal to its own run", "[cli]")
{
    Folder f;
    REQUIRE(heddle(f.path(), quick({"-p", "x", "-b", "2", "-o", "b.png"})).code == 0);
    CHECK(f.names() == Words{"b-0.png", "b-1.png"});
    REQUIRE(heddle(f.path(), quick({"-p", "x", "-s", "8", "-o", "one.png"})).code == 0);
    CHECK(f.read("one.png") == f.read("b-1.png"));
    CHECK(f.read("one.png") != f.read("b-0.png"));
}

TEST_CASE("heddle: --json says everything about a run on stdout alone", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), quick({"-p", "x", "-o", "a.png", "--json"}));
    REQUIRE(said.code == 0);
    CHECK(said.err == "");
    Json json(said.out);
    REQUIRE(json.root);
    cJSON *first = cJSON_GetArrayItem(json.at("outputs"), 0);
    CHECK(std::string(cJSON_GetStringValue(cJSON_GetObjectItem(first, "path"))) == "a.png");
    CHECK(cJSON_GetObjectItem(first, "seed")->valuedouble == 7);
    CHECK(std::string(cJSON_GetStringValue(json.at("precision"))) == "f32");
    CHECK(json.at("peak_bytes")->valuedouble > 1e6);
    CHECK(json.at("seconds")->valuedouble > 0);
    CHECK(cJSON_GetArraySize(json.at("stages")) >= 3);
    CHECK(cJSON_IsArray(json.at("warnings")));
}

TEST_CASE("heddle: --verbose says what was decided, --quiet nothing", "[cli]")
{
    Folder f;
    Said verbose = heddle(f.path(), quick({"-p", "x", "-o", "a.png", "-v"}));
    for (auto part : {"precision    f32", "sampler ", "threads ", "peak memory", "in all"}) {
        INFO(part);
        CHECK(holds(verbose.err, part));
    }
    Said quiet = heddle(f.path(), quick({"-p", "x", "-o", "a.png", "-q"}));
    CHECK(quiet.code == 0);
    CHECK(quiet.out + quiet.err == "");
}

TEST_CASE("heddle: Ctrl-C stops a run, which leaves no file and says so", "[cli]")
{
    int by = GENERATE(SIGINT, SIGTERM);
    Folder f;
    int polls = 0;
    Words words = quick({"-p", "x", "-o", "a.png", "--preview", "p.png", "--latents-out", "l"});
    words[4] = "500"; // steps
    Said said = heddle(f.path(), words, [&](int pid) {
        // the first preview says that it samples
        if (f.names() == Words{"p.png"} && polls++ == 0) kill(pid, by);
    });
    CHECK(said.code == 130);
    CHECK(holds(said.err, "stopped; nothing was written"));
    CHECK(f.names() == Words{"p.png"});
}

TEST_CASE("heddle: a preset with options on top", "[cli]")
{
    Folder f;
    f.write("p.json", "{\"model\": \"" + model +
                          "\", \"prompt\": \"x\", \"steps\": 50, \"seed\": 18446744073709551615,"
                          "\"precision\": \"f32\", \"output\": \"out.png\"}");
    Said said =
        heddle(f.path(), {"run", "p.json", "--steps", "2", "--set", "processors[0].use=temperature",
                          "--set", "processors[0].tau=0.5"});
    INFO(said.err);
    REQUIRE(said.code == 0);
    Json run(picture_text(f, "out.png", "heddle"));
    CHECK(run.at("steps")->valuedouble == 2);
    CHECK(holds(picture_text(f, "out.png", "heddle"), "18446744073709551615"));
    CHECK(cJSON_GetArraySize(run.at("processors")) == 1);
}

TEST_CASE("heddle: inspect says what a model holds", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), {"inspect", model});
    INFO(said.err);
    REQUIRE(said.code == 0);
    for (auto part : {"UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "scheduler"}) {
        INFO(part);
        CHECK(holds(said.out, part));
    }
    CHECK(!holds(said.out, "cannot be run"));
    CHECK(holds(heddle(f.path(), {"inspect", model, "--tensors"}).out, "conv_in.weight"));
    Said part = heddle(f.path(), {"inspect", model + "/unet"});
    INFO(part.err);
    CHECK(holds(part.out, "weights of one component"));
    Said file = heddle(f.path(), {"inspect", model + "/vae/diffusion_pytorch_model.safetensors"});
    CHECK(holds(file.out, "safetensors file"));
    Said json = heddle(f.path(), {"inspect", model, "--json"});
    CHECK(cJSON_GetArraySize(Json(json.out).at("components")) == 3);
}

TEST_CASE("heddle: the presets that ship with it run", "[cli]")
{
    Folder f;
    for (auto name : {"generate/paper-cut", "generate/sharper-attention", "guide/pag", "guide/seg",
                      "guide/softpag"}) {
        std::string preset = source_path(std::string("presets/") + name + ".json");
        Said said = heddle(f.path(), {"run", preset, "-m", model, "--steps", "2", "-o", "a.png"});
        INFO(name << ": " << said.err);
        CHECK(said.code == 0);
    }
}

TEST_CASE("heddle: the starter model is found beside the program", "[cli]")
{
    Folder f;
    Said said = heddle(f.path(), {"generate", "-p", "x", "--steps", "1", "-o", "a.png"});
    INFO(said.err);
    CHECK(said.code == 0);
}
