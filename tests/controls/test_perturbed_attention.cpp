// Perturbed-attention guidance: known answers, and every kind against the edited map (Ahn et al.,
// arXiv 2403.17377; Hong, arXiv 2408.00760; Ahn et al., arXiv 2506.10978).
#include <algorithm>
#include <cstring>

#include "controls/all.h"
#include "controls/perturbed_attention.h"
#include "engine/samplers/guidance.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "sparse/all.h"
#include "support/attention.h"

namespace
{

const hd_processor_class *const classes[] = {&hd_perturbed_attention, &hd_temperature, &hd_gna,
                                             &hd_agent, &hd_proxy};
const hd_processor_list list = {5, classes};

std::string use(const std::string &options)
{
    return "{\"processors\": [{\"use\": \"perturbed_attention\"" + options + "}]}";
}

void perturb_row(TestCall &c, size_t row)
{
    strcpy(c.rows[row].role, "perturbed");
}

// The output of row 0, which is the perturbed one.
std::vector<float> perturbed(TestCall &c, const std::string &options)
{
    INFO(options);
    perturb_row(c, 0);
    TestRun run(&list, use(options));
    REQUIRE_OK(run.status);
    REQUIRE_OK(c.dry(run));
    std::vector<float> out = c.act(run);
    out.resize((size_t)(c.Lq * c.H * c.D));
    return out;
}

// Two tokens whose map is [[.75, .25], [.5, .5]], values 4 and 0.
struct TwoTokens : TestCall {
    TwoTokens() : TestCall(1, 2, 2, 1, 1)
    {
        q = {(float)std::log(3.0), 0}, k = {1, 0}, v = {4, 0};
        call.scale = 1.0f;
        call.q.data = q.data(), call.k.data = k.data(), call.v.data = v.data();
    }
};

void check_two(const std::string &options, float first, float second)
{
    TwoTokens c;
    std::vector<float> out = perturbed(c, options);
    INFO(options);
    CHECK(std::fabs(out[0] - first) < 1e-6f);
    CHECK(std::fabs(out[1] - second) < 1e-6f);
}

} // namespace

TEST_CASE("perturbed_attention: output form equals map form", "[controls][perturbed_attention]")
{
    check_two(", \"u\": 1e-30", 3, 2); // the map as it is
    check_two(", \"u\": 0.25", 3.25f, 1.5f);
    check_two("", 4, 0);
    check_two(", \"kind\": \"uniform\", \"u\": 0.25", 2.75f, 2);
    check_two(", \"kind\": \"uniform\"", 2, 2);
    check_two(", \"kind\": \"argmax\"", 4, 2); // the second row's largest are two
    // the mean query is ln 3 / 2: weights 3^.5 and 1
    const float mean = 4 * std::sqrt(3.0f) / (std::sqrt(3.0f) + 1);
    check_two(", \"kind\": \"mean_query\"", mean, mean);
    check_two(", \"kind\": \"temperature\", \"tau\": 0.5", 3.6f, 2);
    check_two(", \"kind\": \"temperature\", \"tau\": 0.5, \"u\": 0.5", 3.3f, 2);
}

namespace
{

using Map = std::function<std::vector<double>(int64_t h, int64_t i)>;

Map own_map(const TestCall &c, double divisor = 1)
{
    return [&c, divisor](int64_t h, int64_t i) {
        return softmax_f64(c.Lk, [&](int64_t j) { return score_f64(c, 0, h, i, j) / divisor; });
    };
}

Map soft(const Map &a, const Map &x, double u)
{
    return [=](int64_t h, int64_t i) {
        std::vector<double> p = a(h, i), q = x(h, i);
        double sum = 0;
        for (size_t j = 0; j < p.size(); j++)
            sum += p[j] = (1 - u) * p[j] + u * q[j];
        CHECK(std::fabs(sum - 1) < 1e-12); // as every row of a map
        return p;
    };
}

// The map of queries that are made of the call's.
Map map_of_queries(const TestCall &c, std::vector<double> q)
{
    return [&c, q](int64_t h, int64_t i) {
        return softmax_f64(c.Lk, [&](int64_t j) {
            double s = 0;
            for (int64_t d = 0; d < c.D; d++)
                s += q[(size_t)((i * c.H + h) * c.D + d)] *
                     (double)c.k[(size_t)((j * c.H + h) * c.D + d)];
            return s * (double)c.call.scale;
        });
    };
}

std::vector<double> mean_queries(const TestCall &c)
{
    const size_t width = (size_t)(c.H * c.D), n = (size_t)c.Lq;
    std::vector<double> q(n * width);
    for (size_t x = 0; x < width; x++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)c.q[i * width + x] / (double)n;
        for (size_t i = 0; i < n; i++)
            q[i * width + x] = sum;
    }
    return q;
}

// Every place looks at every other through both axes' weights, a window that is cut to the grid.
std::vector<double> blurred_queries(const TestCall &c, int64_t h, int64_t w, double sigma)
{
    const size_t width = (size_t)(c.H * c.D);
    std::vector<double> q((size_t)c.Lq * width);
    auto reach = [&](int64_t n) {
        auto size = (int64_t)std::ceil(6 * sigma);
        return n == 1 ? 0 : std::min((size + 1 - size % 2) / 2, n / 2);
    };
    auto weight = [&](int64_t i, int64_t r) {
        double sum = 0;
        for (int64_t j = -r; j <= r; j++)
            sum += std::exp(-0.5 * (double)(j * j) / (sigma * sigma));
        return std::exp(-0.5 * (double)(i * i) / (sigma * sigma)) / sum;
    };
    auto mirror = [](int64_t i, int64_t n) { return i < 0 ? -i : i >= n ? 2 * n - 2 - i : i; };
    const int64_t ry = reach(h), rx = reach(w);
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++)
            for (int64_t dy = -ry; dy <= ry; dy++)
                for (int64_t dx = -rx; dx <= rx; dx++) {
                    auto from = (size_t)(mirror(y + dy, h) * w + mirror(x + dx, w));
                    for (size_t e = 0; e < width; e++)
                        q[(size_t)(y * w + x) * width + e] +=
                            weight(dy, ry) * weight(dx, rx) * (double)c.q[from * width + e];
                }
    return q;
}

} // namespace

TEST_CASE("perturbed_attention: every kind is its map, for any u and any instruction set",
          "[controls][perturbed_attention]")
{
    const uint64_t seed = 20;
    CAPTURE(seed);
    TestCall c(2, 35, 35, 2, 8, seed);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 5, 7);
    perturb_row(c, 0);
    const Map a = own_map(c);
    const struct {
        const char *options;
        Map map;
    } kinds[] = {
        {"identity\"",
         [](int64_t, int64_t i) {
             std::vector<double> p(35);
             p[(size_t)i] = 1;
             return p;
         }},
        {"uniform\"", [](int64_t, int64_t) { return std::vector<double>(35, 1.0 / 35); }},
        {"mean_query\"", map_of_queries(c, mean_queries(c))},
        {"blur_query\"", map_of_queries(c, mean_queries(c))}, // sigma is infinite
        {"blur_query\", \"sigma\": 10000", map_of_queries(c, mean_queries(c))},
        {"blur_query\", \"sigma\": 0.5", map_of_queries(c, blurred_queries(c, 5, 7, 0.5))},
        {"blur_query\", \"sigma\": 3", map_of_queries(c, blurred_queries(c, 5, 7, 3))},
        {"argmax\"", own_map(c, 1e-9)},
        {"temperature\", \"tau\": 3", own_map(c, 3)},
    };
    for (const auto &kind : kinds)
        for (double u : {1.0, 0.25}) {
            CAPTURE(kind.options, u);
            TestRun run(&list, use(std::string(", \"kind\": \"") + kind.options +
                                   ", \"u\": " + std::to_string(u)));
            REQUIRE_OK(run.status);
            REQUIRE_OK(c.dry(run));
            for (unsigned isa : every_isa()) {
                REQUIRE_OK(c.try_act(run, 0, 2, isa));
                CHECK(error_f64(c, c.out, 0, soft(a, kind.map, u)) < 2e-6);
                CHECK(error_f64(c, c.out, 1, [&](int64_t h, int64_t i) { // another's row
                          return softmax_f64(35,
                                             [&](int64_t j) { return score_f64(c, 1, h, i, j); });
                      }) < 2e-6);
            }
        }
}

TEST_CASE("perturbed_attention: the mean query's row is every row",
          "[controls][perturbed_attention]")
{
    TestCall c(1, 12, 12, 2, 8, 3);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 3, 4);
    for (const char *kind : {"mean_query\"", "blur_query\", \"sigma\": \"inf\"", "uniform\""}) {
        std::vector<float> out = perturbed(c, std::string(", \"kind\": \"") + kind);
        for (size_t i = 1; i < 12; i++)
            CHECK(memcmp(&out[i * 16], out.data(), 16 * sizeof(float)) == 0);
    }
}

TEST_CASE("perturbed_attention: rows of the soft map sum to 1", "[controls][perturbed_attention]")
{
    for (const char *kind : {"identity", "uniform", "mean_query", "argmax", "temperature",
                             "blur_query\", \"sigma\": 2, \"joint\": \"whole"})
        for (const char *u : {"0.1", "0.5", "0.9", "1"}) {
            TestCall c(1, 12, 12, 2, 8, 4);
            c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 3, 4);
            std::fill(c.v.begin(), c.v.end(), 1.0f);
            for (float x :
                 perturbed(c, std::string(", \"tau\": 4, \"kind\": \"") + kind + "\", \"u\": " + u))
                CHECK(std::fabs(x - 1) < 1e-6f);
        }
}

TEST_CASE("perturbed_attention: one token, chosen heads", "[controls][perturbed_attention]")
{
    for (const char *kind : {"identity", "uniform", "mean_query", "blur_query", "argmax",
                             "temperature", "blur_query\", \"sigma\": 1, \"joint\": \"whole"}) {
        CAPTURE(kind);
        TestCall one(1, 1, 1, 2, 4, 5);
        std::vector<float> out = perturbed(one, std::string(", \"kind\": \"") + kind + "\"");
        for (size_t i = 0; i < out.size(); i++)
            CHECK(std::fabs(out[i] - one.v[i]) < 1e-6f);

        TestCall c(1, 6, 6, 2, 4, 6);
        c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 2, 3);
        std::vector<float> off = perturbed(c, ", \"scale\": 0"),
                           on = perturbed(c, std::string(", \"heads\": [\"mid.attn.0.1\"], "
                                                         "\"tau\": 3, \"kind\": \"") +
                                                 kind + "\"");
        for (size_t i = 0; i < 6; i++) {
            CHECK(memcmp(&on[i * 8], &off[i * 8], 4 * sizeof(float)) == 0);
            CHECK(memcmp(&on[i * 8 + 4], &off[i * 8 + 4], 4 * sizeof(float)) != 0);
        }
        CHECK(perturbed(c, ", \"heads\": []") == off);
        CHECK(perturbed(c, ", \"u\": 0") == off);
    }
}

TEST_CASE("perturbed_attention: combination and the scale over time",
          "[controls][perturbed_attention]")
{
    float guess = 0, uncond = 1, cond = 2, worse = 1.5f;
    hd_guide(&guess, &uncond, &cond, 4.0, 1);
    pag_add(&guess, &cond, &worse, 3, 1);
    CHECK(guess == 6.5f);
    // the other way of counting, s' = w + 1, from the worse one: 4 for 3
    guess = cond;
    pag_add(&guess, &cond, &worse, 3, 1);
    CHECK(guess == worse + 4 * (cond - worse));
    CHECK(guess == 3.5f);
    guess = 0.7f;
    pag_add(&guess, &cond, &cond, 3, 1);
    CHECK(guess == 0.7f);

    perturbed_attention p = {};
    p.scale = 3;
    CHECK(pag_scale_at(&p, 0) == 3);
    p.adaptive = 0.005f;
    CHECK(std::fabs(pag_scale_at(&p, 1000) - 3) < 1e-6f);
    CHECK(std::fabs(pag_scale_at(&p, 600) - 1) < 1e-6f);
    CHECK(pag_scale_at(&p, 300) == 0);
    p.adaptive = 0.1f;
    p.adaptive_rule = PAG_QUARTIC;
    CHECK(std::fabs(pag_scale_at(&p, 0) - 2.7f) < 1e-6f);
    p.adaptive = 1;
    CHECK(pag_scale_at(&p, 0) == 0);
}

TEST_CASE("perturbed_attention: blur", "[controls][perturbed_attention]")
{
    const float expected[] = {.004433f, .054006f, .242036f, .39905f, .242036f, .054006f, .004433f};
    float weight[64];
    CHECK(pag_taps(1, 64) == 7);
    pag_weights(1, 7, weight);
    for (int i = 0; i < 7; i++)
        CHECK(std::fabs(weight[i] - expected[i]) < 1e-6f);
    CHECK(pag_taps(10, 64) == 61);
    CHECK(pag_taps(10, 61) == 61);
    CHECK(pag_taps(10, 16) == 17); // all of the grid, and odd
    CHECK(pag_taps(10, 9) == 9);
    CHECK(pag_taps(10, 1) == 1);

    float spare[1000];
    std::vector<float> constant(2 * 3 * 4, 1.25f);
    pag_blur(constant.data(), spare, 2, 3, 4, 10);
    for (float x : constant)
        CHECK(std::fabs(x - 1.25f) < 1e-6f);
    // one value in the middle: its sum stays, and both axes see it alike
    std::vector<float> point(15 * 17);
    point[7 * 17 + 8] = 1;
    pag_blur(point.data(), spare, 15, 17, 1, 1);
    double sum = 0;
    for (float x : point)
        sum += (double)x;
    CHECK(std::fabs(sum - 1) < 1e-6);
    CHECK(std::fabs(point[7 * 17 + 9] - .39905f * .242036f) < 1e-6f);
    CHECK(point[8 * 17 + 8] == point[7 * 17 + 9]);
    // two rows of three: a row sees itself and, from both sides, the other
    std::vector<float> two = {1, 1, 1, 0, 0, 0};
    pag_blur(two.data(), spare, 2, 3, 1, 1);
    const float beside = std::exp(-0.5f), middle = 1 / (1 + 2 * beside);
    for (size_t i = 0; i < 3; i++) {
        CHECK(std::fabs(two[i] - middle) < 1e-6f);
        CHECK(std::fabs(two[3 + i] - 2 * beside * middle) < 1e-6f);
    }
}

namespace
{
// Two tokens of the picture and one of text whose scores are all equal.
struct Joint : TestCall {
    Joint() : TestCall(1, 3, 3, 1, 1)
    {
        q = {0, 0, 0}, v = {8, 6, 0};
        call.q.data = q.data(), call.v.data = v.data();
        lay(2, 1);
    }
    void lay(int64_t grid, int64_t text)
    {
        call.site = {HD_NETWORK_DIT, HD_SITE_JOINT, "block.13", 1, H, Lq};
        call.q_layout = hd_layout_grid(1, 1, grid);
        call.q_layout.segments = 2;
        call.q_layout.segment[1] = {HD_TOKENS_TEXT, grid, text, 0, 0, 0};
        call.k_layout = call.q_layout;
    }
};
} // namespace

TEST_CASE("perturbed_attention: joint attention", "[controls][perturbed_attention]")
{
    const float mean = 14.0f / 3;
    const struct {
        const char *options;
        float out[3];
    } cases[] = {{"", {4, 3, mean}},
                 {", \"joint\": \"image\"", {8, 6, mean}},
                 {", \"joint\": \"whole\"", {8, 6, 0}},
                 {", \"kind\": \"uniform\"", {7, 7, mean}},
                 {", \"kind\": \"uniform\", \"joint\": \"whole\"", {mean, mean, mean}},
                 {", \"u\": 0.5", {(mean + 4) / 2, (mean + 3) / 2, mean}}};
    for (const auto &known : cases) {
        Joint c;
        std::vector<float> out = perturbed(c, known.options);
        for (int i = 0; i < 3; i++) {
            CAPTURE(known.options, i);
            CHECK(std::fabs(out[(size_t)i] - known.out[i]) < 1e-6f);
        }
    }
    // as a mask over the picture's part of the map, but for its diagonal
    struct Wide : TestCall {
        Wide() : TestCall(1, 17, 17, 2, 8, 9)
        {
        }
    } c;
    c.call.site = {HD_NETWORK_DIT, HD_SITE_JOINT, "block.13", 1, 2, 17};
    c.call.q_layout = hd_layout_text(3);
    c.call.q_layout.segments = 3;
    c.call.q_layout.segment[1] = {HD_TOKENS_GRID, 3, 12, 1, 3, 4};
    c.call.q_layout.segment[2] = {HD_TOKENS_TEXT, 15, 2, 0, 0, 0};
    c.call.k_layout = c.call.q_layout;
    for (double u : {1.0, 0.4}) {
        std::vector<float> out = perturbed(c, ", \"u\": " + std::to_string(u));
        const Map masked = [&](int64_t h, int64_t i) {
            const bool text = i < 3 || i >= 15;
            return softmax_f64(17, [&](int64_t j) {
                const bool seen = text || j < 3 || j >= 15 || j == i;
                return seen ? score_f64(c, 0, h, i, j) : -HUGE_VAL;
            });
        };
        CHECK(error_f64(c, out, 0, soft(own_map(c), masked, u)) < 2e-6);
    }
}

TEST_CASE("perturbed_attention: beside accelerators and in bf16", "[controls][perturbed_attention]")
{
    TestCall c(2, 64, 64, 2, 8, 11);
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 8, 8);
    perturb_row(c, 0);
    auto both = [&](const std::string &options, const std::string &other) {
        INFO(options << other);
        TestRun run(&list, "{\"processors\": [{\"use\": \"perturbed_attention\", \"sites\": [\"mid "
                           "self\"]" +
                               options + "}, {" + other + "}]}");
        REQUIRE_OK(run.status);
        REQUIRE_OK(c.dry(run));
        std::vector<float> out = c.act(run);
        out.resize(64 * 16);
        return out;
    };
    for (const char *other :
         {"\"use\": \"gna\", \"window\": [4, 4]", "\"use\": \"temperature\", \"tau\": 2",
          "\"use\": \"agent\", \"source\": \"merge\", \"ratio\": 0.5"}) {
        CAPTURE(other);
        // the identity is of every token, wherever it was moved
        std::vector<float> own = both("", other);
        CHECK(memcmp(own.data(), c.v.data(), own.size() * sizeof(float)) == 0);
        std::vector<float> without = both(", \"scale\": 0", other);
        std::vector<float> half = both(", \"u\": 0.5", other);
        for (size_t i = 0; i < half.size(); i++)
            CHECK(std::fabs(half[i] - (without[i] + c.v[i]) / 2) < 1e-6f);
        // an unchanged pass goes by the same plan and the same scores
        if (!strstr(other, "agent")) CHECK(both(", \"kind\": \"temperature\"", other) == without);
    }
}

namespace
{

std::string preset(const std::string &more)
{
    return "{" + starter() +
           ", \"prompt\": \"a big red fish at night\", \"steps\": 4, \"width\": 48, \"height\": "
           "32, \"seed\": 5, \"precision\": \"f32\"" +
           more + "}";
}

std::string guided(const std::string &options, const std::string &others = "")
{
    return preset(", \"processors\": [{\"use\": \"perturbed_attention\"" + options + "}" + others +
                  "]");
}

// Rows of the calls at "down.0.attn.0" and "up.2.attn.0" by step.
struct Rows {
    std::vector<int64_t> down, up;
};

hd_status count_rows(void *user, const hd_attention_seen *seen)
{
    Rows *rows = static_cast<Rows *>(user);
    if (seen->ex->recording || seen->call->site.kind != HD_SITE_SELF) return HD_OK;
    if (!strcmp(seen->call->site.path, "down.0.attn.0")) rows->down.push_back(seen->call->q.dim[0]);
    if (!strcmp(seen->call->site.path, "up.2.attn.0")) rows->up.push_back(seen->call->q.dim[0]);
    return HD_OK;
}

Rows rows_of(Context &context, const std::string &json)
{
    Rows rows;
    hd_result *r = nullptr;
    INFO(json);
    REQUIRE_OK(hd_context_run_watched(context.context, json.c_str(), "test.json", nullptr,
                                      count_rows, &rows, &r));
    hd_result_free(r);
    return rows;
}

std::vector<float> latents_of(Context &context, const std::string &json)
{
    Folder folder;
    const std::string path = folder.path("x.safetensors");
    context.run(json.substr(0, json.size() - 1) + ", \"latents_out\": \"" + path + "\"}");
    Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
    const FixtureTensor &t = f.at("latents");
    return {t.f32(), t.f32() + t.count()};
}

} // namespace

TEST_CASE("perturbed_attention: off it changes no bit and asks for no row",
          "[pipeline][controls][perturbed_attention]")
{
    Context context;
    const std::vector<float> plain = latents_of(context, preset(""));
    for (const char *off :
         {", \"scale\": 0", ", \"u\": 0", ", \"heads\": []", ", \"steps\": [0, 0]",
          ", \"scale\": 0, \"kind\": \"blur_query\", \"sigma\": 1"}) {
        CAPTURE(off);
        CHECK(latents_of(context, guided(off)) == plain);
        CHECK(rows_of(context, guided(off)).up == std::vector<int64_t>(4, 2));
    }
    CHECK(latents_of(context, guided("")) != plain);
    CHECK(rows_of(context, guided("")).up == std::vector<int64_t>(4, 3));
    // a prediction that is not worse
    CHECK(latents_of(context, guided(", \"kind\": \"temperature\"")) == plain);
    CHECK(latents_of(context, guided(", \"kind\": \"temperature\", \"tau\": 4")) != plain);
    // only where the scale is above 0: timesteps 750, 500, ... end it
    Rows rows = rows_of(context, guided(", \"adaptive\": 0.01"));
    CHECK(rows.up.front() == 3);
    CHECK(rows.up.back() == 2);
    CHECK(rows_of(context, guided(", \"steps\": [0.25, 0.75]")).up ==
          std::vector<int64_t>{2, 3, 3, 2});
    const std::string alone = ", \"guidance\": 1}";
    auto without = [&](const std::string &json) { return json.substr(0, json.size() - 1) + alone; };
    CHECK(latents_of(context, without(guided(""))) != latents_of(context, without(preset(""))));
    CHECK(rows_of(context, without(guided(""))).up == std::vector<int64_t>(4, 2));
}

TEST_CASE("perturbed_attention: a fork changes no bit", "[pipeline][controls][perturbed_attention]")
{
    Context context;
    for (const char *options :
         {"", ", \"kind\": \"blur_query\", \"sigma\": 1, \"u\": 0.5", ", \"kind\": \"argmax\"",
          ", \"heads\": [\"up.1.attn.0.0\", \"mid.attn.0.1\"], \"kind\": \"uniform\""})
        for (const char *other :
             {"", ", {\"use\": \"gna\", \"window\": [4, 4], \"sites\": [\"** self factor<=1\"]}"}) {
            CAPTURE(options, other);
            const std::string whole = std::string(", \"fork\": false") + options;
            CHECK(latents_of(context, guided(options, other)) ==
                  latents_of(context, guided(whole, other)));
            CHECK(rows_of(context, guided(options, other)).down == std::vector<int64_t>(4, 2));
            CHECK(rows_of(context, guided(whole, other)).down == std::vector<int64_t>(4, 3));
        }
}

TEST_CASE("perturbed_attention: other branches", "[pipeline][controls][perturbed_attention]")
{
    Context context;
    const std::string source = ", \"branches\": {\"source\": {\"seed\": 8, \"save\": true}}";
    auto with = [&](const std::string &json) {
        return context.run(json.substr(0, json.size() - 1) + source + "}");
    };
    auto plain = with(preset("")), one = with(guided("")),
         other = with(guided(", \"branches\": [\"source\"]")),
         both = with(guided(", \"branches\": [\"*\"]"));
    CHECK(pixels(one.get(), 0) != pixels(plain.get(), 0));
    CHECK(pixels(one.get(), 1) == pixels(plain.get(), 1));
    CHECK(pixels(other.get(), 0) == pixels(plain.get(), 0));
    CHECK(pixels(other.get(), 1) != pixels(plain.get(), 1));
    CHECK(pixels(both.get(), 0) == pixels(one.get(), 0));
    CHECK(pixels(both.get(), 1) == pixels(other.get(), 1));
}

TEST_CASE("perturbed_attention: what edits cond edits the perturbed row, too",
          "[pipeline][controls][perturbed_attention]")
{
    Context context;
    const std::string source =
        ", \"branches\": {\"source\": {\"prompt\": \"a big blue fish at night\"}}";
    const std::string edits[] = {
        R"({"use": "prompt_to_prompt", "self_min_factor": 2, "local_blend": {"source": "fish",)"
        R"( "target": "fish", "factor": 2}})",
        R"({"use": "plug_and_play", "feature_steps": 1, "attn_sites": ["up.1.attn.1 self"]})",
        R"({"use": "alignit", "concept_words": "red cat", "class_words": "fish"})",
        R"({"use": "attention_masks"})"};
    for (const std::string &edit : edits) {
        CAPTURE(edit);
        auto with = [&](const std::string &processors) {
            return preset(source + ", \"processors\": [" + processors + "]");
        };
        auto pag = [&](const std::string &options) {
            return with(edit + ", {\"use\": \"perturbed_attention\"" + options + "}");
        };
        // a perturbation that is none: the prediction is the very same
        const std::vector<float> alone = latents_of(context, with(edit));
        CHECK(latents_of(context, pag(", \"kind\": \"temperature\"")) == alone);
        const std::vector<float> on = latents_of(context, pag(""));
        CHECK(on != alone);
        CHECK(latents_of(context, pag(", \"fork\": false")) == on);
        const int64_t apart = rows_of(context, pag(", \"fork\": false")).down[0];
        CHECK(rows_of(context, pag("")).up[0] == apart);
        CHECK(rows_of(context, pag("")).down[0] == apart - 1);
    }
}

TEST_CASE("perturbed_attention: what cannot be done is refused before step 0",
          "[pipeline][controls][perturbed_attention]")
{
    Context context;
    ResultPtr none(nullptr, hd_result_free);
    auto refuse = [&](const std::string &options, const char *text) {
        INFO(options);
        CHECK_FAILS(context.try_run(guided(options), none), HD_ERR_ARGUMENT, text);
    };
    refuse(", \"scale\": -1", "processors[0].scale is -1");
    refuse(", \"u\": 1.5", "processors[0].u is 1.5");
    refuse(", \"tau\": 0", "processors[0].tau is 0");
    refuse(", \"sigma\": 0", "processors[0].sigma is 0");
    refuse(", \"sigma\": \"wide\"", "must be a number above 0 or \"inf\"");
    refuse(", \"heads\": 3", "processors[0].heads must be \"all\" or a list");
    refuse(", \"heads\": [\"mid\"]",
           "processors[0].heads[0] is \"mid\", must be a site and a head");
    refuse(", \"heads\": [\"mid.attn.0.99\"]", "processors[0].heads[0] is head 99");
    refuse(", \"heads\": [\"mid.attn.0.0\", \"up.7.attn.0.1\"]",
           "processors[0].heads[1] is no head of the self");
    refuse(", \"heads\": [\"13.1\"]", "matches no attention site of this model");
    refuse(", \"sites\": [\"** cross\"]", "matches no attention site of this model");
    refuse(", \"branches\": [\"uncond\"]", "processors[0].branches names no branch");
    refuse(", \"branches\": [\"source\"]", "processors[0].branches names no branch");

    TestCall c(1, 6, 6, 1, 4);
    auto cannot = [&](const std::string &options, hd_site site, const char *text) {
        TestRun run(&list, use(options));
        REQUIRE_OK(run.status);
        c.call.site = site;
        perturb_row(c, 0);
        CHECK_FAILS(c.dry(run), HD_ERR_UNSUPPORTED, text);
    };
    const hd_site joint = {HD_NETWORK_DIT, HD_SITE_JOINT, "block.13", 1, 1, 6};
    cannot(", \"kind\": \"blur_query\", \"sigma\": 1", joint, "before their places are rotated");
    c.call.q_layout = hd_layout_text(6);
    cannot("", joint, "its tokens have no grid");
}

namespace
{
// How far apart the colours of an object and of its background are: the means of the pixels that
// are nearer to the middle's colour than to the corner's, and of the others.
double contrast(const std::vector<uint8_t> &p, size_t width, size_t height)
{
    double mean[2][3];
    for (size_t c = 0; c < 3; c++) {
        mean[0][c] = p[c];
        mean[1][c] = p[3 * (height / 2 * width + width / 2) + c];
    }
    double apart = 0;
    for (int round = 0; round < 10; round++) {
        double sum[2][3] = {}, count[2] = {};
        for (size_t i = 0; i < width * height; i++) {
            double far[2] = {};
            for (int k = 0; k < 2; k++)
                for (size_t c = 0; c < 3; c++)
                    far[k] += std::pow(p[3 * i + c] - mean[k][c], 2);
            const int k = far[1] < far[0];
            for (size_t c = 0; c < 3; c++)
                sum[k][c] += p[3 * i + c];
            count[k]++;
        }
        apart = 0;
        for (size_t c = 0; c < 3; c++) {
            for (int k = 0; k < 2; k++)
                if (count[k] > 0) mean[k][c] = sum[k][c] / count[k];
            apart += std::pow(mean[0][c] - mean[1][c], 2);
        }
    }
    return std::sqrt(apart);
}
} // namespace

// Without classifier-free guidance. Mean of four pictures: 248 with the processor, 226 without it;
// 237 lies midway.
TEST_CASE("perturbed_attention: an object stands out from its background",
          "[pipeline][controls][perturbed_attention]")
{
    Context context;
    double with_it = 0, without = 0;
    for (int seed = 0; seed < 4; seed++) {
        const std::string json = "{" + starter() +
                                 ", \"prompt\": \"a big yellow moon on a blue background\", "
                                 "\"steps\": 10, \"guidance\": "
                                 "1, \"sampler\": \"ddim\", \"precision\": \"f32\", \"seed\": " +
                                 std::to_string(seed);
        auto on = context.run(json + ", \"processors\": [{\"use\": \"perturbed_attention\", "
                                     "\"sites\": [\"mid self\", \"up.** self\"]}]}");
        auto off = context.run(json + "}");
        with_it += contrast(pixels(on.get(), 0), 64, 64) / 4;
        without += contrast(pixels(off.get(), 0), 64, 64) / 4;
    }
    CHECK(with_it >= 237);
    CHECK(without < 237);
}
