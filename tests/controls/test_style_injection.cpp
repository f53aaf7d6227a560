// StyleID: known answers of its parts, neutrality to the bit, the same from stored features, and
// what becomes of colours and edges (Chung et al., arXiv 2312.09008).
#include <cstring>
#include <map>
#include <set>

#include "controls/all.h"
#include "controls/style_injection.h"
#include "engine/attention/beside_run.h"
#include "engine/samplers/sampler.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/asked.h"
#include "support/attention.h"
#include "support/network.h"

namespace
{

const char *const fish = "a big red fish on a yellow background";
const char *const tree = "a big green tree on a purple background";

std::string run_of(const std::string &more, const std::string &size = "")
{
    return "{" + starter() +
           (size.empty() ? ", \"steps\": 4, \"width\": 48, \"height\": 32" : size) +
           ", \"guidance\": 1, \"seed\": 5, \"sampler\": \"ddim\", \"precision\": \"f32\", "
           "\"prompt\": \"\"" +
           more + "}";
}

std::string inject(const std::string &options, const std::string &branches,
                   const std::string &also = "")
{
    return ", \"branches\": {" + branches + "}, \"processors\": [{\"use\": \"style_injection\"" +
           options + "}" + also + "]";
}

std::string sampled(const char *content = fish, const char *style = tree)
{
    return "\"content\": {\"prompt\": \"" + std::string(content) +
           "\", \"save\": true}, \"style\": {\"prompt\": \"" + style + "\", \"seed\": 8}";
}

std::string inverted(const std::string &content, const std::string &style)
{
    return "\"content\": {\"init_image\": \"" + content +
           "\", \"save\": true}, \"style\": {\"init_image\": \"" + style + "\"}";
}

std::vector<uint8_t> picture_of(const ResultPtr &result, const std::string &branch, int skip = 0)
{
    for (int i = 0; i < hd_result_count(result.get()); i++)
        if (branch == hd_result_picture(result.get(), i)->branch && skip-- == 0)
            return pixels(result.get(), i);
    FAIL("no picture of branch " << branch);
    return {};
}

std::string drawn(Context &context, Folder &folder, const char *name, const char *prompt,
                  const char *size = ", \"width\": 48, \"height\": 32")
{
    const std::string path = folder.path(name);
    context.run("{" + starter() + ", \"prompt\": \"" + prompt +
                "\", \"seed\": 3, \"steps\": 12, \"guidance\": 5, \"sampler\": \"ddim\"" + size +
                ", \"output\": \"" + path + "\"}");
    return path;
}

// The processor of some options with its branches asked for: content, style and main.
struct Asked : AskedRun {
    explicit Asked(const std::string &options, int64_t steps = 10)
        : AskedRun("style_injection", options, {"content", "style"}, steps, 1)
    {
    }
};

// Rows content, style, main, at a site that is injected.
void prepare(TestCall &c)
{
    const char *names[] = {"content", "style", "main"};
    for (size_t b = 0; b < 3; b++) {
        c.rows[b] = {};
        strcpy(c.rows[b].branch, names[b]);
        strcpy(c.rows[b].role, "cond");
    }
    strcpy(c.call.site.path, "up.2.attn.0");
    c.call.site.factor = 2;
}

std::vector<float> row_of(const TestCall &c, const std::vector<float> &x, int64_t b)
{
    const size_t values = x.size() / (size_t)c.B;
    return {x.begin() + (std::ptrdiff_t)((size_t)b * values),
            x.begin() + (std::ptrdiff_t)((size_t)(b + 1) * values)};
}

void copy_row(const TestCall &c, std::vector<float> &x, int64_t to, int64_t from)
{
    const std::vector<float> row = row_of(c, x, from);
    std::copy(row.begin(), row.end(), x.begin() + (std::ptrdiff_t)((size_t)to * row.size()));
}

std::vector<float> injected(TestCall &c, const std::string &options, int64_t step = 0)
{
    Asked a(options);
    REQUIRE_OK(c.dry(a.run));
    return c.act(a.run, step);
}

} // namespace

TEST_CASE("style_injection: equal pictures give equal outputs, to the bit", "[controls][styleid]")
{
    const std::string sharp = ", \"logit_scale\": 1, \"gamma\": ";
    {
        TestCall c(3, 12, 12, 2, 8, 31);
        prepare(c);
        copy_row(c, c.k, 1, 0), copy_row(c, c.v, 1, 0); // the style is the content
        std::vector<float> out = injected(c, sharp + "1");
        CHECK(row_of(c, out, 2) == row_of(c, out, 0));
        CHECK(row_of(c, injected(c, sharp + "0.5"), 2) != row_of(c, out, 0));
    }
    {
        TestCall c(3, 12, 12, 2, 8, 32);
        prepare(c);
        for (auto *x : {&c.q, &c.k, &c.v})
            copy_row(c, *x, 1, 0), copy_row(c, *x, 2, 0); // all three latents equal
        TestRun plain(&hd_all_controls, "{\"processors\": []}");
        REQUIRE_OK(c.dry(plain));
        const std::vector<float> without = c.act(plain);
        for (const char *gamma : {"0", "0.3", "0.75", "1"})
            CHECK(injected(c, sharp + gamma) == without);
    }
    {
        TestCall c(3, 12, 12, 2, 8, 33);
        prepare(c);
        copy_row(c, c.k, 1, 2), copy_row(c, c.v, 1, 2); // the style's keys and values are the own
        TestRun plain(&hd_all_controls, "{\"processors\": []}");
        REQUIRE_OK(c.dry(plain));
        CHECK(injected(c, sharp + "0") == c.act(plain));
    }
}

TEST_CASE("style_injection: a site by hand", "[controls][styleid]")
{
    auto site = [](const std::string &options, std::vector<float> content, std::vector<float> own) {
        TestCall c(3, 2, 3, 1, 2, 34);
        prepare(c);
        const std::vector<float> keys = {1, 0, 0, 1, 1, 1}, values = {1, 0, 2, 0, 4, 0};
        std::copy(keys.begin(), keys.end(), c.k.begin() + 6);
        std::copy(values.begin(), values.end(), c.v.begin() + 6);
        std::copy(content.begin(), content.end(), c.q.begin());
        std::copy(own.begin(), own.end(), c.q.begin() + 8);
        const std::vector<float> out = row_of(c, injected(c, options), 2);
        return std::vector<double>{(double)out[0], (double)out[2]};
    };
    auto check = [](const std::vector<double> &got, double first, double second) {
        CHECK(got[0] == Approx(first).margin(1e-5));
        CHECK(got[1] == Approx(second).margin(1e-5));
    };
    const std::string all = ", \"gamma\": 1, \"logit_scale\": ";
    check(site(all + "1", {1, 0, 0, 1}, {9, 9, 9, 9}), 2.40111, 2.60445);
    check(site(all + "1.5", {1, 0, 0, 1}, {9, 9, 9, 9}), 2.42622, 2.70487);
    // queries of 0.75 [1, 0] + 0.25 [0, 1], and the other way round; scores 0, 1, 2 after it
    auto expected = [](double a, double b, double scale) {
        const double s = scale / std::sqrt(2.0);
        const double e[] = {std::exp(s * a), std::exp(s * b), std::exp(s * (a + b))};
        return (e[0] + 2 * e[1] + 4 * e[2]) / (e[0] + e[1] + e[2]);
    };
    check(site(", \"gamma\": 0.75, \"logit_scale\": 1", {1, 0, 0, 1}, {0, 1, 1, 0}),
          expected(.75, .25, 1), expected(.25, .75, 1));
    check(site(", \"gamma\": 0.75, \"logit_scale\": 1.5", {1, 0, 0, 1}, {0, 1, 1, 0}),
          expected(.75, .25, 1.5), expected(.25, .75, 1.5));
}

TEST_CASE("style_injection: scores are multiplied, of the target alone", "[controls][styleid]")
{
    auto weights = [](const char *options) {
        TestCall c(3, 1, 3, 1, 4, 35); // scale 1/2: scores 0, 1, 2
        prepare(c);
        for (size_t b = 0; b < 3; b++)
            for (size_t i = 0; i < 4; i++)
                c.q[4 * b + i] = i == 3 ? 2.0f : 0.0f;
        for (size_t i = 0; i < c.k.size(); i++) {
            c.k[i] = i % 4 == 3 ? (float)(i / 4 % 3) : 0.0f;
            c.v[i] = i % 4 == i / 4 % 3 ? 1.0f : 0.0f;
        }
        return injected(c, options);
    };
    const double plain[] = {.09003, .24473, .66524}, sharp[] = {.03911, .17529, .78560};
    std::vector<float> out = weights(", \"logit_scale\": 1.5");
    for (size_t i = 0; i < 3; i++) {
        CHECK((double)out[i] == Approx(plain[i]).margin(1e-5));
        CHECK((double)out[4 + i] == Approx(plain[i]).margin(1e-5));
        CHECK((double)out[8 + i] == Approx(sharp[i]).margin(1e-5));
    }
    out = weights(", \"logit_scale\": 1");
    for (size_t i = 0; i < 3; i++)
        CHECK((double)out[8 + i] == Approx(plain[i]).margin(1e-5));
}

TEST_CASE("style_injection: the order of the style's tokens carries nothing", "[controls][styleid]")
{
    TestCall c(3, 12, 12, 2, 8, 36);
    prepare(c);
    const std::vector<float> before = injected(c, "");
    auto turn = [&](std::vector<float> &x) { // the style's tokens, five on
        const auto first = x.begin() + 12 * 16;
        std::rotate(first, first + 5 * 16, first + 12 * 16);
    };
    turn(c.k), turn(c.v);
    const std::vector<float> after = injected(c, "");
    for (size_t i = 2 * 12 * 16; i < after.size(); i++)
        REQUIRE((double)after[i] == Approx((double)before[i]).margin(1e-6));
    turn(c.v);
    CHECK(row_of(c, injected(c, ""), 2) != row_of(c, after, 2)); // keys and values together only
}

TEST_CASE("style_injection: only the picture's tokens, in its calls", "[controls][styleid]")
{
    TestCall c(3, 9, 9, 2, 8, 37);
    prepare(c);
    strcpy(c.call.site.path, "block.7");
    c.call.site.kind = HD_SITE_JOINT;
    c.call.q_layout.segments = 2;
    c.call.q_layout.segment[0] = {HD_TOKENS_TEXT, 0, 3, 0, 0, 0};
    c.call.q_layout.segment[1] = {HD_TOKENS_GRID, 3, 6, 1, 2, 3};
    c.call.k_layout = c.call.q_layout;
    const std::string joint =
        ", \"layers\": [\"block.** joint\"], \"gamma\": 1, \"inject_steps\": [0.2, 0.7]";
    auto token = [&](const std::vector<float> &x, int64_t b, int64_t i, int64_t h) {
        return x.data() + ((b * 9 + i) * 2 + h) * 8;
    };
    for (int64_t step : {1, 2, 6, 7}) {
        const bool in = step >= 2 && step < 7;
        const std::vector<float> out = injected(c, joint, step);
        CAPTURE(step);
        CHECK(error_f64(
                  c, out, 2,
                  [&](int64_t h, int64_t i) {
                      return softmax_f64(9, [&](int64_t j) {
                          const float *q = token(c.q, in && i >= 3 ? 0 : 2, i, h),
                                      *k = token(c.k, in && j >= 3 ? 1 : 2, j, h);
                          double sum = 0;
                          for (int64_t d = 0; d < 8; d++)
                              sum += (double)q[d] * (double)k[d];
                          return sum * (double)c.call.scale * (in && i >= 3 ? 1.5 : 1.0);
                      });
                  },
                  [&](int64_t j, int64_t h, int64_t d) {
                      return (double)token(c.v, in && j >= 3 ? 1 : 2, j, h)[d];
                  }) < 1e-5);
    }
}

TEST_CASE("style_injection: statistics of the initial latent", "[controls][styleid]")
{
    const float content[] = {1, 2, 3, 4}, style[] = {10, 10, 14, 14}, constant[] = {7, 7, 7, 7};
    float out[4];
    style_adain(out, content, style, 1, 4, 1);
    const double wanted[] = {9.3167, 11.1056, 12.8944, 14.6833};
    double mean = 0, square = 0;
    for (int i = 0; i < 4; i++) {
        CHECK((double)out[i] == Approx(wanted[i]).margin(1e-4));
        mean += (double)out[i] / 4;
    }
    for (float x : out)
        square += std::pow((double)x - mean, 2);
    CHECK(mean == Approx(12));
    CHECK(std::sqrt(square / 3) == Approx(2.3094).margin(1e-4));
    style_adain(out, constant, style, 1, 4, 1);
    for (float x : out)
        CHECK(x == 12.0f);
    style_adain(out, content, constant, 1, 4, 1);
    for (float x : out)
        CHECK((double)x == Approx(7));
    // half way: mean and deviation half way
    style_adain(out, content, style, 1, 4, 0.5);
    for (int i = 0; i < 4; i++)
        CHECK((double)out[i] == Approx(((double)content[i] + wanted[i]) / 2).margin(1e-4));
    style_adain(out, content, style, 1, 4, 0);
    CHECK(memcmp(out, content, sizeof out) == 0);
    // equal statistics change no bit; channels on their own
    std::vector<float> x = normal_values(2 * 100, 41), y(200);
    style_adain(y.data(), x.data(), x.data(), 2, 100, 1);
    CHECK(y == x);
    std::vector<float> other = x;
    for (size_t i = 100; i < 200; i++)
        other[i] = 2 * other[i] + 1;
    style_adain(y.data(), x.data(), other.data(), 2, 100, 1);
    for (size_t i = 0; i < 200; i++)
        REQUIRE((double)y[i] == Approx((double)other[i]).margin(1e-5));
}

TEST_CASE("style_injection: six layers of Stable Diffusion 1.x", "[controls][styleid]")
{
    NameList list(fixture_text("names/sd15_unet.txt"));
    Asked a("");
    std::map<std::string, int64_t> acting;
    int64_t elements = 0;
    for (const hd_weight_info &info : list.infos()) {
        const std::string name = info.name;
        int block = 0, layer = 0;
        char site[64], half[8] = "";
        if (sscanf(info.name, "%4[a-z]_blocks.%d.attentions.%d.", half, &block, &layer) == 3)
            snprintf(site, sizeof site, "%s.%d.attn.%d", half, block, layer);
        else if (sscanf(info.name, "mid_block.attentions.%d.", &layer) == 1)
            snprintf(site, sizeof site, "mid.attn.%d", layer);
        else
            continue;
        const bool self = name.find("attn1.to_q.weight") != std::string::npos;
        if (!self && name.find("attn2.to_q.weight") == std::string::npos) continue;
        TestCall c(3, 4, 4, 8, info.shape.dim[0] / 8);
        prepare(c);
        c.call.site.kind = self ? HD_SITE_SELF : HD_SITE_CROSS;
        strcpy(c.call.site.path, site);
        const bool down = std::string(half) == "down", mid = !half[0];
        const int64_t factor = mid ? 8 : down ? 1 << block : 8 >> block;
        c.call.site.factor = factor;
        REQUIRE_OK(c.dry(a.run));
        const std::string chain = a.run.chain(hd_attention_run_sites(a.run.run) - 1);
        if (chain.find("style_injection") == std::string::npos) continue;
        CHECK(self);
        acting[site] = factor;
        elements += (64 / factor) * (64 / factor) * info.shape.dim[0];
    }
    const std::map<std::string, int64_t> wanted = {{"up.2.attn.0", 2}, {"up.2.attn.1", 2},
                                                   {"up.2.attn.2", 2}, {"up.3.attn.0", 1},
                                                   {"up.3.attn.1", 1}, {"up.3.attn.2", 1}};
    CHECK(acting == wanted);
    CHECK(elements == 5898240);
}

TEST_CASE("style_injection: up and down again is exact where the noise does not depend on the "
          "latent",
          "[controls][styleid]")
{
    Json config("scheduler", "{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": "
                             "\"scaled_linear\", \"clip_sample\": false, \"set_alpha_to_one\": "
                             "false, \"steps_offset\": 1}");
    hd_sampler *s = nullptr;
    hd_sampler_options options{};
    options.name = "ddim";
    options.config = config.root();
    options.steps = 50;
    options.rows = 1;
    options.row_values = 64;
    REQUIRE_OK(hd_sampler_create(&s, &options));
    // as the authors' inversion has it: 1, 21 ... 981; the picture counts as level 1
    for (int64_t i = 0; i < 50; i++)
        REQUIRE(hd_sampler_level(s, i).timestep == (float)(981 - 20 * i));
    const std::vector<float> picture = normal_values(64, 51), noise = normal_values(64, 52);
    std::vector<double> up(picture.begin(), picture.end());
    for (int64_t i = 49; i > 0; i--) {
        const hd_noise_level from = hd_sampler_level(s, i), to = hd_sampler_level(s, i - 1);
        for (size_t j = 0; j < 64; j++)
            up[j] = (double)to.alpha * (up[j] - (double)from.sigma * (double)noise[j]) /
                        (double)from.alpha +
                    (double)to.sigma * (double)noise[j];
    }
    std::vector<float> x(up.begin(), up.end());
    for (int64_t i = 0; i < 49; i++)
        REQUIRE_OK(hd_sampler_step(s, noise.data(), x.data(), nullptr));
    CHECK(hd_sampler_timestep(s) == 1.0f);
    for (size_t j = 0; j < 64; j++)
        REQUIRE((double)x[j] == Approx((double)picture[j]).margin(2e-4));
    hd_sampler_free(s);
}

namespace
{

// What a run does, seen from beside it: levels from the definition of the training's noise.
struct Look {
    std::vector<double> injected;        // timesteps whose keys are the style's
    std::set<std::string> other_outputs; // sites where main's output is not the content's
    bool first_equal = false, clean_is_last = false;
    double worst_pairing = 0, worst_start = 0; // relative
    std::vector<double> up[2];                 // content and style at the last timestep
    std::vector<float> before_second, first;   // main's latent
} look;

double alpha_bar(int timestep)
{
    double product = 1;
    for (int t = 0; t <= timestep; t++) {
        const double first = std::sqrt(0.00085), last = std::sqrt(0.012);
        product *= 1 - std::pow(first + (last - first) * t / 999.0, 2);
    }
    return product;
}

// x of level `from`, where the network predicts velocity v, at level `to`.
std::vector<double> moved(const float *x, const float *v, int64_t count, double from, double to)
{
    const double a = std::sqrt(alpha_bar((int)from)), s = std::sqrt(1 - a * a),
                 b = std::sqrt(alpha_bar((int)to)), r = std::sqrt(1 - b * b);
    std::vector<double> out((size_t)count);
    for (int64_t i = 0; i < count; i++) {
        const double clean = a * (double)x[i] - s * (double)v[i],
                     noise = a * (double)v[i] + s * (double)x[i];
        out[(size_t)i] = b * clean + r * noise;
    }
    return out;
}

double off(const float *got, const std::vector<double> &wanted)
{
    double worst = 0, most = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        worst = std::fmax(worst, std::fabs((double)got[i] - wanted[i]));
        most = std::fmax(most, std::fabs(wanted[i]));
    }
    return worst / most;
}

hd_status look_latent(const hd_beside_ctx *ctx)
{
    const hd_beside_branch *main = hd_beside(ctx, "main"), *content = hd_beside(ctx, "content");
    const size_t bytes = (size_t)ctx->values * sizeof(float);
    if (ctx->when == HD_LATENT_START) {
        look.first.assign(main->latent, main->latent + ctx->values);
        if (content->trajectory)
            look.clean_is_last = memcmp(content->trajectory + (ctx->step.count - 1) * ctx->values,
                                        content->clean, bytes) == 0;
    }
    if (ctx->when == HD_LATENT_AFTER_STEP && ctx->step.index == 0) {
        look.first_equal = memcmp(main->latent, content->latent, bytes) == 0;
        look.before_second.assign(main->latent, main->latent + ctx->values);
    }
    return HD_OK;
}

hd_status look_guidance(const hd_beside_ctx *ctx)
{
    const char *names[] = {"content", "style"};
    if (strcmp(ctx->branch, "main") != 0) return HD_OK;
    for (int n = 0; n < 2; n++) {
        const hd_beside_branch *b = hd_beside(ctx, names[n]);
        if (!b->trajectory) continue;
        const int64_t i = ctx->step.index;
        const double t = ctx->step.timestep;
        const float *v = b->prediction[HD_ROLE_COND];
        if (i == 0)
            look.up[n] = moved(b->latent, v, ctx->values, t, 999);
        else
            look.worst_pairing = std::fmax(
                look.worst_pairing,
                off(b->trajectory + (i - 1) * ctx->values,
                    moved(b->latent, v, ctx->values, t, t + 1000 / (int)ctx->step.count)));
    }
    return HD_OK;
}

bool equal_rows(hd_tensor t, int64_t a, int64_t b)
{
    const size_t bytes = (size_t)(hd_tensor_bytes(t) / t.dim[0]);
    const char *data = static_cast<const char *>(t.data);
    return memcmp(data + (size_t)a * bytes, data + (size_t)b * bytes, bytes) == 0;
}

bool fine(const hd_hook_ctx *ctx)
{
    const hd_site *site = &ctx->call->site;
    return site->kind == HD_SITE_SELF && strncmp(site->path, "up.", 3) == 0;
}

hd_status look_tokens(const hd_hook_ctx *ctx, hd_tokens *t)
{
    const hd_rows *rows = &ctx->call->forward->rows;
    if (!fine(ctx) || strncmp(ctx->call->site.path, "up.2.attn.0", 11) != 0) return HD_OK;
    if (equal_rows(t->k, hd_rows_find(rows, "main", "cond", 0),
                   hd_rows_find(rows, "style", "cond", 0)))
        look.injected.push_back(ctx->call->forward->step.timestep);
    return HD_OK;
}

hd_status look_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const hd_rows *rows = &ctx->call->forward->rows;
    if (fine(ctx) && !equal_rows(output->out, hd_rows_find(rows, "main", "cond", 0),
                                 hd_rows_find(rows, "content", "cond", 0)))
        look.other_outputs.insert(ctx->call->site.path);
    return HD_OK;
}

const hd_processor_class *looker()
{
    static const hd_processor_class made = [] {
        hd_processor_class c = class_named("look");
        c.edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V;
        c.latent = look_latent;
        c.guidance = look_guidance;
        c.tokens = look_tokens;
        c.output = look_output;
        return c;
    }();
    return &made;
}

const char *const and_look = ", {\"use\": \"look\"}";

} // namespace

TEST_CASE("style_injection: the content as its own style is the content",
          "[pipeline][controls][styleid]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, looker()));
    const std::string path = drawn(context, folder, "fish.png", fish), both = inverted(path, path);
    for (const char *gamma : {"0", "0.3", "1"}) {
        look = {};
        auto run = context.run(run_of(
            inject(", \"logit_scale\": 1, \"gamma\": " + std::string(gamma), both, and_look)));
        CAPTURE(gamma);
        CHECK(look.first_equal);
        CHECK(look.clean_is_last);
        CHECK(look.injected.size() == 4);
        // with the content's queries, too, the layers' outputs are the content's in every call
        CHECK(look.other_outputs.empty() == (std::string(gamma) == "1"));
    }
    look = {};
    auto sharp = context.run(run_of(inject(", \"gamma\": 1", both, and_look)));
    CHECK(!look.first_equal);
    CHECK(look.other_outputs.size() == 4); // of the starter model
    auto plain = context.run(run_of(inject(", \"gamma\": 1, \"logit_scale\": 1", both)));
    CHECK(picture_of(sharp, "main") != picture_of(plain, "main"));
    CHECK(picture_of(sharp, "content") == picture_of(plain, "content"));
}

TEST_CASE("style_injection: levels, and the authors' start", "[pipeline][controls][styleid]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, looker()));
    const char *small = ", \"width\": 32, \"height\": 32", *size = ", \"steps\": 50, \"width\": "
                                                                   "32, \"height\": 32";
    const std::string two = inverted(drawn(context, folder, "fish.png", fish, small),
                                     drawn(context, folder, "tree.png", tree, small));
    auto timesteps = [](int first) {
        std::vector<double> all;
        for (int t = first; t > 0; t -= 20)
            all.push_back(t);
        return all;
    };
    auto start_off = [](const std::vector<float> &got) {
        std::vector<double> wanted = look.up[0];
        const size_t plane = wanted.size() / 4;
        for (size_t c = 0; c < 4; c++) {
            double mean[2] = {0, 0}, deviation[2] = {0, 0};
            for (int n = 0; n < 2; n++) {
                for (size_t i = c * plane; i < (c + 1) * plane; i++)
                    mean[n] += look.up[n][i] / (double)plane;
                for (size_t i = c * plane; i < (c + 1) * plane; i++)
                    deviation[n] += std::pow(look.up[n][i] - mean[n], 2) / (double)(plane - 1);
                deviation[n] = std::sqrt(deviation[n]);
            }
            for (size_t i = c * plane; i < (c + 1) * plane; i++)
                wanted[i] = (wanted[i] - mean[0]) / deviation[0] * deviation[1] + mean[1];
        }
        return off(got.data(), wanted);
    };
    look = {};
    auto aligned = context.run(run_of(inject("", two, and_look), size));
    CHECK(look.injected == timesteps(981)); // 50
    CHECK(look.clean_is_last);              // the picture is labelled 1
    CHECK(look.worst_pairing < 1e-4);       // each latent with its own timestep
    CHECK(start_off(look.before_second) > 1e-3);

    look = {};
    auto compat = context.run(run_of(inject(", \"start\": \"compat\"", two, and_look), size));
    CHECK(look.injected == timesteps(961)); // 49
    CHECK(look.worst_pairing < 1e-4);
    CHECK(start_off(look.before_second) < 1e-4); // level 999 meets timestep 961
    CHECK(picture_of(compat, "main") != picture_of(aligned, "main"));

    look = {};
    context.run(run_of(inject(", \"inversion_pairing\": \"next_level\"", two, and_look), size));
    CHECK(!look.clean_is_last);
    CHECK(look.worst_pairing > 1e-3);
}

namespace
{

// What a run borrows of content and style, kept for another run.
struct Store {
    bool reading = false;
    std::map<std::string, std::vector<char>> kept;
} store;

void keep_row(const std::string &name, hd_tensor t, int64_t row)
{
    const size_t bytes = (size_t)(hd_tensor_bytes(t) / t.dim[0]);
    const char *data = static_cast<const char *>(t.data) + (size_t)row * bytes;
    store.kept[name].assign(data, data + bytes);
}

hd_status store_tokens(const hd_hook_ctx *ctx, hd_tokens *t)
{
    const hd_forward *f = ctx->call->forward;
    if (!fine(ctx)) return HD_OK;
    const std::string name = ctx->call->site.path + std::to_string(f->step.index);
    if (!store.reading) {
        keep_row(name + "q", t->q, hd_rows_find(&f->rows, "content", "cond", 0));
        keep_row(name + "k", t->k, hd_rows_find(&f->rows, "style", "cond", 0));
        keep_row(name + "v", t->v, hd_rows_find(&f->rows, "style", "cond", 0));
        return HD_OK;
    }
    float *q = static_cast<float *>(t->q.data);
    const float *content = (const float *)(const void *)store.kept.at(name + "q").data();
    for (int64_t i = 0; i < hd_tensor_count(t->q); i++)
        q[i] = q[i] + 0.75f * (content[i] - q[i]);
    memcpy(t->k.data, store.kept.at(name + "k").data(), (size_t)hd_tensor_bytes(t->k));
    memcpy(t->v.data, store.kept.at(name + "v").data(), (size_t)hd_tensor_bytes(t->v));
    return HD_OK;
}

hd_status store_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    return store.reading && fine(ctx)
               ? hd_logits_scale_rows(logits, &ctx->call->q_layout, HD_TOKENS_ALL, 1.5f)
               : HD_OK;
}

hd_status store_latent(const hd_beside_ctx *ctx)
{
    float *main = hd_beside(ctx, "main")->latent;
    const size_t bytes = (size_t)ctx->values * sizeof(float);
    if (ctx->when != HD_LATENT_START) return HD_OK;
    if (store.reading)
        memcpy(main, store.kept.at("start").data(), bytes);
    else
        store.kept["start"].assign((const char *)main, (const char *)main + bytes);
    return HD_OK;
}

std::vector<float> latents_of(const std::string &path)
{
    Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
    const FixtureTensor &t = f.at("latents");
    return std::vector<float>(t.f32(), t.f32() + t.count());
}

} // namespace

TEST_CASE("style_injection: rows beside each other equal features of a run before, to the bit",
          "[pipeline][controls][styleid]")
{
    static const hd_processor_class keep = [] {
        hd_processor_class c = class_named("store");
        c.edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V;
        c.tokens = store_tokens;
        c.logits = store_logits;
        c.latent = store_latent;
        return c;
    }();
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &keep));
    const std::string two = inverted(drawn(context, folder, "fish.png", fish),
                                     drawn(context, folder, "tree.png", tree)),
                      out = folder.path("out.safetensors"),
                      keeps = ", \"latents_out\": \"" + out + "\"";
    store = {};
    context.run(run_of(keeps + inject("", two, ", {\"use\": \"store\"}")));
    const std::vector<float> together = latents_of(out);
    REQUIRE(store.kept.size() == 1 + 4 * 4 * 3);
    store.reading = true;
    context.run(run_of(keeps + ", \"processors\": [{\"use\": \"store\"}]"));
    CHECK(latents_of(out) == together);
}

TEST_CASE("style_injection: every option changes the picture, none of them the content",
          "[pipeline][controls][styleid]")
{
    Context context;
    Folder folder;
    const std::string two = inverted(drawn(context, folder, "fish.png", fish),
                                     drawn(context, folder, "tree.png", tree));
    std::set<std::vector<uint8_t>> different;
    std::vector<uint8_t> content;
    for (const char *options :
         {"", ", \"gamma\": 0.3", ", \"logit_scale\": 1", ", \"start\": \"compat\"",
          ", \"init_adain\": false", ", \"init_adain_strength\": 0.5",
          ", \"attn_injection\": false", ", \"inject_steps\": [0.5, 1]",
          ", \"layers\": [\"up.2.** self\"]", ", \"inversion_pairing\": \"next_level\""}) {
        INFO(options);
        auto run = context.run(run_of(inject(options, two)));
        CHECK(different.insert(picture_of(run, "main")).second);
        if (content.empty()) content = picture_of(run, "content");
        CHECK(picture_of(run, "content") == content);
    }
    // sampled beside it; in a batch as alone; and with nothing left to do, a run without it
    auto alone = context.run(run_of(inject("", sampled()))),
         batch = context.run(run_of(", \"batch\": 2" + inject("", sampled())));
    CHECK(picture_of(batch, "main", 0) == picture_of(alone, "main"));
    auto nothing = context.run(
        run_of(inject(", \"init_adain\": false, \"attn_injection\": false", sampled())));
    auto plain = context.run(run_of(""));
    CHECK(picture_of(nothing, "main") == picture_of(plain, "main"));
    CHECK(picture_of(alone, "main") != picture_of(plain, "main"));
}

TEST_CASE("style_injection: what cannot be done is refused by its place",
          "[pipeline][controls][styleid]")
{
    Context context;
    Folder folder;
    ResultPtr none(nullptr, hd_result_free);
    struct {
        const char *options, *message;
    } cases[] = {
        {", \"layers\": []", "processors[0].layers is empty"},
        {", \"layers\": [\"up.2.** self\", \"up.2.** cross\"]", "processors[0].layers[1] is"},
        {", \"layers\": [\"up.7.** self\"]", "matches no attention site of this model"},
        {", \"gamma\": 1.5", "processors[0].gamma is 1.5"},
        {", \"logit_scale\": 0", "processors[0].logit_scale is 0"},
        {", \"inject_steps\": [0.5]", "processors[0].inject_steps has 1 numbers"},
        {", \"inject_steps\": [0.5, 0.2]", "must not go backwards"},
        {", \"T\": 1.5", "processors[0] (style_injection) has no \"T\""},
        {", \"start\": \"compat\", \"steps\": [0.5, 1]", "\"steps\" from 0"},
    };
    for (const auto &c : cases) {
        INFO(c.options);
        CHECK(context.try_run(run_of(inject(c.options, sampled())), none) != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
        CHECK(std::string(hd_message()).find("test.json: processors[0]") != std::string::npos);
    }
    CHECK_FAILS(context.try_run(run_of(inject("", "\"style\": {\"prompt\": \"a fish\"}")), none),
                HD_ERR_ARGUMENT,
                "processors[0] (style_injection) has no content: give content_image");
    CHECK_FAILS(context.try_run(run_of(inject("", "\"content\": \"main\", \"style\": {}")), none),
                HD_ERR_ARGUMENT, "main is the content or the style itself");
    std::string euler = run_of(inject(", \"start\": \"compat\"", sampled()));
    euler.replace(euler.find("\"ddim\""), 6, "\"dpm++2m\"");
    CHECK_FAILS(context.try_run(euler, none), HD_ERR_ARGUMENT, "use ddim");

    const std::string square =
        drawn(context, folder, "fish.png", fish, ", \"width\": 32, \"height\": 32");
    CHECK_FAILS(
        context.try_run(run_of(inject("", inverted(square, square))), none), HD_ERR_ARGUMENT,
        "test.json: branches.content.init_image " + square + " is 32 x 32, the run 48 x 32");
    CHECK_FAILS(context.try_run(run_of(", \"processors\": [{\"use\": \"style_injection\", "
                                       "\"content_image\": \"" +
                                       square + "\", \"style_image\": \"" + square + "\"}]"),
                                none),
                HD_ERR_ARGUMENT, "test.json: processors[0].content_image " + square);
    auto fitted = context.run(run_of(", \"fit\": \"crop\"" + inject("", inverted(square, square))));
    // a style may have any size
    auto style =
        context.run(run_of(inject("", inverted(drawn(context, folder, "wide.png", fish), square))));
    CHECK(picture_of(fitted, "main") != picture_of(style, "main"));
}

namespace
{

// Sum over the channels of what the means and the deviations are apart.
double colours_apart(const std::vector<uint8_t> &a, const std::vector<uint8_t> &b)
{
    double apart = 0;
    for (size_t c = 0; c < 3; c++) {
        double mean[2] = {0, 0}, deviation[2] = {0, 0};
        const std::vector<uint8_t> *of[] = {&a, &b};
        const double count = (double)a.size() / 3;
        for (int n = 0; n < 2; n++) {
            for (size_t i = c; i < a.size(); i += 3)
                mean[n] += (*of[n])[i] / count;
            for (size_t i = c; i < a.size(); i += 3)
                deviation[n] += std::pow((*of[n])[i] - mean[n], 2) / count;
        }
        apart += std::fabs(mean[0] - mean[1]) +
                 std::fabs(std::sqrt(deviation[0]) - std::sqrt(deviation[1]));
    }
    return apart;
}

// How steep a picture of 64 x 64 is, place by place.
std::vector<double> edges_of(const std::vector<uint8_t> &p)
{
    std::vector<double> edges;
    for (size_t y = 0; y < 63; y++)
        for (size_t x = 0; x < 63; x++) {
            double steep = 0;
            for (size_t c = 0; c < 3; c++) {
                const size_t i = 3 * (64 * y + x) + c;
                steep +=
                    std::abs((int)p[i + 3] - (int)p[i]) + std::abs((int)p[i + 192] - (int)p[i]);
            }
            edges.push_back(steep);
        }
    return edges;
}

double correlation(const std::vector<double> &a, const std::vector<double> &b)
{
    double ma = 0, mb = 0, ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); i++)
        ma += a[i] / (double)a.size(), mb += b[i] / (double)a.size();
    for (size_t i = 0; i < a.size(); i++) {
        ab += (a[i] - ma) * (b[i] - mb);
        aa += (a[i] - ma) * (a[i] - ma), bb += (b[i] - mb) * (b[i] - mb);
    }
    return ab / std::sqrt(aa * bb);
}

} // namespace

// Mean of three pairs: colours are 33 from the style's with the processor, 319 without; 176 lies
// midway. Correlation with the content's edges: 0.42, and 0.12 of a picture without it; 0.27.
TEST_CASE("style_injection: colours go to the style's, edges stay the content's",
          "[pipeline][controls][styleid]")
{
    Context context;
    Folder folder;
    const char *size = ", \"width\": 64, \"height\": 64";
    const std::string moon = drawn(context, folder, "moon.png", "a big yellow moon at night", size),
                      red = drawn(context, folder, "fish.png", fish, size),
                      cloud = drawn(context, folder, "cloud.png", "a white cloud in the sky", size),
                      cat = drawn(context, folder, "cat.png", "a brown cat on an orange background",
                                  size);
    const std::string *const pairs[][2] = {{&moon, &cloud}, {&red, &cat}, {&moon, &cat}};
    double colours[2] = {0, 0}, edges[2] = {0, 0};
    const char *run = ", \"steps\": 12";
    auto none = context.run(run_of("", run));
    for (const auto &pair : pairs) {
        std::string both = inverted(*pair[0], *pair[1]);
        both.insert(both.size() - 1, ", \"save\": true");
        auto on = context.run(run_of(inject("", both), run)),
             off = context.run(
                 run_of(inject(", \"init_adain\": false, \"attn_injection\": false", both), run));
        const auto content = picture_of(on, "content"), style = picture_of(on, "style");
        colours[1] += colours_apart(picture_of(on, "main"), style) / 3;
        colours[0] += colours_apart(picture_of(off, "main"), style) / 3;
        edges[1] += correlation(edges_of(picture_of(on, "main")), edges_of(content)) / 3;
        edges[0] += correlation(edges_of(picture_of(none, "main")), edges_of(content)) / 3;
        CAPTURE(colours[0], colours[1], edges[0], edges[1]);
        CHECK(colours[1] < colours[0]);
    }
    CAPTURE(colours[0], colours[1], edges[0], edges[1]);
    CHECK(colours[1] < 176);
    CHECK(colours[0] > 176);
    CHECK(edges[1] > 0.27);
    CHECK(edges[0] < 0.27);
}
