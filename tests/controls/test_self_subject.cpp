// Self-subject attention (Hua et al., arXiv 2312.13691): known answers, weights of the reference's
// keys against f64, what the branches are at each step, and what it does to pictures.
#include <algorithm>
#include <cstring>
#include <set>

#include "codecs/png.h"
#include "controls/reference_stage.h"
#include "controls/self_subject.h"
#include "engine/samplers/sampler.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"

namespace
{

std::string subject(const std::string &references, const std::string &more = "")
{
    return R"({"use": "self_subject", "references": )" + references + more + "}";
}

std::string one_reference(double weight, bool mask = true)
{
    return R"([{"image": "x.png", "weight": )" + std::to_string(weight) +
           (mask ? R"(, "mask": "m")" : "") + "}]";
}

// Two own keys and two of the reference, one head of two channels: the numbers of the spec.
double answer(double weight, const std::vector<float> &mask, bool own_as_reference = false)
{
    TestCall c(2, 2, 2, 1, 2);
    name_rows(c, {"main/cond", "reference.0/cond"});
    c.q = {1, 0, 0, 1, 1, 0, 0, 1};
    c.k = {1, 0, 0, 1, 2, 0, 0, 0};
    c.v = {1, 0, 2, 0, 10, 0, 20, 0};
    if (own_as_reference) {
        std::copy_n(c.k.begin(), 4, c.k.begin() + 4);
        std::copy_n(c.v.begin(), 4, c.v.begin() + 4);
    }
    Stage s(subject(one_reference(weight)), 1, 2, {{"m", mask}});
    return (double)act(c, s)[0];
}

bool same_row(const std::vector<float> &a, const std::vector<float> &b, int64_t row, int64_t rows)
{
    size_t n = a.size() / (size_t)rows;
    return memcmp(a.data() + (size_t)row * n, b.data() + (size_t)row * n, n * sizeof(float)) == 0;
}

float furthest(const std::vector<float> &a, const std::vector<float> &b, int64_t row, int64_t rows)
{
    size_t n = a.size() / (size_t)rows;
    float worst = 0;
    for (size_t i = (size_t)row * n; i < (size_t)(row + 1) * n; i++)
        worst = std::fmax(worst, std::fabs(a[i] - b[i]));
    return worst;
}

} // namespace

TEST_CASE("self_subject: known answers", "[controls][self_subject]")
{
    CHECK(answer(0, {1, 0}) == Approx(1.330238).epsilon(1e-6));
    CHECK(answer(0.5, {1, 0}) == Approx(4.836897).epsilon(1e-6));
    CHECK(answer(1, {1, 0}) == Approx(6.323807).epsilon(1e-6));
    CHECK(answer(3, {1, 0}) == Approx(8.291693).epsilon(1e-6));
    CHECK(answer(2, {0.5f, 0.25f}) == Approx(7.218686).epsilon(1e-6));
    CHECK(answer(1, {1, 1}, true) == Approx(1.330238).epsilon(1e-6));
    CHECK(answer(3, {1, 1}, true) == Approx(1.330238).epsilon(1e-6));
    CHECK(answer(3, {1, 0}, true) == Approx(1.109740).epsilon(1e-6));
    CHECK(answer(2, {0.5f, 0.5f}) == answer(1, {1, 1})); // the same weights, bit for bit

    // all scores equal: channel j of the output is the weight of key j
    TestCall c(2, 4, 4, 1, 8);
    name_rows(c, {"main/cond", "reference.0/cond"});
    std::fill(c.q.begin(), c.q.end(), 0.0f);
    std::fill(c.v.begin(), c.v.end(), 0.0f);
    for (size_t j = 0; j < 8; j++)
        c.v[j * 8 + j] = 1;
    Stage s(subject(one_reference(3)), 2, 2, {{"m", {1, 1, 0, 0}}});
    c.call.k_layout = c.call.q_layout = hd_layout_grid(1, 2, 2);
    std::vector<float> out = act(c, s);
    for (size_t j = 0; j < 8; j++)
        CHECK(out[j] == Approx(j < 4 ? 0.1 : j < 6 ? 0.3 : 0.0).epsilon(1e-6));
}

TEST_CASE("self_subject: the two directions of guidance", "[controls][self_subject]")
{
    self_subject p = {};
    p.guidance_reference = 2;
    p.guidance_text = 7.5f;
    p.p_reference = 0.9f;
    float with = 2, without = 1, uncond = 0, guess = 0;
    subject_guide(&p, true, false, &with, &without, nullptr, &guess, 1);
    CHECK(guess == 3);
    subject_guide(&p, false, true, &with, nullptr, &uncond, &guess, 1);
    CHECK(guess == 15);
    subject_guide(&p, true, true, &with, &without, &uncond, &guess, 1);
    CHECK(guess == Approx(4.2));

    bool reference, text;
    int by_text = 0;
    p.guidance_mode = SUBJECT_SCHEDULE;
    for (int64_t step = 0; step < 40; step++) {
        subject_rules(&p, step, &reference, &text);
        CHECK(reference != text);
        CHECK(text == (step % 10 == 9));
    }
    p.guidance_mode = SUBJECT_INTERLEAVE;
    for (int64_t step = 0; step < 1000; step++) {
        subject_rules(&p, step, &reference, &text);
        by_text += text;
        CHECK(reference != text);
    }
    CHECK(std::abs(by_text - 100) < 30); // three standard deviations
    for (subject_guidance mode : {SUBJECT_BLEND, SUBJECT_INTERLEAVE, SUBJECT_SCHEDULE})
        for (float share : {0.0f, 1.0f}) {
            p.guidance_mode = mode;
            p.p_reference = share;
            for (int64_t step = 0; step < 20; step++) {
                subject_rules(&p, step, &reference, &text);
                CHECK(reference == (share == 1.0f));
                CHECK(text == (share == 0.0f));
            }
        }
}

TEST_CASE("self_subject: masks of another size", "[controls][self_subject]")
{
    const std::vector<float> mask = normal_values(6 * 9, 3);
    for (auto size : {std::pair<int64_t, int64_t>{3, 3}, {2, 9}, {4, 5}, {6, 9}, {7, 11}}) {
        auto [h, w] = size;
        CAPTURE(h, w);
        std::vector<float> area((size_t)(h * w)), bilinear = area, nearest = area;
        reference_resize_mask(area.data(), h, w, mask.data(), 6, 9, REFERENCE_AREA);
        reference_resize_mask(bilinear.data(), h, w, mask.data(), 6, 9, REFERENCE_BILINEAR);
        reference_resize_mask(nearest.data(), h, w, mask.data(), 6, 9, REFERENCE_NEAREST);
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                // the mean over h x w pieces of every mask pixel: each lies in one place
                double sum = 0;
                for (int64_t i = 0; i < 6 * 9; i++) // pieces below each other, side by side
                    sum += (double)mask[(size_t)((y * 6 + i / 9) / h * 9 + (x * 9 + i % 9) / w)];
                CHECK(area[(size_t)(y * w + x)] == Approx(sum / 54).margin(1e-5));
                CHECK(nearest[(size_t)(y * w + x)] == mask[(size_t)(y * 6 / h * 9 + x * 9 / w)]);
                double truth = 0;
                for (int64_t j = 0; j < 6; j++)
                    for (int64_t i = 0; i < 9; i++) {
                        double cy = std::clamp(((double)y + .5) * 6 / (double)h - .5, 0.0, 5.0),
                               cx = std::clamp(((double)x + .5) * 9 / (double)w - .5, 0.0, 8.0);
                        truth += std::fmax(0, 1 - std::fabs(cy - (double)j)) *
                                 std::fmax(0, 1 - std::fabs(cx - (double)i)) *
                                 (double)mask[(size_t)(j * 9 + i)];
                    }
                CHECK(bilinear[(size_t)(y * w + x)] == Approx(truth).margin(1e-5));
            }
    }
}

TEST_CASE("self_subject: rows see the references they ought to, weighed, and nothing else",
          "[controls][self_subject]")
{
    const int64_t rows = 6, L = 12, H = 2, D = 8;
    const uint64_t seed = GENERATE(1u, 2u);
    CAPTURE(seed);
    TestCall c(rows, L, L, H, D, seed);
    name_rows(c, {"main/uncond", "main/cond", "main/noref", "reference.0/cond", "reference.1/cond",
                  "reference.2/cond"});
    c.call.k_layout = c.call.q_layout = hd_layout_grid(1, 3, 4);
    std::vector<float> mask(L);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = i % 3 == 0 ? 0.0f : 0.1f * (float)i;
    // reference.2 is reference.0 for the unconditioned row; reference 1 is a branch of its own
    const std::string two = R"([{"image": "x.png", "mask": "m", "weight": 2.5},
                                {"image": "y.png", "weight": 0.5}])";
    const std::vector<float> without = plain(c);
    auto weight = [&](int64_t reference, int64_t i) {
        return reference == 0 ? 2.5 * (double)mask[(size_t)i] : 0.5;
    };
    // both references' keys behind those of row b; as_seen: the row each of them is
    auto truth_error = [&](const std::vector<float> &out, int64_t b, std::vector<int64_t> as_seen,
                           double share_alone) {
        auto key_row = [&](int64_t j) { return j < L ? b : as_seen[(size_t)(j / L - 1)]; };
        auto value = [&](int64_t j, int64_t h, int64_t d) {
            return (double)c.v[(size_t)(((key_row(j) * L + j % L) * H + h) * D + d)];
        };
        auto weights = [&](int64_t h, int64_t i) {
            auto score = [&](int64_t j) {
                double s = 0;
                for (int64_t d = 0; d < D; d++)
                    s += (double)c.q[(size_t)(((b * L + i) * H + h) * D + d)] *
                         (double)c.k[(size_t)(((key_row(j) * L + j % L) * H + h) * D + d)];
                s *= (double)c.call.scale;
                return j < L ? s : s + std::log(weight(j / L - 1, j % L));
            };
            std::vector<double> both = softmax_f64(3 * L, score), alone = softmax_f64(L, score);
            for (size_t j = 0; j < both.size(); j++)
                both[j] = (1 - share_alone) * both[j] + share_alone * (j < L ? alone[j] : 0.0);
            return both;
        };
        return error_f64(c, out, b, weights, value);
    };
    {
        Stage s(subject(two, R"(, "delta_t_uncond": 0, "delta_t": 0)"), 3, 4, {{"m", mask}});
        std::vector<float> out = act(c, s);
        CHECK(truth_error(out, 0, {3, 4}, 0) < 1e-5);
        CHECK(truth_error(out, 1, {3, 4}, 0) < 1e-5);
        for (int64_t b = 2; b < rows; b++)
            CHECK(same_row(out, without, b, rows)); // no columns at all, not columns of weight 0
    }
    {
        Stage s(subject(two, R"(, "delta_t_uncond": null, "style_fidelity": 0.25)"), 3, 4,
                {{"m", mask}});
        std::vector<float> out = act(c, s);
        CHECK(truth_error(out, 0, {3, 4}, 0.25) < 1e-5);
        CHECK(truth_error(out, 1, {3, 4}, 0) < 1e-5);
    }
    for (const char *alone :
         {R"(, "delta_t_uncond": null)", R"(, "delta_t_uncond": null, "style_fidelity": 1)",
          R"(, "delta_t_uncond": null, "style_fidelity": null)"}) {
        Stage s(subject(two, alone), 3, 4, {{"m", mask}});
        std::vector<float> out = act(c, s);
        CHECK(same_row(out, without, 0, rows));
        CHECK(truth_error(out, 1, {3, 4}, 0) < 1e-5);
    }
    {
        // one reference whose opposite is a row of its own
        Stage s(subject(R"([{"image": "x.png", "weight": 0.5}])"), 3, 4);
        std::vector<float> out = act(c, s);
        auto half = [&](int64_t, int64_t) { return 0.5; };
        auto error = [&](int64_t b, int64_t seen) {
            auto key_row = [&](int64_t j) { return j < L ? b : seen; };
            return error_f64(
                c, out, b,
                [&](int64_t h, int64_t i) {
                    return softmax_f64(2 * L, [&](int64_t j) {
                        double sum = 0;
                        for (int64_t d = 0; d < D; d++)
                            sum +=
                                (double)c.q[(size_t)(((b * L + i) * H + h) * D + d)] *
                                (double)c.k[(size_t)(((key_row(j) * L + j % L) * H + h) * D + d)];
                        sum *= (double)c.call.scale;
                        return j < L ? sum : sum + std::log(half(0, j));
                    });
                },
                [&](int64_t j, int64_t h, int64_t d) {
                    return (double)c.v[(size_t)(((key_row(j) * L + j % L) * H + h) * D + d)];
                });
        };
        CHECK(error(1, 3) < 1e-5);
        CHECK(error(0, 4) < 1e-5); // reference.1: at t + delta_t_uncond
        CHECK(error(0, 3) > 1e-2);
    }
}

TEST_CASE("self_subject: what changes no output", "[controls][self_subject]")
{
    const int64_t rows = 3, L = 20, H = 2, D = 8;
    const std::vector<std::string> names = {"main/cond", "main/noref", "reference.0/cond"};
    TestCall c(rows, L, L, H, D, 7);
    name_rows(c, names);
    c.call.k_layout = c.call.q_layout = hd_layout_grid(1, 4, 5);
    const std::vector<float> without = plain(c);
    const std::vector<float> empty(L), full(L, 1.0f);
    {
        Stage no_weight(subject(one_reference(0, false)), 4, 5);
        CHECK(act(c, no_weight) == without);
        Stage no_mask(subject(one_reference(3)), 4, 5, {{"m", empty}});
        CHECK(act(c, no_mask) == without);
    }
    std::vector<float> mask = full;
    mask[3] = mask[11] = 0.0f, mask[4] = 0.3f;
    Stage s(subject(one_reference(3)), 4, 5, {{"m", mask}});
    const std::vector<float> seen = act(c, s);
    CHECK(furthest(seen, without, 0, rows) > 1e-2f);

    // the reference's tokens in another order, and their mask with them
    TestCall turned(rows, L, L, H, D, 7);
    name_rows(turned, names);
    turned.call.k_layout = turned.call.q_layout = hd_layout_grid(1, 4, 5);
    std::vector<float> turned_mask(L);
    for (int64_t i = 0; i < L; i++) {
        const int64_t from = (i * 7 + 3) % L;
        turned_mask[(size_t)i] = mask[(size_t)from];
        std::copy_n(c.k.begin() + (2 * L + from) * H * D, H * D,
                    turned.k.begin() + (2 * L + i) * H * D);
        std::copy_n(c.v.begin() + (2 * L + from) * H * D, H * D,
                    turned.v.begin() + (2 * L + i) * H * D);
    }
    Stage same(subject(one_reference(3)), 4, 5, {{"m", turned_mask}});
    CHECK(furthest(act(turned, same), seen, 0, rows) < 1e-6f);

    // a reference that is the picture itself
    std::copy_n(c.k.begin(), L * H * D, c.k.begin() + 2 * L * H * D);
    std::copy_n(c.v.begin(), L * H * D, c.v.begin() + 2 * L * H * D);
    for (double weight : {0.01, 1.0, 3.0, 50.0}) {
        Stage twice(subject(one_reference(weight)), 4, 5, {{"m", full}});
        CHECK(furthest(act(c, twice), without, 0, rows) < 1e-6f);
        Stage part(subject(one_reference(weight)), 4, 5, {{"m", mask}});
        if (weight >= 1.0) CHECK(furthest(act(c, part), without, 0, rows) > 1e-3f);
    }
    // sites it has nothing to do with
    const std::vector<float> equal = plain(c);
    for (hd_site_kind kind : {HD_SITE_CROSS, HD_SITE_TEMPORAL}) {
        c.call.site.kind = kind;
        Stage other(subject(one_reference(3, false)), 4, 5);
        CHECK(act(c, other) == equal);
        CHECK_FAILS(hd_attention_run_finish(other.run.run), HD_ERR_ARGUMENT,
                    "processors[0] (self_subject) matches no attention site");
    }
}

/* --- whole runs --- */

namespace
{

const char *const quick = ", \"prompt\": \"a blue moon at night\", \"steps\": 4, \"width\": 48, "
                          "\"height\": 32, \"seed\": 5, \"guidance\": 4, \"precision\": \"f32\"";

std::string preset(const std::string &more)
{
    return "{" + starter() + quick + more + "}";
}

std::string image_of(Context &context, const Folder &folder)
{
    std::string path = folder.path("reference.png");
    context.run("{" + starter() +
                ", \"prompt\": \"a red fish on a yellow background\", \"steps\": 4, \"width\": "
                "48, \"height\": 32, \"seed\": 3, \"precision\": \"f32\", \"output\": \"" +
                path + "\"}");
    return path;
}

std::string processors(const std::string &one)
{
    return ", \"processors\": [" + one + "]";
}

// What a processor that looks on was shown, by step.
struct Look {
    std::vector<std::set<std::string>> rows;                    // in the network
    std::vector<std::vector<float>> minus, plus, clean;         // latents before the call
    std::vector<float> minus_timestep, plus_timestep, timestep; // of their rows, of the run
    std::vector<hd_noise_level> minus_level, plus_level, level;
    std::vector<float> cond, noref; // predictions at step 0
} look;

hd_status look_latent(const hd_beside_ctx *ctx)
{
    if (ctx->when != HD_LATENT_BEFORE_CALL || ctx->picture > 0) return HD_OK;
    const hd_beside_branch *minus = hd_beside(ctx, "reference.0"),
                           *plus = hd_beside(ctx, "reference.1");
    if (!minus || !plus) return HD_OK;
    auto copy = [&](const float *from) { return std::vector<float>(from, from + ctx->values); };
    look.minus.push_back(copy(minus->latent));
    look.plus.push_back(copy(plus->latent));
    look.clean.push_back(copy(minus->clean));
    look.minus_timestep.push_back(minus->timestep);
    look.plus_timestep.push_back(plus->timestep);
    hd_noise_level now = hd_sampler_level(ctx->sampler, ctx->step.index), level;
    look.level.push_back(now);
    REQUIRE_OK(hd_sampler_level_at(ctx->sampler, (double)now.timestep - 20, &level));
    look.minus_level.push_back(level);
    REQUIRE_OK(hd_sampler_level_at(ctx->sampler, (double)now.timestep + 30, &level));
    look.plus_level.push_back(level);
    return HD_OK;
}

hd_status look_guidance(const hd_beside_ctx *ctx)
{
    const hd_beside_branch *b = hd_beside(ctx, "main");
    if (ctx->step.index > 0 || strcmp(ctx->branch, "main") != 0) return HD_OK;
    auto copy = [&](const float *from) {
        return from ? std::vector<float>(from, from + ctx->values) : std::vector<float>();
    };
    look.cond = copy(b->prediction[HD_ROLE_COND]);
    look.noref = copy(b->prediction[HD_ROLE_NOREF]);
    return HD_OK;
}

hd_status look_output(const hd_hook_ctx *ctx, hd_attention_output *)
{
    const hd_forward *f = ctx->call->forward;
    look.rows.resize(std::max(look.rows.size(), (size_t)f->step.index + 1));
    for (int64_t b = 0; b < f->rows.count; b++)
        look.rows[(size_t)f->step.index].insert(std::string(f->rows.row[b].branch) + "/" +
                                                f->rows.row[b].role);
    return HD_OK;
}

const hd_param no_params[] = {HD_PARAM_END};
const hd_processor_class looker = [] {
    hd_processor_class c = {};
    c.name = "looker";
    c.params = no_params;
    c.latent = look_latent;
    c.guidance = look_guidance;
    c.output = look_output;
    return c;
}();

std::string looking(const std::string &one)
{
    return processors(one + R"(, {"use": "looker", "sites": ["up.** self factor==1"]})");
}

} // namespace

TEST_CASE("self_subject: the reference is its picture at the step's noise, less and more",
          "[pipeline][controls][self_subject]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &looker));
    const std::string image = image_of(context, folder);
    const bool fresh = GENERATE(false, true);
    for (const char *sampler : {"ddim", "euler"}) {
        CAPTURE(sampler, fresh);
        look = {};
        context.run(preset(", \"sampler\": \"" + std::string(sampler) + "\"" +
                           looking(subject("[{\"image\": \"" + image + "\"}]",
                                           ", \"delta_t\": 20, \"delta_t_uncond\": 30, "
                                           "\"ref_noise\": \"" +
                                               std::string(fresh ? "fresh" : "fixed") + "\""))));
        REQUIRE(look.minus.size() == 4);
        std::vector<double> first;
        for (size_t step = 0; step < 4; step++) {
            CAPTURE(step);
            const hd_noise_level m = look.minus_level[step], p = look.plus_level[step];
            CHECK(look.minus_timestep[step] == m.timestep);
            CHECK(look.plus_timestep[step] == p.timestep);
            double worst = 0, mean = 0, square = 0, moved = 0;
            const auto n = look.clean[step].size();
            for (size_t i = 0; i < n; i++) {
                // what the network is shown is this over the divisor of the call
                double now = (double)look.level[step].divisor, x = (double)look.clean[step][i];
                double a = (double)look.minus[step][i] / now * (double)m.divisor,
                       b = (double)look.plus[step][i] / now * (double)p.divisor;
                double noise = (a - (double)m.alpha * x) / (double)m.sigma;
                worst = std::fmax(worst,
                                  std::fabs((b - (double)p.alpha * x) / (double)p.sigma - noise));
                mean += noise, square += noise * noise;
                if (step == 0)
                    first.push_back(noise);
                else
                    moved = std::fmax(moved, std::fabs(noise - first[i]));
            }
            CHECK(worst < 1e-4); // one noise for both
            CHECK(std::fabs(mean / (double)n) < 4 / std::sqrt((double)n));
            CHECK(std::fabs(square / (double)n - 1) < 4 * std::sqrt(2.0 / (double)n));
            if (step > 0) CHECK((moved > 1) == fresh);
            if (step > 0 && !fresh) CHECK(moved < 1e-4);
        }
    }
}

TEST_CASE("self_subject: only the rows that a step needs are computed",
          "[pipeline][controls][self_subject]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &looker));
    const std::string refs = "[{\"image\": \"" + image_of(context, folder) + "\"}]";
    using Set = std::set<std::string>;
    const Set reference = {"main/cond", "main/noref", "reference.0/cond"},
              text = {"main/cond", "main/uncond", "reference.0/cond", "reference.1/cond"};
    Set both = text;
    both.insert("main/noref");
    auto rows_of = [&](const std::string &more) {
        look = {};
        context.run(preset(looking(subject(refs, more))));
        REQUIRE(look.rows.size() == 4);
        return look.rows;
    };
    for (const Set &s : rows_of(""))
        CHECK(s == both);
    auto turns = rows_of(R"(, "guidance_mode": "schedule", "p_reference": 0.5)");
    for (size_t step = 0; step < 4; step++)
        CHECK(turns[step] == (step % 2 ? text : reference));
    int by_text = 0;
    for (const Set &s : rows_of(R"(, "guidance_mode": "interleave", "p_reference": 0.5)")) {
        CHECK((s == text || s == reference));
        by_text += s == text;
    }
    CHECK((by_text > 0 && by_text < 4));
    CHECK(rows_of(R"(, "guidance_reference": 1)")[0] == text);
    CHECK(rows_of(R"(, "p_reference": 1)")[0] == reference);
    CHECK(rows_of(R"(, "p_reference": 0)")[0] == text);
    CHECK(rows_of(R"(, "guidance_mode": "none")")[0] == text);
    CHECK(rows_of(R"(, "guidance_mode": "none", "delta_t": 0, "delta_t_uncond": 0)")[0] ==
          Set{"main/cond", "main/uncond", "reference.0/cond"});
    // outside of its steps the run is as ever
    auto late = rows_of(R"(, "steps": [0.5, 1])");
    CHECK(late[0] == Set{"main/cond", "main/uncond"});
    CHECK(late[2] == both);
}

TEST_CASE("self_subject: a row without reference is the plain run's, byte for byte",
          "[pipeline][controls][self_subject]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &looker));
    const std::string image = image_of(context, folder);
    look = {};
    auto off = context.run(preset(looking(R"({"use": "temperature"})")));
    const std::vector<float> cond = look.cond;
    look = {};
    auto on = context.run(preset(looking(subject("[{\"image\": \"" + image + "\"}]"))));
    CHECK(look.noref == cond);
    CHECK(look.cond != cond);
    CHECK(pixels(on.get(), 0) != pixels(off.get(), 0));

    const std::string none = ", \"guidance_mode\": \"none\"";
    auto weightless = context.run(
        preset(processors(subject("[{\"image\": \"" + image + "\", \"weight\": 0}]", none))));
    CHECK(pixels(weightless.get(), 0) == pixels(off.get(), 0));
    auto again = context.run(preset(looking(subject("[{\"image\": \"" + image + "\"}]"))));
    CHECK(pixels(on.get(), 0) == pixels(again.get(), 0));
    // a picture of a batch is the picture of a run of its own
    auto many = context.run(
        preset(", \"batch\": 2" + processors(subject("[{\"image\": \"" + image + "\"}]"))));
    CHECK(pixels(many.get(), 0) == pixels(on.get(), 0));
    // a branch of the preset instead of a picture
    auto beside = context.run(
        preset(", \"branches\": {\"reference.0\": {\"prompt\": \"a green hill\", \"seed\": 8}}" +
               processors(subject("[{}]", ", \"delta_t\": 0, \"delta_t_uncond\": 0" + none))));
    CHECK(hd_result_count(beside.get()) == 1);
    CHECK(pixels(beside.get(), 0) != pixels(off.get(), 0));
}

namespace
{

// The keys and values of main/cond behind its own, or its own where nothing is appended, by site;
// and the reference's latent, which a plain run can be made to begin with.
struct Keys {
    bool plant = false;
    int64_t skip = 0; // own keys are not looked at
    std::map<std::string, std::vector<float>> seen;
    std::vector<float> latent;
    float timestep = 0;
} keys;

hd_status keys_latent(const hd_beside_ctx *ctx)
{
    if (ctx->when != HD_LATENT_BEFORE_CALL || ctx->step.index > 0) return HD_OK;
    hd_beside_branch *main_branch = hd_beside(ctx, "main"), *r = hd_beside(ctx, "reference.0");
    if (keys.plant) {
        REQUIRE((size_t)main_branch->values == keys.latent.size());
        std::copy(keys.latent.begin(), keys.latent.end(), main_branch->latent);
        main_branch->timestep = keys.timestep;
    } else if (r) {
        CHECK(r->values == 4 * r->height * r->width);
        keys.latent.assign(r->latent, r->latent + r->values);
        keys.timestep = r->timestep;
    }
    return HD_OK;
}

hd_status keys_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const hd_attention_call *c = ctx->call;
    if (c->forward->step.index > 0) return HD_OK;
    const int64_t row = hd_rows_find(&c->forward->rows, "main", "cond", 0);
    const int64_t own = keys.plant ? 0 : c->q.dim[1];
    std::vector<float> &to = keys.seen[c->site.path];
    for (hd_tensor t : {tokens->k, tokens->v})
        for (int64_t i = own; i < tokens->key_len[row]; i++)
            for (int64_t h = 0; h < t.dim[2]; h++) {
                const float *from =
                    (const float *)t.data + row * t.stride[0] + i * t.stride[1] + h * t.stride[2];
                to.insert(to.end(), from, from + t.dim[3]);
            }
    return HD_OK;
}

const hd_processor_class keys_looker = [] {
    hd_processor_class c = {};
    c.name = "keys_looker";
    c.params = no_params;
    c.latent = keys_latent;
    c.tokens = keys_tokens;
    return c;
}();

} // namespace

TEST_CASE("self_subject: a reference of another size hands over the keys of a run of that size",
          "[pipeline][controls][self_subject]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &keys_looker));
    const std::string image = folder.path("tall.png"), mask = folder.path("mask.png");
    auto tall = [&](const std::string &more) {
        return context.run("{" + starter() +
                           ", \"prompt\": \"a red fish\", \"steps\": 2, \"width\": 40, "
                           "\"height\": 56, \"seed\": 3, \"precision\": \"f32\", \"guidance\": 1, "
                           "\"sampler\": \"ddim\"" +
                           more + "}");
    };
    tall(", \"output\": \"" + image + "\"");
    auto two_steps = [](const std::string &more) {
        std::string text = preset(more);
        return text.replace(text.find("\"steps\": 4"), 10, "\"steps\": 2");
    };
    const std::string look = R"(, {"use": "keys_looker", "sites": ["** self"]})";
    auto run = [&](const std::string &reference, const std::string &more = "") {
        return context.run(
            two_steps(", \"sampler\": \"ddim\"" + more +
                      processors(subject("[{\"image\": \"" + image +
                                             "\", \"caption\": \"a red fish\"" + reference + "}]",
                                         "") +
                                 look)));
    };
    auto off = context.run(two_steps(", \"sampler\": \"ddim\""));
    keys = {};
    auto on = run(", \"keep_size\": true");
    REQUIRE(keys.latent.size() == 4 * 14 * 10);
    const auto appended = keys.seen;
    keys.seen.clear();
    keys.plant = true;
    tall(R"(, "processors": [{"use": "keys_looker", "sites": ["** self"]}])");
    REQUIRE(keys.seen.size() > 3);
    CHECK(keys.seen == appended);
    keys = {};
    CHECK(pixels(on.get(), 0) != pixels(off.get(), 0));
    CHECK(pixels(run("").get(), 0) != pixels(on.get(), 0)); // fitted to 48 x 32
    auto many = run(", \"keep_size\": true", ", \"batch\": 2");
    CHECK(pixels(many.get(), 0) == pixels(on.get(), 0));
    // the size in the preset, of the opposite too; one that is the run's is no size of its own
    auto sized = run("", R"(, "branches": {"reference.0": {"width": 40, "height": 56}})");
    CHECK(pixels(sized.get(), 0) == pixels(on.get(), 0));
    auto equal = run("", R"(, "branches": {"reference.0": {"width": 48, "height": 32}})");
    CHECK(pixels(equal.get(), 0) == pixels(run("").get(), 0));

    // its mask has its size
    for (int i = 0; i < 2; i++) {
        hd_image white = {};
        REQUIRE_OK(hd_image_create(&white, i ? 48 : 40, i ? 32 : 56, "mask"));
        memset(white.rgb, 255, (size_t)(white.width * white.height * 3));
        REQUIRE_OK(hd_png_write(mask.c_str(), &white, nullptr, 0));
        hd_image_free(&white);
        const std::string with = ", \"keep_size\": true, \"mask\": \"" + mask + "\"";
        if (i == 0) {
            CHECK(pixels(run(with).get(), 0) == pixels(on.get(), 0));
            continue;
        }
        ResultPtr result(nullptr, hd_result_free);
        CHECK_FAILS(context.try_run(
                        preset(processors(subject("[{\"image\": \"" + image + "\"" + with + "}]"))),
                        result),
                    HD_ERR_ARGUMENT, "processors[0].references[0].mask");
        CHECK(std::string(hd_message()).find("40 x 56") != std::string::npos);
    }
    // who shares the run's grid cannot have another
    for (const char *branch : {R"("source": {"keep_size": true, "init_image": "PNG"})",
                               R"("source": {"width": 40, "init_image": "PNG", "inversion": {}})",
                               R"("source": {"width": 40})"}) {
        std::string text = branch;
        if (text.find("PNG") != std::string::npos) text.replace(text.find("PNG"), 3, image);
        INFO(text);
        ResultPtr result(nullptr, hd_result_free);
        CHECK_FAILS(context.try_run(preset(", \"branches\": {" + text + "}"), result),
                    HD_ERR_ARGUMENT, "cannot have a size of its own");
        CHECK(std::string(hd_message()).find("branches.source.") != std::string::npos);
    }
}

TEST_CASE("self_subject: what cannot work is refused by its place",
          "[pipeline][controls][self_subject]")
{
    Context context;
    Folder folder;
    const std::string image = image_of(context, folder);
    hd_image black = {};
    REQUIRE_OK(hd_image_create(&black, 16, 16, "mask"));
    const std::string small = folder.path("small.png");
    REQUIRE_OK(hd_png_write(small.c_str(), &black, nullptr, 0));
    hd_image_free(&black);
    const std::string good = "\"image\": \"" + image + "\"", path = "processors[0].references";
    struct {
        std::string processor, message;
    } cases[] = {
        {R"({"use": "self_subject"})", "references"},
        {subject("[]"), path + " has 0 references, must be 1 to 4"},
        {subject("[{}]"), path + "[0] has no \"image\", and \"branches\" has no \"reference.0\""},
        {subject("[{\"imag\": \"x\"}]"), path + "[0] has no \"imag\"; did you mean \"image\"?"},
        {subject("[{" + good + ", \"weight\": -1}]"), path + "[0].weight is -1"},
        {subject("[{" + good + ", \"caption\": \"\"}]"), path + "[0].caption is empty"},
        {subject("[{" + good + ", \"mask\": \"" + small + "\"}]"),
         path + "[0].mask " + small +
             " is 16 x 16, a mask must be as large as the picture: 48 x "
             "32"},
        {subject("[{\"image\": \"/nowhere.png\"}]"), "/nowhere.png"},
        {subject("[{" + good + "}]", ", \"style_fidelity\": 0.5"),
         "processors[0].style_fidelity goes with \"delta_t_uncond\": null"},
        {subject("[{" + good + "}]", ", \"delta_t_uncond\": -1"),
         "processors[0].delta_t_uncond is -1"},
        {subject("[{" + good + "}]", ", \"p_reference\": 1.5"), "processors[0].p_reference is 1.5"},
        {subject("[{" + good + "}]", ", \"sites\": [\"up.** cross\"]"),
         "processors[0] (self_subject) matches no attention site"},
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
    CHECK_FAILS(context.try_run(preset(", \"branches\": {\"reference.0\": {\"prompt\": \"x\"}}" +
                                       processors(subject("[{}]"))),
                                result),
                HD_ERR_ARGUMENT, "\"delta_t\" and \"delta_t_uncond\" must be 0");
}

namespace
{

// Distance between the mean colours of two pictures' borders: their backgrounds.
double background_distance(const std::vector<uint8_t> &a, const std::vector<uint8_t> &b)
{
    double sum[3] = {0, 0, 0};
    int count = 0;
    for (size_t y = 0; y < 64; y++)
        for (size_t x = 0; x < 64; x++) {
            if (y >= 6 && y < 58 && x >= 6 && x < 58) continue;
            count++;
            for (size_t i = 0; i < 3; i++)
                sum[i] += (double)a[(y * 64 + x) * 3 + i] - (double)b[(y * 64 + x) * 3 + i];
        }
    return std::sqrt(sum[0] * sum[0] + sum[1] * sum[1] + sum[2] * sum[2]) / count;
}

} // namespace

TEST_CASE("self_subject: brings the reference's colours", "[pipeline][controls][self_subject]")
{
    // measured: 172 and 137 without, 7 and 14 with
    const double midway = 83;
    Context context;
    Folder folder;
    int seed = 11;
    for (const char *colour : {"yellow", "green"}) {
        const std::string caption = std::string("a big red fish on a ") + colour + " background";
        auto draw = [&](const std::string &prompt, int with_seed, const std::string &more) {
            return pixels(context
                              .run("{" + starter() +
                                   ", \"steps\": 10, \"guidance\": 5, \"precision\": \"f32\", "
                                   "\"prompt\": \"" +
                                   prompt + "\", \"seed\": " + std::to_string(with_seed) + more +
                                   "}")
                              .get(),
                          0);
        };
        const std::string image = folder.path(std::string(colour) + ".png");
        std::vector<uint8_t> reference = draw(caption, 3, ", \"output\": \"" + image + "\"");
        std::vector<uint8_t> off = draw("a fish", seed, "");
        std::vector<uint8_t> on = draw(
            "a fish", seed,
            processors(subject("[{\"image\": \"" + image + "\", \"caption\": \"" + caption + "\"}]",
                               ", \"guidance_text\": 5")));
        double d_off = background_distance(off, reference),
               d_on = background_distance(on, reference);
        CAPTURE(colour, seed, d_off, d_on);
        CHECK(d_off > midway);
        CHECK(d_on < midway);
        seed++;
    }
}
