// Controls against attention processors of diffusers that make the whole map and edit it as the
// papers say: the latents after the last step, on a tiny random UNet with the text encoder and
// weights of the autoencoder of fixtures/pipeline/tiny-sd. Made by
// tools/fixtures/controls.py. Measured relative errors: 6e-7 from noise, 2e-5 from a picture.
#include <cJSON.h>

#include "pipelines/runner.h"

namespace
{

// The model of the cases: the UNet of these fixtures among parts of tiny-sd.
std::string model_in(const Folder &folder)
{
    namespace fs = std::filesystem;
    const std::string tiny = fixture_path("pipeline/tiny-sd"), model = folder.path("model");
    fs::create_directory(model);
    fs::copy_file(tiny + "/model_index.json", model + "/model_index.json");
    for (const char *part : {"text_encoder", "tokenizer"})
        fs::create_directory_symlink(tiny + "/" + part, model + "/" + part);
    for (const char *part : {"scheduler", "unet"})
        fs::create_directory_symlink(fixture_path("controls/") + part, model + "/" + part);
    fs::create_directory(model + "/vae");
    fs::copy_file(fixture_path("controls/vae/config.json"), model + "/vae/config.json");
    fs::create_symlink(tiny + "/vae/diffusion_pytorch_model.safetensors",
                       model + "/vae/diffusion_pytorch_model.safetensors");
    return model;
}

// Pictures are named in the cases by their file's name.
void find_pictures(cJSON *node)
{
    for (cJSON *item = node->child; item; item = item->next) {
        if (item->string && std::string(item->string) == "init_image")
            cJSON_SetValuestring(
                item, fixture_path("controls/" + std::string(item->valuestring)).c_str());
        find_pictures(item);
    }
}

std::vector<float> main_latents(Context &context, const Folder &folder, cJSON *preset)
{
    const std::string path = folder.path("out.safetensors");
    cJSON_DeleteItemFromObject(preset, "latents_out");
    cJSON_AddStringToObject(preset, "latents_out", path.c_str());
    char *text = cJSON_PrintUnformatted(preset);
    const std::string json = text;
    cJSON_free(text);
    context.run(json);
    Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
    const FixtureTensor &t = f.at("latents");
    return {t.f32(), t.f32() + t.count()};
}

// Every case of the method: with the control as the fixture, without it as the fixture's plain run.
void check_cases(const std::string &method)
{
    Folder folder;
    Context context;
    const std::string model = model_in(folder);
    cJSON *cases = cJSON_Parse(fixture_text("controls/cases.json").c_str());
    REQUIRE(cases);
    int count = 0;
    for (cJSON *item = cases->child; item; item = item->next) {
        const std::string name = item->string;
        if (name.rfind(method, 0) != 0) continue;
        INFO(name);
        count++;
        Fixture truth = fixture_open("controls/" + name + ".safetensors");
        const FixtureTensor &wanted = truth.at("latents"), &plain = truth.at("plain");
        find_pictures(item);
        cJSON_AddStringToObject(item, "model", model.c_str());
        cJSON_AddStringToObject(item, "precision", "f32");
        const std::vector<float> on = main_latents(context, folder, item);
        REQUIRE((int64_t)on.size() == wanted.count());
        CHECK(relative_error(on.data(), wanted.f32(), wanted.count()) <= 1e-3);
        // what the control does is far more than what it may be wrong by
        CHECK(relative_error(wanted.f32(), plain.f32(), plain.count()) >= 0.05);
    }
    cJSON_Delete(cases);
    CHECK(count > 0);
}

} // namespace

TEST_CASE("control parity: prompt_to_prompt", "[pipeline][controls][parity]")
{
    check_cases("p2p");
}

TEST_CASE("control parity: perturbed_attention", "[pipeline][controls][parity]")
{
    check_cases("pag");
}

TEST_CASE("control parity: plug_and_play", "[pipeline][controls][parity]")
{
    check_cases("pnp");
}

TEST_CASE("control parity: style_injection", "[pipeline][controls][parity]")
{
    check_cases("styleid");
}
