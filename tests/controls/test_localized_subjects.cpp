// Localized subjects: the numbers of the method, what changes nothing, delayed words, regions as
// boxes, pictures and as read from the attention.
#include "controls/localized_subjects.h"

#include <map>

#include "codecs/png.h"
#include "controls/all.h"
#include "engine/ops/sdpa.h"
#include "pipelines/runner.h"
#include "support/attention.h"

namespace
{

const char *const prompt = "a red star and a blue heart";

std::string run_of(const std::string &processor, const std::string &text = prompt,
                   const std::string &more = "")
{
    return "{" + starter() +
           ", \"steps\": 4, \"width\": 48, \"height\": 32, \"seed\": 5, \"guidance\": 5, "
           "\"sampler\": \"ddim\", \"precision\": \"f32\", \"prompt\": \"" +
           text + "\"" +
           (processor.empty()
                ? ""
                : ", \"processors\": [{\"use\": \"localized_subjects\", " + processor + "}]") +
           more + "}";
}

const std::string halves = "\"subjects\": [{\"words\": \"red star\", \"region\": [0, 0, 0.5, 1]}, "
                           "{\"words\": \"blue heart\", \"region\": [0.5, 0, 1, 1]}]";

std::vector<uint8_t> draw(Context &context, const std::string &processor,
                          const std::string &text = prompt, const std::string &more = "")
{
    return pixels(context.run(run_of(processor, text, more)).get(), 0);
}

// Weights of three keys (begin 0, two subjects 1 each) where their regions are `first` and `value`.
std::vector<float> weights(float outside, float value, float first = 1)
{
    localized p{};
    p.outside = outside, p.gain_inside = 1;
    Run run;
    std::vector<float> q = {1}, k = {0, 1, 1}, v = {0, 0, 0}, out(1), probed(3);
    std::vector<float> ones = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    const uint8_t query[] = {0}, key[] = {0, 1, 2};
    const float bias[] = {0, localized_bias(&p, first), localized_bias(&p, value)};
    const hd_sdpa_segments segments = {query, key, 1, 3, bias, nullptr};
    hd_sdpa a = {};
    a.q = hd_tensor_of(q.data(), HD_F32, hd_shape4(1, 1, 1, 1));
    a.k = hd_tensor_of(k.data(), HD_F32, hd_shape4(1, 3, 1, 1));
    a.v = hd_tensor_of(v.data(), HD_F32, hd_shape4(1, 3, 1, 1));
    a.out = hd_tensor_of(out.data(), HD_F32, hd_shape4(1, 1, 1, 1));
    a.indicator = hd_tensor_of(ones.data(), HD_F32, hd_shape3(1, 3, 3));
    a.probed = hd_tensor_of(probed.data(), HD_F32, hd_shape4(1, 1, 1, 3));
    a.scale = 1;
    a.segments = &segments;
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    return probed;
}

void check_weights(const std::vector<float> &got, const std::vector<double> &wanted)
{
    for (size_t i = 0; i < wanted.size(); i++)
        CHECK((double)got[i] == Approx(wanted[i]).margin(1e-6));
}

// A mask as large as the picture: white in the columns from .. to - 1.
std::string mask_file(const Folder &folder, int width, int height, int from, int to)
{
    std::vector<uint8_t> rgb((size_t)(width * height * 3));
    for (int y = 0; y < height; y++)
        for (int x = from; x < to; x++)
            for (int c = 0; c < 3; c++)
                rgb[(size_t)((y * width + x) * 3 + c)] = 255;
    hd_image image = {};
    image.width = width, image.height = height, image.rgb = rgb.data();
    std::string path = folder.path("mask.png");
    REQUIRE_OK(hd_png_write(path.c_str(), &image, nullptr, 0));
    return path;
}

} // namespace

TEST_CASE("localized_subjects: a begin and two subjects by hand", "[controls][localized]")
{
    check_weights(weights(0, 1), {.155362, .422319, .422319});
    check_weights(weights(0, 0), {.268941, .731059, 0});
    check_weights(weights(.01f, 0), {.266990, .725753, .007258});
    check_weights(weights(0, 0, 0), {1, 0, 0}); // in no region: begin takes it all
    check_weights(weights(1, 0), {.155362, .422319, .422319});
    localized p{};
    p.outside = .01f, p.gain_inside = 4;
    CHECK((double)localized_bias(&p, 1) == Approx(std::log(4.0)));
    CHECK((double)localized_bias(&p, 0) == Approx(std::log(.01)));
    CHECK((double)localized_bias(&p, .5f) == Approx(0.0).margin(1e-6)); // ln .5 + .5 ln 4
}

TEST_CASE("localized_subjects: how long the plain words are read", "[controls][localized]")
{
    CHECK(localized_plain_calls(.7, 50, false) == 15);
    CHECK(localized_plain_calls(.7, 50, true) == 16);
    CHECK(localized_plain_calls(.8, 50, false) == 10);
    CHECK(localized_plain_calls(.8, 50, true) == 10);
    CHECK(localized_plain_calls(.6, 50, true) == 21);
    CHECK(localized_plain_calls(1, 50, false) == 0);
    CHECK(localized_plain_calls(1, 50, true) == 1);
    CHECK(localized_plain_calls(0, 50, false) == 50);
    CHECK(localized_plain_calls(0, 50, true) == 50);
}

TEST_CASE("localized_subjects: places of equal regions share a label", "[controls][localized]")
{
    std::vector<uint8_t> label(6);
    std::vector<float> value(2 * 200);
    const std::vector<float> maps = {0, .3f, 1, 0, .3f, 1, 1, 0, 0, 1, .2f, 0};
    CHECK(localized_label(label.data(), value.data(), 200, maps.data(), 2, 6) == 4);
    CHECK(label == std::vector<uint8_t>{0, 1, 2, 0, 3, 2});
    CHECK((value[2] == .3f && value[3] == 0 && value[6] == .3f && value[7] == .2f));
    // more values than labels: rounded, none by more than half a step
    std::vector<float> ramp(1000);
    for (size_t i = 0; i < ramp.size(); i++)
        ramp[i] = (float)i / 999.0f;
    label.assign(1000, 0);
    int64_t n = localized_label(label.data(), value.data(), 200, ramp.data(), 1, 1000);
    CHECK(n == 128);
    for (size_t i = 0; i < ramp.size(); i++)
        CHECK(std::fabs((double)value[label[i]] - (double)ramp[i]) <= .5 / 127 + 1e-6);
}

TEST_CASE("localized_subjects: the reader of regions by hand", "[controls][localized]")
{
    // S as an attention: the scores are its logarithms
    const float s[] = {.9f, .1f, 0, .1f, .8f, .1f, 0, .2f, .8f};
    std::vector<float> q(9), k = {1, 0, 0, 0, 1, 0, 0, 0, 1}, v(3), out(3), x = {1, .04f, 0}, y(3);
    for (int i = 0; i < 9; i++)
        q[(size_t)i] = s[i] > 0 ? std::log(s[i]) : -90.0f;
    Run run;
    for (int power = 0; power < 4; power++) {
        hd_sdpa a = {};
        a.q = hd_tensor_of(q.data(), HD_F32, hd_shape4(1, 3, 1, 3));
        a.k = hd_tensor_of(k.data(), HD_F32, hd_shape4(1, 3, 1, 3));
        a.v = hd_tensor_of(v.data(), HD_F32, hd_shape4(1, 3, 1, 1));
        a.out = hd_tensor_of(out.data(), HD_F32, hd_shape4(1, 3, 1, 1));
        a.indicator = hd_tensor_of(x.data(), HD_F32, hd_shape3(1, 3, 1));
        a.probed = hd_tensor_of(y.data(), HD_F32, hd_shape4(1, 1, 3, 1));
        a.scale = 1;
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        x = y;
    }
    check_weights(x, {.71176, .27766, .10116});
    // a second map that wins where the first is low; where neither is above by .1: nobody
    std::vector<float> maps = {x[0], x[1], x[2], 0, .25f, 1};
    std::vector<float> near = maps;
    localized_decide(maps.data(), 2, 3, .1f); // normalised 1, .289060, 0 and 0, .25, 1
    CHECK(maps == std::vector<float>{1, 0, 0, 0, 0, 1});
    localized_decide(near.data(), 2, 3, .03f);
    CHECK(near == std::vector<float>{1, 1, 0, 0, 0, 1});
}

TEST_CASE("localized_subjects: what changes no bit", "[controls][localized]")
{
    Context context;
    const std::vector<uint8_t> plain = draw(context, "");
    CHECK(draw(context, halves) != plain);
    CHECK(draw(context, halves + ", \"outside\": 1") == plain);
    CHECK(draw(context, halves + ", \"outside\": 1, \"gain_inside\": 3") != plain);
    CHECK(draw(context, halves + ", \"localize\": \"off\"") == plain);
    CHECK(draw(context, halves + ", \"localize_steps\": [0.5, 0.5]") == plain);
    CHECK(draw(context, "\"subjects\": [{\"words\": \"star\", \"region\": [0, 0, 1, 1]}]") ==
          plain);
    CHECK(draw(context, halves + ", \"branches\": [\"uncond\"]") == plain);
    CHECK(draw(context, halves + ", \"localize_steps\": [0, 0.5]") != draw(context, halves));
}

TEST_CASE("localized_subjects: delayed words", "[controls][localized]")
{
    Context context;
    const std::string subject = "\"subjects\": [{\"words\": \"red star\", \"plain\": \"cat\"}]";
    auto at = [&](const char *alpha, const char *more = "") {
        return draw(context, subject + ", \"alpha\": " + alpha + more);
    };
    const std::vector<uint8_t> text_only = draw(context, "", "a cat and a blue heart"),
                               subjects = draw(context, "");
    CHECK(at("0") == text_only);
    CHECK(at("1") == subjects);
    CHECK(at("0.5") != text_only);
    CHECK(at("0.5") != subjects);
    CHECK(at("1", ", \"compat_inclusive\": true") == at("0.75"));
    // 0.7 of 4 calls: 1.2 are plain, as published those up to number 1
    CHECK(at("0.7") == at("0.75"));
    CHECK(at("0.7", ", \"compat_inclusive\": true") == at("0.5"));
}

TEST_CASE("localized_subjects: a box is a mask, in every batch", "[controls][localized]")
{
    Folder folder;
    Context context;
    const std::string box = "\"subjects\": [{\"words\": \"star\", \"region\": [0.25, 0, 0.75, 1]}]",
                      mask = "\"subjects\": [{\"words\": \"star\", \"region\": \"" +
                             mask_file(folder, 48, 32, 12, 36) + "\"}]";
    CHECK(draw(context, box) == draw(context, mask));
    CHECK(draw(context, box + ", \"outside\": 0, \"mask_eos\": \"same_as_first\"") !=
          draw(context, box + ", \"outside\": 0"));
    auto batch = context.run(run_of(halves, prompt, ", \"batch\": 2"));
    CHECK(pixels(batch.get(), 0) == draw(context, halves));
}

TEST_CASE("localized_subjects: regions read while the picture is drawn", "[controls][localized]")
{
    Context context;
    const std::string words = "\"subjects\": [{\"words\": \"red star\"}, {\"words\": \"blue "
                              "heart\"}], \"localize\": \"probe\", \"localize_steps\": [0, 1], "
                              "\"probe\": {\"step\": 0, \"cross_factor\": 2, \"self_factor\": ",
                      rest = ", \"outside\": 0";
    const std::vector<uint8_t> plain = draw(context, "");
    const std::vector<uint8_t> read = draw(context, words + "1, \"power\": 2}" + rest);
    CHECK(read != plain);
    CHECK(draw(context, words + "1, \"power\": 2}, \"outside\": 1") == plain);
    CHECK(draw(context, words + "1, \"power\": 0}" + rest) != read);
    // a margin nobody reaches leaves every place to nobody
    CHECK(draw(context, words + "1, \"power\": 2, \"margin\": 1}" + rest) != read);
    auto batch = context.run(run_of(words + "1, \"power\": 2}" + rest, prompt, ", \"batch\": 3"));
    CHECK(pixels(batch.get(), 0) == read);
}

TEST_CASE("localized_subjects: a reference's keys are seen in its region", "[controls][localized]")
{
    Context context;
    auto run = [&](const std::string &region, const std::string &outside) {
        return pixels(
            context
                .run(run_of("", prompt,
                            ", \"branches\": {\"reference.0\": {\"prompt\": \"a big green cat\", "
                            "\"seed\": 3}}, \"processors\": [{\"use\": \"self_subject\", "
                            "\"references\": [{\"weight\": 1}], \"delta_t\": 0, "
                            "\"delta_t_uncond\": null, \"guidance_mode\": \"none\"}, {\"use\": "
                            "\"localized_subjects\", \"subjects\": [{\"words\": \"star\", "
                            "\"region\": " +
                                region + ", \"reference\": 0}], \"outside\": " + outside +
                                ", \"localize_steps\": [0, 1], \"sites\": [\"self\"]}]"))
                .get(),
            0);
    };
    const std::vector<uint8_t> everywhere = run("[0, 0, 1, 1]", "0"),
                               left = run("[0, 0, 0.5, 1]", "0");
    CHECK(run("[0, 0, 0.5, 1]", "1") == everywhere);
    CHECK(left != everywhere);
    CHECK(left != draw(context, ""));
}

TEST_CASE("localized_subjects: what cannot work is refused before step 0", "[controls][localized]")
{
    Folder folder;
    Context context;
    const std::string star = "{\"words\": \"star\", \"region\": [0, 0, 0.5, 1]}";
    struct {
        std::string processor, says;
    } cases[] = {
        {"\"outside\": 0", "processors[0]"},
        {"\"subjects\": []", "processors[0].subjects has 0 subjects, must be 1 to 6"},
        {"\"subjects\": [{}]", "processors[0].subjects[0] lacks \"words\""},
        {"\"subjects\": [{\"wrods\": \"star\"}]", "did you mean \"words\"?"},
        {"\"subjects\": [{\"words\": \"star\", \"image\": \"a.png\"}]", "has no \"image\""},
        {"\"subjects\": [{\"words\": \"moon\"}]",
         "processors[0].subjects[0].words \"moon\" is not"},
        {"\"subjects\": [" + star + ", {\"words\": \"heart\"}]", "subjects[1] lacks \"region\""},
        {"\"subjects\": [" + star + ", {\"words\": \"red star\", \"region\": [0, 0, 1, 1]}]",
         "\"red star\" shares a word with \"star\""},
        {"\"subjects\": [{\"words\": \"star\", \"region\": [0.5, 0, 0.5, 1]}]",
         "must be left, top, right, bottom"},
        {"\"subjects\": [{\"words\": \"star\", \"region\": [0, 0, 2, 1]}]", "subjects[0].region"},
        {"\"subjects\": [{\"words\": \"star\", \"region\": \"" + mask_file(folder, 32, 32, 0, 9) +
             "\"}]",
         "subjects[0].region " + folder.path("mask.png") + " is 32 x 32, a mask must be as large"},
        {"\"subjects\": [" + star + "], \"localize\": \"masks\"", "is a box, but"},
        {"\"subjects\": [" + star + "], \"localize\": \"probe\"", "tells two or more apart"},
        {"\"subjects\": [{\"words\": \"star\"}, {\"words\": \"heart\"}], \"localize\": \"probe\"",
         "reads calls 1 to 5"},
        {"\"subjects\": [{\"words\": \"star\"}, {\"words\": \"heart\"}], \"localize\": \"probe\", "
         "\"probe\": {\"cross_factor\": 16, \"power\": 1}",
         "probe.cross_factor is 16"},
        {"\"subjects\": [{\"words\": \"star\"}, {\"words\": \"heart\"}], \"localize\": \"probe\", "
         "\"probe\": {\"powr\": 1}",
         "did you mean \"power\"?"},
        {"\"subjects\": [" + star + "], \"alpha\": 0.5", "processors[0].alpha delays"},
        {"\"subjects\": [" + star + "], \"outside\": 2", "processors[0].outside is 2"},
        {"\"subjects\": [" + star + "], \"localize_steps\": [0.8, 0.2]", "must not go backwards"},
        {"\"subjects\": [" + star + "], \"sites\": [\"** self\"]", "matches no attention site"},
    };
    for (const auto &c : cases) {
        INFO(c.processor);
        ResultPtr result(nullptr, hd_result_free);
        CHECK(context.try_run(run_of(c.processor), result) != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.says) != std::string::npos);
    }
}

TEST_CASE("localized_subjects: two objects, each in its half", "[controls][localized][meaning]")
{
    // how much redder (and less blue) the left half is than the right one, mean of two seeds
    Context context;
    auto redder_left = [&](const std::string &left, const std::string &right) {
        std::string processors =
            left.empty()
                ? ""
                : ", \"processors\": [{\"use\": \"localized_subjects\", \"sites\": [\"cross\"], "
                  "\"outside\": 0, \"gain_inside\": 20, \"localize_steps\": [0, 1], \"subjects\": "
                  "[{\"words\": \"" +
                      left + "\", \"region\": [0, 0, 0.5, 1]}, {\"words\": \"" + right +
                      "\", \"region\": [0.5, 0, 1, 1]}]}]";
        auto result = context.run(
            "{" + starter() +
            ", \"prompt\": \"a red star and a blue heart on a white background\", \"steps\": 8, "
            "\"seed\": 0, \"batch\": 2, \"guidance\": 5, \"sampler\": \"ddim\", \"precision\": "
            "\"f32\"" +
            processors + "}");
        double sum = 0;
        for (int i = 0; i < 2; i++) {
            std::vector<uint8_t> rgb = pixels(result.get(), i);
            for (size_t p = 0; p < 64 * 64; p++)
                sum += ((double)rgb[3 * p] - (double)rgb[3 * p + 2]) * (p % 64 < 32 ? 1 : -1);
        }
        return sum / (2.0 * 32 * 64);
    };
    const double off = redder_left("", ""), on = redder_left("red star", "blue heart"),
                 swapped = redder_left("blue heart", "red star");
    CAPTURE(off, on, swapped);
    // midway: about -5 without, 97 and -88 with regions
    CHECK(on > 46);
    CHECK(swapped < -46);
    CHECK(std::fabs(off) < 46);
}
