// The presets: each is a run that the schema allows, says what it is for, and draws pictures of the
// starter model in a few steps; every control and accelerator has one. A new preset is covered by
// being there.
#include <algorithm>
#include <cJSON.h>
#include <cstring>
#include <filesystem>
#include <regex>
#include <set>

#include "controls/all.h"
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
    for (auto &entry : std::filesystem::recursive_directory_iterator(source_path("presets")))
        if (entry.path().extension() == ".json" && entry.path().filename() != "schema.json")
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

// As much of JSON Schema as presets/schema.json uses; another keyword fails the test.
class Schema
{
  public:
    Schema() : root(preset_of(source_path("presets/schema.json")))
    {
    }
    // What is wrong with the value; "" for nothing.
    std::string fault(const cJSON *value) const
    {
        return fault(value, root.get(), "");
    }

  private:
    JsonPtr root;

    static std::string quoted(const cJSON *value)
    {
        return text_of(value).substr(0, 60);
    }

    static bool has_type(const cJSON *value, const std::string &type)
    {
        if (type == "object") return cJSON_IsObject(value);
        if (type == "array") return cJSON_IsArray(value);
        if (type == "string") return cJSON_IsString(value);
        if (type == "boolean") return cJSON_IsBool(value);
        if (type == "number") return cJSON_IsNumber(value);
        return type == "integer" && cJSON_IsNumber(value) &&
               std::floor(value->valuedouble) == value->valuedouble;
    }

    std::string of_members(const cJSON *value, const cJSON *schema, const std::string &at) const
    {
        const cJSON *properties = cJSON_GetObjectItem(schema, "properties"),
                    *others = cJSON_GetObjectItem(schema, "additionalProperties"),
                    *names = cJSON_GetObjectItem(schema, "propertyNames");
        for (const cJSON *item = value->child; item; item = item->next) {
            const std::string place = at + "." + item->string;
            const cJSON *known = cJSON_GetObjectItemCaseSensitive(properties, item->string);
            std::string found;
            if (names) {
                JsonPtr name(cJSON_CreateString(item->string), cJSON_Delete);
                found = fault(name.get(), names, place);
            }
            if (found.empty() && known)
                found = fault(item, known, place);
            else if (found.empty() && cJSON_IsFalse(others))
                found = place + " is unknown";
            else if (found.empty() && cJSON_IsObject(others))
                found = fault(item, others, place);
            if (!found.empty()) return found;
        }
        return "";
    }

    std::string of_items(const cJSON *value, const cJSON *schema, const std::string &at) const
    {
        int number = 0;
        for (const cJSON *item = value->child; item; item = item->next, number++) {
            auto found = fault(item, schema, at + "[" + std::to_string(number) + "]");
            if (!found.empty()) return found;
        }
        return "";
    }

    std::string of_alternatives(const cJSON *value, const cJSON *list, const std::string &at) const
    {
        std::string all;
        for (const cJSON *one = list->child; one; one = one->next) {
            auto found = fault(value, one, at);
            if (found.empty()) return "";
            all += (all.empty() ? "" : ", and ") + found;
        }
        return all;
    }

    std::string of_keyword(const cJSON *value, const cJSON *keyword, const std::string &at) const
    {
        static const std::set<std::string> notes = {
            "title",      "description",          "$schema",      "$id", "default", "$defs",
            "properties", "additionalProperties", "propertyNames"};
        const std::string name = keyword->string;
        const double number = keyword->valuedouble;
        const bool is_number = cJSON_IsNumber(value);
        if (notes.count(name)) return "";
        if (name == "type")
            return has_type(value, keyword->valuestring)
                       ? ""
                       : at + " is " + quoted(value) + ", no " + keyword->valuestring;
        if (name == "enum") {
            for (const cJSON *one = keyword->child; one; one = one->next)
                if (cJSON_Compare(one, value, true)) return "";
            return at + " is " + quoted(value) + ", none of " + text_of(keyword);
        }
        if (name == "minimum")
            return is_number && value->valuedouble < number ? at + " is too small" : "";
        if (name == "maximum")
            return is_number && value->valuedouble > number ? at + " is too large" : "";
        if (name == "minItems" || name == "maxItems") {
            const int count = cJSON_GetArraySize(value);
            const bool wrong = name[1] == 'i' ? count < number : count > number;
            return cJSON_IsArray(value) && wrong ? at + " has " + std::to_string(count) : "";
        }
        if (name == "pattern")
            return cJSON_IsString(value) &&
                           !std::regex_search(value->valuestring, std::regex(keyword->valuestring))
                       ? at + " is " + quoted(value) + ", not like " + keyword->valuestring
                       : "";
        if (name == "minLength")
            return cJSON_IsString(value) && (double)strlen(value->valuestring) < number
                       ? at + " is too short"
                       : "";
        if (name == "required") {
            for (const cJSON *one = keyword->child; one; one = one->next)
                if (cJSON_IsObject(value) && !cJSON_GetObjectItem(value, one->valuestring))
                    return at + " lacks " + one->valuestring;
            return "";
        }
        if (name == "items") return cJSON_IsArray(value) ? of_items(value, keyword, at) : "";
        if (name == "anyOf") return of_alternatives(value, keyword, at);
        if (name == "$ref") {
            const std::string start = "#/$defs/", target = keyword->valuestring;
            const cJSON *there = cJSON_GetObjectItem(cJSON_GetObjectItem(root.get(), "$defs"),
                                                     target.substr(start.size()).c_str());
            return there ? fault(value, there, at) : at + ": no " + target;
        }
        return "the schema's " + name + " is not understood by this test";
    }

    std::string fault(const cJSON *value, const cJSON *schema, const std::string &at) const
    {
        for (const cJSON *keyword = schema->child; keyword; keyword = keyword->next) {
            auto found = of_keyword(value, keyword, at);
            if (!found.empty()) return found;
        }
        return cJSON_IsObject(value) ? of_members(value, schema, at) : "";
    }
};

// Pictures are named from the root of the sources, where people stand who have just cloned them.
class InSources
{
  public:
    InSources() : before(std::filesystem::current_path())
    {
        std::filesystem::current_path(source_path(""));
    }
    ~InSources()
    {
        std::filesystem::current_path(before);
    }

  private:
    std::filesystem::path before;
};

// A plan that the preset is to be run with is made first, as its description says.
void make_plan(Context &c, cJSON *root, const std::string &plan)
{
    cJSON *processor;
    cJSON_ArrayForEach(processor, cJSON_GetObjectItem(root, "processors"))
    {
        if (!cJSON_GetObjectItem(processor, "plan")) continue;
        cJSON_ReplaceItemInObject(processor, "plan", cJSON_CreateString(plan.c_str()));
        hd_calibrate_options options{};
        options.plan = plan.c_str();
        hd_calibrated made{};
        REQUIRE_OK(
            hd_calibrate(c.context, text_of(root).c_str(), "preset", &options, nullptr, &made));
        hd_calibrated_free(&made);
    }
}

void draw_part(size_t part, size_t parts)
{
    Context c;
    Folder f;
    InSources here;
    const auto files = preset_files();
    for (size_t i = part; i < files.size(); i += parts) {
        INFO(files[i]);
        JsonPtr root = preset_of(files[i]);
        cJSON_ReplaceItemInObject(root.get(), "steps", cJSON_CreateNumber(2));
        cJSON_AddStringToObject(root.get(), "model", source_path("models/starter-image").c_str());
        make_plan(c, root.get(), f.path("starter.hdplan"));
        ResultPtr result(nullptr, hd_result_free);
        hd_status status = c.try_run(text_of(root.get()), result);
        INFO(hd_message());
        if (files[i].find("int8") != std::string::npos && status == HD_ERR_UNSUPPORTED)
            continue; // this machine has no 8-bit products, and the run says so
        REQUIRE(status == HD_OK);
        CHECK(hd_result_count(result.get()) >= 1);
    }
}

} // namespace

TEST_CASE("presets: the schema allows each, and says what is wrong with another", "[pipelines]")
{
    Schema schema;
    CHECK(preset_files().size() > 10);
    for (const std::string &path : preset_files()) {
        INFO(path);
        JsonPtr root = preset_of(path);
        CHECK(schema.fault(root.get()) == "");
        const cJSON *said = cJSON_GetObjectItem(root.get(), "description");
        CHECK((cJSON_IsString(said) && strlen(said->valuestring) > 20));
        // its steps and seed are its own: the same picture whenever it is run
        CHECK(cJSON_GetObjectItem(root.get(), "seed"));
        CHECK(cJSON_GetObjectItem(root.get(), "steps"));
    }
    const char *const bad[] = {R"({"promt": "x"})",
                               R"({"prompt": "x", "steps": 0})",
                               R"({"prompt": "x", "steps": 2.5})",
                               R"({"prompt": "x", "precision": "f64"})",
                               R"({"prompt": "x", "processors": [{"sites": []}]})",
                               R"({"prompt": "x", "processors": [{"use": "gna", "steps": [0]}]})",
                               R"({"prompt": "x", "processors": {"use": "gna"}})",
                               R"({"prompt": "x", "branches": {"source": {"promt": "x"}}})"};
    for (const char *text : bad) {
        INFO(text);
        JsonPtr root(cJSON_Parse(text), cJSON_Delete);
        CHECK(schema.fault(root.get()) != "");
    }
}

TEST_CASE("presets: every control and every accelerator has one", "[pipelines]")
{
    std::set<std::string> used;
    for (const std::string &path : preset_files()) {
        JsonPtr root = preset_of(path);
        cJSON *processor;
        cJSON_ArrayForEach(processor, cJSON_GetObjectItem(root.get(), "processors"))
            used.insert(cJSON_GetObjectItem(processor, "use")->valuestring);
    }
    for (const hd_processor_list *list : {&hd_all_controls, &hd_all_accelerators})
        for (size_t i = 0; i < list->count; i++) {
            const std::string name = list->item[i]->name;
            INFO(name);
            if (name != "kv_cache") // serves videos made block by block, not a run of its own
                CHECK(used.count(name) == 1);
        }
}

TEST_CASE("presets: each draws its pictures in two steps (1 of 3)", "[pipelines]")
{
    draw_part(0, 3);
}

TEST_CASE("presets: each draws its pictures in two steps (2 of 3)", "[pipelines]")
{
    draw_part(1, 3);
}

TEST_CASE("presets: each draws its pictures in two steps (3 of 3)", "[pipelines]")
{
    draw_part(2, 3);
}
