// The UNet against diffusers on tiny random models of every shape, and on the starter model.
#include <cstring>
#include <map>

#include "engine/attention/run.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/network.h"
#include "support/run.h"
#include "unet/unet2d.h"

// A network loaded from a folder in diffusers' layout.
class Unet
{
  public:
    Unet(const std::string &folder, hd_dtype compute)
    {
        hd_json_doc *doc = nullptr;
        hd_unet2d_config c{};
        hd_weights *weights = nullptr;
        Run run;
        REQUIRE_OK(hd_json_read(&doc, (folder + "/config.json").c_str()));
        REQUIRE_OK(hd_unet2d_config_read(&c, hd_json_root(doc)));
        hd_json_free(doc);
        REQUIRE_OK(hd_weights_open(&weights, folder.c_str(), "diffusion_pytorch_model"));
        hd_status status = hd_unet2d_create(&unet, &run, &c, weights, compute, nullptr, nullptr);
        hd_weights_free(weights);
        REQUIRE_OK(status);
    }
    ~Unet()
    {
        hd_unet2d_free(unet);
    }
    Unet(const Unet &) = delete;
    Unet &operator=(const Unet &) = delete;
    hd_unet2d *unet = nullptr;
};

// A batch of inputs and room for the answer.
struct Batch {
    std::vector<float> latent, timestep, text, guidance, out;
    int64_t rows, height, width, words, text_channels, in, channels;

    hd_status forward(const hd_exec *ex, const Unet &u, const hd_forward *forward = nullptr)
    {
        hd_unet2d_inputs inputs{};
        inputs.timestep = timestep.data();
        inputs.guidance = guidance.empty() ? nullptr : guidance.data();
        inputs.text = hd_tensor_of(text.data(), HD_F32, hd_shape3(rows, words, text_channels));
        out.resize((size_t)(rows * height * width * channels));
        return hd_unet2d_forward(
            ex, u.unet, forward,
            hd_tensor_of(out.data(), HD_F32, hd_shape4(rows, height, width, channels)),
            hd_tensor_of(latent.data(), HD_F32, hd_shape4(rows, height, width, in)), &inputs);
    }
};

static std::vector<float> values(const FixtureTensor &t)
{
    return {t.f32(), t.f32() + t.count()};
}

static Batch batch_of(const Unet &u, Fixture &io)
{
    const hd_unet2d_config *c = hd_unet2d_configuration(u.unet);
    Batch b{};
    const auto &shape = io["latent"].shape, &text = io["text"].shape;
    b.rows = shape[0], b.height = shape[1], b.width = shape[2];
    b.words = text[1], b.text_channels = text[2];
    b.in = c->in_channels, b.channels = c->out_channels;
    b.latent = values(io["latent"]);
    b.timestep = values(io["timestep"]);
    b.text = values(io["text"]);
    if (io.count("guidance")) b.guidance = values(io["guidance"]);
    return b;
}

static double parity(const std::string &name, const std::string &folder, hd_dtype compute,
                     unsigned has = hd_cpu_features())
{
    Unet u(folder, compute);
    Fixture io = fixture_open("unet/" + name + "/io.safetensors");
    Batch b = batch_of(u, io);
    REQUIRE((int64_t)io["out"].count() == b.rows * b.height * b.width * b.channels);
    run_network(
        2, [&](const hd_exec *ex) { return b.forward(ex, u); }, has);
    return relative_error(b.out.data(), io["out"].f32(), io["out"].count());
}

static std::string starter()
{
    return source_path("models/starter-image/unet");
}

TEST_CASE("unet2d: equal to diffusers", "[unet]")
{
    std::string name = GENERATE("sd1", "sd2", "odd", "channels", "time", "single");
    INFO(name);
    std::string folder = fixture_path("unet/" + name);
    CHECK(parity(name, folder, HD_F32) <= 1e-4);
    // bf16 keeps 8 bits; errors of a few dozen roundings in a row.
    CHECK(parity(name, folder, HD_BF16) <= 4e-2);
}

TEST_CASE("unet2d: the starter model is equal to diffusers", "[unet]")
{
    CHECK(parity("starter", starter(), HD_F32) <= 1e-4);
    CHECK(parity("starter", starter(), HD_BF16) <= 4e-2);
}

TEST_CASE("unet2d: equal to diffusers with every instruction set", "[unet]")
{
    for (unsigned has : every_isa())
        CHECK(parity("sd1", fixture_path("unet/sd1"), HD_F32, has) <= 1e-4);
}

// Row `row` of `rows` different ones, as every batch that holds it is made.
static void fill_row(Batch *b, int64_t at, uint64_t seed)
{
    int64_t latent = b->height * b->width * b->in, text = b->words * b->text_channels;
    std::vector<float> l = normal_values(latent, seed), t = normal_values(text, seed + 100);
    std::copy(l.begin(), l.end(), b->latent.begin() + at * latent);
    std::copy(t.begin(), t.end(), b->text.begin() + at * text);
    b->timestep[at] = (float)(7 + 211 * seed);
}

static Batch rows_batch(const Unet &u, const std::vector<uint64_t> &seeds, int64_t height,
                        int64_t width)
{
    const hd_unet2d_config *c = hd_unet2d_configuration(u.unet);
    Batch b{};
    b.rows = (int64_t)seeds.size(), b.height = height, b.width = width;
    b.words = 7, b.text_channels = c->text_channels;
    b.in = c->in_channels, b.channels = c->out_channels;
    b.latent.resize((size_t)(b.rows * height * width * b.in));
    b.text.resize((size_t)(b.rows * b.words * b.text_channels));
    b.timestep.resize(seeds.size());
    for (size_t i = 0; i < seeds.size(); i++)
        fill_row(&b, (int64_t)i, seeds[i]);
    return b;
}

using Batches = std::vector<std::vector<uint64_t>>;

static void check_rows(const std::string &name, hd_dtype compute, int64_t height, int64_t width,
                       const Batches &batches)
{
    Unet u(fixture_path("unet/" + name), compute);
    Batch alone = rows_batch(u, {1}, height, width);
    run_network(1, [&](const hd_exec *ex) { return alone.forward(ex, u); });
    for (const auto &seeds : batches) {
        for (int threads : {1, 2, 4}) {
            INFO(name << ", " << seeds.size() << " rows, " << threads << " threads");
            Batch b = rows_batch(u, seeds, height, width);
            run_network(threads, [&](const hd_exec *ex) { return b.forward(ex, u); });
            size_t at = 0;
            while (seeds[at] != 1)
                at++;
            CHECK(memcmp(b.out.data() + at * alone.out.size(), alone.out.data(),
                         alone.out.size() * sizeof(float)) == 0);
        }
    }
}

TEST_CASE("unet2d: a row's bytes depend on that row alone", "[unet][threads]")
{
    hd_dtype compute = GENERATE(HD_F32, HD_BF16);
    const Batches batches = {{1}, {2, 1}, {1, 2, 3}, {5, 4, 3, 2, 1}};
    check_rows("sd1", compute, 24, 16, batches);
    check_rows("odd", compute, 9, 7, batches);
    check_rows("channels", compute, 12, 20, batches);
    check_rows("sd2", compute, 48, 32, {{3, 2, 1}});
}

TEST_CASE("unet2d: its attention sites, and the text's keys that a run keeps", "[unet]")
{
    Unet u(fixture_path("unet/odd"), HD_F32);
    Batch plain = rows_batch(u, {1, 2}, 9, 7), b = plain;
    run_network(1, [&](const hd_exec *ex) { return plain.forward(ex, u); });
    const hd_processor_list none{};
    const hd_row rows[] = {{"main", "uncond", 0}, {"main", "cond", 0}};
    hd_forward forward{};
    forward.rows = {2, rows};
    REQUIRE_OK(hd_attention_run_create(&forward.run, &none, nullptr, 1));
    // The dry pass, the first step and, with the kept keys, the second.
    for (int step = 0; step < 2; step++) {
        run_network(1, [&](const hd_exec *ex) { return b.forward(ex, u, &forward); });
        CHECK(b.out == plain.out);
    }
    std::map<std::string, int64_t> factors;
    for (int64_t i = 0; i < hd_attention_run_sites(forward.run); i++) {
        const hd_site *site = hd_attention_run_site(forward.run, i);
        char text[96];
        factors[hd_site_text(text, sizeof text, site)] = site->factor;
        int64_t height = site->factor == 1 ? 9 : 3, width = site->factor == 1 ? 7 : 2;
        CHECK(site->tokens == height * width);
        CHECK(site->heads == 2);
    }
    std::map<std::string, int64_t> expected;
    for (const char *d : {"0", "1", "2", "3"}) // only_cross_attention: two in each of two blocks
        for (const char *path : {"down.0.attn.0.", "up.2.attn.0.", "up.2.attn.1."})
            expected[std::string("unet:") + path + d + " cross"] = 1;
    for (const char *d : {"0", "1"})
        for (const char *path : {"down.2.attn.0.", "mid.attn.0.", "up.0.attn.0.", "up.0.attn.1."})
            for (const char *kind : {" self", " cross"})
                expected[std::string("unet:") + path + d + kind] = 4;
    CHECK(factors == expected);

    // Another text is seen once the run has forgotten the old one.
    for (float &v : b.text)
        v = -v;
    plain = b;
    run_network(1, [&](const hd_exec *ex) { return plain.forward(ex, u); });
    hd_attention_run_forget_text(forward.run);
    run_network(1, [&](const hd_exec *ex) { return b.forward(ex, u, &forward); });
    CHECK(b.out == plain.out);
    hd_attention_run_free(forward.run);
}

TEST_CASE("unet2d: every tensor of the published models is bound, none is left over", "[unet]")
{
    std::string name = GENERATE("sd15_unet", "sd21_unet");
    hd_unet2d_config c{};
    Json json(name, fixture_text("names/" + name + ".json"));
    REQUIRE_OK(hd_unet2d_config_read(&c, json.root()));
    NameList list(fixture_text("names/" + name + ".txt"));
    std::vector<hd_weight_info> infos = list.infos();
    CHECK(infos.size() == 686);
    REQUIRE_OK(hd_unet2d_check(&c, name.c_str(), (int64_t)infos.size(), infos.data()));

    std::vector<hd_weight_info> fewer(infos.begin() + 1, infos.end());
    CHECK_FAILS(hd_unet2d_check(&c, "short", (int64_t)fewer.size(), fewer.data()), HD_ERR_FORMAT,
                infos[0].name);
    infos[5].shape.dim[0]++;
    CHECK_FAILS(hd_unet2d_check(&c, "misshapen", (int64_t)infos.size(), infos.data()),
                HD_ERR_FORMAT, infos[5].name);
}

TEST_CASE("unet2d: shapes for choosing the compute type", "[unet]")
{
    hd_unet2d_config c{};
    Json json("sd15", fixture_text("names/sd15_unet.json"));
    REQUIRE_OK(hd_unet2d_config_read(&c, json.root()));
    int64_t shapes[4][2];
    int count = 0;
    REQUIRE_OK(hd_unet2d_shapes(&c, 4, shapes, &count));
    CHECK(count == 4);
    for (int i = 0; i < count; i++)
        CHECK((shapes[i][0] >= 320 && shapes[i][1] >= 320));
}

TEST_CASE("unet2d: inputs that do not fit are refused", "[unet]")
{
    Unet u(fixture_path("unet/sd1"), HD_F32);
    Run run;
    Batch b = rows_batch(u, {1, 2}, 8, 8);
    b.in = 3;
    CHECK_FAILS(b.forward(&run, u), HD_ERR_SHAPE, "unet: latent");
    b = rows_batch(u, {1, 2}, 8, 8);
    b.text_channels = 12;
    CHECK_FAILS(b.forward(&run, u), HD_ERR_SHAPE, "unet: text");
    b = rows_batch(u, {1, 2}, 8, 8);
    b.guidance = {7.5f, 7.5f};
    CHECK_FAILS(b.forward(&run, u), HD_ERR_ARGUMENT, "time_cond_proj_dim");
    Unet rounds_down(fixture_path("unet/channels"), HD_F32);
    b = rows_batch(rounds_down, {1}, 1, 8);
    CHECK_FAILS(b.forward(&run, rounds_down), HD_ERR_SHAPE, "must be at least 2 x 2");
}

TEST_CASE("unet2d: no memory is an error, whatever the place", "[unet]")
{
    Unet u(fixture_path("unet/single"), HD_F32);
    Batch b = rows_batch(u, {1}, 4, 4);
    size_t bytes = run_network(1, [&](const hd_exec *ex) { return b.forward(ex, u); });
    for (size_t part = 0; part < 16; part++) {
        Run run(hd_cpu_features(), 1, bytes * part / 16);
        CHECK(b.forward(&run, u) == HD_ERR_NOMEM);
        CHECK(hd_arena_mark(run.exec.arena) == 0);
    }
}

TEST_CASE("unet2d: each allocation in turn fails, while loading and in the first pass",
          "[unet][nomem]")
{
    std::string folder = fixture_path("unet/single");
    hd_unet2d_config c{};
    hd_weights *weights = nullptr;
    Json json("config.json", fixture_text("unet/single/config.json"));
    REQUIRE_OK(hd_unet2d_config_read(&c, json.root()));
    REQUIRE_OK(hd_weights_open(&weights, folder.c_str(), "diffusion_pytorch_model"));
    Batch b{};
    {
        Unet loaded(folder, HD_F32);
        b = rows_batch(loaded, {1}, 4, 4);
        REQUIRE(b.latent.size() == 4 * 4 * 4);
        b.out.resize(b.latent.size());
    }
    Run run;
    int64_t count = fail_each_allocation([&] {
        hd_unet2d *unet = nullptr;
        hd_status status = hd_unet2d_create(&unet, &run, &c, weights, HD_F32, nullptr, nullptr);
        hd_unet2d_inputs inputs{};
        inputs.timestep = b.timestep.data();
        inputs.text = hd_tensor_of(b.text.data(), HD_F32, hd_shape3(1, 7, 24));
        hd_tensor out = hd_tensor_of(b.out.data(), HD_F32, hd_shape4(1, 4, 4, 4));
        hd_tensor latent = hd_tensor_of(b.latent.data(), HD_F32, hd_shape4(1, 4, 4, 4));
        if (status == HD_OK) status = hd_unet2d_forward(&run, unet, nullptr, out, latent, &inputs);
        hd_unet2d_free(unet);
        return status;
    });
    CHECK(count > 100);
    hd_weights_free(weights);
}
