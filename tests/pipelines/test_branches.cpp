// Branches: pictures sampled side by side, what processors ask for and see beside the attention
// call, and rows that are computed once until something tells them apart.
#include <cstring>
#include <map>

#include "codecs/png.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/alloc_fail.h"
#include "support/asked.h"

namespace
{

const char *const quick = ", \"prompt\": \"a yellow moon at night\", \"steps\": 4, \"width\": 48, "
                          "\"height\": 32, \"seed\": 5, \"precision\": \"f32\"";

std::string preset(const std::string &more, const std::string &base = quick)
{
    return "{" + starter() + base + more + "}";
}

std::vector<uint8_t> picture_of(const hd_result *result, const std::string &branch, int skip = 0)
{
    for (int i = 0; i < hd_result_count(result); i++)
        if (branch == hd_result_picture(result, i)->branch && skip-- == 0) return pixels(result, i);
    FAIL("no picture of branch " << branch);
    return {};
}

} // namespace

TEST_CASE("branches: each is the picture that a run of its own draws, byte for byte",
          "[pipeline][branches]")
{
    Context context(2);
    for (const char *sampler : {"ddim", "euler-a"}) {
        std::string s = std::string(", \"sampler\": \"") + sampler + "\"";
        auto many = context.run(preset(
            s + ", \"batch\": 3, \"branches\": {\"source\": {\"prompt\": \"a red fish\", "
                "\"save\": true}, \"target.1\": {\"seed\": 90, \"guidance\": 1, \"negative\": "
                "\"blue\"}, \"style\": {\"prompt\": \"a green hill\"}}"));
        CHECK(hd_result_count(many.get()) == 9); // style is not saved
        for (int i = 0; i < 3; i++) {
            CAPTURE(sampler, i);
            std::string seed = ", \"seed\": " + std::to_string(5 + i);
            auto alone = [&](const std::string &prompt, const std::string &more) {
                return context.run("{" + starter() + s +
                                   ", \"steps\": 4, \"width\": 48, \"height\": 32, \"precision\": "
                                   "\"f32\", \"prompt\": \"" +
                                   prompt + "\"" + more + "}");
            };
            auto main_alone = alone("a yellow moon at night", seed),
                 source = alone("a red fish", seed),
                 target = alone("a yellow moon at night",
                                ", \"guidance\": 1, \"seed\": " + std::to_string(90 + i));
            CHECK(picture_of(many.get(), "main", i) == pixels(main_alone.get(), 0));
            CHECK(picture_of(many.get(), "source", i) == pixels(source.get(), 0));
            CHECK(picture_of(many.get(), "target.1", i) == pixels(target.get(), 0));
        }
    }
}

TEST_CASE("branches: files are named after them, a sheet shows all, a picture repeats itself",
          "[pipeline][branches]")
{
    Folder folder;
    Context context;
    std::string branches = ", \"branches\": {\"source\": {\"prompt\": \"a red fish\", \"save\": "
                           "true}, \"content\": \"source\"}";
    auto first = context.run(preset(branches + ", \"output\": \"" + folder.path("x.png") +
                                    "\", \"sheet\": \"" + folder.path("sheet.png") + "\""));
    CHECK(folder.names() == std::vector<std::string>{"sheet.png", "x-source.png", "x.png"});
    for (const char *name : {"x.png", "x-source.png", "sheet.png"}) {
        CAPTURE(name);
        char *json = nullptr;
        REQUIRE_OK(hd_preset_read(folder.path(name).c_str(), &json));
        std::string text = json;
        hd_text_free(json);
        CHECK(text.find(folder.path()) == std::string::npos);
        auto second = context.run(text);
        REQUIRE(hd_result_count(second.get()) == 2);
        CHECK(pixels(second.get(), 0) == pixels(first.get(), 0));
        CHECK(pixels(second.get(), 1) == pixels(first.get(), 1));
    }
    auto wide = context.run(
        preset(branches + ", \"batch\": 2, \"sheet\": \"" + folder.path("s.png") + "\""));
    auto names = folder.names();
    CHECK(std::find(names.begin(), names.end(), "s-1.png") != names.end());
}

TEST_CASE("branches: what does not fit is refused by its place", "[pipeline][branches]")
{
    struct {
        std::string fields, message;
    } cases[] = {
        {"{\"sauce\": {}}", "branches.sauce \"sauce\" names no branch"},
        {"{\"main\": {}}", "branches.main is the run itself"},
        {"{\"source\": {\"promt\": \"x\"}}", "did you mean \"prompt\"?"},
        {"{\"content\": \"source\"}", "branches.content is \"source\", which is no branch"},
        {"{\"source\": {\"start\": \"style\"}}", "branches.source.start is \"style\""},
        {"{\"source\": {\"start\": \"style\"}, \"style\": {\"start\": \"source\"}}", "in a circle"},
        {"{\"source\": {\"inversion\": {}}}", "no init_image"},
        {"{\"source\": {\"follow\": true}}", "follows an inversion but has none"},
        {"{\"source\": {\"init_image\": \"/nowhere.png\"}}", "/nowhere.png"},
        {"{\"source\": {\"guidance\": -1}}", "branches.source.guidance is -1"},
        {"[]", "branches"},
    };
    Context context;
    for (const auto &c : cases) {
        INFO(c.fields);
        ResultPtr result(nullptr, hd_result_free);
        hd_status status = context.try_run(preset(", \"branches\": " + c.fields), result);
        CHECK(status != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.message) != std::string::npos);
    }
}

/* --- hooks beside the call --- */

namespace
{

// What the hooks of one run were told, in order.
struct Seen {
    std::vector<std::string> calls;
    std::map<std::string, int> count;
    bool replace = false;
    void say(const std::string &what)
    {
        calls.push_back(what);
        count[what.substr(0, what.find(' '))]++;
    }
};
Seen seen;

hd_status look_branches(hd_branches_ctx *ctx)
{
    CHECK(ctx->width == 12);
    CHECK(ctx->height == 8);
    CHECK(ctx->calls == 4);
    ctx->state_bytes = sizeof(int);
    hd_branch_ask ask = {};
    ask.branch = "source";
    ask.prompt = "a red fish";
    HD_TRY(hd_ask_branch(ctx, &ask));
    ask = {};
    ask.branch = "main";
    ask.roles = HD_ROLE_BIT(HD_ROLE_PERTURBED);
    ask.first_step = ctx->first_step;
    ask.end_step = ctx->end_step;
    HD_TRY(hd_ask_branch(ctx, &ask));
    return seen.replace ? hd_ask_guidance(ctx, "source") : HD_OK;
}

hd_status look_begin(const hd_begin_ctx *ctx)
{
    const hd_prompt *main_prompt =
        hd_begin_prompt(ctx, "target", HD_ROLE_COND); // main's other name
    const hd_prompt *source = hd_begin_prompt(ctx, "source", HD_ROLE_COND);
    REQUIRE(main_prompt);
    REQUIRE(source);
    CHECK(std::string(main_prompt->text) == "a yellow moon at night");
    CHECK(std::string(source->text) == "a red fish");
    CHECK(source->used == 5);
    CHECK(source->token[2].start == 2);
    CHECK(source->token[2].end == 5);
    CHECK(hd_begin_prompt(ctx, "style", HD_ROLE_COND) == nullptr);
    seen.say("begin");
    return HD_OK;
}

hd_status look_latent(const hd_beside_ctx *ctx)
{
    static const char *const whens[] = {"start", "before", "after"};
    int *state = static_cast<int *>(ctx->state);
    if (ctx->when == HD_LATENT_START) CHECK(*state == 0); // zero again for every picture
    ++*state;
    hd_beside_branch *source = hd_beside(ctx, "source"), *main_branch = hd_beside(ctx, "main");
    REQUIRE(source);
    REQUIRE(main_branch);
    CHECK(hd_beside(ctx, "target.0") == main_branch);
    CHECK(hd_beside(ctx, "style") == nullptr);
    CHECK(ctx->seed == 5 + (uint64_t)ctx->picture);
    // one noise for both, until their prompts part them
    bool equal =
        memcmp(source->latent, main_branch->latent, (size_t)ctx->values * sizeof(float)) == 0;
    CHECK(equal == (ctx->when == HD_LATENT_START ||
                    (ctx->when == HD_LATENT_BEFORE_CALL && ctx->step.index == 0)));
    seen.say(std::string(whens[ctx->when]) + " " + std::to_string(ctx->step.index));
    return HD_OK;
}

hd_status look_x0(const hd_beside_ctx *ctx)
{
    CHECK(hd_beside(ctx, "source")->x0 != nullptr);
    CHECK(hd_beside(ctx, "source")->x0 != hd_beside(ctx, "main")->x0);
    seen.say("x0 " + std::to_string(ctx->step.index));
    return HD_OK;
}

hd_status look_guidance(const hd_beside_ctx *ctx)
{
    hd_beside_branch *b = hd_beside(ctx, ctx->branch);
    bool is_main = std::string(ctx->branch) == "main";
    CHECK(b->prediction[HD_ROLE_COND] != nullptr);
    CHECK(b->prediction[HD_ROLE_UNCOND] != nullptr);
    CHECK((b->prediction[HD_ROLE_PERTURBED] != nullptr) == is_main);
    if (is_main) // nobody has touched the row: it is what cond is
        CHECK(memcmp(b->prediction[HD_ROLE_PERTURBED], b->prediction[HD_ROLE_COND],
                     (size_t)ctx->values * sizeof(float)) == 0);
    if (seen.replace)
        memcpy(b->guess, b->prediction[HD_ROLE_COND], (size_t)ctx->values * sizeof(float));
    seen.say("guidance " + std::string(ctx->branch) + " " + std::to_string(ctx->step.index));
    return HD_OK;
}

const hd_processor_class looker = [] {
    hd_processor_class c = class_named("looker");
    c.branches = look_branches;
    c.begin = look_begin;
    c.latent = look_latent;
    c.x0 = look_x0;
    c.guidance = look_guidance;
    return c;
}();

} // namespace

TEST_CASE(
    "beside: hooks are called for the right steps, pictures and branches, and looking changes "
    "nothing",
    "[pipeline][branches]")
{
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &looker));
    auto plain = context.run(preset(", \"batch\": 2, \"sampler\": \"ddim\""));
    seen = {};
    auto looked = context.run(preset(
        ", \"batch\": 2, \"sampler\": \"ddim\", \"processors\": [{\"use\": \"looker\", \"steps\": "
        "[0.25, 1]}], \"branches\": {\"source\": {\"save\": true}}"));
    CHECK(pixels(plain.get(), 0) == picture_of(looked.get(), "main", 0));
    CHECK(pixels(plain.get(), 1) == picture_of(looked.get(), "main", 1));
    CHECK(seen.count["begin"] == 1);
    CHECK(seen.count["start"] == 2); // per picture, whatever "steps" says
    CHECK(seen.count["before"] == 6);
    CHECK(seen.count["after"] == 6);
    CHECK(seen.count["x0"] == 6);
    CHECK(seen.count["guidance"] == 12); // two branches
    CHECK(seen.calls[1] == "start 0");
    CHECK(seen.calls[3] == "before 1");

    // the guess of source is its plain prediction: a run without guidance
    seen = {};
    seen.replace = true;
    auto replaced = context.run(
        preset(", \"batch\": 2, \"sampler\": \"ddim\", \"processors\": [{\"use\": \"looker\"}], "
               "\"branches\": {\"source\": {\"save\": true}}"));
    auto unguided = context.run(preset(", \"batch\": 2, \"sampler\": \"ddim\", \"guidance\": 1, "
                                       "\"prompt\": \"a red fish\"",
                                       ", \"steps\": 4, \"width\": 48, \"height\": 32, \"seed\": "
                                       "5, \"precision\": \"f32\""));
    CHECK(picture_of(replaced.get(), "source", 1) == pixels(unguided.get(), 1));
    CHECK(picture_of(replaced.get(), "main", 1) == pixels(plain.get(), 1));
    CHECK(seen.count["guidance"] == 8);
    ResultPtr none(nullptr, hd_result_free);
    CHECK_FAILS(context.try_run(preset(", \"processors\": [{\"use\": \"looker\"}, {\"use\": "
                                       "\"looker\"}]"),
                                none),
                HD_ERR_UNSUPPORTED, "replaces the guidance of branch \"source\"");
}

namespace
{
hd_status darken_x0(const hd_beside_ctx *ctx)
{
    hd_beside_branch *b = hd_beside(ctx, "main");
    for (int64_t i = 0; i < ctx->values; i++)
        b->x0[i] *= 0.9f;
    return HD_OK;
}

// main has no rows: what it becomes is the mean of two looks at it, the second one mirrored.
struct Views {
    std::vector<int32_t> source;
    std::vector<float> sign;
} views;

hd_status views_branches(hd_branches_ctx *ctx)
{
    views.source.resize((size_t)(ctx->height * ctx->width));
    views.sign.assign(views.source.size(), 1.0f);
    for (int64_t y = 0; y < ctx->height; y++)
        for (int64_t x = 0; x < ctx->width; x++)
            views.source[(size_t)(y * ctx->width + x)] =
                (int32_t)(y * ctx->width + ctx->width - 1 - x);
    hd_branch_ask ask = {};
    ask.branch = "main";
    ask.roles = HD_ROLES_ASKED;
    HD_TRY(hd_ask_branch(ctx, &ask));
    HD_TRY(hd_ask_guidance(ctx, "main"));
    for (const char *name : {"view.0", "view.1"}) {
        ask = {};
        ask.branch = name;
        ask.latent_of = "main";
        if (strcmp(name, "view.1") == 0) ask.view = {views.source.data(), views.sign.data()};
        HD_TRY(hd_ask_branch(ctx, &ask));
    }
    return HD_OK;
}

hd_status views_guidance(const hd_beside_ctx *ctx)
{
    hd_beside_branch *main_branch = hd_beside(ctx, "main");
    CHECK(main_branch->prediction[HD_ROLE_COND] == nullptr);
    const hd_beside_branch *a = hd_beside(ctx, "view.0"), *b = hd_beside(ctx, "view.1");
    CHECK(a->latent == main_branch->latent);
    int64_t plane = ctx->height * ctx->width;
    for (int64_t i = 0; i < ctx->values; i++) {
        int64_t back = i / plane * plane + views.source[(size_t)(i % plane)]; // its own inverse
        float first =
            a->prediction[0][i] + a->guidance * (a->prediction[1][i] - a->prediction[0][i]);
        main_branch->guess[i] = first;
        // the other view sees the mirrored latent: its prediction is another one, but is there
        CHECK(std::isfinite(b->prediction[1][back]));
    }
    return HD_OK;
}
} // namespace

TEST_CASE("beside: x0 is changed for one branch alone; views show a branch's latent",
          "[pipeline][branches]")
{
    static const hd_processor_class darker = [] {
        hd_processor_class c = class_named("darker");
        c.x0 = darken_x0;
        return c;
    }();
    static const hd_processor_class viewer = [] {
        hd_processor_class c = class_named("viewer");
        c.branches = views_branches;
        c.guidance = views_guidance;
        return c;
    }();
    Context context;
    REQUIRE_OK(hd_context_add_processor(context.context, &darker));
    REQUIRE_OK(hd_context_add_processor(context.context, &viewer));
    std::string two = ", \"branches\": {\"source\": {\"save\": true}}";
    auto plain = context.run(preset(two));
    auto dark = context.run(preset(two + ", \"processors\": [{\"use\": \"darker\"}]"));
    CHECK(picture_of(plain.get(), "main") == picture_of(plain.get(), "source"));
    CHECK(picture_of(dark.get(), "source") == picture_of(plain.get(), "source"));
    CHECK(picture_of(dark.get(), "main") != picture_of(plain.get(), "main"));
    auto viewed = context.run(preset(", \"processors\": [{\"use\": \"viewer\"}]"));
    CHECK(hd_result_count(viewed.get()) == 1);
    CHECK(pixels(viewed.get(), 0) == picture_of(plain.get(), "main"));
}

TEST_CASE("branches: a run lives through each allocation failing", "[pipeline][branches][nomem]")
{
    Folder folder;
    Context context(1);
    hd_image grey;
    REQUIRE_OK(hd_image_create(&grey, 16, 16, "test"));
    memset(grey.rgb, 90, hd_image_bytes(&grey));
    REQUIRE_OK(hd_png_write(folder.path("a.png").c_str(), &grey, nullptr, 0));
    hd_image_free(&grey);
    context.run("{" + starter() +
                ", \"width\": 16, \"height\": 16, \"steps\": 1, \"seed\": 1, "
                "\"precision\": \"f32\"}");
    REQUIRE_OK(hd_context_add_processor(context.context, &looker));
    seen = {};
    std::string json = preset(
        ", \"branches\": {\"style\": {\"save\": true, \"init_image\": \"" + folder.path("a.png") +
        "\", \"inversion\": {\"guidance\": 2}}, \"content\": "
        "\"style\"}, \"sheet\": \"" +
        folder.path("s.png") + "\", \"processors\": [{\"use\": \"temperature\"}]");
    int64_t n = 0;
    for (bool failed = true; failed && n < 5000;) {
        hd_result *result = nullptr;
        FailAllocation fail(++n);
        hd_status status = hd_context_run(context.context, json.c_str(), "t", nullptr, &result);
        failed = fail.failed();
        CAPTURE(n);
        INFO(hd_message());
        // warnings and names of the report may be missing; nothing else may
        CHECK((status == HD_OK || status == HD_ERR_NOMEM));
        CHECK((result != nullptr) == (status == HD_OK));
        hd_result_free(result);
    }
    CHECK(n > 100);
}
