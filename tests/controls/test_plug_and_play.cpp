// Plug-and-Play: what it injects, where and when; neutrality to the bit; the same from stored
// features (Tumanyan et al., arXiv 2211.12572).
#include <cstring>
#include <map>
#include <set>

#include "codecs/png.h"
#include "controls/all.h"
#include "controls/plug_and_play.h"
#include "engine/attention/beside_run.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/asked.h"
#include "support/attention.h"
#include "support/network.h"

namespace
{

const char *const whale = "a big blue whale on a white background";
const char *const fish = "a big red fish on a yellow background";

std::string run_of(const std::string &prompt, const std::string &more, const std::string &size = "")
{
    return "{" + starter() +
           (size.empty() ? ", \"steps\": 4, \"width\": 48, \"height\": 32, \"guidance\": 5"
                         : size) +
           ", \"seed\": 5, \"sampler\": \"ddim\", \"precision\": \"f32\", \"prompt\": \"" + prompt +
           "\"" + more + "}";
}

std::string plug(const std::string &options, const std::string &source)
{
    return ", \"branches\": {\"source\": {" + source +
           "}}, \"processors\": [{\"use\": \"plug_and_play\"" + options + "}]";
}

std::string sampled(const std::string &prompt = fish)
{
    return "\"save\": true, \"prompt\": \"" + prompt + "\"";
}

std::vector<uint8_t> picture_of(const ResultPtr &result, const std::string &branch, int skip = 0)
{
    for (int i = 0; i < hd_result_count(result.get()); i++)
        if (branch == hd_result_picture(result.get(), i)->branch && skip-- == 0)
            return pixels(result.get(), i);
    FAIL("no picture of branch " << branch);
    return {};
}

// A class of the test behind the processor in question, told what it asks for.
bool equal_rows(hd_tensor t, int64_t a, int64_t b)
{
    const size_t bytes = (size_t)(hd_tensor_bytes(t) / t.dim[0]);
    const char *data = static_cast<const char *>(t.data);
    return memcmp(data + (size_t)a * bytes, data + (size_t)b * bytes, bytes) == 0;
}

} // namespace

TEST_CASE("plug_and_play: no steps, or no strength, change no bit", "[pipeline][controls][pnp]")
{
    Context context;
    auto plain = context.run(run_of(whale, ""));
    for (const char *off :
         {", \"feature_steps\": 0, \"attn_steps\": 0",
          ", \"feature_steps\": [0.5, 0.5], \"attn_steps\": [1, 1]",
          ", \"strength_feature\": 0, \"strength_qk\": 0",
          ", \"feature_sites\": [], \"attn_steps\": 0",
          ", \"qk_mode\": \"append\", \"strength_qk\": 0, \"feature_steps\": 0"}) {
        INFO(off);
        auto run = context.run(run_of(whale, plug(off, sampled())));
        CHECK(picture_of(run, "main") == picture_of(plain, "main"));
    }
    auto source = context.run(run_of(fish, ""));
    std::set<std::vector<uint8_t>> different = {picture_of(plain, "main")};
    for (const char *on : {"", ", \"attn_steps\": 0", ", \"feature_sites\": []",
                           ", \"strength_qk\": 0.5", ", \"strength_feature\": 0.5",
                           ", \"qk_mode\": \"append\"", ", \"feature_adain\": true"}) {
        INFO(on);
        auto run = context.run(run_of(whale, plug(on, sampled())));
        CHECK(different.insert(picture_of(run, "main")).second);
        CHECK(picture_of(run, "source") == picture_of(source, "main"));
    }
}

TEST_CASE("plug_and_play: with the source's own prompt every injection is a copy of equal values",
          "[pipeline][controls][pnp]")
{
    Context context;
    const char *one_row = ", \"steps\": 4, \"width\": 48, \"height\": 32, \"guidance\": 1";
    for (const char *options : {"", ", \"feature_steps\": 1, \"attn_steps\": 1",
                                ", \"feature_steps\": [0.2, 0.6], \"attn_steps\": 0.3",
                                ", \"strength_feature\": 0.3, \"strength_qk\": 0.7"}) {
        INFO(options);
        auto run =
            context.run(run_of(fish, ", \"batch\": 2" + plug(options, sampled(fish)), one_row));
        for (int i = 0; i < 2; i++)
            CHECK(picture_of(run, "main", i) == picture_of(run, "source", i));
    }
    auto other = context.run(run_of(whale, plug("", sampled(fish)), one_row));
    CHECK(picture_of(other, "main") != picture_of(other, "source"));
}

namespace
{

// Latents of main and source behind each step, and what the trajectory says there.
struct Drift {
    std::vector<double> off;
    bool first_equal = false;
} drift;

hd_status drift_latent(const hd_beside_ctx *ctx)
{
    if (ctx->when != HD_LATENT_AFTER_STEP) return HD_OK;
    const hd_beside_branch *main = hd_beside(ctx, "main"), *source = hd_beside(ctx, "source");
    const size_t bytes = (size_t)ctx->values * sizeof(float);
    if (ctx->step.index == 0) drift.first_equal = memcmp(main->latent, source->latent, bytes) == 0;
    const float *there = source->trajectory + (ctx->step.index + 1) * ctx->values;
    double sum = 0, size = 0;
    for (int64_t i = 0; i < ctx->values; i++) {
        sum += std::pow((double)main->latent[i] - (double)there[i], 2);
        size += std::pow((double)there[i], 2);
    }
    drift.off.push_back(std::sqrt(sum / size));
    return HD_OK;
}

std::string drawn(Context &context, Folder &folder, const char *size)
{
    const std::string path = folder.path("fish.png");
    context.run("{" + starter() + ", \"prompt\": \"" + fish + "\", \"seed\": 3, \"steps\": 8" +
                size + ", \"output\": \"" + path + "\"}");
    return path;
}

} // namespace

// Distance from the trajectory after 8 steps, relative to it: 0.85 without injection, 0.70 with the
// defaults, 0.62 with all of it in every step.
TEST_CASE("plug_and_play: the target of a real picture leaves it by the drift of the steps alone",
          "[pipeline][controls][pnp]")
{
    static const hd_processor_class watch = [] {
        hd_processor_class c = class_named("drift");
        c.latent = drift_latent;
        return c;
    }();
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &watch));
    const std::string path = drawn(context, folder, ", \"width\": 48, \"height\": 32");
    std::vector<double> last;
    for (const char *options : {", \"feature_steps\": 0, \"attn_steps\": 0", "",
                                ", \"feature_steps\": 1, \"attn_steps\": 1"}) {
        drift = {};
        context.run(run_of("",
                           ", \"branches\": {\"source\": {\"init_image\": \"" + path +
                               "\"}}, \"processors\": [{\"use\": \"plug_and_play\", "
                               "\"inversion_steps\": 0" +
                               options + "}, {\"use\": \"drift\"}]",
                           ", \"steps\": 8, \"width\": 48, \"height\": 32, \"guidance\": 1"));
        INFO(options << ": " << Catch::StringMaker<std::vector<double>>::convert(drift.off));
        REQUIRE(drift.off.size() == 8);
        CHECK(drift.first_equal);
        for (double d : drift.off)
            CHECK((d > 0 && d < 2));
        last.push_back(drift.off.back());
    }
    CAPTURE(last);
    CHECK(last[1] != last[0]);
}

TEST_CASE("plug_and_play: parts of a run are half open", "[controls][pnp]")
{
    auto calls = [](double from, double to, int64_t n) {
        int64_t range[2];
        const double part[2] = {from, to};
        pnp_calls(range, part, n);
        return std::make_pair(range[0], range[1]);
    };
    using Range = std::pair<int64_t, int64_t>;
    CHECK(calls(0, .8, 50) == Range(0, 40));
    CHECK(calls(0, .5, 50) == Range(0, 25));
    CHECK(calls(0, .82, 50) == Range(0, 41));
    CHECK(calls(0, .52, 50) == Range(0, 26));
    CHECK(calls(0, .8, 20) == Range(0, 16));
    CHECK(calls(0, .5, 20) == Range(0, 10));
    CHECK(calls(0, .55, 20) == Range(0, 11)); // index <= 20 / 2
    CHECK(calls(.1, .7, 10) == Range(1, 7));
    CHECK(calls(0, 1, 7) == Range(0, 7));
}

namespace
{

// At which calls main's q, k and feature are the source's.
struct Counted {
    std::vector<int64_t> attention, feature, v;
} counted;

hd_status count_branches(hd_branches_ctx *ctx)
{
    return hd_ask_feature(ctx, "up.1.resnet.1.conv2");
}

hd_status count_tokens(const hd_hook_ctx *ctx, hd_tokens *t)
{
    const hd_rows *rows = &ctx->call->forward->rows;
    if (std::string(ctx->call->site.path) != "up.2.attn.1.0" &&
        std::string(ctx->call->site.path) != "up.2.attn.1")
        return HD_OK;
    const int64_t main = hd_rows_find(rows, "main", "cond", 0),
                  source = hd_rows_find(rows, "source", "cond", 0);
    const bool q = equal_rows(t->q, main, source), k = equal_rows(t->k, main, source);
    CHECK(q == k);
    if (q) counted.attention.push_back(ctx->call->forward->step.index);
    if (equal_rows(t->v, main, source)) counted.v.push_back(ctx->call->forward->step.index);
    return HD_OK;
}

hd_status count_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    if (equal_rows(x, hd_rows_find(ctx->rows, "main", "cond", 0),
                   hd_rows_find(ctx->rows, "source", "cond", 0)))
        counted.feature.push_back(ctx->step.index);
    return HD_OK;
}

std::vector<int64_t> up_to(int64_t end)
{
    std::vector<int64_t> all;
    for (int64_t i = 0; i < end; i++)
        all.push_back(i);
    return all;
}

} // namespace

TEST_CASE("plug_and_play: features and attention are the source's in their calls, and no others",
          "[pipeline][controls][pnp]")
{
    static const hd_processor_class count = [] {
        hd_processor_class c = class_named("count");
        c.edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V; // sees what the one before has left
        c.branches = count_branches;
        c.tokens = count_tokens;
        c.feature = count_feature;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &count));
    struct {
        int steps;
        const char *options;
        int64_t features, attention;
    } cases[] = {
        {50, "", 40, 25},
        {50, ", \"feature_steps\": 0.82, \"attn_steps\": [0, 0.52]", 41, 26},
        {20, "", 16, 10},
        {20, ", \"attn_steps\": 0.55", 16, 11},
    };
    for (const auto &c : cases) {
        counted = {};
        const std::string size = ", \"steps\": " + std::to_string(c.steps) +
                                 ", \"width\": 32, \"height\": 32, \"guidance\": 1";
        context.run(run_of(whale,
                           ", \"branches\": {\"source\": {\"prompt\": \"" + std::string(fish) +
                               "\"}}, \"processors\": [{\"use\": \"plug_and_play\"" + c.options +
                               "}, {\"use\": \"count\"}]",
                           size));
        INFO(c.steps << c.options);
        CHECK(counted.feature == up_to(c.features));
        CHECK(counted.attention == up_to(c.attention));
        CHECK(counted.v.empty());
    }
}

namespace
{

// The processor of some options with its branches asked for and begun: main and what it needs.
struct Asked : AskedRun {
    explicit Asked(const std::string &options, int64_t steps = 10)
        : AskedRun("plug_and_play", options, {"source"}, steps, 7.5f)
    {
    }
};

void name_row(hd_row *row, const char *branch, const char *role)
{
    *row = {};
    strcpy(row->branch, branch);
    strcpy(row->role, role);
}

// Rows source/cond, main/uncond, main/cond.
void name_rows(TestCall &c)
{
    name_row(&c.rows[0], "source", "cond");
    name_row(&c.rows[1], "main", "uncond");
    name_row(&c.rows[2], "main", "cond");
}

const float *at(const TestCall &c, const std::vector<float> &x, int64_t b, int64_t i, int64_t h)
{
    const int64_t tokens = (int64_t)x.size() / (c.B * c.H * c.D);
    return x.data() + ((b * tokens + i) * c.H + h) * c.D;
}

double dot(const TestCall &c, const float *a, const float *b)
{
    double sum = 0;
    for (int64_t d = 0; d < c.D; d++)
        sum += (double)a[d] * (double)b[d];
    return sum * (double)c.call.scale;
}

} // namespace

TEST_CASE("plug_and_play: eight layers and one block of Stable Diffusion 1.x", "[controls][pnp]")
{
    // from the names of the published tensors: attn1.to_q.weight [channels, channels]
    NameList list(fixture_text("names/sd15_unet.txt"));
    Asked a("");
    std::set<std::string> taps;
    std::map<std::string, int64_t> acting;
    for (const hd_weight_info &info : list.infos()) {
        const std::string name = info.name;
        int block = 0, layer = 0;
        char site[64], half[8] = "";
        if (sscanf(info.name, "%4[a-z]_blocks.%d.attentions.%d.", half, &block, &layer) == 3)
            snprintf(site, sizeof site, "%s.%d.attn.%d", half, block, layer);
        else if (sscanf(info.name, "mid_block.attentions.%d.", &layer) == 1)
            snprintf(site, sizeof site, "mid.attn.%d", layer);
        else if (sscanf(info.name, "%4[a-z]_blocks.%d.resnets.%d.", half, &block, &layer) == 3) {
            snprintf(site, sizeof site, "%s.%d.resnet.%d", half, block, layer);
            taps.insert(site);
            continue;
        } else
            continue;
        const bool self = name.find("attn1.to_q.weight") != std::string::npos;
        if (!self && name.find("attn2.to_q.weight") == std::string::npos) continue;
        TestCall c(3, 4, 4, 8, info.shape.dim[0] / 8);
        name_rows(c);
        c.call.site.kind = self ? HD_SITE_SELF : HD_SITE_CROSS;
        if (!self) c.call.k_layout = hd_layout_text(4);
        strcpy(c.call.site.path, site);
        REQUIRE_OK(c.dry(a.run));
        const std::string chain = a.run.chain(hd_attention_run_sites(a.run.run) - 1);
        if (chain.find("plug_and_play") == std::string::npos) continue;
        CHECK(self);
        acting[site] = info.shape.dim[0];
    }
    const std::map<std::string, int64_t> wanted = {
        {"up.1.attn.1", 1280}, {"up.1.attn.2", 1280}, {"up.2.attn.0", 640}, {"up.2.attn.1", 640},
        {"up.2.attn.2", 640},  {"up.3.attn.0", 320},  {"up.3.attn.1", 320}, {"up.3.attn.2", 320}};
    CHECK(acting == wanted);
    int64_t channels = 0;
    for (const auto &s : acting)
        channels += s.second;
    CHECK(channels == 2 * 1280 + 3 * 640 + 3 * 320);

    CHECK(taps.size() == 20); // eight on the way down, twelve on the way up
    hd_forward forward{};
    forward.run = a.run.run;
    forward.features = a.features;
    hd_exec ex{};
    std::vector<std::string> shown;
    for (const std::string &block : taps)
        for (const char *tap : {".conv2", ".out"})
            if (hd_feature_wanted(&ex, &forward, (block + tap).c_str()))
                shown.push_back(block + tap);
    CHECK(shown == std::vector<std::string>{"up.1.resnet.1.conv2"});
}

TEST_CASE("plug_and_play: queries and keys of the source are its map over the own values",
          "[controls][pnp]")
{
    const int64_t tokens = 12;
    TestCall c(3, tokens, tokens, 2, 8, 11);
    name_rows(c);
    strcpy(c.call.site.path, "up.2.attn.0");
    c.call.q_layout = c.call.k_layout = hd_layout_grid(1, 3, 4);
    Asked replace(""), part(", \"strength_qk\": 0.25"), append(", \"qk_mode\": \"append\"");
    REQUIRE_OK(c.dry(replace.run));
    std::vector<float> out = c.act(replace.run, 0);
    auto of_source = [&](int64_t h, int64_t i) {
        return softmax_f64(tokens, [&](int64_t j) { return score_f64(c, 0, h, i, j); });
    };
    for (int64_t b = 0; b < 3; b++) {
        CHECK(error_f64(c, out, b, of_source) < 1e-5);
        // queries alone are another map
        if (b > 0)
            CHECK(error_f64(c, out, b, [&](int64_t h, int64_t i) {
                      return softmax_f64(tokens, [&](int64_t j) {
                          return dot(c, at(c, c.q, 0, i, h), at(c, c.k, b, j, h));
                      });
                  }) > 1e-2);
    }
    out = c.act(replace.run, 5); // its half of the run is over
    for (int64_t b = 0; b < 3; b++)
        CHECK(error_f64(c, out, b, [&](int64_t h, int64_t i) {
                  return softmax_f64(tokens, [&](int64_t j) { return score_f64(c, b, h, i, j); });
              }) < 1e-5);

    REQUIRE_OK(c.dry(part.run));
    out = c.act(part.run, 0);
    auto mixed = [&](const std::vector<float> &x, int64_t b, int64_t i, int64_t h) {
        std::vector<float> m((size_t)c.D);
        for (int64_t d = 0; d < c.D; d++)
            m[(size_t)d] = 0.75f * at(c, x, b, i, h)[d] + 0.25f * at(c, x, 0, i, h)[d];
        return m;
    };
    CHECK(error_f64(c, out, 2, [&](int64_t h, int64_t i) {
              return softmax_f64(tokens, [&](int64_t j) {
                  return dot(c, mixed(c.q, 2, i, h).data(), mixed(c.k, 2, j, h).data());
              });
          }) < 1e-5);

    REQUIRE_OK(c.dry(append.run));
    out = c.act(append.run, 0);
    for (int64_t b = 1; b < 3; b++)
        CHECK(error_f64(
                  c, out, b,
                  [&](int64_t h, int64_t i) {
                      return softmax_f64(2 * tokens, [&](int64_t j) {
                          const int64_t of = j < tokens ? b : 0;
                          return dot(c, at(c, c.q, b, i, h), at(c, c.k, of, j % tokens, h));
                      });
                  },
                  [&](int64_t j, int64_t h, int64_t d) {
                      return (double)at(c, c.v, j < tokens ? b : 0, j % tokens, h)[d];
                  }) < 1e-5);
    CHECK(error_f64(c, out, 0, of_source) < 1e-5); // the source itself has its own keys alone
}

TEST_CASE("plug_and_play: text beside the picture keeps its queries and keys", "[controls][pnp]")
{
    // three words, then a picture of 2 x 3, in one sequence
    TestCall c(3, 9, 9, 2, 8, 12);
    name_rows(c);
    strcpy(c.call.site.path, "block.7");
    c.call.site.kind = HD_SITE_JOINT;
    c.call.q_layout.segments = 2;
    c.call.q_layout.segment[0] = {HD_TOKENS_TEXT, 0, 3, 0, 0, 0};
    c.call.q_layout.segment[1] = {HD_TOKENS_GRID, 3, 6, 1, 2, 3};
    c.call.k_layout = c.call.q_layout;
    Asked a(", \"attn_sites\": [\"block.** joint\"], \"feature_sites\": []");
    REQUIRE_OK(c.dry(a.run));
    std::vector<float> out = c.act(a.run, 0);
    CHECK(error_f64(c, out, 2, [&](int64_t h, int64_t i) {
              return softmax_f64(9, [&](int64_t j) {
                  return dot(c, at(c, c.q, i < 3 ? 2 : 0, i, h), at(c, c.k, j < 3 ? 2 : 0, j, h));
              });
          }) < 1e-5);
}

namespace
{

// Stands for a second convolution whose weights and bias are 0: its result is 0 in every row.
hd_status zero_branches(hd_branches_ctx *ctx)
{
    HD_TRY(hd_ask_feature(ctx, "up.1.resnet.1.conv2"));
    return hd_ask_feature(ctx, "up.1.resnet.1.out");
}

// main/cond and source/cond behind the block, at the first call
std::vector<float> behind[2];

hd_status zero_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    if (std::string(ctx->path) == "up.1.resnet.1.conv2") {
        memset(x.data, 0, (size_t)hd_tensor_bytes(x));
        return HD_OK;
    }
    if (ctx->step.index > 0) return HD_OK;
    const int64_t values = hd_tensor_count(x) / x.dim[0];
    const char *names[] = {"main", "source"};
    for (int i = 0; i < 2; i++) {
        const float *row =
            (const float *)x.data + hd_rows_find(ctx->rows, names[i], "cond", 0) * values;
        behind[i].assign(row, row + values);
    }
    return HD_OK;
}

} // namespace

TEST_CASE("plug_and_play: the feature is taken before the sum with what goes around it",
          "[pipeline][controls][pnp]")
{
    static const hd_processor_class zero = [] {
        hd_processor_class c = class_named("zero_conv2");
        c.branches = zero_branches;
        c.feature = zero_feature;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &zero));
    auto run = [&](const std::string &more) {
        const std::string one = ", \"steps\": 1, \"width\": 32, \"height\": 32, \"guidance\": 1";
        context.run(run_of(whale,
                           ", \"branches\": {\"source\": {\"prompt\": \"" + std::string(fish) +
                               "\"}}, \"processors\": [{\"use\": \"zero_conv2\"}" + more + "]",
                           one));
    };
    run("");
    const std::vector<float> skip = behind[0], skip_of_source = behind[1];
    REQUIRE(skip != skip_of_source);
    // f of the source is 0: what is left is what goes around the block, the target's own
    const std::string use =
        ", {\"use\": \"plug_and_play\", \"attn_steps\": 0, \"feature_steps\": 1";
    run(use + "}");
    CHECK(behind[0] == skip);
    // behind the sum it would be the source's; the watching class comes behind it there
    run(use + ", \"feature_sites\": [\"up.1.resnet.1.out\"]}, {\"use\": \"zero_conv2\"}");
    CHECK(behind[0] == skip_of_source);
}

TEST_CASE("plug_and_play: a share of the feature, masks and the own statistics", "[controls][pnp]")
{
    const int64_t h = 2, w = 3, channels = 70; // more than are measured at a time
    const std::vector<float> x = normal_values(3 * h * w * channels, 21);
    hd_row row[3];
    name_row(&row[0], "source", "cond");
    name_row(&row[1], "main", "uncond");
    name_row(&row[2], "main", "cond");
    hd_rows rows = {3, row};
    const bool active[] = {true, true, true};
    plug_and_play p{};
    strcpy(p.source, "source");
    strcpy(p.target[0].branch, "main");
    p.targets = 1;
    p.feature_calls[1] = 4;
    std::vector<float> y;
    auto act = [&](int64_t step) {
        y = x;
        hd_feature_ctx ctx = {&p, nullptr, "up.1.resnet.1.conv2", &rows, {}, active};
        ctx.step.index = step;
        REQUIRE_OK(pnp_feature(&ctx, hd_tensor_of(y.data(), HD_F32, hd_shape4(3, h, w, channels))));
    };
    const int64_t row_values = h * w * channels;
    auto expect = [&](const std::function<double(int64_t place)> &share) {
        for (int64_t b = 0; b < 3; b++)
            for (int64_t i = 0; i < row_values; i++) {
                const double own = x[(size_t)(b * row_values + i)], other = x[(size_t)i];
                const double wanted = b ? own + share(i / channels) * (other - own) : own;
                REQUIRE((double)y[(size_t)(b * row_values + i)] == Approx(wanted).margin(1e-6));
            }
    };
    p.strength_feature = 1;
    act(3);
    expect([](int64_t) { return 1.0; });
    act(4);
    CHECK(y == x);
    p.strength_feature = 0.25f;
    act(0);
    expect([](int64_t) { return 0.25; });

    // a mask of 4 x 4 over 2 x 3 places: each is two rows and one column and a third
    std::vector<float> mask = {1, 0, 0, 1, 0, 0, .5f, 1, 1, 1, 1, 1, 0, 0, 0, 0};
    p.free_mask = mask.data();
    p.height = p.width = 4;
    CHECK((double)pnp_mask_at(&p, 2, 3, 0, 0) == Approx(3.0 / 8));
    CHECK((double)pnp_mask_at(&p, 2, 3, 0, 1) == Approx(1.0 / 8));
    CHECK((double)pnp_mask_at(&p, 2, 3, 0, 2) == Approx((2 + .5 / 3) / (8.0 / 3)));
    CHECK((double)pnp_mask_at(&p, 2, 3, 1, 1) == Approx(.5));
    CHECK(pnp_mask_at(&p, 4, 4, 1, 2) == .5f);
    p.strength_feature = 0.5f;
    act(0);
    expect(
        [&](int64_t place) { return 0.5 * (double)pnp_mask_at(&p, 2, 3, place / 3, place % 3); });

    p.free_mask = nullptr;
    p.strength_feature = 1;
    p.feature_adain = true;
    act(0);
    auto statistics = [&](const std::vector<float> &of, int64_t b, int64_t c) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < h * w; i++)
            mean += (double)of[(size_t)(b * row_values + i * channels + c)] / (double)(h * w);
        for (int64_t i = 0; i < h * w; i++)
            square += std::pow((double)of[(size_t)(b * row_values + i * channels + c)] - mean, 2);
        return std::make_pair(mean, std::sqrt(square / (double)(h * w)));
    };
    for (int64_t c = 0; c < channels; c++) {
        auto own = statistics(x, 2, c), now = statistics(y, 2, c), source = statistics(x, 0, c);
        REQUIRE(now.first == Approx(own.first).margin(1e-6));
        REQUIRE(now.second == Approx(own.second).margin(1e-6));
        const auto at_place = [&](const std::vector<float> &of, int64_t b) {
            return (double)of[(size_t)(b * row_values + 4 * channels + c)];
        };
        REQUIRE((at_place(y, 2) - now.first) / now.second ==
                Approx((at_place(x, 0) - source.first) / source.second).margin(1e-4));
    }
}

TEST_CASE("plug_and_play: the negative prompt's share along the run", "[controls][pnp]")
{
    const double linear[] = {.8, .6, .4, .2, 0}, exponential[] = {.8, .1785, .0398, .0089, .0020};
    for (int i = 0; i < 5; i++) {
        CHECK(pnp_alpha(PNP_LINEAR, .8, i, 5) == Approx(linear[i]).margin(1e-9));
        CHECK(pnp_alpha(PNP_EXP, .8, i, 5) == Approx(exponential[i]).margin(5e-5));
        CHECK(pnp_alpha(PNP_CONST, .8, i, 5) == .8);
    }
    CHECK(pnp_alpha(PNP_EXP, .8, 0, 1) == .8);
    const float empty = 1, negative = 3, cond = 2;
    const double alphas[] = {.75, 0, 1}, wanted[] = {5.25, -4.5, 8.5};
    for (int i = 0; i < 3; i++) {
        float out = 0;
        pnp_guide(&out, &empty, &negative, &cond, alphas[i], 7.5, 1);
        CHECK((double)out == Approx(wanted[i]));
    }
}

TEST_CASE("plug_and_play: a share of 0 is the negative prompt alone, of 1 none of it",
          "[pipeline][controls][pnp]")
{
    Context context;
    const std::string off = ", \"feature_steps\": 0, \"attn_steps\": 0, \"negative\": \"blue\"";
    auto mixed = [&](const char *more) {
        return picture_of(context.run(run_of(whale, plug(off + more, sampled()))), "main");
    };
    auto plain = context.run(run_of(whale, "")),
         blue = context.run(run_of(whale, ", \"negative\": \"blue\""));
    CHECK(mixed("") == picture_of(plain, "main"));
    CHECK(mixed(", \"negative_alpha\": 0") == picture_of(blue, "main"));
    const auto half = mixed(", \"negative_alpha\": 0.5"),
               linear = mixed(", \"negative_schedule\": \"linear\"");
    CHECK(half != picture_of(plain, "main"));
    CHECK(half != picture_of(blue, "main"));
    CHECK(linear != half);
    CHECK(linear != picture_of(plain, "main"));
}

namespace
{

// Features of a source, kept from one run for another.
struct Store {
    bool reading = false;
    std::map<std::string, std::vector<char>> kept;
} store;

const char *const stored_sites[] = {"up.1.attn.1", "up.2.attn.0", "up.2.attn.1"};

// Row by row: kept from source/cond, or put into every row of main.
void through_store(const std::string &name, const hd_rows *rows, hd_tensor t)
{
    const size_t bytes = (size_t)(hd_tensor_bytes(t) / t.dim[0]);
    char *data = static_cast<char *>(t.data);
    for (int64_t b = 0; b < rows->count; b++) {
        const std::string branch = rows->row[b].branch;
        if (!store.reading && branch == "source")
            store.kept[name].assign(data + (size_t)b * bytes, data + (size_t)(b + 1) * bytes);
        if (store.reading && branch == "main") {
            REQUIRE(store.kept.at(name).size() == bytes);
            memcpy(data + (size_t)b * bytes, store.kept.at(name).data(), bytes);
        }
    }
}

hd_status store_branches(hd_branches_ctx *ctx)
{
    return hd_ask_feature(ctx, "up.1.resnet.1.conv2");
}

hd_status store_tokens(const hd_hook_ctx *ctx, hd_tokens *t)
{
    const hd_forward *f = ctx->call->forward;
    const std::string path = ctx->call->site.path;
    bool stored = false;
    for (const char *site : stored_sites)
        stored |= path == site || path == std::string(site) + ".0";
    if (!stored || ctx->call->site.kind != HD_SITE_SELF || f->step.index >= 2) return HD_OK;
    const std::string name = path + std::to_string(f->step.index);
    through_store(name + "q", &f->rows, t->q);
    through_store(name + "k", &f->rows, t->k);
    return HD_OK;
}

hd_status store_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    if (ctx->step.index < 3) through_store("f" + std::to_string(ctx->step.index), ctx->rows, x);
    return HD_OK;
}

std::vector<float> latents_of(const std::string &path)
{
    Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
    const FixtureTensor &t = f.at("latents");
    return std::vector<float>(t.f32(), t.f32() + t.count());
}

} // namespace

TEST_CASE("plug_and_play: rows beside each other equal features of a run before, to the bit",
          "[pipeline][controls][pnp]")
{
    static const hd_processor_class keep = [] {
        hd_processor_class c = class_named("store");
        c.edits = HD_EDITS_Q | HD_EDITS_K;
        c.branches = store_branches;
        c.tokens = store_tokens;
        c.feature = store_feature;
        return c;
    }();
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &keep));
    const std::string path = drawn(context, folder, ", \"width\": 48, \"height\": 32"),
                      file = folder.path("way.safetensors"), out = folder.path("out.safetensors");
    const std::string source = "\"branches\": {\"source\": {\"prompt\": \"\", \"init_image\": \"" +
                               path + "\", \"inversion\": {}}}";
    // the source alone beside a picture of something else
    store = {};
    context.run(run_of("a pink heart", ", " + source + ", \"save_inversion\": \"" + file +
                                           "\", \"processors\": [{\"use\": \"store\"}]"));
    REQUIRE(store.kept.size() == 3 + 3 * 2 * 2);
    // q and k in 2 of 4 calls, f in 3
    context.run(run_of(whale, ", " + source + ", \"latents_out\": \"" + out +
                                  "\", \"processors\": [{\"use\": \"plug_and_play\"}]"));
    const std::vector<float> together = latents_of(out);
    store.reading = true;
    context.run(run_of(whale, ", \"inversion\": \"" + file + "\", \"latents_out\": \"" + out +
                                  "\", \"processors\": [{\"use\": \"store\"}]"));
    CHECK(latents_of(out) == together);
    context.run(
        run_of(whale, ", \"inversion\": \"" + file + "\", \"latents_out\": \"" + out + "\""));
    CHECK(latents_of(out) != together);
}

TEST_CASE("plug_and_play: masks, shares for each row, batches and real pictures",
          "[pipeline][controls][pnp]")
{
    Context context;
    Folder folder;
    auto mask_of = [&](const char *name, int white_columns) {
        hd_image image;
        REQUIRE_OK(hd_image_create(&image, 48, 32, "mask"));
        for (int i = 0; i < 48 * 32; i++)
            memset(image.rgb + 3 * i, i % 48 < white_columns ? 255 : 0, 3);
        REQUIRE_OK(hd_png_write(folder.path(name).c_str(), &image, nullptr, 0));
        hd_image_free(&image);
        return ", \"mask\": \"" + folder.path(name) + "\"";
    };
    auto with = [&](const std::string &options) {
        return picture_of(context.run(run_of(whale, plug(options, sampled()))), "main");
    };
    const auto plain = picture_of(context.run(run_of(whale, "")), "main"), all = with("");
    CHECK(with(mask_of("white.png", 48)) == all);
    CHECK(with(mask_of("black.png", 0) + ", \"mask_keys\": true") == plain);
    CHECK(with(mask_of("black.png", 0)) != plain); // keys are the source's everywhere
    const auto half = with(mask_of("half.png", 24));
    CHECK(half != all);
    CHECK(half != plain);

    auto two = [&](const char *first, const char *second) {
        return picture_of(
            context.run(run_of(whale, ", \"branches\": {\"source\": {" + sampled() +
                                          "}}, \"processors\": [{\"use\": \"plug_and_play\", "
                                          "\"branches\": [\"cond\"]" +
                                          first +
                                          "}, {\"use\": \"plug_and_play\", \"branches\": "
                                          "[\"uncond\"]" +
                                          second + "}]")),
            "main");
    };
    CHECK(two("", "") == all);
    CHECK(two("", ", \"strength_feature\": 0.5") != all);

    auto batch = context.run(run_of(whale, ", \"batch\": 2" + plug("", sampled())));
    CHECK(picture_of(batch, "main") == all);
}

TEST_CASE("plug_and_play: a real picture comes back byte for byte, whatever is done beside it",
          "[pipeline][controls][pnp]")
{
    Asked asked(", \"source_image\": \"fish.png\"");
    const hd_branch &b = asked.branches.item[hd_branches_find(&asked.branches, "source")];
    CHECK((b.invert && b.follow));
    CHECK(b.inversion.steps == 999);
    CHECK(b.inversion.fixed_point == 0);
    CHECK(b.inversion.pairing == HD_PAIRING_NEXT_LEVEL);
    CHECK(b.inversion.guidance == 1);
    Context context;
    Folder folder;
    const std::string path = drawn(context, folder, ", \"width\": 48, \"height\": 32"),
                      image = ", \"source_image\": \"" + path + "\"";
    auto with = [&](const std::string &options) {
        return context.run(run_of(whale, plug(image + options, "\"save\": true")));
    };
    auto direct = with(", \"inversion_steps\": 0, \"fixed_point\": 1"),
         finer = with(", \"inversion_steps\": 8"),
         again = with(", \"inversion\": \"ddim\", \"inversion_steps\": 0, \"fixed_point\": 1");
    CHECK(picture_of(direct, "source") == picture_of(finer, "source"));
    CHECK(picture_of(direct, "main") != picture_of(finer, "main"));
    CHECK(picture_of(again, "main") != picture_of(direct, "main"));
    const auto back = picture_of(again, "source"), was = picture_of(direct, "source");
    CHECK(psnr(back.data(), was.data(), was.size()) > 15); // sampled without guidance
}

TEST_CASE("plug_and_play: what cannot be done is refused by its place", "[pipeline][controls][pnp]")
{
    Context context;
    Folder folder;
    ResultPtr none(nullptr, hd_result_free);
    struct {
        const char *options, *message;
    } cases[] = {
        {", \"attn_sites\": []", "processors[0].attn_sites is empty"},
        {", \"attn_sites\": [\"up.** self\", \"up.2.** cross\"]", "processors[0].attn_sites[1] is"},
        {", \"attn_sites\": [\"up.7.** self\"]", "matches no attention site of this model"},
        {", \"attn_sites\": [\"up self self\"]", "processors[0].attn_sites[0]"},
        {", \"feature_sites\": [\"up.9.resnet.1\"]", "wants the feature \"up.9.resnet.1.conv2\""},
        {", \"feature_sites\": [\"up.1.resnet.1.of.a.path.that.nobody.has.ever.seen\"]",
         "processors[0].feature_sites[0]"},
        {", \"feature_steps\": 1.5", "processors[0].feature_steps is 1.5"},
        {", \"attn_steps\": [0.5, 0.2]", "processors[0].attn_steps is [0.5, 0.2]"},
        {", \"attn_steps\": [0.5]", "processors[0].attn_steps has 1 numbers"},
        {", \"strength_qk\": 2", "processors[0].strength_qk is 2"},
        {", \"qk_mode\": \"append\", \"strength_qk\": 0.5", "must be 0 or 1"},
        {", \"mask_keys\": true", "give \"mask\""},
        {", \"source_promt\": \"x\"", "did you mean \"source_prompt\"?"},
        {", \"mask\": \"/nowhere.png\"", "/nowhere.png"},
    };
    for (const auto &c : cases) {
        INFO(c.options);
        CHECK(context.try_run(run_of(whale, plug(c.options, sampled())), none) != HD_OK);
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find("test.json") != std::string::npos);
    }
    CHECK_FAILS(
        context.try_run(run_of(whale, ", \"processors\": [{\"use\": \"plug_and_play\"}]"), none),
        HD_ERR_ARGUMENT, "nothing to take the structure of");
    CHECK_FAILS(context.try_run(run_of(whale, plug(", \"negative_alpha\": 0.5", sampled()),
                                       ", \"steps\": 2, \"guidance\": 1"),
                                none),
                HD_ERR_ARGUMENT, "give it a guidance above 1");
    CHECK_FAILS(context.try_run(run_of(whale, ", \"branches\": {\"source\": \"main\"}, "
                                              "\"processors\": [{\"use\": \"plug_and_play\"}]"),
                                none),
                HD_ERR_ARGUMENT, "main is the source itself");
}

TEST_CASE("plug_and_play: a source of another size is refused unless the run says how it fits",
          "[pipeline][controls][pnp][prompt_to_prompt]")
{
    Context context;
    Folder folder;
    ResultPtr none(nullptr, hd_result_free);
    const std::string path = drawn(context, folder, ", \"width\": 32, \"height\": 32");
    for (const char *use : {"plug_and_play", "prompt_to_prompt"}) {
        const std::string processor = ", \"processors\": [{\"use\": \"" + std::string(use) +
                                      "\", \"inversion_steps\": 0",
                          named = processor + ", \"source_image\": \"" + path + "\"}]",
                          given = processor + "}], \"branches\": {\"source\": {\"init_image\": \"" +
                                  path + "\"}}";
        INFO(use);
        CHECK_FAILS(context.try_run(run_of(whale, named), none), HD_ERR_ARGUMENT,
                    "test.json: processors[0].source_image " + path +
                        " is 32 x 32, the run 48 x "
                        "32");
        CHECK_FAILS(context.try_run(run_of(whale, given), none), HD_ERR_ARGUMENT,
                    "test.json: branches.source.init_image " + path + " is 32 x 32");
        CHECK(std::string(hd_message()).find("\"fit\"") != std::string::npos);
        auto crop = context.run(run_of(whale, given + ", \"fit\": \"crop\"")),
             stretch = context.run(run_of(whale, named + ", \"fit\": \"stretch\""));
        CHECK(picture_of(crop, "main") != picture_of(stretch, "main"));
    }
}

namespace
{

// Pixels that are not the background, whose colour the edge shows.
std::vector<bool> object_of(const std::vector<uint8_t> &p, int width)
{
    const int height = (int)p.size() / 3 / width;
    double edge[3] = {0, 0, 0};
    int count = 0;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            if (x == 0 || y == 0 || x == width - 1 || y == height - 1) {
                for (int c = 0; c < 3; c++)
                    edge[c] += p[(size_t)(3 * (y * width + x) + c)];
                count++;
            }
    std::vector<double> off(p.size() / 3);
    double most = 0;
    for (size_t i = 0; i < off.size(); i++) {
        for (int c = 0; c < 3; c++)
            off[i] += std::pow(p[3 * i + (size_t)c] - edge[c] / count, 2);
        most = std::fmax(most, off[i]);
    }
    std::vector<bool> object(off.size());
    for (size_t i = 0; i < off.size(); i++)
        object[i] = off[i] > 0.25 * most;
    return object;
}

double overlap(const std::vector<bool> &a, const std::vector<bool> &b)
{
    double both = 0, either = 0;
    for (size_t i = 0; i < a.size(); i++)
        both += a[i] && b[i], either += a[i] || b[i];
    return both / either;
}

} // namespace

// Two things in the source where the prompt asks for one: overlap of the objects' places, mean of
// six pictures: 0.50 with the processor, 0.23 without it; 0.36 lies midway.
TEST_CASE("plug_and_play: what is where comes from the source, colours from the prompt",
          "[pipeline][controls][pnp]")
{
    Context context;
    const char *pairs[][2] = {
        {"two red stars on a yellow background", "a big blue heart on a white background"},
        {"two black stars on an orange background", "a blue whale on a white background"},
        {"two red apples on a white background", "a blue moon on a yellow background"}};
    double on = 0, off = 0;
    for (const auto &pair : pairs) {
        const char *size = ", \"steps\": 16, \"guidance\": 5, \"batch\": 2";
        auto with = context.run(run_of(
            pair[1],
            plug(", \"feature_sites\": [\"up.0.resnet.1\", \"up.1.resnet.1\"]", sampled(pair[0])),
            size));
        auto without = context.run(run_of(pair[1], "", size));
        for (int i = 0; i < 2; i++) {
            const auto source = picture_of(with, "source", i), main = picture_of(with, "main", i);
            on += overlap(object_of(source, 64), object_of(main, 64)) / 6;
            off +=
                overlap(object_of(source, 64), object_of(picture_of(without, "main", i), 64)) / 6;
            // the background is the prompt's: its colour is not the source's
            double apart = 0;
            for (size_t c = 0; c < 3; c++)
                apart += std::abs((int)source[c] - (int)main[c]);
            CHECK(apart > 100);
        }
    }
    CAPTURE(on, off);
    CHECK(on > 0.36);
    CHECK(off < 0.36);
}
