// A picture back to noise and forth again; trajectories in files; how pictures are fitted.
#include <fstream>

#include "codecs/png.h"
#include "engine/samplers/sampler.h"
#include "engine/weights/safetensors_write.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/safetensors.h"

namespace
{

const char *const base = ", \"prompt\": \"a yellow moon at night\", \"width\": 64, \"height\": 48, "
                         "\"seed\": 5, \"precision\": \"f32\", \"sampler\": \"ddim\"";

std::string preset(const std::string &more)
{
    return "{" + starter() + base + more + "}";
}

// A picture of the model's own, as a file.
void draw(Context &context, const std::string &path)
{
    context.run("{" + starter() +
                ", \"prompt\": \"a red fish\", \"width\": 64, \"height\": 48, \"seed\": 1, "
                "\"steps\": 10, \"output\": \"" +
                path + "\"}");
}

std::vector<uint8_t> read_pixels(const std::string &path)
{
    hd_png png = {};
    REQUIRE_OK(hd_png_read(&png, path.c_str()));
    std::vector<uint8_t> out(png.image.rgb, png.image.rgb + hd_image_bytes(&png.image));
    hd_png_free(&png);
    return out;
}

double closeness(const std::vector<uint8_t> &a, const std::vector<uint8_t> &b)
{
    REQUIRE(a.size() == b.size());
    return psnr(a.data(), b.data(), a.size());
}

std::string image(const std::string &path)
{
    return "\"init_image\": \"" + path + "\"";
}

} // namespace

TEST_CASE("inversion: there and back returns the picture; fixed-point steps return it closer",
          "[pipeline][inversion]")
{
    Folder folder;
    Context context;
    draw(context, folder.path("fish.png"));
    auto fish = read_pixels(folder.path("fish.png"));
    auto back = [&](const std::string &how, const std::string &more = "") {
        auto result =
            context.run(preset(", \"steps\": 25, \"guidance\": 1, " +
                               image(folder.path("fish.png")) + more + ", \"inversion\": " + how));
        return closeness(pixels(result.get(), 0), fish);
    };
    // the encoder and decoder alone: what no inversion can better
    auto coded = context.run(preset(", \"steps\": 25, \"branches\": {\"source\": {" +
                                    image(folder.path("fish.png")) +
                                    ", \"inversion\": {}, \"save\": true}}"));
    double best = closeness(pixels(coded.get(), 1), fish);
    double plain = back("{}"), fixed = back("{\"fixed_point\": 3}");
    // measured: 26.7 dB for the autoencoder alone, 21.8 plain, 26.7 with fixed points
    CAPTURE(best, plain, fixed);
    CHECK(plain > 20);
    CHECK(fixed > plain);
    CHECK(best + 0.5 > fixed);
    CHECK(fixed > best - 3);
    auto noise = context.run(preset(", \"steps\": 25, \"guidance\": 1"));
    CHECK(closeness(pixels(noise.get(), 0), fish) < 15);
}

TEST_CASE("inversion: a branch that follows it ends as its picture to the bit, in every batch",
          "[pipeline][inversion]")
{
    Folder folder;
    Context context;
    draw(context, folder.path("fish.png"));
    std::string source = "\"source\": {\"prompt\": \"a red fish\", \"save\": true, " +
                         image(folder.path("fish.png"));
    auto exact = context.run(
        preset(", \"steps\": 6, \"batch\": 2, \"branches\": {" + source + ", \"inversion\": {}}}"));
    REQUIRE(hd_result_count(exact.get()) == 4);
    CHECK(pixels(exact.get(), 1) == pixels(exact.get(), 3));
    // another number of steps, another guidance: still the same picture
    auto other = context.run(preset(", \"steps\": 9, \"guidance\": 3, \"branches\": {" + source +
                                    ", \"inversion\": {\"guidance\": 2, \"fixed_point\": 1}}}"));
    CHECK(pixels(exact.get(), 1) == pixels(other.get(), 1));
    // a target that begins where the inversion ended
    auto target = context.run(preset(", \"steps\": 6, \"guidance\": 1, \"branches\": {" + source +
                                     ", \"inversion\": {}, \"follow\": false, \"guidance\": 1}, "
                                     "\"target\": {\"prompt\": \"a red fish\", \"start\": "
                                     "\"source\", \"guidance\": 1}}"));
    REQUIRE(hd_result_count(target.get()) == 3);
    CHECK(std::string(hd_result_picture(target.get(), 2)->branch) == "target.0");
    CHECK(pixels(target.get(), 1) == pixels(target.get(), 2));
    CHECK(pixels(target.get(), 0) != pixels(target.get(), 2));
}

TEST_CASE("inversion: steps of its own must meet the run's timesteps", "[pipeline][inversion]")
{
    Folder folder;
    Context context;
    draw(context, folder.path("fish.png"));
    auto with = [&](const std::string &how, ResultPtr &result) {
        return context.try_run(preset(", \"steps\": 10, \"guidance\": 1, " +
                                      image(folder.path("fish.png")) + ", \"inversion\": " + how),
                               result);
    };
    ResultPtr result(nullptr, hd_result_free), finer(nullptr, hd_result_free);
    REQUIRE_OK(with("{}", result));
    REQUIRE_OK(with("{\"steps\": 50}", finer));
    CHECK(pixels(result.get(), 0) != pixels(finer.get(), 0));
    REQUIRE_OK(with("{\"pairing\": \"same_level\"}", finer));
    CHECK(pixels(result.get(), 0) != pixels(finer.get(), 0));
    CHECK_FAILS(with("{\"steps\": 15}", finer), HD_ERR_ARGUMENT,
                "test.json: inversion steps is 15: these do not meet timestep");
    CHECK_FAILS(with("{\"step\": 15}", finer), HD_ERR_ARGUMENT, "did you mean \"steps\"?");
    CHECK_FAILS(context.try_run(preset(", \"inversion\": {}"), finer), HD_ERR_ARGUMENT,
                "no init_image");
    std::string heun =
        preset(", \"steps\": 4, " + image(folder.path("fish.png")) + ", \"inversion\": {}");
    heun.replace(heun.find("\"ddim\""), 6, "\"heun\"");
    CHECK_FAILS(context.try_run(heun, finer), HD_ERR_UNSUPPORTED, "more than once at a level");
    // other samplers find their own levels
    for (const char *name : {"\"euler\"", "\"dpm++2m\""}) {
        CAPTURE(name);
        std::string json = preset(", \"steps\": 20, \"guidance\": 1, " +
                                  image(folder.path("fish.png")) + ", \"inversion\": {}");
        json.replace(json.find("\"ddim\""), 6, name);
        auto back = context.run(json);
        double close = closeness(pixels(back.get(), 0), read_pixels(folder.path("fish.png")));
        CAPTURE(close);
        CHECK(close > 18); // a second-order solver goes back another way than it came
    }
}

TEST_CASE("inversion: saved and used again, to the bit; refused where it does not fit",
          "[pipeline][inversion]")
{
    Folder folder;
    Context context;
    draw(context, folder.path("fish.png"));
    std::string file = folder.path("fish.safetensors");
    std::string with = ", \"branches\": {\"source\": {\"save\": true, \"follow\": false, " +
                       image(folder.path("fish.png")) + ", \"inversion\": ";
    auto made =
        context.run(preset(", \"steps\": 6" + with + "{}}}, \"save_inversion\": \"" + file + "\""));
    auto again = context.run(preset(", \"steps\": 6" + with + "\"" + file + "\"}}"));
    CHECK(pixels(made.get(), 0) == pixels(again.get(), 0));
    CHECK(pixels(made.get(), 1) == pixels(again.get(), 1));
    // the only one there is serves a branch of another name, and main
    std::string style = ", \"steps\": 6, \"inversion\": \"" + file + "\"";
    auto of_main = context.run(preset(style));
    CHECK(pixels(of_main.get(), 0) == pixels(again.get(), 1));
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(preset(", \"steps\": 8" + with + "\"" + file + "\"}}"), none),
                HD_ERR_ARGUMENT, "branches.source.inversion");
    CHECK(std::string(hd_message()).find("has 6 timesteps from ") != std::string::npos);
    CHECK(std::string(hd_message()).find("sampler ddim of this run has 8 timesteps from ") !=
          std::string::npos);
    CHECK_FAILS(
        context.try_run(preset(", \"steps\": 6, \"save_inversion\": \"" + folder.path("x") + "\""),
                        none),
        HD_ERR_ARGUMENT, "save_inversion has nothing to save");
    folder.write("broken.safetensors", "no tensors");
    CHECK(context.try_run(preset(", \"steps\": 6, \"inversion\": \"" +
                                 folder.path("broken.safetensors") + "\""),
                          none) == HD_ERR_FORMAT);
    CHECK_FAILS(context.try_run(preset(", \"steps\": 6, \"inversion\": \"" +
                                       source_path("models/starter-image/vae/") +
                                       "diffusion_pytorch_model.safetensors\""),
                                none),
                HD_ERR_FORMAT, "holds no inversion");
    // another size
    std::string wide = "{" + starter() +
                       ", \"width\": 48, \"height\": 48, \"steps\": 6, \"sampler\": \"ddim\", "
                       "\"inversion\": \"" +
                       file + "\"}";
    CHECK_FAILS(context.try_run(wide, none), HD_ERR_ARGUMENT, "this run needs f32 [7, 4, 12, 12]");
}

TEST_CASE("fit: a picture of another shape is stretched, cut or continued", "[pipeline][inversion]")
{
    // left half red, right half blue; above and below a grey band in the high one
    Folder folder;
    hd_image wide;
    REQUIRE_OK(hd_image_create(&wide, 96, 48, "test"));
    for (int i = 0; i < 96 * 48; i++) {
        bool middle = i % 96 >= 24 && i % 96 < 72;
        wide.rgb[3 * i] = middle ? 255 : 0;
        wide.rgb[3 * i + 1] = 0;
        wide.rgb[3 * i + 2] = middle ? 0 : 255;
    }
    REQUIRE_OK(hd_png_write(folder.path("wide.png").c_str(), &wide, nullptr, 0));
    hd_image_free(&wide);
    Context context;
    auto with = [&](const std::string &fit) {
        auto result = context.run(
            "{" + starter() + ", \"width\": 48, \"height\": 48, \"steps\": 1, \"seed\": 1, " + fit +
            "\"branches\": {\"source\": {\"save\": true, \"inversion\": "
            "{}, " +
            image(folder.path("wide.png")) + "}}}");
        return pixels(result.get(), 1);
    };
    auto red = [](const std::vector<uint8_t> &rgb, int x, int y) {
        return rgb[3 * (48 * y + x)] > rgb[3 * (48 * y + x) + 2];
    };
    auto stretched = with(""), cut = with("\"fit\": \"crop\", "), all = with("\"fit\": \"pad\", ");
    CHECK(stretched == with("\"fit\": \"stretch\", "));
    // columns: stretched 12 .. 35 are red, cut all of them; continued 12 .. 35 at every height
    for (int y : {4, 24, 44}) {
        CHECK(!red(stretched, 4, y));
        CHECK(red(stretched, 24, y));
        CHECK(red(cut, 4, y));
        CHECK(red(cut, 44, y));
        CHECK(!red(all, 4, y));
        CHECK(red(all, 24, y));
        CHECK(!red(all, 44, y));
    }
}

namespace
{

// The noise that the best denoiser of numbers drawn from N(0, s^2) sees in x.
double seen_noise(double x, double alpha, double sigma, double s)
{
    return sigma * x / (alpha * alpha * s * s + sigma * sigma);
}

struct Trip {
    double top, back;
};

// A number up the levels of a run of 50 steps and down again.
Trip round_trip(const char *offset, double s, int fixed_point)
{
    const std::string config = std::string(R"({"beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false,
        "steps_offset": )") + offset +
                               "}";
    hd_json_doc *doc = nullptr;
    REQUIRE_OK(hd_json_parse(&doc, "config", config.data(), config.size()));
    hd_sampler_options options = {};
    options.name = "ddim", options.config = hd_json_root(doc), options.steps = 50;
    options.rows = options.row_values = 1;
    hd_sampler *sampler = nullptr;
    REQUIRE_OK(hd_sampler_create(&sampler, &options));
    auto moved = [&](double x, double eps, hd_noise_level from, hd_noise_level to) {
        return (double)to.alpha * (x - (double)from.sigma * eps) / (double)from.alpha +
               (double)to.sigma * eps;
    };
    auto noise = [&](double x, hd_noise_level at) {
        return seen_noise(x, (double)at.alpha, (double)at.sigma, s);
    };
    double x = 1;
    for (int64_t call = 49; call >= 0; call--) {
        const hd_noise_level from = hd_sampler_level(sampler, call + 1),
                             to = hd_sampler_level(sampler, call);
        // the network is told the level it goes to
        double next = moved(x, noise(x, to), from, to);
        for (int i = 0; i < fixed_point; i++)
            next = moved(x, noise(next, to), from, to);
        x = next;
    }
    const double top = x;
    for (int64_t call = 0; call < 50; call++) {
        const hd_noise_level from = hd_sampler_level(sampler, call);
        x = moved(x, noise(x, from), from, hd_sampler_level(sampler, call + 1));
    }
    hd_sampler_free(sampler);
    hd_json_free(doc);
    return {top, x};
}

} // namespace

// The numbers were computed apart from this, in f64; levels are f32.
TEST_CASE("inversion: the levels of a run take a known denoiser there and back",
          "[pipeline][inversion]")
{
    const struct {
        const char *offset;
        double s, top, back;
    } known[] = {{"0", 1, 1.027224290, .999173389},
                 {"0", .5, 2.018911543, .962604173},
                 {"1", 1, 1.026271471, .999191922},
                 {"1", .5, 2.012220582, .962995292}};
    for (const auto &k : known) {
        CAPTURE(k.offset, k.s);
        Trip t = round_trip(k.offset, k.s, 0);
        CHECK(t.top == Approx(k.top).epsilon(1e-5));
        CHECK(t.back == Approx(k.back).epsilon(1e-5));
    }
    const double left[2][2] = {{3.7e-5, 1.6e-7}, {2.1e-3, 7.0e-6}};
    for (int i = 0; i < 2; i++) {
        const double s = i ? .5 : 1;
        CAPTURE(s);
        CHECK(std::fabs(1 - round_trip("0", s, 1).back) == Approx(left[i][0]).epsilon(0.05));
        CHECK(std::fabs(1 - round_trip("0", s, 3).back) == Approx(left[i][1]).epsilon(0.1));
        CHECK(std::fabs(1 - round_trip("0", s, 5).back) < 1e-7);
    }
}
