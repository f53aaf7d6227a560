// Whole pipelines against diffusers: same weights, seed and options give the same latents and the
// same picture. Fixtures: tools/fixtures/pipeline.py. The starter's weights are part of the answer:
// when they are replaced, the script is run again.
#include <algorithm>
#include <cJSON.h>

#include "pipelines/runner.h"

namespace
{

std::string with_paths(cJSON *item, const Folder &folder, const std::string &name, Fixture &fixture)
{
    cJSON *c = cJSON_Duplicate(item, 1);
    cJSON *model = cJSON_GetObjectItem(c, "model");
    std::string path = model ? fixture_path("pipeline/" + std::string(model->valuestring))
                             : source_path("models/starter-image");
    cJSON_DeleteItemFromObject(c, "model");
    cJSON_AddStringToObject(c, "model", path.c_str());
    if (cJSON_GetObjectItem(c, "init_image")) {
        cJSON_DeleteItemFromObject(c, "init_image");
        cJSON_AddStringToObject(c, "init_image", fixture_path("pipeline/init.png").c_str());
    }
    if (cJSON_GetObjectItem(c, "latents_in")) {
        // a file of its own, as a person would hand it over
        const FixtureTensor &noise = fixture.at("noise");
        std::string header =
            "{\"latents\":{\"dtype\":\"F32\",\"shape\":[1,4,16,16],\"data_offsets\":[0,4096]}}";
        uint64_t length = header.size();
        FILE *f = fopen(folder.path("noise.safetensors").c_str(), "wb");
        fwrite(&length, 8, 1, f);
        fwrite(header.data(), header.size(), 1, f);
        fwrite(noise.bytes.data(), noise.bytes.size(), 1, f);
        fclose(f);
        cJSON_DeleteItemFromObject(c, "latents_in");
        cJSON_AddStringToObject(c, "latents_in", folder.path("noise.safetensors").c_str());
    }
    cJSON_AddStringToObject(c, "precision", "f32");
    cJSON_AddStringToObject(c, "latents_out", (folder.path(name + ".safetensors")).c_str());
    char *text = cJSON_PrintUnformatted(c);
    std::string json = text;
    cJSON_free(text);
    cJSON_Delete(c);
    return json;
}

Fixture open_absolute(const std::string &path)
{
    return fixture_open(std::filesystem::relative(path, fixture_path("")).string());
}

} // namespace

TEST_CASE("pipeline: latents and pictures are those of diffusers", "[pipeline]")
{
    Folder folder;
    Context context;
    std::string text = fixture_text("pipeline/cases.json");
    cJSON *cases = cJSON_Parse(text.c_str());
    REQUIRE(cases);
    for (cJSON *item = cases->child; item; item = item->next) {
        std::string name = item->string;
        INFO(name);
        Fixture truth = fixture_open("pipeline/" + name + ".safetensors");
        ResultPtr result = context.run(with_paths(item, folder, name, truth));
        Fixture ours = open_absolute(folder.path(name + ".safetensors"));
        REQUIRE(ours.at("latents").shape == truth.at("latents").shape);
        CHECK(relative_error(ours.at("latents").f32(), truth.at("latents").f32(),
                             truth.at("latents").count()) <= 1e-3);
        const FixtureTensor &image = truth.at("image");
        REQUIRE(hd_result_count(result.get()) == image.shape[0]);
        size_t bytes = (size_t)(image.shape[1] * image.shape[2] * 3);
        for (int i = 0; i < (int)image.shape[0]; i++) {
            const hd_picture *p = hd_result_picture(result.get(), i);
            REQUIRE((p->height == image.shape[1] && p->width == image.shape[2]));
            CHECK(psnr(p->rgb, (const uint8_t *)image.bytes.data() + (size_t)i * bytes, bytes) >=
                  50.0);
        }
    }
    cJSON_Delete(cases);
}

TEST_CASE("pipeline: bf16 draws the same pictures as f32", "[pipeline]")
{
    Context f32, bf16;
    std::vector<double> all;
    for (int seed = 0; seed < 16; seed++) {
        std::string rest = ", \"prompt\": \"a big red fish on a blue background\", \"sampler\": "
                           "\"ddim\", \"steps\": 25, "
                           "\"guidance\": 5, \"seed\": " +
                           std::to_string(seed) + "}";
        auto a = f32.run("{" + starter() + ", \"precision\": \"f32\"" + rest);
        auto b = bf16.run("{" + starter() + ", \"precision\": \"bf16\"" + rest);
        auto pa = pixels(a.get(), 0), pb = pixels(b.get(), 0);
        all.push_back(psnr(pa.data(), pb.data(), pa.size()));
    }
    std::sort(all.begin(), all.end());
    INFO("median " << (all[7] + all[8]) / 2 << " dB, worst " << all[0]);
    CHECK((all[7] + all[8]) / 2 >= 30.0);
}
