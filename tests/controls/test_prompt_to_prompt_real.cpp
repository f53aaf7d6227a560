// Prompt-to-Prompt on pictures: inversions kept in files, the negative-prompt way, masks of a
// person's own.
#include <algorithm>
#include <cctype>

#include "codecs/png.h"
#include "pipelines/runner.h"

namespace
{

std::string run_of(const std::string &more, int steps = 3)
{
    return "{" + starter() + ", \"steps\": " + std::to_string(steps) +
           ", \"width\": 48, \"height\": 32, \"seed\": 5, \"sampler\": \"ddim\", \"precision\": "
           "\"f32\", \"prompt\": \"a red tree at night\"" +
           more + "}";
}

// An edit of `picture`, whose prompt is known, with more options and more of the run.
std::string edit_of(const std::string &picture, const std::string &options = "",
                    const std::string &run = "")
{
    return run + R"(, "branches": {"source": {"save": true}}, "processors": [{"use":
        "prompt_to_prompt", "source_prompt": "a green tree at night", "source_image": ")" +
           picture + "\"" + options + "}]";
}

std::string draw(Context &context, const Folder &folder)
{
    const std::string path = folder.path("tree.png");
    context.run(run_of(", \"output\": \"" + path + "\"", 6));
    return path;
}

std::vector<uint8_t> picture_of(const hd_result *result, const std::string &branch)
{
    for (int i = 0; i < hd_result_count(result); i++)
        if (branch == hd_result_picture(result, i)->branch) return pixels(result, i);
    FAIL("no picture of branch " << branch);
    return {};
}

// White where x >= from, of 48 x 32.
std::string write_mask(const Folder &folder, const char *name, int from, int width = 48)
{
    hd_image mask;
    REQUIRE_OK(hd_image_create(&mask, width, 32, "test"));
    for (int i = 0; i < width * 32 * 3; i++)
        mask.rgb[i] = i / 3 % width >= from ? 255 : 0;
    const std::string path = folder.path(name);
    REQUIRE_OK(hd_png_write(path.c_str(), &mask, nullptr, 0));
    hd_image_free(&mask);
    return path;
}

// Of main's latents and the source's the places that are equal in all channels, [8, 12].
std::vector<bool> kept(Context &context, const Folder &folder, const std::string &more)
{
    const std::string file = folder.path("latents.safetensors");
    auto latents = [&](const std::string &json) {
        context.run(json);
        Fixture f = fixture_open(std::filesystem::relative(file, fixture_path("")).string());
        return std::vector<float>(f.at("latents").f32(), f.at("latents").f32() + 4 * 96);
    };
    const std::string out = ", \"guidance\": 5, \"latents_out\": \"" + file + "\"";
    const std::string source = "a green tree at night";
    std::string plain = run_of(out);
    plain.replace(plain.find("a red tree at night"), strlen("a red tree at night"), source);
    const std::vector<float> was = latents(plain),
                             is = latents(run_of(out + R"(, "processors": [{"use":
        "prompt_to_prompt", "source_prompt": ")" +
                                                 source + "\"" + more + "}]"));
    std::vector<bool> equal(96, true);
    for (size_t i = 0; i < 4 * 96; i++)
        if (was[i] != is[i]) equal[i % 96] = false;
    return equal;
}

} // namespace

TEST_CASE("prompt_to_prompt: a saved inversion makes the same edit, and fits no other timesteps",
          "[pipeline][controls][prompt_to_prompt]")
{
    Folder folder;
    Context context;
    const std::string picture = draw(context, folder), file = folder.path("tree.safetensors");
    const std::string saved = ", \"inversion_file\": \"" + file + "\"";
    auto made = context.run(run_of(edit_of(picture, "", ", \"save_inversion\": \"" + file + "\"")));
    auto again = context.run(run_of(edit_of(picture, saved)));
    for (const char *branch : {"main", "source"})
        CHECK(picture_of(made.get(), branch) == picture_of(again.get(), branch));
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(run_of(edit_of(picture, saved), 4), none), HD_ERR_ARGUMENT,
                "of this run has 4 timesteps");
    std::string other = run_of(edit_of(picture, saved));
    other.replace(other.find("\"ddim\""), 6, "\"dpm++2m-karras\"");
    CHECK_FAILS(context.try_run(other, none), HD_ERR_ARGUMENT, "tree.safetensors");
    CHECK_FAILS(context.try_run(run_of(edit_of(picture, ", \"inversion_steps\": 4")), none),
                HD_ERR_ARGUMENT, "do not meet timestep");
}

TEST_CASE("prompt_to_prompt: with the source's prompt as negative prompt its guidance falls away",
          "[pipeline][controls][prompt_to_prompt]")
{
    Folder folder;
    Context context;
    const std::string picture = draw(context, folder);
    auto with = [&](const char *inversion, const char *guidance) {
        return context.run(
            run_of(edit_of(picture, std::string(", \"inversion\": \"") + inversion + "\"",
                           std::string(", \"guidance\": ") + guidance)));
    };
    auto weak = with("npi", "2"), strong = with("npi", "9");
    CHECK(picture_of(weak.get(), "source") == picture_of(strong.get(), "source"));
    CHECK(picture_of(weak.get(), "main") != picture_of(strong.get(), "main"));
    auto drifts = with("ddim", "2"), further = with("ddim", "9");
    CHECK(picture_of(drifts.get(), "source") != picture_of(further.get(), "source"));
    // direct: whatever the guidance, the picture itself; its negative prompt has no row
    auto direct = with("direct", "2"), other = with("direct", "9");
    CHECK(picture_of(direct.get(), "source") == picture_of(other.get(), "source"));
    for (const auto &[inversion, rows] :
         {std::pair("direct", "\"rows\":3"), {"ddim", "\"rows\":4"}}) {
        char *chain = nullptr;
        const std::string json =
            run_of(edit_of(picture, std::string(", \"inversion\": \"") + inversion + "\""));
        REQUIRE_OK(hd_context_chain(context.context, json.c_str(), "test.json", nullptr, &chain));
        std::string text = chain;
        hd_text_free(chain);
        text.erase(std::remove_if(text.begin(), text.end(), ::isspace), text.end());
        CHECK(text.find(rows) != std::string::npos);
    }
}

TEST_CASE("prompt_to_prompt: a person's mask alone, and with the words' place",
          "[pipeline][controls][prompt_to_prompt]")
{
    Folder folder;
    Context context;
    const std::string mask = ", \"mask_image\": \"" + write_mask(folder, "half.png", 24) + "\"",
                      words = R"(, "local_blend": {"target": "tree", "factor": 1, "th": 0.7})";
    const std::vector<bool> by_mask = kept(context, folder, mask),
                            by_words = kept(context, folder, words),
                            only = kept(context, folder, mask + words),
                            both = kept(context, folder, mask + words + ", \"mask_op\": \"and\""),
                            either = kept(context, folder, mask + words + ", \"mask_op\": \"or\"");
    for (size_t i = 0; i < 96; i++)
        REQUIRE(by_mask[i] == (i % 12 < 6));
    CHECK(only == by_mask);
    const auto count = std::count(by_words.begin(), by_words.end(), true);
    CHECK((count > 0 && count < 96));
    // what one mask lets through changes what the words see later, so by inclusion only
    for (size_t i = 0; i < 96; i++) {
        if (by_mask[i]) CHECK(both[i]);
        if (!by_mask[i]) CHECK(!either[i]);
    }
    CHECK(std::count(both.begin(), both.end(), true) > 48);
    CHECK(std::count(either.begin(), either.end(), true) < 48);
    ResultPtr none(nullptr, hd_result_free);
    const std::string wide = R"(, "processors": [{"use": "prompt_to_prompt", "source_prompt": "a
        tree", "mask_image": ")" +
                             write_mask(folder, "wide.png", 24, 64) + "\"}]";
    std::string json = run_of(wide);
    json.erase(std::remove(json.begin(), json.end(), '\n'), json.end());
    CHECK_FAILS(context.try_run(json, none), HD_ERR_ARGUMENT, "processors[0].mask_image");
}

TEST_CASE("prompt_to_prompt: sites that leave it nothing are refused before step 0",
          "[pipeline][controls][prompt_to_prompt]")
{
    Context context;
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(run_of(R"(, "processors": [{"use": "prompt_to_prompt",
                    "source_prompt": "a tree", "sites": ["up.7.** cross"]}])"),
                                none),
                HD_ERR_ARGUMENT, "processors[0] (prompt_to_prompt) matches no attention site");
}
