// Rows that equal others until a site tells them apart, taps in the network, and what `inspect
// chain` is told about both.
#include <cstring>
#include <map>

#include "pipelines/context.h"
#include "pipelines/runner.h"

namespace
{

const char *const quick = ", \"prompt\": \"a yellow moon at night\", \"steps\": 4, \"width\": 48, "
                          "\"height\": 32, \"seed\": 5, \"batch\": 3";

std::string preset(const std::string &more)
{
    return "{" + starter() + quick + more + "}";
}

const hd_param no_params[] = {HD_PARAM_END};

// Perturbed guidance: the perturbed row's attention gives nothing; away from what comes of it.
template <bool no_fork> hd_status perturb_branches(hd_branches_ctx *ctx)
{
    hd_branch_ask ask = {};
    ask.branch = "main";
    ask.roles = HD_ROLE_BIT(HD_ROLE_PERTURBED);
    ask.first_step = ctx->first_step;
    ask.end_step = ctx->end_step;
    ask.no_fork = no_fork;
    return hd_ask_branch(ctx, &ask);
}

hd_status perturb_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    size_t bytes = (size_t)hd_tensor_bytes(output->out) / (size_t)output->out.dim[0];
    const hd_rows *rows = &ctx->call->forward->rows;
    for (int64_t b = 0; b < rows->count; b++)
        if (ctx->active[b] && strcmp(rows->row[b].role, "perturbed") == 0) {
            CHECK(hd_rows_find(rows, "main", "perturbed", rows->row[b].picture) == b);
            memset(static_cast<char *>(output->out.data) + (size_t)b * bytes, 0, bytes);
        }
    return HD_OK;
}

hd_status perturb_guidance(const hd_beside_ctx *ctx)
{
    hd_beside_branch *b = hd_beside(ctx, ctx->branch);
    const float *cond = b->prediction[HD_ROLE_COND], *worse = b->prediction[HD_ROLE_PERTURBED];
    if (!worse) return HD_OK;
    for (int64_t i = 0; i < ctx->values; i++)
        b->guess[i] += 3.0f * (cond[i] - worse[i]);
    return HD_OK;
}

template <bool no_fork> const hd_processor_class *perturb()
{
    static const hd_processor_class made = [] {
        hd_processor_class c = {};
        c.name = no_fork ? "perturb_whole" : "perturb";
        c.params = no_params;
        c.branches = perturb_branches<no_fork>;
        c.output = perturb_output;
        c.guidance = perturb_guidance;
        return c;
    }();
    return &made;
}

// Rows of each site's calls, by the step.
struct Rows {
    std::map<std::string, std::vector<int64_t>> of;
};

hd_status count_rows(void *user, const hd_attention_seen *seen)
{
    if (!seen->ex->recording)
        static_cast<Rows *>(user)->of[seen->call->site.path].push_back(seen->call->q.dim[0]);
    return HD_OK;
}

ResultPtr run_watched(Context &context, const std::string &json, Rows &rows)
{
    hd_result *r = nullptr;
    REQUIRE_OK(hd_context_run_watched(context.context, json.c_str(), "test.json", nullptr,
                                      count_rows, &rows, &r));
    return ResultPtr(r, hd_result_free);
}

} // namespace

TEST_CASE("forks: perturbed rows run from the first site that tells them apart, and change no bit",
          "[pipeline][branches][forks]")
{
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, perturb<false>()));
    REQUIRE_OK(hd_context_add_processor(context.context, perturb<true>()));
    // at most rows 6 without, 9 with the perturbed ones
    for (const char *type : {"f32", "bf16"})
        for (const char *site : {"mid.** self", "down.1.attn.0 self", "up.1.attn.1 cross",
                                 "down.0.attn.0 self", "** self"}) {
            CAPTURE(type, site);
            auto json = [&](const std::string &use) {
                return preset(std::string(", \"precision\": \"") + type +
                              "\", \"processors\": [{\"use\": \"" + use + "\", \"sites\": [\"" +
                              site + "\"], \"steps\": [0, 0.5]}]");
            };
            Rows with, without;
            auto forked = run_watched(context, json("perturb"), with),
                 whole = run_watched(context, json("perturb_whole"), without);
            auto plain = context.run(preset(std::string(", \"precision\": \"") + type + "\""));
            for (int i = 0; i < 3; i++) {
                CHECK(pixels(forked.get(), i) == pixels(whole.get(), i));
                CHECK(pixels(forked.get(), i) != pixels(plain.get(), i));
            }
            bool before = true;
            for (const auto &path : {"down.0.attn.0", "down.1.attn.0", "mid.attn.0", "up.1.attn.0",
                                     "up.1.attn.1", "up.2.attn.1"}) {
                REQUIRE(!with.of[path].empty());
                CAPTURE(path);
                std::string name = std::string(site).substr(0, std::string(site).find(' '));
                before = before && name != "**" &&
                         (name == "mid.**" ? std::string(path) != "mid.attn.0" : name != path);
                CHECK(with.of[path].front() == (before ? 6 : 9));
                CHECK(with.of[path].back() == 6); // beyond "steps"
                CHECK(without.of[path].front() == 9);
            }
        }
}

namespace
{
struct Tap {
    std::map<std::string, int> calls;
    int mode = 0; // 0 looks, 1 copies source to main, 2 scales main's cond
    const char *path = "up.1.resnet.1.conv2";
} tap;

hd_status tap_branches(hd_branches_ctx *ctx)
{
    hd_branch_ask ask = {};
    ask.branch = "source";
    ask.prompt = "a red fish";
    HD_TRY(hd_ask_branch(ctx, &ask));
    return hd_ask_feature(ctx, tap.path);
}

hd_status tap_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    tap.calls[ctx->path]++;
    CHECK(x.rank == 4);
    size_t bytes = (size_t)hd_tensor_bytes(x) / (size_t)x.dim[0];
    char *data = static_cast<char *>(x.data);
    for (int64_t b = 0; b < ctx->rows->count && tap.mode > 0; b++) {
        const hd_row *row = &ctx->rows->row[b];
        if (strcmp(row->branch, "main") != 0) continue;
        int64_t from = hd_rows_find(ctx->rows, "source", "cond", row->picture);
        REQUIRE(from >= 0);
        memcpy(data + (size_t)b * bytes, data + (size_t)from * bytes, bytes);
    }
    return HD_OK;
}
} // namespace

TEST_CASE("features: a tap that nobody writes to changes no bit; one that is written to does",
          "[pipeline][branches][features]")
{
    static const hd_processor_class tapper = [] {
        hd_processor_class c = {};
        c.name = "tapper";
        c.params = no_params;
        c.branches = tap_branches;
        c.feature = tap_feature;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &tapper));
    const std::string with = ", \"branches\": {\"source\": {\"save\": true}}, \"processors\": "
                             "[{\"use\": \"tapper\", \"steps\": [0, 0.5]}]";
    for (const char *type : {"f32", "bf16"})
        for (const char *path : {"up.1.resnet.1.conv2", "mid.resnet.1.conv2", "down.*.resnet.0.out",
                                 "down.1.resnet.0.conv2", "**"}) {
            CAPTURE(type, path);
            std::string precision = std::string(", \"precision\": \"") + type + "\"";
            tap = {};
            tap.path = path;
            auto plain = context.run(preset(precision));
            auto looked = context.run(preset(precision + with));
            REQUIRE(hd_result_count(looked.get()) == 6);
            for (int i = 0; i < 3; i++)
                CHECK(pixels(plain.get(), i) == pixels(looked.get(), 2 * i));
            for (const auto &[name, calls] : tap.calls)
                CHECK(calls == 2); // half of the steps
            CHECK(!tap.calls.empty());
            tap.mode = 1;
            auto copied = context.run(preset(precision + with));
            CHECK(pixels(copied.get(), 0) != pixels(looked.get(), 0));
            CHECK(pixels(copied.get(), 1) == pixels(looked.get(), 1)); // source gives, nothing more
        }
    tap = {};
    tap.path = "up.1.resnet.9.conv2";
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(preset(with), none), HD_ERR_ARGUMENT,
                "test.json: processors[0] wants the feature \"up.1.resnet.9.conv2\", which "
                "this model does not have; it has: down.0.resnet.0.conv2");
}

namespace
{
// A tap that scales what it sees of the rows it is active on.
struct Scaler {
    std::string path;
    std::vector<int64_t> rows; // of its calls
} scaler;

hd_status scaler_branches(hd_branches_ctx *ctx)
{
    return hd_ask_feature(ctx, scaler.path.c_str());
}

hd_status scaler_feature(const hd_feature_ctx *ctx, hd_tensor x)
{
    scaler.rows.push_back(ctx->rows->count);
    for (int64_t b = 0; b < ctx->rows->count; b++)
        for (int64_t i = 0; ctx->active[b] && i < hd_tensor_count(x) / x.dim[0]; i++)
            static_cast<float *>(x.data)[b * (hd_tensor_count(x) / x.dim[0]) + i] *= 0.9f;
    return HD_OK;
}

template <int which> const hd_processor_class *scaler_class()
{
    static const hd_processor_class made = [] {
        static const char *const names[] = {"scaler", "alike", "uncond_only"};
        hd_processor_class c = {};
        c.name = names[which];
        c.params = no_params;
        c.branches = scaler_branches;
        c.feature = scaler_feature;
        c.rows_alike = which == 1;
        if (which == 2)
            c.acts_on = [](const void *, const hd_row *row) {
                return !strcmp(row->role, "uncond");
            };
        return c;
    }();
    return &made;
}
} // namespace

TEST_CASE("forks: beside feature taps, which part the rows only where they tell them apart",
          "[pipeline][branches][forks][features]")
{
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, perturb<false>()));
    REQUIRE_OK(hd_context_add_processor(context.context, perturb<true>()));
    REQUIRE_OK(hd_context_add_processor(context.context, scaler_class<0>()));
    REQUIRE_OK(hd_context_add_processor(context.context, scaler_class<1>()));
    REQUIRE_OK(hd_context_add_processor(context.context, scaler_class<2>()));
    // the first site with all nine rows
    const struct {
        const char *use, *path, *more, *site;
    } cases[] = {
        {"scaler", "up.1.resnet.1.conv2", "", "mid.attn.0"}, // behind the fork
        {"scaler", "mid.resnet.1.out", "", "mid.attn.0"},
        {"scaler", "mid.resnet.0.out", "", "down.1.attn.0"}, // the last site before the tap
        {"scaler", "down.1.resnet.0.conv2", "", "down.0.attn.0"},
        {"scaler", "down.0.resnet.0.out", "", "down.0.attn.0"}, // none is before it
        {"scaler", "down.1.resnet.0.out", ", \"branches\": [\"uncond\"]", "mid.attn.0"},
        {"uncond_only", "down.1.resnet.0.out", "", "mid.attn.0"},
        {"alike", "down.1.resnet.0.out", "", "mid.attn.0"},
        {"scaler", "down.1.resnet.0.out", ", \"branches\": [\"cond\"]", "down.0.attn.0"},
    };
    for (const auto &known : cases) {
        CAPTURE(known.use, known.path, known.more);
        scaler.path = known.path;
        auto json = [&](const std::string &use) {
            return preset(std::string(", \"precision\": \"f32\", \"processors\": [{\"use\": \"") +
                          use +
                          "\", \"sites\": [\"mid self\"], \"steps\": [0, 0.5]}, {\"use\": \"" +
                          known.use + "\"" + known.more + "}]");
        };
        Rows with, without;
        scaler.rows.clear();
        auto forked = run_watched(context, json("perturb"), with);
        const std::vector<int64_t> tapped = scaler.rows;
        auto whole = run_watched(context, json("perturb_whole"), without);
        for (int i = 0; i < 3; i++)
            CHECK(pixels(forked.get(), i) == pixels(whole.get(), i));
        bool all = false;
        for (const auto &path : {"down.0.attn.0", "down.1.attn.0", "mid.attn.0", "up.2.attn.1"}) {
            CAPTURE(path);
            all = all || std::string(known.site) == path;
            CHECK(with.of[path].front() == (all ? 9 : 6));
            CHECK(without.of[path].front() == 9);
        }
        REQUIRE(!tapped.empty());
        CHECK((tapped.front() == 6 || tapped.front() == 9));
    }
}

TEST_CASE("chain: a run says who would act where, and draws nothing", "[pipeline][branches]")
{
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, perturb<false>()));
    std::string json =
        preset(", \"output\": \"" + folder.path("x.png") +
               "\", \"branches\": {\"source\": {}, \"content\": \"source\"}, "
               "\"processors\": [{\"use\": \"temperature\", \"tau\": 0.5, \"sites\": "
               "[\"cross\"]}, {\"use\": \"perturb\", \"sites\": [\"mid.** self\"], "
               "\"steps\": [0, 0.5]}]");
    char *text = nullptr;
    REQUIRE_OK(hd_context_chain(context.context, json.c_str(), "test.json", nullptr, &text));
    std::string chain = text;
    hd_text_free(text);
    INFO(chain);
    CHECK(folder.names().empty());
    for (const char *part :
         {"\"fork\": \"mid.attn.0\"", "\"name\": \"source\", \"also\": [\"content\"]",
          "\"rows\": [\"uncond\", \"cond\", \"perturbed\"]", "\"beside\": \"branches, guidance\"",
          "\"site\": \"unet:mid.attn.0 self\", \"tokens\": 6, \"heads\": 4, \"ranges\": "
          "[{\"first_step\": 0, \"end_step\": 2, \"processors\": \"perturb\", \"kernel\": "
          "\"streaming ",
          "\"first_step\": 0, \"end_step\": 4, \"processors\": \"temperature\""})
        CHECK(chain.find(part) != std::string::npos);
    CHECK_FAILS(hd_context_chain(context.context, preset(", \"branches\": 3").c_str(), "test.json",
                                 nullptr, &text),
                HD_ERR_ARGUMENT, "test.json: branches");
    CHECK(text == nullptr);
}
