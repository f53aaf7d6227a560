// presets/accelerate: there is one for every accelerator, each of them is a run the schema knows,
// and draws a picture of the starter model in a few steps.
#include <cJSON.h>
#include <filesystem>
#include <set>

#include "engine/attention/planner/plan_file.h"
#include "pipelines/calibrate.h"
#include "pipelines/runner.h"
#include "sparse/all.h"

namespace
{

using JsonPtr = std::unique_ptr<cJSON, void (*)(cJSON *)>;

std::vector<std::string> preset_files()
{
    std::vector<std::string> files;
    for (auto &entry : std::filesystem::directory_iterator(source_path("presets/accelerate")))
        files.push_back(entry.path().string());
    std::sort(files.begin(), files.end());
    return files;
}

JsonPtr preset_of(const std::string &path)
{
    char *text = nullptr;
    REQUIRE_OK(hd_preset_read(path.c_str(), &text));
    JsonPtr root(cJSON_Parse(text), cJSON_Delete);
    hd_text_free(text);
    REQUIRE(root);
    return root;
}

std::string text_of(const cJSON *root)
{
    char *text = cJSON_PrintUnformatted(root);
    std::string out = text;
    cJSON_free(text);
    return out;
}

} // namespace

TEST_CASE("presets/accelerate: every accelerator has one, and the schema their fields",
          "[pipelines]")
{
    JsonPtr schema = preset_of(source_path("presets/schema.json"));
    cJSON *known = cJSON_GetObjectItem(schema.get(), "properties");
    std::set<std::string> used;
    for (const std::string &path : preset_files()) {
        INFO(path);
        JsonPtr root = preset_of(path);
        for (cJSON *field = root->child; field; field = field->next)
            CHECK(cJSON_GetObjectItem(known, field->string));
        CHECK(cJSON_GetObjectItem(root.get(), "description"));
        cJSON *processor;
        cJSON_ArrayForEach(processor, cJSON_GetObjectItem(root.get(), "processors"))
            used.insert(cJSON_GetObjectItem(processor, "use")->valuestring);
    }
    for (size_t i = 0; i < hd_all_accelerators.count; i++) {
        const std::string name = hd_all_accelerators.item[i]->name;
        INFO(name);
        if (name != "kv_cache") // serves videos that are made block by block, not a run of its own
            CHECK(used.count(name) == 1);
    }
}

TEST_CASE("presets/accelerate: each draws a picture in two steps", "[pipelines]")
{
    Context c;
    Folder f;
    for (const std::string &path : preset_files()) {
        INFO(path);
        JsonPtr root = preset_of(path);
        cJSON_ReplaceItemInObject(root.get(), "steps", cJSON_CreateNumber(2));
        cJSON_AddStringToObject(root.get(), "model", source_path("models/starter-image").c_str());
        cJSON *processor = cJSON_GetArrayItem(cJSON_GetObjectItem(root.get(), "processors"), 0);
        if (cJSON_GetObjectItem(processor, "plan")) {
            const std::string plan = f.path("starter.hdplan");
            cJSON_ReplaceItemInObject(processor, "plan", cJSON_CreateString(plan.c_str()));
            hd_calibrate_options options{};
            options.plan = plan.c_str();
            hd_calibrated made{};
            REQUIRE_OK(hd_calibrate(c.context, text_of(root.get()).c_str(), "preset", &options,
                                    nullptr, &made));
            hd_calibrated_free(&made);
        }
        ResultPtr result(nullptr, hd_result_free);
        hd_status status = c.try_run(text_of(root.get()), result);
        INFO(hd_message());
        if (path.find("int8") != std::string::npos && status == HD_ERR_UNSUPPORTED)
            continue; // this machine has no 8-bit products, and the run says so
        REQUIRE(status == HD_OK);
        CHECK(hd_result_count(result.get()) == 1);
    }
}
