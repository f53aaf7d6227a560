// Visual anagrams: views as tables, weights and variances as published, filters, and runs against
// plain sampling.
#include <cstring>

#include "controls/anagram.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/run.h"

namespace
{

// A view of h x w with its memory.
struct View {
    anagram_view v{};
    int64_t h, w;
    View(anagram_kind kind, int64_t height, int64_t width, float skew = 1.5f, int64_t patches = 8)
        : h(height), w(width)
    {
        v.kind = kind, v.skew = skew, v.patches = patches, v.seed = 4522;
        v.sigma[0] = 2, v.sigma[1] = 4;
        REQUIRE_OK(anagram_table(&v, h, w));
    }
    ~View()
    {
        free(v.source);
        free(v.sign);
    }
    View(const View &) = delete;
    View &operator=(const View &) = delete;
    std::vector<float> look(const std::vector<float> &x) const
    {
        std::vector<float> out(x.size());
        anagram_look(&v, out.data(), x.data(), (int64_t)x.size() / (h * w), h * w);
        return out;
    }
    std::vector<float> undo(const std::vector<float> &x) const
    {
        std::vector<float> out(x.size());
        anagram_undo(&v, out.data(), x.data(), (int64_t)x.size() / (h * w), h * w);
        return out;
    }
    std::vector<float> filter(std::vector<float> x) const
    {
        std::vector<float> scratch((size_t)(2 * h * w));
        anagram_filter(&v, x.data(), 1, h, w, scratch.data());
        return x;
    }
    // where the value that is seen at (y, x) comes from
    std::pair<int64_t, int64_t> from(int64_t y, int64_t x) const
    {
        const int32_t p = v.source[y * w + x];
        return {p / w, p % w};
    }
};

using Place = std::pair<int64_t, int64_t>;

double squares(const std::vector<float> &x)
{
    double sum = 0;
    std::vector<float> sorted = x; // the same values in any order: the same sum
    for (float &v : sorted)
        v = std::fabs(v);
    std::sort(sorted.begin(), sorted.end());
    for (float v : sorted)
        sum += (double)v * (double)v;
    return sum;
}

} // namespace

TEST_CASE("anagram: every view is a permutation with signs, and comes back exactly",
          "[controls][anagram]")
{
    for (int kind = 0; kind < ANAGRAM_LOW_PASS; kind++)
        for (int64_t n : {64, 256, 1024, 63, 65}) {
            const auto k = (anagram_kind)kind;
            if (n % 8 && (k == ANAGRAM_PATCHES || k == ANAGRAM_JIGSAW)) continue;
            if (n == 1024 && k != ANAGRAM_SQUARE_HINGE && k != ANAGRAM_PATCHES) continue;
            CAPTURE(anagram_kinds[kind], n);
            View v(k, n, n);
            if (k != ANAGRAM_IDENTITY) REQUIRE(anagram_keeps_noise(v.v.source, v.v.sign, n * n));
            const auto x = normal_values(n * n, 7);
            const auto seen = v.look(x);
            REQUIRE(v.undo(seen) == x);
            CHECK(squares(seen) == squares(x));
            if (k != ANAGRAM_IDENTITY) CHECK(seen != x);
        }
}

TEST_CASE("anagram: views that undo themselves or each other", "[controls][anagram]")
{
    const auto x = normal_values(2 * 64 * 64, 3);
    for (auto kind :
         {ANAGRAM_FLIP, ANAGRAM_MIRROR, ANAGRAM_NEGATE, ANAGRAM_ROTATE_180, ANAGRAM_INNER_CIRCLE}) {
        View v(kind, 64, 64);
        CHECK(v.look(v.look(x)) == x);
    }
    View cw(ANAGRAM_ROTATE_CW, 64, 64), ccw(ANAGRAM_ROTATE_CCW, 64, 64);
    CHECK(cw.look(ccw.look(x)) == x);
    CHECK(ccw.look(x) != cw.look(x));
    CHECK(cw.from(0, 63) == Place(0, 0)); // the top left corner is seen at the top right
    View right(ANAGRAM_SKEW, 64, 64, 1.5f), left(ANAGRAM_SKEW, 64, 64, -1.5f);
    CHECK(left.look(right.look(x)) == x);
}

TEST_CASE("anagram: columns of a skew, squares that turn, the circle", "[controls][anagram]")
{
    View skew(ANAGRAM_SKEW, 8, 8);
    const int64_t shifts[8] = {-6, -4, -3, -1, 0, 1, 3, 4};
    for (int64_t x = 0; x < 8; x++)
        for (int64_t y = 0; y < 8; y++)
            CHECK(skew.from((y + shifts[x] + 8) % 8, x) == Place(y, x)); // rolled down

    View hinge(ANAGRAM_SQUARE_HINGE, 64, 64);
    for (int64_t i = 0; i < 64; i++) {
        CHECK(hinge.from(63, i) == Place(63, i));
        CHECK(hinge.from(i, 63) == Place(i, 63));
    }
    CHECK(hinge.from(0, 20) == Place(0, 0));   // the first square turns clockwise
    CHECK(hinge.from(20, 21) == Place(0, 21)); // its neighbour the other way
    CHECK(hinge.from(31, 31) == Place(31, 31));
    CHECK(hinge.from(62, 62) == Place(42, 62)); // squares of 21

    View circle(ANAGRAM_INNER_CIRCLE, 64, 64);
    CHECK(circle.from(32, 32) == Place(31, 31));
    CHECK(circle.from(31, 31) == Place(32, 32));
    CHECK(circle.from(0, 0) == Place(0, 0));
    CHECK(circle.from(55, 36) == Place(8, 27));  // 23.5, 4.5
    CHECK(circle.from(55, 37) == Place(55, 37)); // 23.5, 5.5
}

TEST_CASE("anagram: jigsaw pieces keep their edges outside", "[controls][anagram]")
{
    View jigsaw(ANAGRAM_JIGSAW, 64, 64);
    auto outside = [](Place p) {
        return p.first == 0 || p.second == 0 || p.first == 63 || p.second == 63;
    };
    auto corner = [](Place p) {
        return (p.first == 0 || p.first == 63) && (p.second == 0 || p.second == 63);
    };
    int moved = 0;
    for (int64_t y = 0; y < 64; y++)
        for (int64_t x = 0; x < 64; x++) {
            const Place p(y, x), from = jigsaw.from(y, x);
            REQUIRE(outside(p) == outside(from));
            REQUIRE(corner(p) == corner(from));
            moved += from != p;
        }
    CHECK(moved > 2000);
}

TEST_CASE("anagram: the variance of a sum of noises", "[controls][anagram]")
{
    auto c = [](std::vector<float> weight, double rho) {
        const auto n = (int)weight.size();
        std::vector<double> product((size_t)(n * n), rho);
        return anagram_rectify_formula(weight.data(), product.data(), n);
    };
    CHECK(c({.5f, .5f}, 0) == Approx(1.414214).margin(1e-6));
    CHECK(c({.5f, .5f}, 1) == Approx(1).margin(1e-6));
    CHECK(c({.5f, .5f}, .5) == Approx(1.154701).margin(1e-6));
    CHECK(c({.5f, .5f}, -.5) == Approx(2).margin(1e-6));
    CHECK(c({.7f, .3f}, 0) == Approx(1.313064).margin(1e-6));
    const float third = 1.0f / 3;
    CHECK(c({third, third, third}, 0) == Approx(1.732051).margin(1e-6));
    CHECK(c({.5f, .5f}, 4) == Approx(0.632456).margin(1e-6)); // identical, of variance 4
    const double four[2] = {4, 4};
    CHECK(anagram_rectify_measured(four, 2, 4) == 1);

    // white noises: measured brings the mean's variance back, which is 1 / T without
    const int64_t n = 200000;
    for (int count : {2, 3}) {
        std::vector<float> mean((size_t)n);
        double variance[3];
        for (int i = 0; i < count; i++) {
            const auto x = normal_values(n, (uint64_t)(20 + i));
            variance[i] = anagram_variance(x.data(), n);
            for (size_t k = 0; k < (size_t)n; k++)
                mean[k] += x[k] / (float)count;
        }
        const double without = anagram_variance(mean.data(), n);
        CHECK(without == Approx(1.0 / count).margin(0.01));
        const double factor = anagram_rectify_measured(variance, count, without);
        CHECK(factor * factor * without == Approx(1).margin(0.01));
    }
}

TEST_CASE("anagram: a view that is behind counts more", "[controls][anagram]")
{
    const double exponent[2] = {1, 1};
    float weight[2];
    auto balance = [&](float a, float b, double progress) {
        const float similarity[2] = {a, b};
        anagram_balance(weight, similarity, 2, exponent, progress);
    };
    balance(.2f, .3f, 0);
    CHECK(weight[0] == Approx(.6).margin(1e-6));
    CHECK(weight[1] == Approx(.4).margin(1e-6));
    balance(.2f, .3f, 1); // step 30 of 30
    CHECK(weight[0] == Approx(.692308).margin(1e-6));
    CHECK(weight[1] == Approx(.307692).margin(1e-6));
    balance(.25f, .25f, .5);
    CHECK(weight[0] == .5f);
    balance(-.1f, .3f, .5);
    CHECK(std::isfinite(weight[0]));
    CHECK(weight[0] + weight[1] == Approx(1).margin(1e-6));
    CHECK(weight[0] > .99f);
}

TEST_CASE("anagram: filters of a set sum to the whole", "[controls][anagram]")
{
    const auto x = normal_values(64 * 64, 11);
    View low(ANAGRAM_LOW_PASS, 64, 64), high(ANAGRAM_HIGH_PASS, 64, 64);
    View blur(ANAGRAM_MOTION_BLUR, 64, 64), rest(ANAGRAM_MOTION_REST, 64, 64);
    auto a = low.filter(x), b = high.filter(x), c = blur.filter(x), d = rest.filter(x);
    for (size_t i = 0; i < x.size(); i++) {
        REQUIRE(a[i] + b[i] == Approx(x[i]).margin(1e-6));
        REQUIRE(c[i] + d[i] == Approx(x[i]).margin(1e-6));
    }
    CHECK(anagram_variance(a.data(), 64 * 64) < 0.1); // and each is a part of it
    CHECK(anagram_variance(b.data(), 64 * 64) > 0.7);
    std::vector<float> flat(64 * 64, 0.25f);
    for (float v : low.filter(flat))
        REQUIRE(v == Approx(.25).margin(1e-6));
    // the middle of a spot, as a Gaussian of sigma 2 has it
    std::vector<float> spot(64 * 64);
    spot[32 * 64 + 32] = 1;
    CHECK(low.filter(spot)[32 * 64 + 32] == Approx(1 / (2 * M_PI * 4)).epsilon(1e-3));
}

TEST_CASE("anagram: a network that is odd sees no difference in a negative", "[controls][anagram]")
{
    auto network = [](std::vector<float> x) { // e(x) = -e(-x)
        for (float &v : x)
            v = v * v * v - 0.5f * v;
        return x;
    };
    View same(ANAGRAM_IDENTITY, 16, 16), negative(ANAGRAM_NEGATE, 16, 16);
    const auto x = normal_values(256, 5);
    CHECK(negative.undo(network(negative.look(x))) == same.undo(network(same.look(x))));
    CHECK(network(negative.look(x)) != network(x));
}

TEST_CASE("anagram: a table that is no view", "[controls][anagram]")
{
    int32_t source[4] = {0, 1, 2, 3};
    float sign[4] = {1, -1, 1, -1};
    CHECK(anagram_keeps_noise(source, sign, 4));
    sign[2] = 0.5f;
    CHECK(!anagram_keeps_noise(source, sign, 4));
    sign[2] = 1;
    source[3] = 2;
    CHECK(!anagram_keeps_noise(source, sign, 4));
    source[3] = 4;
    CHECK(!anagram_keeps_noise(source, sign, 4));
}

/* --- runs --- */

namespace
{

std::string run_of(const std::string &more)
{
    return "{" + starter() +
           ", \"steps\": 4, \"width\": 64, \"height\": 64, \"seed\": 5, \"guidance\": 5, "
           "\"precision\": \"f32\", \"prompt\": \"a big red fish at night\"" +
           more + "}";
}

std::string views_of(const std::string &views, const std::string &options = "")
{
    return ", \"processors\": [{\"use\": \"anagram\", \"views\": [" + views + "]" + options + "}]";
}

const char *const identity = "{\"view\": \"identity\"}";

} // namespace

TEST_CASE("anagram: one view, and twice the same, is plain sampling",
          "[pipeline][controls][anagram]")
{
    Context context;
    for (const char *sampler : {"ddim", "euler"}) {
        CAPTURE(sampler);
        const std::string s = std::string(", \"sampler\": \"") + sampler + "\", \"batch\": 2";
        auto plain = context.run(run_of(s));
        const std::string twice = std::string(identity) + ", " + identity;
        for (const std::string &views : {views_of(identity), views_of(twice),
                                         views_of(twice, ", \"combine\": \"alternate\"")}) {
            CAPTURE(views);
            auto same = context.run(run_of(s + views));
            REQUIRE(hd_result_count(same.get()) == 2);
            CHECK(pixels(same.get(), 0) == pixels(plain.get(), 0));
            CHECK(pixels(same.get(), 1) == pixels(plain.get(), 1));
        }
        // parts of a prediction that sum to it: plain to rounding
        auto parts =
            context.run(run_of(s + views_of("{\"view\": \"low_pass\"}, {\"view\": \"high_pass\"}",
                                            ", \"combine\": \"sum\"")));
        auto a = pixels(parts.get(), 0), b = pixels(plain.get(), 0);
        CHECK(psnr(a.data(), b.data(), a.size()) > 50);
    }
}

TEST_CASE("anagram: a picture that fits both views", "[pipeline][controls][anagram]")
{
    Context context;
    // night below, and the beach of the other prompt upside down: its sand lies at the top
    auto run = [&](const std::string &more) {
        return context.run("{" + starter() +
                           ", \"steps\": 8, \"seed\": 0, \"batch\": 4, \"guidance\": 5, "
                           "\"precision\": \"f32\", \"prompt\": \"a yellow moon at night\"" +
                           more + "}");
    };
    auto plain = run("");
    auto both = run(views_of(std::string(identity) +
                             ", {\"view\": \"flip\", \"prompt\": \"a white sailboat at the "
                             "beach\"}"));
    // how much redder than blue the first or last eighth of the rows is
    auto warmth = [&](const hd_result *result, bool top) {
        double sum = 0;
        for (int i = 0; i < 4; i++) {
            const auto rgb = pixels(result, i);
            const size_t part = rgb.size() / 8, first = top ? 0 : rgb.size() - part;
            for (size_t k = first; k < first + part; k += 3)
                sum += ((double)rgb[k] - (double)rgb[k + 2]) / ((double)part / 3) / 4;
        }
        return sum;
    };
    const double with = warmth(both.get(), true), without = warmth(plain.get(), true);
    const double below = warmth(both.get(), false);
    CAPTURE(with, without, below);
    CHECK(with > 9); // midway between 63 and -45
    CHECK(without < 9);
    CHECK(below < 0);
}

TEST_CASE("anagram: what cannot be is refused by its place", "[pipeline][controls][anagram]")
{
    struct {
        std::string views, options, message;
        hd_status status = HD_ERR_ARGUMENT;
    } cases[] = {
        {"{\"view\": \"blur\"}", "", "views[0].view is \"blur\", which is no view"},
        {"{\"view\": \"white_balance\"}", "", "linear and keeps the norm"},
        {"{\"view\": \"rotate_45\"}", "", "noise would not stay noise"},
        {"{\"view\": \"rotate_90\"}", "", "which is no view"},
        {"{}", "", "views[0] has no \"view\""},
        {"", "", "views holds 0 views"},
        {"{\"view\": \"flip\", \"angle\": 3}", "", "has no \"angle\""},
        {"{\"view\": \"flip\", \"prompt\": \"x\"}", "", "the first view has the run's own prompt"},
        {"{\"view\": \"patch_permute\", \"patches\": 7}", "", "7 x 7 pieces"},
        {"{\"view\": \"low_pass\"}", "", "goes with \"combine\": \"sum\" alone"},
        {"{\"view\": \"low_pass\"}, {\"view\": \"low_pass\"}", ", \"combine\": \"sum\"",
         "do not sum to the whole"},
        {"{\"view\": \"half\"}, {\"view\": \"half\"}",
         ", \"combine\": \"sum\", \"rectify\": \"measured\"", "belong to \"combine\": \"mean\""},
        {identity, ", \"balance\": \"clip\"", "needs a CLIP", HD_ERR_UNSUPPORTED},
        {identity, ", \"overlap\": \"gradient\"", "gradients", HD_ERR_UNSUPPORTED},
        {identity, ", \"steps\": [0, 0.5]", "leave \"steps\" out"},
    };
    Context context;
    for (const auto &c : cases) {
        CAPTURE(c.views, c.options);
        ResultPtr none(nullptr, hd_result_free);
        CHECK_FAILS(context.try_run(run_of(views_of(c.views, c.options)), none), c.status,
                    c.message);
    }
    ResultPtr none(nullptr, hd_result_free);
    std::string wide = run_of(views_of("{\"view\": \"rotate_cw\"}"));
    wide.replace(wide.find("\"height\": 64"), 12, "\"height\": 32");
    CHECK_FAILS(context.try_run(wide, none), HD_ERR_ARGUMENT, "needs a square");
}
