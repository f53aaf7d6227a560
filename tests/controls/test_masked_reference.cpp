// Masked reference attention (Wei et al., arXiv 2410.13830) and Ref-KV (Cao et al., 2408.08000):
// boxes as masks, known answers, a call against f64, and what it does to pictures.
#include <algorithm>
#include <cstring>

#include "codecs/png.h"
#include "controls/masked_reference.h"
#include "controls/reference_stage.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"

namespace
{

std::string kv(const std::string &more)
{
    return R"({"use": "masked_reference", "image": "x.png")" + more + "}";
}

std::string ref_frame(const std::string &more = "")
{
    return R"({"use": "masked_reference", "mode": "ref_frame")" + more + "}";
}

masked_reference boxes_of(std::vector<masked_box> boxes, int64_t height, int64_t width,
                          int64_t factor)
{
    masked_reference p = {};
    p.box_count = (int64_t)boxes.size();
    std::copy(boxes.begin(), boxes.end(), p.box);
    p.height = height, p.width = width, p.factor = factor;
    p.frame_group = 4;
    return p;
}

float furthest(const std::vector<float> &a, const std::vector<float> &b, size_t first, size_t end)
{
    float worst = 0;
    for (size_t i = first; i < end; i++)
        worst = std::fmax(worst, std::fabs(a[i] - b[i]));
    return worst;
}

} // namespace

TEST_CASE("masked_reference: boxes as masks", "[controls][masked_reference]")
{
    masked_reference p = boxes_of({{0, 32, 16, 96, 80}}, 12, 16, 8);
    std::vector<float> inside(12 * 16);
    REQUIRE_OK(masked_inside(&p, inside.data(), 1, 12, 16));
    for (int64_t y = 0; y < 12; y++)
        for (int64_t x = 0; x < 16; x++)
            CHECK(inside[(size_t)(y * 16 + x)] == (y >= 2 && y <= 9 && x >= 4 && x <= 11 ? 1 : 0));
    CHECK(std::count(inside.begin(), inside.end(), 1.0f) == 64);
    p.mask_resize = MASKED_AREA;
    std::vector<float> area(12 * 16);
    REQUIRE_OK(masked_inside(&p, area.data(), 1, 12, 16));
    CHECK(area == inside); // whole places

    // a box between the places, against every pixel
    p = boxes_of({{0, 13, 5, 50, 41}}, 6, 7, 8);
    std::vector<float> nearest(5 * 6);
    area.resize(5 * 6);
    REQUIRE_OK(masked_inside(&p, nearest.data(), 1, 5, 6));
    p.mask_resize = MASKED_AREA;
    REQUIRE_OK(masked_inside(&p, area.data(), 1, 5, 6));
    auto pixel = [](int64_t y, int64_t x) { return y >= 5 && y < 41 && x >= 13 && x < 50; };
    for (int64_t y = 0; y < 5; y++)
        for (int64_t x = 0; x < 6; x++) {
            double sum = 0; // 48 x 56 pixels, each of 5 x 6 pieces
            for (int64_t i = 0; i < 48 * 56; i++)
                sum += pixel((y * 48 + i / 56) / 5, (x * 56 + i % 56) / 6);
            CHECK(area[(size_t)(y * 6 + x)] == Approx(sum / (48 * 56)).margin(1e-6));
            CHECK(nearest[(size_t)(y * 6 + x)] == (pixel(y * 48 / 5, x * 56 / 6) ? 1 : 0));
        }

    // nine frames, covered in the first three: latent frames 1, 0.5, 0
    const masked_box in = {0, 0, 0, 8, 8}, out = {0, 8, 8, 16, 16};
    p = boxes_of({in, in, in, out, out, out, out, out, out}, 2, 2, 8);
    std::vector<float> frames(3 * 4);
    REQUIRE_OK(masked_inside(&p, frames.data(), 3, 2, 2));
    CHECK((frames[0] == 1 && frames[4] == 0.5f && frames[8] == 0));
    CHECK((frames[3] == 0 && frames[7] == 0.5f && frames[11] == 1));
    p.box_count = 3; // one for each frame of the latent
    p.box[2] = out;
    REQUIRE_OK(masked_inside(&p, frames.data(), 3, 2, 2));
    CHECK((frames[0] == 1 && frames[4] == 1 && frames[8] == 0));

    // key frames
    p = boxes_of({{2, 0, 0, 8, 8}, {6, 8, 4, 16, 12}}, 2, 2, 8);
    p.keyed = true;
    for (int64_t f : {0, 2, 3, 4, 6, 9}) {
        const double share = std::clamp(((double)f - 2) / 4, 0.0, 1.0);
        const masked_box b = masked_box_at(&p, f);
        CAPTURE(f);
        CHECK(b.left == Approx(8 * share));
        CHECK(b.top == Approx(4 * share));
        CHECK(b.right == Approx(8 + 8 * share));
        CHECK(b.bottom == Approx(8 + 4 * share));
    }

    // what is added, inside and outside: Z' 1, attention 2
    CHECK(1 + 2 * masked_weight(0.75f, 1) == 3.0f);
    CHECK(1 + 2 * masked_weight(0.75f, 0) == 2.5f);
}

TEST_CASE("masked_reference: one frame seen by all", "[controls][masked_reference]")
{
    auto answer = [](double weight) {
        TestCall c(2, 2, 2, 1, 2);
        name_rows(c, {"main/cond", "target.1/cond"});
        std::fill(c.q.begin(), c.q.end(), 0.0f);
        c.v = {3, 3, 3, 3, 1, 1, 1, 1};
        Stage s(ref_frame(", \"ref_weight\": " + std::to_string(weight)), 1, 2, {}, {"target.1"});
        std::vector<float> out = act(c, s);
        CHECK(out[0] == 3);
        return (double)out[4];
    };
    CHECK(answer(1) == Approx(2));
    CHECK(answer(0.5) == Approx(1.666667));
    CHECK(answer(0) == Approx(1));

    // random rows; uncond sees uncond
    const int64_t L = 12, H = 2, D = 8, one = L * H * D;
    TestCall c(6, L, L, H, D, 3);
    name_rows(c, {"main/uncond", "main/cond", "target.1/uncond", "target.1/cond", "target.2/uncond",
                  "target.2/cond"});
    c.call.k_layout = c.call.q_layout = hd_layout_grid(1, 3, 4);
    const std::vector<float> without = plain(c);
    std::vector<float> mask(L);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = i % 4 ? 0.25f * (float)i : 0.0f;
    auto error = [&](const std::vector<float> &out, int64_t b, std::vector<int64_t> seen,
                     double weight, bool masked) {
        auto row_of = [&](int64_t j) { return j < L ? b : seen[(size_t)(j / L - 1)]; };
        auto weights = [&](int64_t h, int64_t i) {
            return softmax_f64((1 + (int64_t)seen.size()) * L, [&](int64_t j) {
                double s = 0;
                for (int64_t d = 0; d < D; d++)
                    s += (double)c.q[(size_t)(((b * L + i) * H + h) * D + d)] *
                         (double)c.k[(size_t)(((row_of(j) * L + j % L) * H + h) * D + d)];
                s *= (double)c.call.scale;
                const double w = weight * (masked ? (double)mask[(size_t)(j % L)] : 1.0);
                return j < L ? s : s + std::log(w);
            });
        };
        return error_f64(c, out, b, weights, [&](int64_t j, int64_t h, int64_t d) {
            return (double)c.v[(size_t)(((row_of(j) * L + j % L) * H + h) * D + d)];
        });
    };
    {
        Stage s(ref_frame(), 3, 4, {}, {"target.1", "target.2"});
        std::vector<float> out = act(c, s);
        // frame 0 is left as it is, and that is what the doubled keys would give
        CHECK(furthest(out, without, 0, (size_t)(2 * one)) == 0);
        CHECK(error(out, 0, {0}, 1, false) < 1e-5);
        for (int64_t b = 2; b < 6; b++)
            CHECK(error(out, b, {b % 2}, 1, false) < 1e-5);
    }
    {
        Stage s(ref_frame(R"(, "ref_frames": [2, 0], "ref_weight": 0.4, "ref_mask": "m")"), 3, 4,
                {{"m", mask}}, {"target.1", "target.2"});
        std::vector<float> out = act(c, s);
        for (int64_t b = 0; b < 6; b++)
            CHECK(error(out, b, {4 + b % 2, b % 2}, 0.4, true) < 1e-5);
    }
    // all frames equal: unchanged for any weight
    for (int64_t b = 1; b < 6; b++) {
        std::copy_n(c.k.begin(), one, c.k.begin() + b * one);
        std::copy_n(c.v.begin(), one, c.v.begin() + b * one);
        std::copy_n(c.q.begin(), one, c.q.begin() + b * one);
    }
    const std::vector<float> equal = plain(c);
    for (double weight : {0.0, 0.3, 1.0, 20.0}) {
        Stage s(ref_frame(", \"ref_weight\": " + std::to_string(weight)), 3, 4, {},
                {"target.1", "target.2"});
        CHECK(furthest(act(c, s), equal, 0, (size_t)(6 * one)) < 1e-6f);
    }
}

TEST_CASE("masked_reference: queries inside the boxes see the reference, others less",
          "[controls][masked_reference]")
{
    const int64_t h = 4, w = 6, L = h * w, H = 2, D = 8, one = L * H * D;
    const uint64_t seed = GENERATE(1u, 2u);
    CAPTURE(seed);
    TestCall c(3, L, L, H, D, seed);
    name_rows(c, {"main/cond", "main/noref", "reference.0/cond"});
    c.call.k_layout = c.call.q_layout = hd_layout_grid(1, h, w);
    const std::vector<float> without = plain(c);
    std::vector<float> mask(L);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = i % 5 ? 0.04f * (float)i : 0.0f;
    // pixels: 4 a place; columns 1.5 .. 4, rows 1 .. 3
    const std::string boxes = ", \"mask_resize\": \"area\", \"boxes\": [6, 4, 16, 12]";
    auto inside = [](int64_t i) {
        const int64_t y = i / 6, x = i % 6;
        const double across = x == 1 ? 0.5 : x == 2 || x == 3 ? 1.0 : 0.0;
        return y >= 1 && y < 3 ? across : 0.0;
    };
    for (double lambda : {0.75, 0.25, 0.0}) {
        CAPTURE(lambda);
        Stage s(kv(boxes + R"(, "ref_mask": "m", "ref_weight": 1.5, "lambda_mask": )" +
                   std::to_string(lambda)),
                h, w, {{"m", mask}});
        std::vector<float> out = act(c, s);
        CHECK(furthest(out, without, (size_t)one, (size_t)(3 * one)) == 0);
        auto row_of = [&](int64_t j) { return j < L ? 0 : 2; };
        auto weights = [&](int64_t head, int64_t i) {
            return softmax_f64(2 * L, [&](int64_t j) {
                double sum = 0;
                for (int64_t d = 0; d < D; d++)
                    sum += (double)c.q[(size_t)((i * H + head) * D + d)] *
                           (double)c.k[(size_t)(((row_of(j) * L + j % L) * H + head) * D + d)];
                sum *= (double)c.call.scale;
                const double seen = inside(i) + lambda * (1 - inside(i));
                return j < L ? sum : sum + std::log(1.5 * (double)mask[(size_t)(j % L)] * seen);
            });
        };
        CHECK(error_f64(c, out, 0, weights, [&](int64_t j, int64_t head, int64_t d) {
                  return (double)c.v[(size_t)(((row_of(j) * L + j % L) * H + head) * D + d)];
              }) < 1e-5);
        if (lambda > 0) continue;
        for (int64_t i = 0; i < L; i++) { // outside: the sublayer without a reference
            const auto at = (size_t)(i * H * D), end = (size_t)((i + 1) * H * D);
            CAPTURE(i);
            if (inside(i) > 0)
                CHECK(furthest(out, without, at, end) > 1e-4f);
            else
                CHECK(furthest(out, without, at, end) < 1e-6f);
        }
    }
    auto out_of = [&](const std::string &more) {
        Stage s(kv(more), h, w, {{"m", mask}});
        return act(c, s);
    };
    const std::string all = ", \"boxes\": [0, 0, 24, 16]";
    const std::vector<float> whole = out_of("");
    CHECK(out_of(all) == whole);
    for (const char *lambda : {"0", "0.3", "1"})
        CHECK(out_of(all + ", \"lambda_mask\": " + lambda) == whole);
    CHECK(out_of(boxes + ", \"lambda_mask\": 1") == whole);
    CHECK(out_of(boxes) != whole);
    CHECK(out_of(boxes + ", \"ref_weight\": 0") == without);
}

/* --- whole runs --- */

namespace
{

const char *const quick = ", \"steps\": 4, \"width\": 48, \"height\": 32, \"seed\": 5, "
                          "\"guidance\": 4, \"precision\": \"f32\"";

std::string preset(const std::string &more)
{
    return "{" + starter() + quick + ", \"prompt\": \"a blue moon at night\"" + more + "}";
}

std::string processors(const std::string &one)
{
    return ", \"processors\": [" + one + "]";
}

std::vector<uint8_t> picture_of(const hd_result *result, const std::string &branch)
{
    for (int i = 0; i < hd_result_count(result); i++)
        if (branch == hd_result_picture(result, i)->branch) return pixels(result, i);
    FAIL("no picture of branch " << branch);
    return {};
}

} // namespace

TEST_CASE("masked_reference: runs with a picture, a branch, a series",
          "[pipeline][controls][masked_reference]")
{
    Context context;
    Folder folder;
    const std::string path = folder.path("reference.png");
    context.run("{" + starter() + quick + ", \"prompt\": \"a red fish\", \"output\": \"" + path +
                "\"}");
    const std::string image = ", \"image\": \"" + path + "\"";
    const std::string use = R"({"use": "masked_reference")", box = ", \"boxes\": [0, 0, 24, 32]";
    auto plain_run = context.run(preset(""));
    auto run = [&](const std::string &more) {
        return pixels(context.run(preset(processors(use + image + more + "}"))).get(), 0);
    };
    const std::vector<uint8_t> off = pixels(plain_run.get(), 0), on = run(box);
    CHECK(on != off);
    CHECK(run(box) == on);
    CHECK(run("") != on);
    CHECK(run(box + ", \"lambda_mask\": 0") != on);
    CHECK(run(box + ", \"ref_noise\": \"clean\"") != on);
    CHECK(run(box + ", \"ref_weight\": 0") == off);
    CHECK(run(", \"steps\": [0, 0]") == off);

    // a series: main is frame 0 and stays as it is
    const std::string series = ", \"branches\": {\"target.1\": {\"prompt\": \"a green hill\"}}";
    auto alone = context.run(preset(series));
    auto shared = context.run(preset(series + processors(ref_frame())));
    CHECK(picture_of(shared.get(), "main") == off);
    CHECK(picture_of(shared.get(), "target.1") != picture_of(alone.get(), "target.1"));
    auto none = context.run(preset(series + processors(ref_frame(", \"ref_weight\": 0"))));
    CHECK(picture_of(none.get(), "target.1") == picture_of(alone.get(), "target.1"));
}

TEST_CASE("masked_reference: what cannot work is refused by its place",
          "[pipeline][controls][masked_reference]")
{
    Context context;
    Folder folder;
    const std::string path = folder.path("reference.png"), small = folder.path("small.png");
    for (int i = 0; i < 2; i++) {
        hd_image image = {};
        REQUIRE_OK(hd_image_create(&image, i ? 48 : 16, i ? 32 : 16, "mask"));
        REQUIRE_OK(hd_png_write((i ? path : small).c_str(), &image, nullptr, 0));
        hd_image_free(&image);
    }
    const std::string use = R"({"use": "masked_reference", "image": ")" + path + "\"";
    const std::string at = "processors[0]";
    struct {
        std::string processor, message;
    } cases[] = {
        {R"({"use": "masked_reference"})", "and \"branches\" has no \"reference.0\""},
        {R"({"use": "masked_reference", "mode": "adapter"})",
         at + " (masked_reference) mode \"adapter\" needs an attention with trained weights"},
        {use + ", \"boxes\": [0, 0, 49, 32]}", at + ".boxes is [0, 0, 49, 32], which leaves the "
                                                    "picture of 48 x 32 pixels"},
        {use + ", \"boxes\": [[0, 0, 4, 4], [9, 0, 4, 4]]}",
         at + ".boxes[1] is [9, 0, 4, 4]: left"},
        {use + ", \"boxes\": [[0, 0, 4, 4], [0, 0, 4, 5]]}", "has 2 boxes; this run has 1 frames"},
        {use + ", \"boxes\": []}", at + ".boxes has 0 entries"},
        {use + ", \"boxes\": [{\"frame\": 3, \"bax\": 1}]}", at + ".boxes[0] must be {\"frame\""},
        {use + ", \"lambda_mask\": 1.5}", at + ".lambda_mask is 1.5"},
        {use + ", \"ref_mask\": \"" + small + "\"}",
         at + ".ref_mask " + small + " is 16 x 16, a mask must be as large as the picture"},
        {use + ", \"ref_frames\": [0]}", at + ".ref_frames goes with mode \"ref_frame\" only"},
        {ref_frame(), "is for a series of pictures"},
        {ref_frame(", \"boxes\": [0, 0, 4, 4]"), at + ".boxes goes with mode \"kv\" only"},
        {ref_frame(", \"image\": \"x.png\""), "\"image\" goes with mode \"kv\" only"},
        {use + ", \"sites\": [\"up.** cross\"]}", "matches no attention site"},
    };
    for (const auto &c : cases) {
        INFO(c.processor);
        ResultPtr result(nullptr, hd_result_free);
        hd_status status = context.try_run(preset(processors(c.processor)), result);
        CHECK(status != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
    }
    ResultPtr result(nullptr, hd_result_free);
    const std::string series = ", \"branches\": {\"target.1\": {\"prompt\": \"a green hill\"}}";
    CHECK_FAILS(
        context.try_run(preset(series + processors(ref_frame(", \"ref_frames\": [2]"))), result),
        HD_ERR_ARGUMENT, "processors[0].ref_frames names frame 2, but there is no branch");
}
