// CLIP text encoders against transformers (tools/fixtures/text_clip.py): small random ones of every
// form, the starter's, and the names of the published ones; rows that do not know each other.
#include "codecs/text_clip.h"

#include <cstring>
#include <memory>

#include "support/alloc_fail.h"
#include "support/fixture.h"
#include "support/network.h"

static hd_status read_text(const std::string &text, hd_text_clip_config *c)
{
    Json json("text_encoder/config.json", text);
    return hd_text_clip_config_read(c, json.root());
}

/* A text encoder from a folder, with its configuration. */
class Encoder
{
  public:
    Encoder(const std::string &folder, hd_dtype compute)
    {
        REQUIRE_OK(read_text(fixture_text(folder + "/config.json"), &config));
        hd_weights *weights = nullptr;
        hd_exec ex{};
        ex.has = hd_cpu_features();
        REQUIRE_OK(hd_weights_open(&weights, fixture_path(folder).c_str(), "model"));
        hd_status status =
            hd_text_clip_create(&text, &ex, &config, weights, compute, nullptr, nullptr);
        hd_weights_free(weights); // not needed any more
        REQUIRE_OK(status);
    }
    ~Encoder()
    {
        hd_text_clip_free(text);
    }
    Encoder(const Encoder &) = delete;
    Encoder &operator=(const Encoder &) = delete;

    int64_t pooled_width() const
    {
        return config.projection ? config.projection : config.channels;
    }
    /* hidden [rows, tokens, channels], then pooled [rows, width]. */
    std::vector<float> run(const std::vector<int64_t> &ids, int64_t rows, int threads,
                           int64_t skip = 0) const
    {
        int64_t tokens = (int64_t)ids.size() / rows;
        std::vector<float> hidden((size_t)(rows * tokens * config.channels));
        std::vector<float> pooled((size_t)(rows * pooled_width()));
        run_network(threads, [&](const hd_exec *ex) {
            hd_text_clip_inputs in = {ids.data(), rows, tokens, skip};
            hd_tensor h =
                hd_tensor_of(hidden.data(), HD_F32, hd_shape3(rows, tokens, config.channels));
            hd_tensor p = hd_tensor_of(pooled.data(), HD_F32, hd_shape2(rows, pooled_width()));
            return hd_text_clip_forward(ex, text, nullptr, h, p, &in);
        });
        hidden.insert(hidden.end(), pooled.begin(), pooled.end());
        return hidden;
    }

    hd_text_clip_config config{};
    hd_text_clip *text = nullptr;
};

// Every number of left-out layers, and the pooled vector, which does not depend on it.
static void check_answers(const Encoder &encoder, Fixture &truth, double tolerance)
{
    const FixtureTensor &ids_tensor = truth.at("ids");
    std::vector<int64_t> ids(ids_tensor.i64(), ids_tensor.i64() + ids_tensor.count());
    for (int64_t skip = 0; skip <= encoder.config.layers; skip++) {
        INFO("clip skip " << skip);
        std::vector<float> y = encoder.run(ids, ids_tensor.shape[0], 2, skip);
        const FixtureTensor &hidden = truth.at("hidden_" + std::to_string(skip));
        const FixtureTensor &pooled = truth.at("pooled");
        REQUIRE((int64_t)y.size() == hidden.count() + pooled.count());
        CHECK(relative_error(y.data(), hidden.f32(), hidden.count()) <= tolerance);
        CHECK(relative_error(y.data() + hidden.count(), pooled.f32(), pooled.count()) <= tolerance);
    }
}

TEST_CASE("text_clip: small encoders answer as transformers' do", "[codecs][text_clip]")
{
    std::string name = GENERATE("quick", "odd", "projected", "pooled");
    INFO(name);
    Fixture truth = fixture_open("text_clip/" + name + "/answers.safetensors");
    check_answers(Encoder("text_clip/" + name, HD_F32), truth, 2e-6);
    // Weights and activations have 8 bits: each of a few layers rounds by 2^-9.
    check_answers(Encoder("text_clip/" + name, HD_BF16), truth, 2e-2);
}

TEST_CASE("text_clip: the starter's encoder answers as in transformers", "[codecs][text_clip]")
{
    const std::string folder = "../../models/starter-image/text_encoder";
    uint64_t hash = 0xcbf29ce484222325u;
    for (unsigned char b : fixture_text(folder + "/model.safetensors"))
        hash = (hash ^ b) * 0x100000001b3u;
    Fixture truth = fixture_open("text_clip/starter.safetensors");
    if (truth.at("weights").i64()[0] != (int64_t)hash) {
        WARN("models/starter-image is another model: run tools/fixtures/text_clip.py");
        return;
    }
    check_answers(Encoder(folder, HD_F32), truth, 2e-6);
    check_answers(Encoder(folder, HD_BF16), truth, 2e-2);
}

TEST_CASE("text_clip: a row's bytes are its own", "[codecs][text_clip][threads]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    std::string name = GENERATE("quick", "odd");
    Encoder encoder("text_clip/" + name, dtype);
    const int64_t tokens = 19, channels = encoder.config.channels;
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < 5 * tokens; i++)
        ids.push_back((i * 37 + i / tokens * 11) % 61);
    auto row_of = [&](int64_t row) {
        return std::vector<int64_t>(ids.begin() + row * tokens, ids.begin() + (row + 1) * tokens);
    };
    std::vector<std::vector<float>> alone;
    for (int64_t row = 0; row < 5; row++)
        alone.push_back(encoder.run(row_of(row), 1, 1));
    for (int threads : {1, 2, 4})
        for (int64_t rows : {1, 2, 3, 5}) {
            INFO(name << " " << hd_dtype_name(dtype) << " " << threads << " threads, " << rows
                      << " rows");
            std::vector<int64_t> batch; // in the other order
            for (int64_t r = 0; r < rows; r++) {
                std::vector<int64_t> one = row_of(4 - r);
                batch.insert(batch.end(), one.begin(), one.end());
            }
            std::vector<float> y = encoder.run(batch, rows, threads);
            const float *pooled = y.data() + rows * tokens * channels;
            for (int64_t r = 0; r < rows; r++) {
                const std::vector<float> &one = alone[(size_t)(4 - r)];
                size_t hidden = (size_t)(tokens * channels);
                CHECK(memcmp(y.data() + (size_t)r * hidden, one.data(), hidden * 4) == 0);
                CHECK(memcmp(pooled + r * channels, one.data() + hidden, (size_t)channels * 4) ==
                      0);
            }
        }
}

TEST_CASE("text_clip: every tensor of the published encoders has its place", "[codecs][text_clip]")
{
    for (std::string name : {"sd15_text", "sd21_text"}) {
        INFO(name);
        hd_text_clip_config c{};
        REQUIRE_OK(read_text(fixture_text("names/" + name + ".json"), &c));
        CHECK(c.projection == 0);
        CHECK(c.eos == 2);
        CHECK(c.act == (name == "sd15_text" ? HD_ACT_QUICK_GELU : HD_ACT_GELU));
        std::string text = fixture_text("names/" + name + ".txt");
        std::vector<hd_weight_info> infos = NameList(text).infos();
        NameList list(text);
        infos = list.infos();
        REQUIRE_OK(hd_text_clip_check(&c, "text_encoder", (int64_t)infos.size(), infos.data()));
        // Newer files: without the prefix.
        NameList bare(text, [](const std::string &n) { return n.substr(strlen("text_model.")); });
        infos = bare.infos();
        REQUIRE_OK(hd_text_clip_check(&c, "text_encoder", (int64_t)infos.size(), infos.data()));
        infos.pop_back();
        CHECK_FAILS(hd_text_clip_check(&c, "text_encoder", (int64_t)infos.size(), infos.data()),
                    HD_ERR_FORMAT, "final_layer_norm.weight");
    }
}

TEST_CASE("text_clip config: defaults, and what is refused by key", "[codecs][text_clip]")
{
    hd_text_clip_config c{};
    REQUIRE_OK(read_text("{}", &c));
    CHECK((c.vocabulary == 49408 && c.channels == 512 && c.hidden == 2048));
    CHECK((c.layers == 12 && c.heads == 8 && c.length == 77 && c.projection == 0));
    CHECK((c.eos == 49407 && c.act == HD_ACT_QUICK_GELU && c.eps == 1e-5));
    REQUIRE_OK(read_text(R"({"architectures": ["CLIPTextModelWithProjection"]})", &c));
    CHECK(c.projection == 512);
    struct Refusal {
        const char *text, *message;
        hd_status status;
    };
    const Refusal refusals[] = {
        {R"({"hidden_act": "mish"})", "hidden_act is \"mish\"; supported: quick_gelu, gelu",
         HD_ERR_UNSUPPORTED},
        {R"({"architectures": ["T5EncoderModel"]})", "architectures[0] is \"T5EncoderModel\"",
         HD_ERR_UNSUPPORTED},
        {R"({"model_type": "t5"})", "model_type is \"t5\"", HD_ERR_UNSUPPORTED},
        {R"({"num_attention_heads": 7})",
         "hidden_size is 512, must be divisible by "
         "num_attention_heads: 7",
         HD_ERR_ARGUMENT},
        {R"({"hidden_size": 0})", "hidden_size", HD_ERR_ARGUMENT},
        {R"({"num_hidden_layers": "many"})", "num_hidden_layers", HD_ERR_ARGUMENT},
        {R"({"eos_token_id": [1, 2]})", "eos_token_id", HD_ERR_ARGUMENT},
        {R"({"text_config": {"hidden_size": 3}})", "text_config is an object (a whole CLIP",
         HD_ERR_UNSUPPORTED},
        {R"({"hiden_size": 32})", "did you mean \"hidden_size\"?", HD_ERR_UNSUPPORTED},
    };
    for (const Refusal &r : refusals) {
        INFO(r.text);
        CHECK_FAILS(read_text(r.text, &c), r.status, r.message);
        CHECK(std::string(hd_message()).find("text_encoder/config.json") != std::string::npos);
    }
}

TEST_CASE("text_clip: inputs that do not fit are refused", "[codecs][text_clip]")
{
    Encoder encoder("text_clip/pooled", HD_F32);
    std::vector<int64_t> ids(20, 1);
    std::vector<float> out(20 * 20);
    hd_exec ex{};
    ex.has = hd_cpu_features();
    REQUIRE_OK(hd_arena_create(&ex.arena, 1 << 20));
    auto forward = [&](int64_t tokens, int64_t skip) {
        hd_text_clip_inputs in = {ids.data(), 1, tokens, skip};
        hd_tensor hidden = hd_tensor_of(out.data(), HD_F32, hd_shape3(1, tokens, 20));
        return hd_text_clip_forward(&ex, encoder.text, nullptr, hidden, hd_tensor_none(), &in);
    };
    CHECK_FAILS(forward(20, 0), HD_ERR_ARGUMENT, "1 rows of 20 tokens; it takes 1 to 19");
    CHECK_FAILS(forward(19, 2), HD_ERR_ARGUMENT, "clip skip is 2, must be 0 to 1");
    ids[3] = 61;
    CHECK_FAILS(forward(19, 0), HD_ERR_ARGUMENT, "token 61, its vocab_size is 61");
    hd_arena_free(ex.arena);
}

TEST_CASE("text_clip: each allocation in turn fails", "[codecs][text_clip][nomem]")
{
    hd_text_clip_config c{};
    hd_weights *weights = nullptr;
    hd_exec ex{};
    ex.has = hd_cpu_features();
    REQUIRE_OK(read_text(fixture_text("text_clip/pooled/config.json"), &c));
    REQUIRE_OK(hd_weights_open(&weights, fixture_path("text_clip/pooled").c_str(), "model"));
    CHECK(fail_each_allocation([&] {
              hd_text_clip *text = nullptr;
              hd_status status =
                  hd_text_clip_create(&text, &ex, &c, weights, HD_F32, nullptr, nullptr);
              hd_text_clip_free(text);
              return status;
          }) > 20);
    hd_weights_free(weights);
}
