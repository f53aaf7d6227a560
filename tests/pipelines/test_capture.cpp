// --capture: what is in the file is what entered the kernel, and the picture does not change.
#include <cJSON.h>
#include <cstring>
#include <map>

#include "engine/weights/safetensors.h"
#include "pipelines/capture.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/alloc_fail.h"
#include "support/attention.h"

namespace
{

/* The tensors and texts of a file. */
struct File {
    hd_safetensors *file = nullptr;
    explicit File(const std::string &path)
    {
        REQUIRE_OK(hd_safetensors_open(&file, path.c_str()));
    }
    ~File()
    {
        hd_safetensors_free(file);
    }
    std::vector<char> bytes(const std::string &name) const
    {
        for (int64_t i = 0; i < hd_safetensors_count(file); i++) {
            const hd_safetensors_entry *e = hd_safetensors_at(file, i);
            if (e->name != name) continue;
            std::vector<char> data((size_t)e->bytes);
            REQUIRE_OK(hd_safetensors_read(file, e, 0, data.data(), e->bytes));
            return data;
        }
        FAIL("no tensor " << name);
        return {};
    }
    std::string text(const char *key) const
    {
        char *text = nullptr;
        REQUIRE_OK(hd_safetensors_metadata(file, key, &text));
        std::string s = text ? text : "";
        free(text);
        return s;
    }
};

std::vector<char> contiguous(hd_tensor t)
{
    const size_t size = hd_dtype_size(t.dtype);
    std::vector<char> bytes;
    for (int64_t b = 0; b < t.dim[0]; b++)
        for (int64_t i = 0; i < t.dim[1]; i++)
            for (int64_t h = 0; h < t.dim[2]; h++) {
                const char *from =
                    static_cast<const char *>(t.data) +
                    (b * t.stride[0] + i * t.stride[1] + h * t.stride[2]) * (int64_t)size;
                bytes.insert(bytes.end(), from, from + t.dim[3] * (int64_t)size);
            }
    return bytes;
}

// What passed, by site, step and part.
using Passed = std::map<std::string, std::vector<char>>;

hd_status look(void *user, const hd_attention_seen *seen)
{
    if (seen->ex->recording) return HD_OK;
    char site[96];
    std::string key = std::string(hd_site_text(site, sizeof site, &seen->call->site)) + "/" +
                      std::to_string(seen->call->forward->step.index) + "/";
    auto &passed = *static_cast<Passed *>(user);
    passed[key + "q"] = contiguous(seen->call->q);
    passed[key + "k"] = contiguous(seen->call->k);
    passed[key + "v"] = contiguous(seen->call->v);
    return HD_OK;
}

const char *const quick =
    ", \"prompt\": \"a yellow moon\", \"steps\": 4, \"width\": 48, \"height\": 32, \"seed\": 5";

} // namespace

TEST_CASE("capture: keeps what entered the kernel and changes no pixel", "[pipeline][capture]")
{
    Folder folder;
    Context context;
    const std::string path = folder.path("a.safetensors");
    const std::string base = "{" + starter() + quick;
    auto plain = context.run(base + "}");
    Passed passed;
    hd_result *r = nullptr;
    REQUIRE_OK(hd_context_run_watched(context.context,
                                      (base + ", \"capture\": \"" + path +
                                       "\", \"capture_sites\": \"mid.** self;up.** cross\", " +
                                       "\"capture_steps\": \"1,3\"}")
                                          .c_str(),
                                      "test.json", nullptr, look, &passed, &r));
    ResultPtr with(r, hd_result_free);
    CHECK(pixels(plain.get(), 0) == pixels(with.get(), 0));
    CHECK(hd_result_report(with.get())->capture_path == path);
    CHECK(folder.names() == std::vector<std::string>{"a.safetensors"});
    File file(path);
    std::map<std::string, int> kinds;
    for (int i = 0; i < (int)hd_safetensors_count(file.file) / 3; i++) {
        std::string text = file.text(("call." + std::to_string(i)).c_str());
        INFO(text);
        cJSON *call = cJSON_Parse(text.c_str());
        REQUIRE(call != nullptr);
        auto string = [&](const char *key) {
            return std::string(cJSON_GetStringValue(cJSON_GetObjectItem(call, key)));
        };
        const std::string site = string("site"), prefix = string("prefix");
        const int step = cJSON_GetObjectItem(call, "step")->valueint;
        CHECK(prefix == (i ? std::to_string(i) + "." : ""));
        CHECK((step == 1 || step == 3));
        CHECK(cJSON_GetArraySize(cJSON_GetObjectItem(call, "rows")) == 2);
        CHECK(cJSON_GetObjectItem(call, "scale")->valuedouble > 0);
        for (const char *part : {"q", "k", "v"})
            CHECK(file.bytes(prefix + part) ==
                  passed.at(site + "/" + std::to_string(step) + "/" + part));
        kinds[site.substr(site.find(' ') + 1)]++;
        cJSON_Delete(call);
    }
    CHECK(kinds["self"] > 0);
    CHECK(kinds["cross"] > 0);
    CHECK(kinds.size() == 2);
    CHECK(file.text("grid").substr(0, 2) == "1,");
    CHECK(file.text("grid_start") == "0");
}

TEST_CASE("capture: the defaults; processors have acted before; a batch keeps its first pictures",
          "[pipeline][capture]")
{
    Folder folder;
    Context context;
    auto run = [&](const std::string &name, const std::string &more) {
        return context.run("{" + starter() + quick + ", \"precision\": \"f32\", \"capture\": \"" +
                           folder.path(name) + "\"" + more + "}");
    };
    run("one", "");
    File one(folder.path("one"));
    CHECK(one.text("call.0").find("\"step\": 2") != std::string::npos);
    CHECK(one.text("call.0").find(" self") != std::string::npos);
    run("merged", ", \"processors\": [{\"use\": \"agent\", \"sites\": [\"** self\"], \"sx\": 2, "
                  "\"sy\": 2, \"agents\": false}]");
    File merged(folder.path("merged"));
    CHECK(one.bytes("q") != merged.bytes("q"));
    CHECK(one.text("call.0").find("\"key_len\": [96, 96]") != std::string::npos);
    CHECK(merged.text("call.0").find("\"key_len\": [58, 58]") != std::string::npos);
    run("batch", ", \"batch\": 2");
    CHECK(File(folder.path("batch")).bytes("q").size() == 2 * one.bytes("q").size());
}

TEST_CASE("capture: what it cannot keep is refused before step 0", "[pipeline][capture]")
{
    Folder folder;
    Context context;
    struct {
        std::string more, message;
    } cases[] = {
        {", \"capture_sites\": \"upp.**\"", "test.json: capture_sites site \"upp.**\""},
        {", \"capture_sites\": \"block.** joint\"",
         "test.json: capture_sites selects no attention site of this model"},
        {", \"capture_steps\": \"4\"",
         "test.json: capture_steps is \"4\", must be up to 64 numbers from 0 to 3"},
        {", \"capture_steps\": \"1;2\"", "test.json: capture_steps is \"1;2\""},
    };
    for (const auto &one : cases) {
        INFO(one.more);
        ResultPtr result(nullptr, hd_result_free);
        CHECK_FAILS(context.try_run("{" + starter() + quick + ", \"capture\": \"" +
                                        folder.path("x") + "\"" + one.more + "}",
                                    result),
                    HD_ERR_ARGUMENT, one.message);
    }
    ResultPtr result(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run("{" + starter() + quick + ", \"capture\": \"" +
                                    folder.path("no/such/x") + "\"}",
                                result),
                HD_ERR_IO, "no/such");
    CHECK(folder.names().empty());
}

TEST_CASE("capture: lives through each allocation failing", "[pipeline][capture][nomem]")
{
    Folder folder;
    const std::string path = folder.path("x");
    hd_preset preset{};
    char sites[] = "** self", steps[] = "0";
    preset.capture = const_cast<char *>(path.c_str());
    preset.capture_sites = sites;
    preset.capture_steps = steps;
    TestList none({});
    TestRun run(none, "{}");
    TestCall c(2, 8, 8, 2, 4);
    Run real(HD_CPU);
    hd_arena *arena = nullptr;
    REQUIRE_OK(hd_arena_create_measuring(&arena));
    hd_exec dry = real.exec;
    dry.arena = arena;
    dry.recording = true;
    c.forward.run = run.run;
    REQUIRE_OK(hd_attention(&dry, &c.call));
    int64_t count = fail_each_allocation([&] {
        hd_capture *capture = nullptr;
        hd_status status = hd_capture_create(&capture, &preset, nullptr, 4, nullptr, nullptr);
        hd_attention_run_watch(run.run, hd_capture_watch, capture);
        if (status == HD_OK) status = hd_attention(&dry, &c.call);
        if (status == HD_OK) status = hd_attention(&real, &c.call);
        if (status == HD_OK) status = hd_capture_write(capture);
        hd_attention_run_watch(run.run, nullptr, nullptr);
        hd_capture_free(capture);
        return status;
    });
    CHECK(count > 8);
    hd_arena_free(arena);
}
