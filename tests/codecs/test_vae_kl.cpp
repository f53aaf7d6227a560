// The autoencoder against diffusers, both ways, whole and in tiles.
#include <cstring>

#include "codecs/vae_kl.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/network.h"
#include "support/run.h"

class Vae
{
  public:
    Vae(const std::string &folder, hd_dtype compute)
    {
        hd_json_doc *doc = nullptr;
        hd_weights *weights = nullptr;
        Run run;
        REQUIRE_OK(hd_json_read(&doc, (folder + "/config.json").c_str()));
        REQUIRE_OK(hd_vae_kl_config_read(&config, hd_json_root(doc)));
        hd_json_free(doc);
        REQUIRE_OK(hd_weights_open(&weights, folder.c_str(), "diffusion_pytorch_model"));
        hd_status status =
            hd_vae_kl_create(&vae, &run, &config, weights, compute, nullptr, nullptr);
        hd_weights_free(weights);
        REQUIRE_OK(status);
        factor = hd_vae_kl_factor(&config);
    }
    ~Vae()
    {
        hd_vae_kl_free(vae);
    }
    Vae(const Vae &) = delete;
    Vae &operator=(const Vae &) = delete;

    hd_shape image_shape(int64_t rows, int64_t height, int64_t width) const
    {
        return hd_shape4(rows, height * factor, width * factor, config.out_channels);
    }

    // tile_px < 0: whole pictures
    std::vector<float> decode(std::vector<float> latent, int64_t rows, int64_t height,
                              int64_t width, int threads, int64_t tile_px) const
    {
        hd_shape shape = image_shape(rows, height, width);
        std::vector<float> image((size_t)hd_shape_count(shape));
        hd_tensor to = hd_tensor_of(image.data(), HD_F32, shape);
        hd_tensor from = hd_tensor_of(latent.data(), HD_F32,
                                      hd_shape4(rows, height, width, config.latent_channels));
        run_network(threads, [&](const hd_exec *ex) {
            return tile_px < 0 ? hd_vae_kl_decode(ex, vae, nullptr, to, from)
                               : hd_vae_kl_decode_tiled(ex, vae, nullptr, to, from, tile_px);
        });
        return image;
    }

    // mean, then logvar
    std::vector<float> encode(std::vector<float> image, int64_t rows, int64_t height, int64_t width,
                              int threads, int64_t tile_px) const
    {
        hd_shape shape = hd_shape4(rows, height, width, config.latent_channels);
        size_t count = (size_t)hd_shape_count(shape);
        std::vector<float> moments(2 * count);
        hd_tensor mean = hd_tensor_of(moments.data(), HD_F32, shape);
        hd_tensor logvar = hd_tensor_of(moments.data() + count, HD_F32, shape);
        hd_tensor from = hd_tensor_of(image.data(), HD_F32, image_shape(rows, height, width));
        run_network(threads, [&](const hd_exec *ex) {
            return tile_px < 0
                       ? hd_vae_kl_encode(ex, vae, nullptr, mean, logvar, from)
                       : hd_vae_kl_encode_tiled(ex, vae, nullptr, mean, logvar, from, tile_px);
        });
        return moments;
    }

    hd_vae_kl *vae = nullptr;
    hd_vae_kl_config config{};
    int64_t factor = 0;
};

static std::vector<float> values(const FixtureTensor &t)
{
    return {t.f32(), t.f32() + t.count()};
}

// The worst of decoded picture, mean and logvar. tile_px < 0: whole pictures.
static double parity(const Vae &v, Fixture &io, const std::string &prefix, int64_t tile_px)
{
    const auto &shape = io[prefix + "latent"].shape;
    std::vector<float> image =
        v.decode(values(io[prefix + "latent"]), shape[0], shape[1], shape[2], 2, tile_px);
    FixtureTensor &decoded = io[prefix + "decoded"];
    REQUIRE(decoded.count() == (int64_t)image.size());
    double worst = relative_error(image.data(), decoded.f32(), decoded.count());
    std::vector<float> moments =
        v.encode(values(io[prefix + "image"]), shape[0], shape[1], shape[2], 2, tile_px);
    FixtureTensor &mean = io[prefix + "mean"], &logvar = io[prefix + "logvar"];
    REQUIRE(2 * mean.count() == (int64_t)moments.size());
    worst = std::max(worst, relative_error(moments.data(), mean.f32(), mean.count()));
    return std::max(worst,
                    relative_error(moments.data() + mean.count(), logvar.f32(), logvar.count()));
}

TEST_CASE("vae_kl: equal to diffusers both ways", "[vae]")
{
    std::string name = GENERATE("sd", "bare", "old", "starter");
    INFO(name);
    std::string folder =
        name == "starter" ? source_path("models/starter-image/vae") : fixture_path("vae/" + name);
    Fixture io = fixture_open("vae/" + name + "/io.safetensors");
    Vae exact(folder, HD_F32), half(folder, HD_BF16);
    CHECK(parity(exact, io, "", -1) <= 1e-4);
    CHECK(parity(half, io, "", -1) <= 5e-2);
}

TEST_CASE("vae_kl: tiles are diffusers' tiles", "[vae]")
{
    std::string name = GENERATE("sd", "bare");
    INFO(name);
    Fixture io = fixture_open("vae/" + name + "/io.safetensors");
    Vae v(fixture_path("vae/" + name), HD_F32);
    CHECK(parity(v, io, "tiled.", 0) <= 1e-4);
    CHECK(parity(v, io, "tiled.", v.config.sample_size) <= 1e-4);
    // Whole pictures differ from tiled ones: the comparison above can fail.
    CHECK(parity(v, io, "tiled.", -1) > 1e-3);
}

TEST_CASE("vae_kl: a picture that fits in a tile is not cut", "[vae]")
{
    Fixture io = fixture_open("vae/sd/io.safetensors");
    Vae v(fixture_path("vae/sd"), HD_F32);
    const auto &shape = io["latent"].shape;
    std::vector<float> latent = values(io["latent"]);
    CHECK(v.decode(latent, shape[0], shape[1], shape[2], 1, 0) ==
          v.decode(latent, shape[0], shape[1], shape[2], 1, -1));
}

TEST_CASE("vae_kl: tiles that cannot overlap by a quarter are refused", "[vae]")
{
    Vae v(fixture_path("vae/sd"), HD_F32);
    Run run;
    std::vector<float> latent(12 * 12 * 4), image(48 * 48 * 3);
    CHECK_FAILS(hd_vae_kl_decode_tiled(&run, v.vae, nullptr,
                                       hd_tensor_of(image.data(), HD_F32, hd_shape4(1, 48, 48, 3)),
                                       hd_tensor_of(latent.data(), HD_F32, hd_shape4(1, 12, 12, 4)),
                                       40),
                HD_ERR_ARGUMENT, "tiles of 40 pixels, must be a multiple of 16");
}

TEST_CASE("vae_kl: a picture whose sides the factor does not divide is refused", "[vae]")
{
    Vae v(fixture_path("vae/sd"), HD_F32);
    Run run;
    std::vector<float> image(10 * 12 * 3), mean(3 * 3 * 4), logvar(3 * 3 * 4);
    CHECK_FAILS(hd_vae_kl_encode(&run, v.vae, nullptr,
                                 hd_tensor_of(mean.data(), HD_F32, hd_shape4(1, 3, 3, 4)),
                                 hd_tensor_of(logvar.data(), HD_F32, hd_shape4(1, 3, 3, 4)),
                                 hd_tensor_of(image.data(), HD_F32, hd_shape4(1, 10, 12, 3))),
                HD_ERR_SHAPE, "12 x 10 (width x height), both must be multiples of 4");
}

TEST_CASE("vae_kl: a picture's bytes depend on that picture alone", "[vae][threads]")
{
    hd_dtype compute = GENERATE(HD_F32, HD_BF16);
    int64_t tile_px = GENERATE(-1, 32);
    Vae v(fixture_path("vae/sd"), compute);
    const int64_t height = 12, width = 9, rows = 3;
    std::vector<float> latent = normal_values(rows * height * width * 4, 3);
    std::vector<float> picture = normal_values(rows * height * width * 16 * 3, 4, 0.5f);
    auto row = [](const std::vector<float> &all, int64_t at) {
        size_t one = all.size() / (size_t)rows;
        return std::vector<float>(all.begin() + (int64_t)one * at,
                                  all.begin() + (int64_t)one * (at + 1));
    };
    std::vector<float> image = v.decode(row(latent, 1), 1, height, width, 1, tile_px);
    std::vector<float> moments = v.encode(row(picture, 1), 1, height, width, 1, tile_px);
    for (int threads : {1, 2, 4}) {
        CHECK(row(v.decode(latent, rows, height, width, threads, tile_px), 1) == image);
        std::vector<float> all = v.encode(picture, rows, height, width, threads, tile_px);
        size_t half = all.size() / 2, one = half / (size_t)rows;
        CHECK(memcmp(&all[one], moments.data(), one * sizeof(float)) == 0);
        CHECK(memcmp(&all[half + one], &moments[one], one * sizeof(float)) == 0);
    }
}

static std::string old_name(const std::string &name)
{
    const char *const names[][2] = {
        {"to_q.", "query."}, {"to_k.", "key."}, {"to_v.", "value."}, {"to_out.0.", "proj_attn."}};
    for (auto &pair : names) {
        size_t at = name.find(std::string("attentions.0.") + pair[0]);
        if (at != std::string::npos)
            return std::string(name).replace(at + 13, strlen(pair[0]), pair[1]);
    }
    return name;
}

TEST_CASE("vae_kl: every tensor of the published models is bound, none is left over", "[vae]")
{
    std::string name = GENERATE("sd15_vae", "sd21_vae");
    hd_vae_kl_config c{};
    Json json(name, fixture_text("names/" + name + ".json"));
    REQUIRE_OK(hd_vae_kl_config_read(&c, json.root()));
    std::string text = fixture_text("names/" + name + ".txt");
    NameList list(text);
    std::vector<hd_weight_info> infos = list.infos();
    CHECK(infos.size() == 248);
    REQUIRE_OK(hd_vae_kl_check(&c, name.c_str(), (int64_t)infos.size(), infos.data()));

    // As the files of 2022 call them, and back.
    NameList old(text, old_name);
    std::vector<hd_weight_info> olds = old.infos();
    CHECK(hd_vae_kl_check(&c, "old", (int64_t)olds.size(), olds.data()) == HD_ERR_FORMAT);
    int renamed = 0;
    NameList back(text, [&](const std::string &current) {
        char out[200];
        std::string was = old_name(current);
        if (!hd_vae_kl_rename(was.c_str(), out, sizeof out)) return was;
        renamed++;
        return std::string(out);
    });
    CHECK(renamed == 16);
    infos = back.infos();
    REQUIRE_OK(hd_vae_kl_check(&c, name.c_str(), (int64_t)infos.size(), infos.data()));
}

TEST_CASE("vae_kl: no memory is an error, whatever the place", "[vae]")
{
    Vae v(fixture_path("vae/old"), HD_F32);
    std::vector<float> latent(4 * 4 * 4), image(4 * 4 * 3);
    hd_tensor from = hd_tensor_of(latent.data(), HD_F32, hd_shape4(1, 4, 4, 4));
    hd_tensor to = hd_tensor_of(image.data(), HD_F32, hd_shape4(1, 4, 4, 3));
    auto decode = [&](const hd_exec *ex) { return hd_vae_kl_decode(ex, v.vae, nullptr, to, from); };
    size_t bytes = run_network(1, decode);
    for (size_t part = 0; part < 16; part++) {
        Run run(hd_cpu_features(), 1, bytes * part / 16);
        CHECK(decode(&run) == HD_ERR_NOMEM);
        CHECK(hd_arena_mark(run.exec.arena) == 0);
    }
}

TEST_CASE("vae_kl: each allocation in turn fails, while loading and in the first pass",
          "[vae][nomem]")
{
    hd_vae_kl_config c{};
    hd_weights *weights = nullptr;
    Json json("config.json", fixture_text("vae/old/config.json"));
    REQUIRE_OK(hd_vae_kl_config_read(&c, json.root()));
    std::vector<float> latent(4 * 4 * 4), image(4 * 4 * 3);
    hd_tensor from = hd_tensor_of(latent.data(), HD_F32, hd_shape4(1, 4, 4, 4));
    hd_tensor to = hd_tensor_of(image.data(), HD_F32, hd_shape4(1, 4, 4, 3));
    Run run;
    int64_t count = fail_each_allocation([&] {
        hd_vae_kl *vae = nullptr;
        // Opened anew each time: loading renames.
        hd_status status =
            hd_weights_open(&weights, fixture_path("vae/old").c_str(), "diffusion_pytorch_model");
        if (status != HD_OK) return status;
        status = hd_vae_kl_create(&vae, &run, &c, weights, HD_F32, nullptr, nullptr);
        hd_weights_free(weights);
        if (status == HD_OK) status = hd_vae_kl_decode(&run, vae, nullptr, to, from);
        hd_vae_kl_free(vae);
        return status;
    });
    CHECK(count > 100);
}
