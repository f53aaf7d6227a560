// Heat maps and masks: known answers of their parts, sums against explicit maps in f64, geometry,
// and that a picture does not notice.
#include <algorithm>
#include <cstring>

#include "codecs/png.h"
#include "controls/all.h"
#include "controls/attention_masks.h"
#include "engine/attention/beside_run.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/alloc_fail.h"
#include "support/attention.h"

namespace
{

// A prompt of words of so many pieces: begin, pieces, end, padding.
struct Prompt {
    std::string text;
    std::vector<hd_prompt_token> token;
    hd_prompt prompt{};
    Prompt(const std::vector<std::pair<std::string, int>> &words, int64_t columns)
    {
        token.push_back({1, 0, 0, -1});
        for (size_t w = 0; w < words.size(); w++) {
            if (w) text += " ";
            auto start = (int64_t)text.size(), bytes = (int64_t)words[w].first.size();
            text += words[w].first;
            for (int k = 0; k < words[w].second; k++)
                token.push_back({10 + (int64_t)w, start + bytes * k / words[w].second,
                                 start + bytes * (k + 1) / words[w].second, (int64_t)w});
        }
        prompt.used = (int64_t)token.size() + 1;
        while ((int64_t)token.size() < columns)
            token.push_back({2, (int64_t)text.size(), (int64_t)text.size(), -1});
        prompt.text = text.c_str();
        prompt.count = columns;
        prompt.token = token.data();
    }
};

// The processor beside calls made by hand: a latent of h x w, the run's one picture.
struct Masks {
    TestRun run;
    hd_beside_run *beside = nullptr;
    hd_branches branches{};
    hd_features *features = nullptr;
    std::vector<hd_beside_branch> data;
    hd_beside_ctx ctx{};
    int64_t h, w;

    Masks(const std::string &options, const Prompt &prompt, int64_t height, int64_t width)
        : run(&hd_all_controls,
              "{\"processors\": [{\"use\": \"attention_masks\"" + options + "}]}"),
          data(1), h(height), w(width)
    {
        REQUIRE_OK(run.status);
        hd_branches_init(&branches);
        branches.item[0].tokens[1] = prompt.prompt;
        branches.item[0].roles = HD_ROLE_BIT(HD_ROLE_COND) | HD_ROLE_BIT(HD_ROLE_UNCOND);
        for (int role = 0; role < 2; role++)
            branches.item[0].end_step[role] = 10;
        REQUIRE_OK(hd_beside_run_create(&beside, run.run));
        hd_begin_ctx begin = {};
        begin.calls = 10, begin.channels = 4, begin.height = h, begin.width = w;
        begin.branches = &branches;
        REQUIRE_OK(hd_beside_run_begin(beside, &begin));
        REQUIRE_OK(hd_beside_run_room(beside, 1));
        ctx.branches = &branches, ctx.data = data.data();
        ctx.channels = 4, ctx.height = h, ctx.width = w, ctx.values = 4 * h * w;
        ctx.branch = "main";
        ctx.step.count = 10;
    }
    ~Masks()
    {
        hd_features_free(features);
        hd_beside_run_free(beside);
    }
    hd_status start()
    {
        ctx.when = HD_LATENT_START;
        return hd_beside_run_latent(beside, &ctx);
    }
    // What is shown over a white picture of `px` pixels per place.
    std::vector<hd_shown> show(hd_shown_list &list, int64_t px, std::vector<uint8_t> &rgb)
    {
        rgb.assign((size_t)(h * px * w * px * 3), 255);
        list.height = h * px, list.width = w * px, list.latent_height = h, list.latent_width = w;
        list.rgb = rgb.data();
        REQUIRE_OK(hd_beside_run_show(beside, &ctx, &list));
        return {list.item, list.item + list.count};
    }
};

// A cross attention call of a main/uncond and a main/cond row.
struct Cross : TestCall {
    Cross(int64_t h, int64_t w, int64_t columns, int64_t heads, const char *path, int64_t factor,
          uint64_t seed = 3)
        : TestCall(2, h * w, columns, heads, 8, seed)
    {
        call.site = {HD_NETWORK_UNET, HD_SITE_CROSS, "", factor, heads, h * w};
        strcpy(call.site.path, path);
        call.q_layout = hd_layout_grid(1, h, w);
        call.k_layout = hd_layout_text(columns);
    }
    double p(int64_t head, int64_t i, int64_t j) const // of the cond row
    {
        return softmax_f64(
            Lk, [&](int64_t column) { return score_f64(*this, 1, head, i, column); })[(size_t)j];
    }
};

const Prompt fish({{"red", 1}, {"fishes", 2}}, 7); // begin red fi shes end pad pad

} // namespace

TEST_CASE("attention_masks: the words' sums are the explicit map's", "[controls][attention_masks]")
{
    for (const char *options : {"", ", \"per_head\": true"}) {
        CAPTURE(options);
        // all words, the begin token and the rest: their sum is 1 at every place
        Masks m(std::string(", \"pieces\": \"sum\", \"normalize\": \"none\"") + options, fish, 4,
                6);
        Cross a(4, 6, 7, 2, "down.0.attn.0", 1), b(4, 6, 7, 2, "up.0.attn.0", 1, 9);
        REQUIRE_OK(a.dry(m.run));
        REQUIRE_OK(b.dry(m.run));
        a.act(m.run, 0);
        b.act(m.run, 0);
        a.act(m.run, 1); // the same again: the mean over steps stays
        std::vector<float> maps(5 * 24);
        m.ctx.run = m.run.run;
        hd_shown_list list{};
        std::vector<uint8_t> rgb;
        auto shown = m.show(list, 1, rgb);
        REQUIRE(shown.size() == 2);
        CHECK(std::string(shown[1].name) == "fishes");
        double worst = 0, words = 0;
        for (int64_t i = 0; i < 24; i++) {
            double red = 0, fishes = 0;
            for (int64_t h = 0; h < 2; h++) {
                red += (a.p(h, i, 1) + b.p(h, i, 1)) / 4;
                fishes += (a.p(h, i, 2) + a.p(h, i, 3) + b.p(h, i, 2) + b.p(h, i, 3)) / 4;
            }
            worst = std::max({worst, std::fabs((double)shown[0].value[i] - red),
                              std::fabs((double)shown[1].value[i] - fishes)});
            words += std::fabs(red + fishes);
        }
        CHECK(worst < 1e-6);
        CHECK(words > 1); // it was no empty comparison
        hd_shown_free(&list);
    }
}

TEST_CASE("attention_masks: words, begin token and the rest are all there is",
          "[controls][attention_masks]")
{
    Masks m(", \"pieces\": \"sum\"", fish, 4, 4);
    Cross a(4, 4, 7, 2, "down.0.attn.0", 1);
    REQUIRE_OK(a.dry(m.run));
    a.act(m.run);
    // the site's own sums: red, fishes, begin, all words, rest
    hd_shown_list list{};
    std::vector<uint8_t> rgb;
    m.show(list, 1, rgb); // points the context at the processor
    auto *s = static_cast<masks_sums *>(hd_beside_site_state(&m.ctx, 0, "main", HD_ROLE_COND));
    REQUIRE(s);
    CHECK(s->calls == 1);
    CHECK(hd_beside_site_state(&m.ctx, 0, "main", HD_ROLE_UNCOND) != nullptr);
    CHECK(
        static_cast<masks_sums *>(hd_beside_site_state(&m.ctx, 0, "main", HD_ROLE_UNCOND))->calls ==
        0); // only cond rows are read
    for (int64_t i = 0; i < 16; i++) {
        const float *v = masks_sums_values(s) + i * 5;
        CHECK((double)(v[0] + v[1]) / 2 == Approx((double)v[3] / 2).margin(1e-6));
        CHECK((double)(v[2] + v[3] + v[4]) / 2 == Approx(1).margin(1e-5));
    }
    hd_shown_free(&list);
}

TEST_CASE("attention_masks: pieces, competition, scales", "[controls][attention_masks]")
{
    // one place; columns begin .6, word 1 .1, word 2 .2, end .1
    attention_masks p{};
    masks_word words[2] = {{"a", 0, 1}, {"b", 1, 1}};
    p.word = words, p.count = 2, p.background_word = -1, p.channels = 5;
    p.normalize = MASKS_COMPETE;
    const float maps[5] = {.1f, .2f, .6f, .3f, .1f};
    float out[2];
    masks_join_words(&p, maps, 1, out);
    CHECK(out[0] == Approx(.3333).margin(1e-4));
    CHECK(out[1] == Approx(.6667).margin(1e-4));
    CHECK(std::fabs((double)out[0] - 1.0 / 3) < 1e-5);
    // max: a channel for each piece
    masks_word both = {"b", 0, 2};
    p.word = &both, p.count = 1, p.normalize = MASKS_NONE;
    const float pieces[5] = {.1f, .3f, 0, 0, 0};
    masks_join_words(&p, pieces, 1, out);
    CHECK(out[0] == .3f);

    float x[3] = {2, 4, 6}, least, most;
    masks_range(x, 3, &least, &most);
    masks_scale(x, 3, least, most);
    CHECK(x[0] == 0.0f);
    CHECK(x[1] == 0.5f);
    CHECK(x[2] == 1.0f);
    float same[4] = {3, 3, 3, 3};
    masks_scale(same, 4, 3, 3);
    for (float v : same)
        CHECK(v == 0.0f);
}

TEST_CASE("attention_masks: a word of two pieces", "[controls][attention_masks]")
{
    // the scores' logarithms make columns 2 and 3 .1 and .3 of the weight
    const float weight[7] = {.4f, .1f, .1f, .3f, .05f, .03f, .02f};
    for (auto [pieces, wanted] :
         {std::pair{"mean", .2}, std::pair{"sum", .4}, std::pair{"max", .3}}) {
        CAPTURE(pieces);
        Masks m(std::string(", \"words\": [\"fishes\"], \"normalize\": \"none\", \"pieces\": \"") +
                    pieces + "\"",
                fish, 2, 2);
        Cross a(2, 2, 7, 1, "up.0.attn.0", 1);
        for (auto &v : a.q)
            v = 0;
        for (auto &v : a.k)
            v = 0;
        for (int64_t i = 0; i < 8; i++)
            a.q[(size_t)(i * 8)] = 1;
        for (int64_t j = 0; j < 14; j++)
            a.k[(size_t)(j * 8)] = std::log(weight[j % 7]) / a.call.scale;
        REQUIRE_OK(a.dry(m.run));
        a.act(m.run);
        hd_shown_list list{};
        std::vector<uint8_t> rgb;
        auto shown = m.show(list, 1, rgb);
        for (int i = 0; i < 4; i++)
            CHECK(shown[0].value[i] == Approx(wanted).margin(1e-6));
        // constant: no heat, no mask, no NaN
        for (int i = 0; i < 4; i++)
            CHECK(shown[0].mask[i] == 0);
        hd_shown_free(&list);
    }
}

namespace
{
// x = [1, 0, 0] from a cross call, then self attention with these scores.
std::vector<float> spread_by(const std::vector<float> &scores, int power,
                             const std::vector<float> &x)
{
    const Prompt word({{"cat", 1}}, 3);
    Masks m(", \"self_factor\": 1, \"normalize\": \"none\", \"self_power\": " +
                std::to_string(power),
            word, 1, 3);
    Cross cross(1, 3, 3, 1, "down.0.attn.0", 1);
    TestCall self(2, 3, 3, 1, 8);
    self.call.site.factor = 1;
    cross.call.scale = self.call.scale = 1;
    for (auto *c : {static_cast<TestCall *>(&cross), &self}) {
        std::fill(c->q.begin(), c->q.end(), 0.0f);
        std::fill(c->k.begin(), c->k.end(), 0.0f);
    }
    for (size_t b = 0; b < 2; b++)
        for (size_t i = 0; i < 3; i++) {
            cross.q[(b * 3 + i) * 8] = x[i] > 0 ? 200.0f : -200.0f;
            for (size_t d = 0; d < 3; d++)
                self.q[(b * 3 + i) * 8 + d] = scores[i * 3 + d];
            self.k[(b * 3 + i) * 8 + i] = 1;
        }
    for (size_t b = 0; b < 2; b++)
        cross.k[(b * 3 + 1) * 8] = 1; // the word
    REQUIRE_OK(cross.dry(m.run));
    REQUIRE_OK(self.dry(m.run));
    REQUIRE_OK(m.start());
    auto before = self.act(m.run, 0); // nothing has been seen yet
    cross.act(m.run, 0);
    CHECK(self.act(m.run, 0) == before); // the call itself is as ever
    hd_shown_list list{};
    std::vector<uint8_t> rgb;
    auto shown = m.show(list, 1, rgb);
    std::vector<float> out(shown[0].value, shown[0].value + 3);
    hd_shown_free(&list);
    return out;
}
} // namespace

TEST_CASE("attention_masks: maps spread by self attention", "[controls][attention_masks]")
{
    const std::vector<float> scores = {2, 1, 0, 1, 2, 0, 0, 0, 3};
    auto near = [](const std::vector<float> &got, const std::vector<double> &wanted) {
        for (size_t i = 0; i < 3; i++)
            CHECK((double)got[i] == Approx(wanted[i]).margin(1e-5));
    };
    near(spread_by(scores, 1, {1, 0, 0}), {.66524, .24473, .04528});
    near(spread_by(scores, 4, {1, 0, 0}), {.37874, .34747, .13769});
    near(spread_by({300, 0, 0, 0, 300, 0, 0, 0, 300}, 3, {1, 0, 0}), {1, 0, 0}); // S = I
    near(spread_by(scores, 4, {1, 1, 1}), {1, 1, 1});
}

TEST_CASE("attention_masks: classes, thresholds, parts", "[controls][attention_masks]")
{
    auto owner = [](float a, float b, float background) {
        const float value[3] = {a, b, background};
        return masks_class(value, 3, 0.1f);
    };
    CHECK(owner(.8f, .3f, .2f) == 0);
    CHECK(owner(.55f, .5f, .2f) == -1);
    CHECK(owner(.2f, .1f, .31f) == 2);
    CHECK(owner(.2f, .1f, .29f) == -1);

    std::vector<float> halves(100);
    std::fill(halves.begin() + 50, halves.end(), 1.0f);
    const float otsu = masks_threshold(halves.data(), 100, MASKS_OTSU, 0);
    CHECK(otsu > 0.0f);
    CHECK(otsu < 1.0f);
    std::vector<float> ramp(100);
    for (size_t i = 0; i < 100; i++)
        ramp[i] = (float)i / 99;
    for (float share : {0.1f, 0.35f, 1.0f}) {
        const float t = masks_threshold(ramp.data(), 100, MASKS_AREA, share);
        const auto above = std::count_if(ramp.begin(), ramp.end(), [&](float v) { return v > t; });
        CAPTURE(share, t);
        CHECK(above >= 100 * (double)share - 1.01); // the least value is above no threshold
        CHECK(above <= 100 * (double)share + 1e-6);
    }
    // most of the values between .45 and .53 are at .5; above it there is enough
    std::vector<float> mode(100, 0.1f);
    std::fill(mode.begin() + 40, mode.begin() + 70, 0.5f);
    std::fill(mode.begin() + 70, mode.end(), 0.9f);
    CHECK(masks_threshold(mode.data(), 100, MASKS_SEARCH, 0) == Approx(0.5).margin(0.006));
    // hardly anything is above: it goes down, but not below .3
    std::fill(mode.begin(), mode.end(), 0.1f);
    mode[0] = 0.9f;
    const float low = masks_threshold(mode.data(), 100, MASKS_SEARCH, 0);
    CHECK(low >= 0.3f);
    CHECK(low < 0.36f);

    std::vector<uint8_t> mask = {1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1};
    REQUIRE(masks_drop_small(mask.data(), 3, 4, 2)); // the corner at (2, 3) stands alone
    CHECK(mask == std::vector<uint8_t>{1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("attention_masks: other sizes and refinements", "[controls][attention_masks]")
{
    std::vector<float> small(256), large(64 * 64);
    small[5 * 16 + 7] = 1;
    masks_nearest(large.data(), 64, 64, small.data(), 16, 16);
    for (int y = 0; y < 64; y++)
        for (int x = 0; x < 64; x++)
            REQUIRE(large[(size_t)(y * 64 + x)] == (y / 4 == 5 && x / 4 == 7 ? 1.0f : 0.0f));
    masks_bicubic(large.data(), 64, 64, small.data(), 16, 16);
    CHECK(*std::min_element(large.begin(), large.end()) == 0.0f); // overshoot is cut
    CHECK(*std::max_element(large.begin(), large.end()) > 0.7f);
    CHECK(std::max_element(large.begin(), large.end()) - large.begin() >= 20 * 64 + 28);
    std::fill(small.begin(), small.end(), 0.3f);
    masks_bicubic(large.data(), 64, 64, small.data(), 16, 16);
    for (float v : large)
        REQUIRE(v == 0.3f);

    std::vector<float> pooled(256);
    std::fill(small.begin(), small.end(), 0.0f);
    small[0] = 2, small[5 * 16 + 7] = 1;
    masks_pool(pooled.data(), small.data(), 16, 16);
    CHECK(std::count(pooled.begin(), pooled.end(), 2.0f) == 4);
    CHECK(std::count(pooled.begin(), pooled.end(), 1.0f) == 9);

    // a soft ramp over a picture with a hard edge gets the edge
    std::vector<uint8_t> rgb(32 * 32 * 3);
    std::vector<float> map(32 * 32), flat(32 * 32, 0.6f);
    for (int y = 0; y < 32; y++)
        for (int x = 0; x < 32; x++) {
            map[(size_t)(y * 32 + x)] = (float)x / 31;
            for (int c = 0; c < 3; c++)
                rgb[(size_t)(3 * (y * 32 + x) + c)] = x < 16 ? 0 : 255;
        }
    REQUIRE(masks_guided(map.data(), rgb.data(), 32, 32));
    CHECK(map[16 * 32 + 16] - map[16 * 32 + 15] > 0.2f); // a ramp's step is 0.03
    REQUIRE(masks_guided(flat.data(), rgb.data(), 32, 32));
    for (float v : flat)
        REQUIRE(v == Approx(0.6).margin(1e-4));
}

TEST_CASE("attention_masks: the place of a token in a picture of 768 x 512",
          "[controls][attention_masks]")
{
    const Prompt word({{"cat", 1}}, 3);
    Masks m("", word, 64, 96);
    for (int64_t factor : {1, 2, 4, 8}) {
        const int64_t h = 64 / factor, w = 96 / factor;
        const std::string path = "down." + std::to_string(factor) + ".attn.0";
        Cross c(h, w, 3, 1, path.c_str(), factor);
        std::fill(c.q.begin(), c.q.end(), 0.0f);
        std::fill(c.k.begin(), c.k.end(), 0.0f);
        for (int64_t b = 0; b < 2; b++) {
            for (int64_t i = 0; i < h * w; i++)
                c.q[(size_t)((b * h * w + i) * 8)] = i == w - 1 ? 300.0f : -300.0f;
            c.k[(size_t)((b * 3 + 1) * 8)] = 1;
        }
        REQUIRE_OK(c.dry(m.run));
        c.act(m.run);
    }
    REQUIRE_OK(m.start());
    int64_t sites = 0;
    while (const hd_site *site = hd_beside_site(&m.ctx, sites)) {
        CHECK(site->factor < 8);
        sites++;
    }
    CHECK(sites == 3);
    hd_shown_list list{};
    std::vector<uint8_t> rgb;
    auto shown = m.show(list, 8, rgb);
    const float *heat = shown[0].heat;
    const auto at = std::max_element(heat, heat + 512 * 768) - heat;
    CHECK(at / 768 < 32); // inside the corner cell of the coarsest site
    CHECK(at % 768 >= 768 - 32);
    CHECK(heat[0] < 0.01f);
    CHECK(heat[511 * 768 + 767] < 0.01f);
    CHECK(shown[0].mask[at] == 1);
    CHECK(shown[0].mask[0] == 0);
    hd_shown_free(&list);
}

TEST_CASE("attention_masks: two ranges of steps sum to the whole", "[controls][attention_masks]")
{
    auto sums = [&](const char *steps) {
        Masks m(std::string(", \"pieces\": \"sum\", \"steps\": ") + steps, fish, 3, 4);
        std::vector<float> out(12 * 5);
        hd_shown_list list{};
        std::vector<uint8_t> rgb;
        Cross c(3, 4, 7, 2, "down.0.attn.0", 1);
        REQUIRE_OK(c.dry(m.run));
        for (int64_t step = 0; step < 10; step++) {
            c.q = normal_values((int64_t)c.q.size(), (uint64_t)(100 + step));
            c.call.q.data = c.q.data();
            c.act(m.run, step);
        }
        m.show(list, 1, rgb);
        auto *s = static_cast<masks_sums *>(hd_beside_site_state(&m.ctx, 0, "main", HD_ROLE_COND));
        memcpy(out.data(), masks_sums_values(s), out.size() * sizeof(float));
        hd_shown_free(&list);
        return out;
    };
    auto first = sums("[0, 0.4]"), second = sums("[0.4, 1]"), all = sums("[0, 1]");
    for (size_t i = 0; i < all.size(); i++)
        CHECK(first[i] + second[i] == Approx(all[i]).epsilon(1e-5));
    CHECK(first[0] > 0);
}

/* --- in a run --- */

namespace
{

std::string run_of(const std::string &more, const std::string &prompt = "a big red fish at night")
{
    return "{" + starter() +
           ", \"steps\": 3, \"width\": 48, \"height\": 32, \"seed\": 5, \"guidance\": 5, "
           "\"precision\": \"f32\", \"prompt\": \"" +
           prompt + "\"" + more + "}";
}

std::string masks_of(const std::string &options)
{
    return ", \"processors\": [{\"use\": \"attention_masks\"" + options + "}]";
}

} // namespace

TEST_CASE("attention_masks: the picture keeps its bytes", "[pipeline][controls][attention_masks]")
{
    Context context;
    Folder folder;
    auto plain = context.run(run_of(", \"batch\": 2"));
    const std::string files = ", \"batch\": 2, \"maps\": \"" + folder.path("maps.png") + "\"";
    for (const char *options :
         {"", ", \"recipe\": \"p2p\", \"resolutions\": [2]", ", \"recipe\": \"diffumask\"",
          ", \"recipe\": \"attencraft\", \"words\": [\"fish\", \"night\"]",
          ", \"self_power\": 2, \"self_factor\": 1, \"words\": [\"fish\"]",
          ", \"per_head\": true, \"refine\": \"guided\", \"threshold\": \"otsu\"",
          ", \"steps\": [0.5, 1], \"normalize\": \"compete\", \"refine\": \"pool\""}) {
        CAPTURE(options);
        auto probed = context.run(run_of(files + masks_of(options)));
        for (int i = 0; i < 2; i++)
            CHECK(pixels(probed.get(), i) == pixels(plain.get(), i));
    }
    CHECK(folder.names() == std::vector<std::string>{"maps-0.png", "maps-1.png"});
    // beside an edit, a fork and an accelerator
    for (const char *others : {"{\"use\": \"prompt_to_prompt\"}",
                               "{\"use\": \"gna\", \"sites\": [\"up.** self\"], "
                               "\"window\": [1, 3, 3]}",
                               "{\"use\": \"temperature\", \"tau\": 0.7}"}) {
        CAPTURE(others);
        const std::string source =
            ", \"branches\": {\"source\": {\"prompt\": \"a big blue fish at night\"}}";
        auto without =
            context.run(run_of(source + ", \"processors\": [" + std::string(others) + "]"));
        auto with = context.run(run_of(source + ", \"processors\": [" + std::string(others) +
                                       ", {\"use\": \"attention_masks\"}, {\"use\": "
                                       "\"attention_masks\", \"branch\": \"source\"}]"));
        CHECK(pixels(with.get(), 0) == pixels(without.get(), 0));
    }
}

TEST_CASE("attention_masks: grid, masks and values of every word",
          "[pipeline][controls][attention_masks]")
{
    Context context;
    Folder folder;
    const std::string files = ", \"maps\": \"" + folder.path("maps.png") + "\", \"masks\": \"" +
                              folder.path("mask.png") + "\", \"map_values\": \"" +
                              folder.path("values.safetensors") + "\"";
    auto first = context.run(run_of(files + masks_of(", \"words\": [\"fish\", \"red\"]")));
    CHECK(folder.names() == std::vector<std::string>{"maps.png", "mask-fish.png", "mask-red.png",
                                                     "values.safetensors"});
    hd_png png{};
    REQUIRE_OK(hd_png_read(&png, folder.path("mask-fish.png").c_str()));
    CHECK(png.image.width == 48);
    CHECK(png.image.height == 32);
    const auto bytes = hd_image_bytes(&png.image);
    const auto white = std::count(png.image.rgb, png.image.rgb + bytes, 255),
               black = std::count(png.image.rgb, png.image.rgb + bytes, 0);
    CHECK(white > 0);
    CHECK(black > 0);
    CHECK((size_t)(white + black) == bytes);
    hd_png_free(&png);
    // the grid says how it was made, and is three cells of the enlarged picture
    REQUIRE_OK(hd_png_read(&png, folder.path("maps.png").c_str()));
    CHECK(png.image.width > 3 * 192);
    CHECK(hd_png_find_text(&png, "heddle"));
    hd_png_free(&png);
    char *json = nullptr;
    REQUIRE_OK(hd_preset_read(folder.path("maps.png").c_str(), &json));
    CHECK(std::string(json).find(folder.path()) == std::string::npos);
    auto again = context.run(json);
    hd_text_free(json);
    CHECK(pixels(again.get(), 0) == pixels(first.get(), 0));
}

TEST_CASE("attention_masks: what cannot be is refused by its place",
          "[pipeline][controls][attention_masks]")
{
    struct {
        std::string options, message;
    } cases[] = {
        {", \"words\": [\"fsh\"]", "processors[0].words[0] \"fsh\" is not in the prompt"},
        {", \"words\": []", "processors[0].words is empty"},
        {", \"branch\": \"style\"", "processors[0].branch (attention_masks) branch \"style\""},
        {", \"threshold\": 2", "processors[0].threshold is 2"},
        {", \"threshold\": \"magic\"", "processors[0].threshold is \"magic\""},
        {", \"threshold\": {\"share\": 1}", "must be {\"area\": SHARE}"},
        {", \"resolutions\": [16]", "processors[0]"},
        {", \"blocks\": [\"block.3\"]", "processors[0]"},
        {", \"recipe\": \"attencraft\", \"self_factor\": 8", "self_factor"},
        {", \"recipe\": \"attencraft\", \"background\": \"dog\"", "processors[0].background"},
        {", \"self_power\": 5", "processors[0].self_power is 5"},
    };
    Context context;
    for (const auto &c : cases) {
        CAPTURE(c.options);
        ResultPtr none(nullptr, hd_result_free);
        CHECK_FAILS(context.try_run(run_of(masks_of(c.options)), none), HD_ERR_ARGUMENT, c.message);
    }
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(run_of(", \"maps\": \"maps.png\""), none), HD_ERR_ARGUMENT,
                "maps is asked for, but no processor shows any map");
    CHECK_FAILS(context.try_run(run_of(masks_of(""), ""), none), HD_ERR_ARGUMENT, "has no words");
    CHECK_FAILS(context.try_run(run_of(masks_of("") + ", \"maps\": \"maps.jpg\""), none),
                HD_ERR_ARGUMENT, "only PNG is written");
}

TEST_CASE("attention_masks: a run lives through each allocation failing",
          "[pipeline][controls][attention_masks][nomem]")
{
    Folder folder;
    Context context(1);
    const std::string json =
        "{" + starter() +
        ", \"prompt\": \"a fish\", \"width\": 16, \"height\": 16, \"steps\": 1, \"seed\": 1, "
        "\"precision\": \"f32\", \"maps\": \"" +
        folder.path("m.png") + "\", \"masks\": \"" + folder.path("k.png") +
        "\", \"map_values\": \"" + folder.path("v.safetensors") + "\"" +
        masks_of(", \"words\": [\"fish\"], \"refine\": \"guided\", \"min_area\": 0.1, "
                 "\"self_power\": 1") +
        "}";
    context.run(json);
    int64_t n = 0;
    for (bool failed = true; failed && n < 5000;) {
        hd_result *result = nullptr;
        FailAllocation fail(++n);
        hd_status status = hd_context_run(context.context, json.c_str(), "t", nullptr, &result);
        failed = fail.failed();
        CAPTURE(n);
        INFO(hd_message());
        CHECK((status == HD_OK || status == HD_ERR_NOMEM));
        CHECK((result != nullptr) == (status == HD_OK));
        hd_result_free(result);
    }
    CHECK(n > 50);
}

namespace
{

// The places of a picture that look rather like one colour than like the other.
std::vector<bool> like(const std::vector<uint8_t> &rgb, const int *object, const int *background)
{
    std::vector<bool> out(rgb.size() / 3);
    for (size_t i = 0; i < out.size(); i++) {
        int64_t to_object = 0, to_background = 0;
        for (size_t c = 0; c < 3; c++) {
            to_object += (rgb[3 * i + c] - object[c]) * (rgb[3 * i + c] - object[c]);
            to_background += (rgb[3 * i + c] - background[c]) * (rgb[3 * i + c] - background[c]);
        }
        out[i] = to_object < to_background;
    }
    return out;
}

double overlap(const std::string &path, const std::vector<bool> &object)
{
    hd_png png{};
    REQUIRE_OK(hd_png_read(&png, path.c_str()));
    int64_t both = 0, either = 0;
    for (size_t i = 0; i < object.size(); i++) {
        const bool mask = png.image.rgb[3 * i] != 0;
        both += mask && object[i];
        either += mask || object[i];
    }
    hd_png_free(&png);
    return either ? (double)both / (double)either : 0;
}

} // namespace

TEST_CASE("attention_masks: the map of a word lies on its object",
          "[pipeline][controls][attention_masks][meaning]")
{
    struct {
        const char *prompt, *word;
        int object[3], background[3];
    } scenes[] = {
        {"a big black cat on the left on a yellow background", "cat", {20, 20, 40}, {250, 210, 60}},
        {"a big red fish on the right on a white background",
         "fish",
         {220, 30, 40},
         {245, 245, 245}},
        {"a big blue car on the left on a yellow background", "car", {40, 90, 210}, {250, 210, 60}},
        {"a big yellow moon on the right on a blue background",
         "moon",
         {250, 210, 60},
         {40, 90, 210}},
        {"a big green tree on the left on a white background",
         "tree",
         {50, 150, 70},
         {245, 245, 245}},
        {"a big white cloud on the right on a blue background",
         "cloud",
         {245, 245, 245},
         {40, 90, 210}},
        {"a big red heart on the left on a yellow background",
         "heart",
         {220, 30, 40},
         {250, 210, 60}},
        {"a big purple star on the right on a white background",
         "star",
         {130, 60, 170},
         {245, 245, 245}},
    };
    Context context;
    Folder folder;
    double right = 0, wrong = 0;
    for (const auto &s : scenes) {
        auto result = context.run(
            "{" + starter() +
            ", \"batch\": 4, \"seed\": 0, \"steps\": 6, \"guidance\": 5, \"precision\": \"f32\", "
            "\"prompt\": \"" +
            s.prompt + "\", \"masks\": \"" + folder.path("m.png") + "\"" +
            masks_of(std::string(", \"words\": [\"") + s.word + "\", \"background\"]") + "}");
        for (int i = 0; i < 4; i++) {
            auto object = like(pixels(result.get(), i), s.object, s.background);
            const std::string start = folder.path("m-" + std::to_string(i) + "-");
            const double on = overlap(start + s.word + ".png", object),
                         off = overlap(start + "background.png", object);
            UNSCOPED_INFO(s.prompt << " " << i << ": " << on << ", background " << off);
            right += on / 32, wrong += off / 32;
        }
    }
    CAPTURE(right, wrong);
    CHECK(right > 0.4); // 0.79 when written, and 0.02 for a word that is elsewhere
    CHECK(wrong < 0.4);
}
