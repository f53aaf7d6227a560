// Runs as a program sees them: batches, threads, metadata, callbacks, two contexts, and what is
// refused.
#include <atomic>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "pipelines/context.h"
#include "pipelines/runner.h"

namespace
{

const char *const quick = ", \"prompt\": \"a yellow moon at night\", \"steps\": 4, \"width\": 48, "
                          "\"height\": 32, \"seed\": 5";

std::string preset(const std::string &more)
{
    return "{" + starter() + quick + more + "}";
}

} // namespace

TEST_CASE("run: picture i of a batch is the picture of seed + i, byte for byte",
          "[pipeline][threads]")
{
    for (const char *type : {"f32", "bf16"}) {
        std::string precision =
            std::string(", \"precision\": \"") + type + "\", \"sampler\": \"euler-a\"";
        Context two(2);
        auto batch = two.run(preset(precision + ", \"batch\": 3"));
        REQUIRE(hd_result_count(batch.get()) == 3);
        for (int i = 0; i < 3; i++) {
            Context other(i + 1);
            std::string json = preset(precision);
            json.replace(json.find("\"seed\": 5"), 9, "\"seed\": " + std::to_string(5 + i));
            auto alone = other.run(json);
            CHECK(pixels(alone.get(), 0) == pixels(batch.get(), i));
            CHECK(hd_result_picture(batch.get(), i)->seed == (uint64_t)(5 + i));
        }
        CHECK(pixels(batch.get(), 0) != pixels(batch.get(), 1));
    }
}

TEST_CASE("run: a picture repeats itself byte for byte and says nothing of where it was written",
          "[pipeline]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("first.png");
    auto first = context.run(preset(", \"negative\": \"\\u00e9toile \\\"rouge\\\"\", \"guidance\": "
                                    "3.3, \"precision\": \"f32\", \"processors\": "
                                    "[{\"use\": \"temperature\", \"tau\": 0.9}], \"output\": \"" +
                                    path + "\""));
    char *json = nullptr;
    REQUIRE_OK(hd_preset_read(path.c_str(), &json));
    std::string text = json;
    hd_text_free(json);
    CHECK(text.find("first.png") == std::string::npos);
    auto second = context.run(text);
    REQUIRE_OK(hd_result_write_png(second.get(), 0, folder.path("second.png").c_str()));
    CHECK(folder.read("first.png") == folder.read("second.png"));
    CHECK(hd_result_report(second.get())->model_kept);
    std::string line = hd_result_picture(first.get(), 0)->parameters;
    CHECK(line.find("a yellow moon at night\nNegative prompt: ") == 0);
    CHECK(
        line.find("Steps: 4, Sampler: ddim, CFG scale: 3.3, Seed: 5, Size: 48x32, Model hash: ") !=
        std::string::npos);
}

TEST_CASE("run: temperature from JSON changes the picture, a neutral one does not", "[pipeline]")
{
    Context context;
    auto plain = context.run(preset(""));
    auto neutral =
        context.run(preset(", \"processors\": [{\"use\": \"temperature\", \"tau\": 1}]"));
    auto sharp = context.run(preset(", \"processors\": [{\"use\": \"temperature\", \"tau\": 0.2, "
                                    "\"sites\": [\"cross\"], \"branches\": [\"cond\"]}]"));
    CHECK(pixels(plain.get(), 0) == pixels(neutral.get(), 0));
    CHECK(pixels(plain.get(), 0) != pixels(sharp.get(), 0));
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(
        context.try_run(
            preset(", \"processors\": [{\"use\": \"temperature\", \"sites\": [\"block.**\"]}]"),
            none),
        HD_ERR_ARGUMENT,
        "test.json: processors[0] (temperature) matches no attention site of this model");
}

static hd_status ones_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    static std::atomic<int> calls{0};
    calls++;
    memset(output->out.data, 0, (size_t)hd_tensor_bytes(output->out) * (ctx->active[0] ? 1 : 0));
    return HD_OK;
}

TEST_CASE("run: a program adds a processor of its own", "[pipeline]")
{
    static const hd_param no_params[] = {HD_PARAM_END};
    static const hd_processor_class silence = [] {
        hd_processor_class c = {};
        c.name = "silence";
        c.params = no_params;
        c.output = ones_output;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &silence));
    CHECK_FAILS(hd_context_add_processor(context.context, &silence), HD_ERR_ARGUMENT,
                "exists already");
    auto plain = context.run(preset("")),
         silent = context.run(preset(", \"processors\": [{\"use\": \"silence\"}]"));
    CHECK(pixels(plain.get(), 0) != pixels(silent.get(), 0));
}

namespace
{
hd_status count_prepare(hd_prepare_ctx *ctx)
{
    ctx->state_bytes = sizeof(float);
    return HD_OK;
}

// The n-th call of a row adds n to what attention gave it: the picture shows whose state it was and
// how old.
hd_status count_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    int64_t values = hd_tensor_count(output->out) / output->out.dim[0];
    for (int64_t b = 0; b < output->out.dim[0]; b++) {
        float n = *static_cast<float *>(ctx->state[b]) += 1.0f;
        for (int64_t i = b * values; i < (b + 1) * values; i++)
            static_cast<float *>(output->out.data)[i] += 0.1f * n;
    }
    return HD_OK;
}
} // namespace

TEST_CASE("run: state belongs to a picture, in one group and over several", "[pipeline]")
{
    static const hd_param no_params[] = {HD_PARAM_END};
    static const hd_processor_class counter = [] {
        hd_processor_class c = {};
        c.name = "counter";
        c.params = no_params;
        c.prepare = count_prepare;
        c.output = count_output;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &counter));
    // 48 x 32 pictures are sampled together, 256 x 256 ones each in its turn
    for (const char *size : {"\"width\": 48, \"height\": 32", "\"width\": 256, \"height\": 256"}) {
        std::string rest =
            std::string(", \"precision\": \"f32\", \"steps\": 2, \"sampler\": \"euler\", ") + size +
            ", \"processors\": [{\"use\": \"counter\", \"sites\": [\"mid.** self\"]}]";
        auto both = context.run("{" + starter() + rest + ", \"batch\": 2, \"seed\": 8}");
        auto second = context.run("{" + starter() + rest + ", \"seed\": 9}");
        CHECK(pixels(both.get(), 1) == pixels(second.get(), 0));
    }
}

TEST_CASE("run: two contexts at once give what each gives alone", "[pipeline][threads]")
{
    std::vector<uint8_t> alone[2], together[2];
    std::string json[2] = {preset(""), preset(", \"sampler\": \"euler\", \"precision\": \"f32\"")};
    for (int i = 0; i < 2; i++)
        alone[i] = pixels(Context(1).run(json[i]).get(), 0);
    std::thread threads[2];
    for (int i = 0; i < 2; i++)
        threads[i] = std::thread([&, i] {
            hd_context *c = nullptr;
            hd_context_options options = {2};
            hd_result *r = nullptr;
            if (hd_context_create(&c, &options) == HD_OK &&
                hd_context_run(c, json[i].c_str(), "t", nullptr, &r) == HD_OK)
                together[i] = pixels(r, 0);
            hd_result_free(r);
            hd_context_free(c);
        });
    for (auto &t : threads)
        t.join();
    CHECK(alone[0] == together[0]);
    CHECK(alone[1] == together[1]);
}

namespace
{
struct Watcher {
    int steps = 0, previews = 0, stop_at = -1;
    std::vector<std::string> warnings;
};

hd_callbacks watch(Watcher *w)
{
    hd_callbacks c = {};
    c.user = w;
    c.progress = [](void *user, const hd_progress *p) {
        if (strcmp(p->stage, "sample") == 0) ((Watcher *)user)->steps = p->step;
    };
    c.cancel = [](void *user) {
        return ((Watcher *)user)->stop_at >= 0 &&
               ((Watcher *)user)->steps >= ((Watcher *)user)->stop_at;
    };
    c.preview = [](void *user, const hd_preview *) { ((Watcher *)user)->previews++; };
    c.log = [](void *user, hd_log_level level, const char *text) {
        if (level == HD_LOG_WARNING) ((Watcher *)user)->warnings.push_back(text);
    };
    return c;
}
} // namespace

TEST_CASE("run: progress, previews and warnings are told", "[pipeline]")
{
    Watcher w;
    hd_callbacks callbacks = watch(&w);
    Context context;
    std::string words;
    for (int i = 0; i < 40; i++)
        words += "fish ";
    auto with = context.run("{" + starter() + ", \"prompt\": \"" + words +
                                "lighthouse\", \"steps\": 6, \"seed\": 1, \"preview_every\": 2}",
                            &callbacks);
    CHECK(w.steps == 6);
    CHECK(w.previews == 2);
    REQUIRE(w.warnings.size() == 1);
    CHECK(w.warnings[0].find("longer than 30 tokens") != std::string::npos);
    CHECK(w.warnings[0].find("lighthouse") != std::string::npos);
    auto without = context.run("{" + starter() + ", \"prompt\": \"" + words +
                               "lighthouse\", \"steps\": 6, \"seed\": 1}");
    CHECK(pixels(with.get(), 0) == pixels(without.get(), 0)); // looking changes nothing
}

TEST_CASE("run: cancelling stops within a step, keeps what is finished and leaves no half file",
          "[pipeline]")
{
    Folder folder;
    Watcher w;
    w.stop_at = 3;
    hd_callbacks callbacks = watch(&w);
    Context context;
    ResultPtr result(nullptr, hd_result_free);
    CHECK(context.try_run(preset(", \"output\": \"" + folder.path("x.png") + "\""), result,
                          &callbacks) == HD_ERR_CANCELLED);
    CHECK(w.steps == 3);
    REQUIRE(result);
    CHECK(hd_result_count(result.get()) == 0);
    CHECK(folder.names().empty());
    // the context works on
    auto after = context.run(preset(""));
    CHECK(hd_result_count(after.get()) == 1);
}

TEST_CASE("run: a seed that is not given is random, told and repeatable", "[pipeline]")
{
    Context context;
    std::string base = "{" + starter() + ", \"steps\": 2, \"width\": 32, \"height\": 32";
    auto a = context.run(base + "}"), b = context.run(base + "}");
    uint64_t seed = hd_result_picture(a.get(), 0)->seed;
    CHECK(seed != hd_result_picture(b.get(), 0)->seed);
    auto again = context.run(base + ", \"seed\": " + std::to_string(seed) + "}");
    CHECK(pixels(a.get(), 0) == pixels(again.get(), 0));
    auto largest = context.run(base + ", \"seed\": 18446744073709551615}");
    CHECK(hd_result_picture(largest.get(), 0)->seed == UINT64_MAX);
    CHECK(std::string(hd_result_picture(largest.get(), 0)->metadata).find("18446744073709551615") !=
          std::string::npos);
}

TEST_CASE("run: bad values are refused before anything is drawn, by their place", "[pipeline]")
{
    Folder folder;
    folder.write("broken.png", "no picture");
    std::filesystem::create_directory(folder.path("empty"));
    struct {
        std::string json;
        hd_status status;
        std::string message;
    } cases[] = {
        {"{\"model\": 3}", HD_ERR_ARGUMENT, "test.json: model"},
        {"{}", HD_ERR_ARGUMENT, "model"},
        {"{\"model\": \"x\",\n \"steps\": }", HD_ERR_FORMAT, "test.json: line 2"},
        {preset(", \"widht\": 64"), HD_ERR_ARGUMENT, "did you mean \"width\"?"},
        {preset(", \"batch\": 0"), HD_ERR_ARGUMENT, "test.json: batch is 0"},
        {preset(", \"strength\": 2"), HD_ERR_ARGUMENT, "test.json: strength is 2"},
        {preset(", \"sampler\": \"eulr\""), HD_ERR_ARGUMENT, "euler"},
        {"{" + starter() + ", \"width\": 66}", HD_ERR_ARGUMENT,
         "test.json: width is 66, must be a multiple of 4"},
        {"{" + starter() + ", \"seed\": 18446744073709551615, \"batch\": 2}", HD_ERR_ARGUMENT,
         "would pass 2^64 - 1"},
        {"{" + starter() + ", \"seed\": 18446744073709551616}", HD_ERR_ARGUMENT, "test.json: seed"},
        {"{\"model\": \"" + folder.path() + "/nowhere\"}", HD_ERR_IO,
         "nowhere: there is no such model folder"},
        {"{\"model\": \"" + folder.path() + "/empty\"}", HD_ERR_FORMAT,
         "empty is no model: it has no model_index.json"},
        {"{\"model\": \"" + folder.path() + "/broken.png\"}", HD_ERR_FORMAT,
         "is a file; -m takes a folder"},
        {preset(", \"init_image\": \"" + folder.path("broken.png") + "\""), HD_ERR_FORMAT,
         "broken.png"},
        {preset(", \"init_image\": \"" + folder.path("none.png") + "\""), HD_ERR_IO, "none.png"},
        {preset(", \"latents_in\": \"" + folder.path("broken.png") + "\""), HD_ERR_FORMAT,
         "broken.png"},
        {preset(", \"latents_in\": \"a\", \"init_image\": \"b\""), HD_ERR_ARGUMENT,
         "both init_image and latents_in"},
        {preset(", \"output\": \"" + folder.path("no/such/x.png") + "\""), HD_ERR_IO, "no/such"},
        {preset(", \"prompt\": \"\\ud800\""), HD_ERR_FORMAT, "test.json"},
        {preset(", \"clip_skip\": 9"), HD_ERR_ARGUMENT,
         "test.json: clip_skip is 9, must be 0 to 3"},
    };
    Context context;
    for (const auto &c : cases) {
        INFO(c.json);
        ResultPtr result(nullptr, hd_result_free);
        hd_status status = context.try_run(c.json, result);
        INFO(hd_message());
        CHECK(hd_status_name(status) == std::string(hd_status_name(c.status)));
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
        CHECK(!result);
    }
}

TEST_CASE("run: a full disk is an error that names the file, and nothing is left", "[pipeline]")
{
    if (!std::filesystem::exists("/dev/full")) return;
    Context context;
    ResultPtr result(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(preset(", \"output\": \"/dev/full\""), result), HD_ERR_IO,
                "/dev/full");
}

TEST_CASE("inspect: says what a model is and what its tensors are", "[pipeline]")
{
    char *json = nullptr;
    REQUIRE_OK(hd_model_inspect(source_path("models/starter-image").c_str(), &json));
    std::string text = json;
    hd_text_free(json);
    CHECK(text.find("\"class\": \"UNet2DConditionModel\"") != std::string::npos);
    CHECK(text.find("\"name\": \"conv_in.weight\"") != std::string::npos);
    CHECK(text.find("\"supported\": true") != std::string::npos);
    CHECK(text.find("\"supported\": false") == std::string::npos);
    CHECK_FAILS(hd_model_inspect("/nowhere", &json), HD_ERR_IO, "/nowhere");
}
