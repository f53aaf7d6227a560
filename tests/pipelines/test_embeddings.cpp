// Learned words in a run: as in diffusers (tools/fixtures/learned.py), and refusals by their place.
#include "pipelines/runner.h"
#include "support/safetensors.h"

namespace
{

std::string learned(const std::string &name)
{
    return fixture_path("learned/" + name);
}

// The run of the fixture, with fields of its own.
std::string tiny(const std::string &more)
{
    return "{\"model\": \"" + fixture_path("pipeline/tiny-sd") +
           "\", \"prompt\": \"a red <toy> with <Hat> and a cat\", \"negative\": \"a <hat>\", "
           "\"steps\": 6, \"guidance\": 4, \"seed\": 17, \"precision\": \"f32\"" +
           more + "}";
}

std::string words()
{
    return ", \"embeddings\": [\"" + learned("toy.safetensors") + "\", {\"file\": \"" +
           learned("hat.safetensors") + "\", \"token\": \"<hat>\"}]";
}

} // namespace

TEST_CASE("embeddings: a run draws what diffusers draws with the same files",
          "[pipeline][embeddings]")
{
    Folder folder;
    Context context;
    Fixture truth = fixture_open("learned/answers.safetensors");
    const FixtureTensor &latents = truth.at("latents_words");
    auto draw = [&](const std::string &more) {
        auto result =
            context.run(tiny(more + ", \"latents_out\": \"" + folder.path("x.safetensors") + "\""));
        Fixture ours = fixture_open(
            std::filesystem::relative(folder.path("x.safetensors"), fixture_path("")).string());
        REQUIRE(ours.at("latents").shape == latents.shape);
        return relative_error(ours.at("latents").f32(), latents.f32(), latents.count());
    };
    CHECK(draw(words()) <= 1e-4);
    CHECK(draw("") > 1e-2); // without them the prompt says something else
    CHECK(draw(words()) <= 1e-4);
}

TEST_CASE("embeddings: copies of words draw what the words draw, and stay with their run",
          "[pipeline][embeddings]")
{
    // <c> is the vector of the last piece of "fish", <two> those of "red fish"
    Folder folder;
    Context context;
    Fixture encoder = fixture_open("../../models/starter-image/text_encoder/model.safetensors");
    const FixtureTensor *table = nullptr;
    for (auto &item : encoder)
        if (item.first.find("token_embedding.weight") != std::string::npos) table = &item.second;
    REQUIRE(table);
    const int64_t channels = table->shape[1];
    auto run = [&](const std::string &prompt, const std::string &more) {
        return pixels(context
                          .run("{" + starter() +
                               ", \"steps\": 3, \"width\": 48, \"height\": 32, \"seed\": 5, "
                               "\"precision\": \"f32\", \"prompt\": \"" +
                               prompt + "\"" + more + "}")
                          .get(),
                      0);
    };
    // "red" and "fish" are one token each in the starter's vocabulary
    std::string vocabulary = fixture_text("../../models/starter-image/tokenizer/vocab.json");
    auto id_of = [&](const std::string &word) {
        size_t at = vocabulary.find("\"" + word + "</w>\"");
        REQUIRE(at != std::string::npos);
        return std::stoll(vocabulary.substr(vocabulary.find(':', at) + 1));
    };
    const size_t row = (size_t)channels * 2; // F16
    auto vector_of = [&](const std::string &word) {
        return std::string(table->bytes.data() + (size_t)id_of(word) * row, row);
    };
    REQUIRE(table->dtype == HD_F16);
    std::string two = folder.write(
        "two.safetensors",
        raw_safetensors({{"<two>", "F16", {2, channels}, vector_of("red") + vector_of("fish")}}));
    const std::string with = ", \"embeddings\": \"" + two + "\"";
    std::vector<uint8_t> plain = run("a red fish at night", "");
    CHECK(run("a <two> at night", with) == plain);
    CHECK(run("a red fish at night", with) == plain);
    CHECK(run("a <two> at night", "") != plain); // the next run knows nothing of it
}

TEST_CASE("embeddings: what does not fit is refused by its place", "[pipeline][embeddings]")
{
    Folder folder;
    Context context;
    std::string wide =
        folder.write("wide.safetensors", raw_safetensors({raw_f32("<w>", {3}, {1, 2, 3})}));
    struct {
        std::string embeddings, says;
    } cases[] = {
        {"[\"" + learned("toy.safetensors") + "\", {\"file\": \"" + wide + "\"}]",
         "test.json: embeddings[1] " + wide + ": <w> is [3]"},
        {"\"/nowhere.safetensors\"", "embeddings /nowhere.safetensors"},
        {"[{\"token\": \"<x>\"}]", "embeddings[0]"},
        {"[{\"file\": \"x\", \"tokn\": \"<x>\"}]", "did you mean \"token\"?"},
        {"[7]", "embeddings[0]"},
        {"[\"" + learned("toy.safetensors") + "\", {\"file\": \"" + learned("hat.safetensors") +
             "\", \"token\": \"<toy>\"}]",
         "embeddings[1] the token \"<toy>\" exists already"},
        {"[{\"file\": \"" + learned("toy.safetensors") + "\", \"token\": \"cat\"}]",
         "embeddings[0] the token \"cat\" exists already"},
        {"[\"" + learned("sdxl.safetensors") + "\"]", "SDXL"},
    };
    for (const auto &c : cases) {
        INFO(c.embeddings);
        ResultPtr result(nullptr, hd_result_free);
        CHECK(context.try_run(tiny(", \"embeddings\": " + c.embeddings), result) != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.says) != std::string::npos);
    }
}

TEST_CASE("embeddings: a picture remembers them", "[pipeline][embeddings]")
{
    Folder folder;
    Context context;
    auto first = context.run(tiny(words() + ", \"output\": \"" + folder.path("x.png") + "\""));
    char *json = nullptr;
    REQUIRE_OK(hd_preset_read(folder.path("x.png").c_str(), &json));
    std::string text = json;
    hd_text_free(json);
    CHECK(text.find("toy.safetensors") != std::string::npos);
    CHECK(pixels(context.run(text).get(), 0) == pixels(first.get(), 0));
}
