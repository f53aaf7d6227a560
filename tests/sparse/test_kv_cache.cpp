// The key/value cache of videos made block by block: one attention layer, frame by frame, against
// f64 attention over the frames that a block may see.
#include <cmath>
#include <cstring>

#include "sparse/all.h"
#include "sparse/kv_cache.h"
#include "support/attention.h"

namespace
{

const hd_processor_class *const classes[] = {&hd_kv_cache};
const hd_processor_list list = {1, classes};

std::string use(const std::string &fields)
{
    return "{\"processors\": [{\"use\": \"kv_cache\"" + fields + "}]}";
}

/* A layer that is called with one block of `m` frames of `S` tokens after the other. Queries, keys
 * and values of all frames are here. */
struct Video {
    int64_t m, S, frames, H = 2, D = 8;
    std::vector<float> q, k, v;
    TestCall call;

    Video(int64_t block, int64_t tokens, int64_t all, uint64_t seed = 1)
        : m(block), S(tokens), frames(all), q(normal_values(all * S * H * D, 3 * seed)),
          k(normal_values(all * S * H * D, 3 * seed + 1)),
          v(normal_values(all * S * H * D, 3 * seed + 2)), call(1, m * S, m * S, H, D)
    {
        call.call.q_layout = call.call.k_layout = hd_layout_grid(m, 1, S);
        call.forward.step.frames = frames;
    }

    std::vector<float> part(const std::vector<float> &t, int64_t frame, int64_t count) const
    {
        const int64_t width = S * H * D;
        return std::vector<float>(t.begin() + frame * width, t.begin() + (frame + count) * width);
    }

    hd_status try_block(TestRun &run, int64_t frame)
    {
        for (auto [to, from] :
             {std::pair{&call.q, &q}, std::pair{&call.k, &k}, std::pair{&call.v, &v}}) {
            auto values = part(*from, frame, m);
            std::copy(values.begin(), values.end(), to->begin());
        }
        call.forward.step.frame = frame;
        return call.try_act(run, 0, 1, HD_CPU);
    }
    std::vector<float> block(TestRun &run, int64_t frame)
    {
        REQUIRE_OK(try_block(run, frame));
        return call.out;
    }

    // The largest difference of a block's output to attention over these frames' keys.
    double error(const std::vector<float> &out, int64_t frame, const std::vector<int64_t> &seen,
                 const std::vector<float> *keys = nullptr,
                 const std::vector<float> *queries = nullptr) const
    {
        double worst = 0;
        const std::vector<float> &kk = keys ? *keys : k, &qq = queries ? *queries : q;
        for (int64_t i = 0; i < m * S; i++)
            for (int64_t h = 0; h < H; h++) {
                auto at = [&](const std::vector<float> &t, int64_t token, int64_t d) {
                    return (double)t[(size_t)((token * H + h) * D + d)];
                };
                auto p = softmax_f64((int64_t)seen.size() * S, [&](int64_t j) {
                    double s = 0;
                    for (int64_t d = 0; d < D; d++)
                        s +=
                            at(qq, frame * S + i, d) * at(kk, seen[(size_t)(j / S)] * S + j % S, d);
                    return s / std::sqrt((double)D);
                });
                for (int64_t d = 0; d < D; d++) {
                    double truth = 0;
                    for (size_t j = 0; j < p.size(); j++)
                        truth += p[j] * at(v, seen[j / (size_t)S] * S + (int64_t)j % S, d);
                    worst = std::fmax(worst, std::fabs(truth - at(out, i, d)));
                }
            }
        return worst;
    }
};

std::vector<int64_t> range(int64_t from, int64_t end)
{
    std::vector<int64_t> r;
    for (int64_t i = from; i < end; i++)
        r.push_back(i);
    return r;
}

// Turned to its frame's position, written from the formula.
std::vector<float> roped(const Video &video, const std::vector<float> &t,
                         const std::function<double(int64_t)> &position, int64_t channels,
                         double base)
{
    std::vector<float> y = t;
    const int64_t width = video.H * video.D;
    for (int64_t token = 0; token < video.frames * video.S; token++)
        for (int64_t h = 0; h < video.H; h++)
            for (int64_t j = 0; j < channels / 2; j++) {
                float *x = &y[(size_t)(token * width + h * video.D + 2 * j)];
                double a =
                    position(token / video.S) * std::pow(base, -2.0 * (double)j / (double)channels);
                double u = (double)x[0], w = (double)x[1];
                x[0] = (float)(u * std::cos(a) - w * std::sin(a));
                x[1] = (float)(u * std::sin(a) + w * std::cos(a));
            }
    return y;
}

} // namespace

TEST_CASE("kv_cache: block by block equals the block-causal mask over the whole video",
          "[kv_cache][sparse]")
{
    struct {
        int64_t m, S, frames;
    } shapes[] = {{1, 5, 6}, {3, 7, 12}, {2, 64, 6}}; // the last: a multiple of 128 tokens
    for (auto s : shapes) {
        INFO(s.m << " x " << s.S << ", " << s.frames);
        Video video(s.m, s.S, s.frames);
        TestRun run(&list, use(""));
        REQUIRE_OK(run.status);
        REQUIRE_OK(video.call.dry(run));
        for (int64_t f = 0; f < s.frames; f += s.m)
            CHECK(video.error(video.block(run, f), f, range(0, f + s.m)) < 1e-5);
    }
}

TEST_CASE("kv_cache: the steps of a block write the same slots", "[kv_cache][sparse]")
{
    Video noisy(2, 4, 6, 1), clean(2, 4, 6, 2);
    TestRun steps(&list, use("")), once(&list, use(""));
    REQUIRE_OK(noisy.call.dry(steps));
    REQUIRE_OK(clean.call.dry(once));
    for (int64_t f = 0; f < 6; f += 2) {
        noisy.block(steps, f); // a noisy step leaves nothing behind
        // the clean one, in the same run
        std::vector<float> *own[] = {&noisy.q, &noisy.k, &noisy.v};
        std::vector<float> *other[] = {&clean.q, &clean.k, &clean.v};
        std::vector<float> kept[3];
        for (int i = 0; i < 3; i++)
            kept[i] = *own[i], *own[i] = *other[i];
        auto a = noisy.block(steps, f), b = clean.block(once, f);
        CHECK(a == b);
        for (int i = 0; i < 3; i++)
            *own[i] = kept[i];
    }
    // a new video begins with an empty cache
    hd_attention_run_restart(steps.run);
    CHECK_FAILS(noisy.try_block(steps, 2), HD_ERR_ARGUMENT, "frame 0 was not made yet");
    CHECK(noisy.error(noisy.block(steps, 0), 0, {0, 1}) < 1e-5);
}

TEST_CASE("kv_cache: a ring with sinks sees what a window that moves its frames sees",
          "[kv_cache][sparse]")
{
    Video video(1, 3, 12);
    TestRun run(&list, use(", \"window_frames\": 4, \"sink_frames\": 1"));
    REQUIRE_OK(video.call.dry(run));
    std::vector<int64_t> window; // as it is published: drop the oldest but the sink, move the rest
    for (int64_t f = 0; f < video.frames; f++) {
        window.push_back(f);
        if (window.size() > 4) window.erase(window.begin() + 1);
        if (f == 6) CHECK(window == std::vector<int64_t>{0, 4, 5, 6});
        CHECK(video.error(video.block(run, f), f, window) < 1e-5);
    }
    // two frames at a time, no sink
    Video pairs(2, 3, 12);
    TestRun two(&list, use(", \"window_frames\": 5"));
    REQUIRE_OK(pairs.call.dry(two));
    for (int64_t f = 0; f < 12; f += 2)
        CHECK(pairs.error(pairs.block(two, f), f, range(f < 3 ? 0 : f - 3, f + 2)) < 1e-5);
}

TEST_CASE("kv_cache: positions inside the window by turning the sinks on", "[kv_cache][sparse]")
{
    const double base = 100;
    const int64_t channels = 6, W = 4, last = 101;
    Video raw(1, 2, last);
    auto absolute = [](int64_t f) { return (double)f; };
    Video video(1, 2, last); // as a network hands them out: turned to absolute positions
    video.v = raw.v;
    video.q = roped(raw, raw.q, absolute, channels, base);
    video.k = roped(raw, raw.k, absolute, channels, base);
    const std::string rope = ", \"window_frames\": 4, \"rope_channels\": 6, \"rope_base\": 100";
    auto all = [&](const std::string &fields) {
        TestRun run(&list, use(rope + fields));
        REQUIRE_OK(run.status);
        REQUIRE_OK(video.call.dry(run));
        std::vector<std::vector<float>> out;
        for (int64_t f = 0; f < last; f++)
            out.push_back(video.block(run, f));
        return out;
    };
    auto plain = all(""), inside = all(", \"positions\": \"relativistic\"");
    CHECK(plain == inside); // without sinks differences are what they were
    CHECK(video.error(plain[100], 100, range(97, 101)) < 1e-4);
    auto sinks = all(", \"positions\": \"relativistic\", \"sink_frames\": 1");
    for (int64_t f : {2, 3, 4, 50, 100}) {
        INFO("frame " << f);
        // all keys turned anew: the window's frames are 0, 1, 2, 3
        std::vector<int64_t> seen =
            f < W ? range(0, f + 1) : std::vector<int64_t>{0, f - 2, f - 1, f};
        auto within = [&](int64_t frame) {
            return frame == 0 || f < W ? (double)frame : (double)(frame - f + W - 1);
        };
        auto k = roped(raw, raw.k, within, channels, base),
             q = roped(raw, raw.q, within, channels, base);
        CHECK(video.error(sinks[(size_t)f], f, seen, &k, &q) < 1e-4);
    }
    auto drifting = all(", \"sink_frames\": 1");
    CHECK(drifting[100] != sinks[100]);
}

TEST_CASE("kv_cache: turned vectors know differences of positions alone", "[kv_cache][sparse]")
{
    for (bool interleaved : {true, false}) {
        hd_rope rope = {0, 2, 1.0, interleaved};
        auto score = [&](double a, double b) {
            float q[] = {1, 0}, k[] = {1, 0};
            hd_rope_turn(&rope, q, HD_F32, 1, 2, a);
            hd_rope_turn(&rope, k, HD_F32, 1, 2, b);
            return (double)(q[0] * k[0] + q[1] * k[1]);
        };
        CHECK(score(5, 3) == Approx(-0.416147).margin(1e-6));
        CHECK(score(3, 1) == Approx(-0.416147).margin(1e-6));
    }
    // pairs half the channels apart, behind channels that do not turn
    hd_rope halves = {1, 4, 100, false};
    float x[] = {9, 1, 2, 3, 4, 9};
    hd_rope_turn(&halves, x, HD_F32, 1, 6, 0.5);
    const double a = 0.5, b = 0.05; // base^(-2 j / channels): 1 and 0.1
    const double expected[] = {9,
                               std::cos(a) - 3 * std::sin(a),
                               2 * std::cos(b) - 4 * std::sin(b),
                               std::sin(a) + 3 * std::cos(a),
                               2 * std::sin(b) + 4 * std::cos(b),
                               9};
    for (int i = 0; i < 6; i++)
        CHECK((double)x[i] == Approx(expected[i]).margin(1e-6));
}

TEST_CASE("kv_cache: what does not fit is refused, with what would", "[kv_cache][sparse]")
{
    Video video(2, 3, 8);
    TestRun full(&list, use(", \"window_frames\": -1, \"capacity_frames\": 6"));
    CHECK_FAILS(video.call.dry(full), HD_ERR_ARGUMENT,
                "the cache holds 6 frames and the video has 8: set capacity_frames to 8, or "
                "window_frames to 6 to let old frames go");
    video.call.forward.step.frames = -1; // no end is known
    TestRun endless(&list, use(", \"window_frames\": -1, \"capacity_frames\": 6"));
    REQUIRE_OK(video.call.dry(endless));
    for (int64_t f = 0; f < 6; f += 2)
        video.block(endless, f);
    CHECK_FAILS(video.try_block(endless, 6), HD_ERR_ARGUMENT,
                "the cache holds 6 frames and is full at frame 6; set window_frames to 6");
    TestRun window(&list, use(", \"window_frames\": 3"));
    REQUIRE_OK(video.call.dry(window));
    CHECK_FAILS(video.try_block(window, 2), HD_ERR_ARGUMENT, "frame 0 was not made yet");
    for (int64_t f = 0; f < 6; f += 2)
        video.block(window, f);
    CHECK_FAILS(video.try_block(window, 2), HD_ERR_ARGUMENT, "frame 1 has left the window");
    video.call.forward.step.frames = 0;
    TestRun picture(&list, use(""));
    CHECK_FAILS(video.call.dry(picture), HD_ERR_UNSUPPORTED,
                "this run does not make a video block by block");
    video.call.forward.step.frames = 8;
    struct {
        const char *fields, *message;
    } cases[] = {
        {", \"window_frames\": 0", "window_frames is 0, must be -1 (all) or at least 1"},
        {", \"window_frames\": 3, \"sink_frames\": 3", "leaves none of 3 frames to others"},
        {", \"positions\": \"relativistic\"", "needs rope_channels"},
    };
    for (const auto &one : cases) {
        TestRun run(&list, use(one.fields));
        CHECK_FAILS(run.status, HD_ERR_ARGUMENT, one.message);
    }
    TestRun tight(&list, use(", \"window_frames\": 3, \"sink_frames\": 2"));
    CHECK_FAILS(video.call.dry(tight), HD_ERR_ARGUMENT, "has no room for a block of 2");
    TestRun wide(&list, use(", \"positions\": \"relativistic\", \"rope_channels\": 10"));
    CHECK_FAILS(video.call.dry(wide), HD_ERR_ARGUMENT, "channels 0 to 9 turn, a head has 8");
    TestRun blocks(&list, use(", \"block_frames\": 3"));
    CHECK_FAILS(video.call.dry(blocks), HD_ERR_ARGUMENT, "the model's blocks have 2");
}
