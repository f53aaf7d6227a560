// heddle calibrate as a whole: the starter model's attention to a plan file, which runs.
#include <fstream>

#include "engine/attention/planner/plan_file.h"
#include "pipelines/calibrate.h"
#include "pipelines/runner.h"
#include "support/plan_file.h"

namespace
{

std::string preset(const std::string &more = "")
{
    return "{" + starter() +
           ", \"prompt\": \"a yellow moon at night\", \"steps\": 4, \"seed\": 5, "
           "\"precision\": \"f32\", \"width\": 128, \"height\": 96" +
           more + "}";
}

std::string with_paro(const std::string &path, const std::string &more = "")
{
    return preset(", \"processors\": [{\"use\": \"paro\", \"plan\": \"" + path +
                  "\", \"sites\": [\"self\"]" + more + "}]");
}

struct Calibrated {
    hd_calibrated c{};
    ~Calibrated()
    {
        hd_calibrated_free(&c);
    }
    hd_status make(Context &context, const std::string &json, const std::string &path,
                   double density = 0, const char *prompts = nullptr)
    {
        hd_calibrated_free(&c);
        hd_calibrate_options options = {path.c_str(), density, prompts, "prompts.txt"};
        return hd_calibrate(context.context, json.c_str(), "test.json", &options, nullptr, &c);
    }
};

} // namespace

TEST_CASE("calibrate: the starter model gives a plan that runs", "[pipeline][paro]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("a.hdplan");
    Calibrated made;
    REQUIRE_OK(made.make(context, preset(", \"output\": \"" + folder.path("x.png") + "\""), path));
    CHECK(folder.names() == std::vector<std::string>{"a.hdplan"}); // and no picture
    CHECK(made.c.prompts == 1);
    CHECK(made.c.file->steps == 4);
    CHECK(made.c.file->masks == 3);
    CHECK(std::vector<uint16_t>(made.c.file->mask_of_step, made.c.file->mask_of_step + 4) ==
          std::vector<uint16_t>{0, 1, 2, 2});
    CHECK(made.c.report.density <= 0.31);
    CHECK(made.c.report.retained > made.c.report.density);
    // it is what it was written as
    hd_plan_file *file = nullptr;
    REQUIRE_OK(hd_plan_file_open(&file, path.c_str()));
    PlanFilePtr owner(file, hd_plan_file_free);
    CHECK(file->sites == made.c.file->sites);
    CHECK(file->model == made.c.file->model);
    CHECK(file->model != 0);
    auto dense = context.run(preset()), sparse = context.run(with_paro(path));
    CHECK(pixels(dense.get(), 0) != pixels(sparse.get(), 0));
    // the same plan, the same bytes, by any number of threads
    Context three(3);
    std::string again = folder.path("b.hdplan");
    REQUIRE_OK(made.make(three, preset(), again));
    CHECK(folder.read("a.hdplan") == folder.read("b.hdplan"));
    CHECK(pixels(three.run(with_paro(again)).get(), 0) == pixels(sparse.get(), 0));
}

TEST_CASE("calibrate: with every tile kept the picture is the dense one", "[pipeline][paro]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("a.hdplan");
    Calibrated made;
    REQUIRE_OK(made.make(context, preset(), path, 1.0));
    CHECK(made.c.report.density == Approx(1.0));
    CHECK(made.c.report.retained == Approx(1.0));
    auto dense = context.run(preset()), full = context.run(with_paro(path));
    auto a = pixels(dense.get(), 0), b = pixels(full.get(), 0);
    CHECK(psnr(a.data(), b.data(), a.size()) > 60); // the orders differ, and so does rounding
}

TEST_CASE("calibrate: a plan is for its model and its size", "[pipeline][paro]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("a.hdplan");
    Calibrated made;
    REQUIRE_OK(made.make(context, preset(), path, 0.5));
    ResultPtr none(nullptr, hd_result_free);
    std::string wide = with_paro(path);
    wide.replace(wide.find("\"width\": 128"), 12, "\"width\": 160");
    CHECK_FAILS(context.try_run(wide, none), HD_ERR_ARGUMENT,
                "was made for a grid of 1x24x32 with 0 tokens of text, this run's is 1x24x40");
    CHECK_FAILS(context.try_run(with_paro(path, ", \"density\": 0.25"), none), HD_ERR_ARGUMENT,
                "was made for 0.5");
    std::string bytes = folder.read("a.hdplan");
    bytes[24] ^= 1; // the model's key
    std::string other = folder.write("b.hdplan", with_checksum(bytes));
    CHECK_FAILS(context.try_run(with_paro(other), none), HD_ERR_ARGUMENT,
                "was made for another model");
    CHECK_FAILS(
        context.try_run(
            preset(", \"processors\": [{\"use\": \"paro\", \"plan\": \"" + path + "\"}]"), none),
        HD_ERR_UNSUPPORTED, "its keys are not one grid");
}

TEST_CASE("calibrate: the preset's paro says where and how, the prompts are run one by one",
          "[pipeline][paro]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("a.hdplan");
    Calibrated made;
    std::string json = preset(", \"processors\": [{\"use\": \"paro\", \"plan\": \"not yet there\", "
                              "\"sites\": [\"up.2.** self\"], \"density\": 0.5, \"buckets\": 2, "
                              "\"prompts\": 3, \"steps\": [0.5, 1]}]");
    REQUIRE_OK(made.make(context, json, path, 0, "a fish\n\na moon\r\na tree\nnot this one\n"));
    CHECK(made.c.prompts == 3);
    CHECK(made.c.file->masks == 2);
    CHECK(made.c.file->target == 0.5f);
    REQUIRE(made.c.file->sites == 2);
    for (int64_t i = 0; i < 2; i++) {
        const hd_plan_file_site *s = &made.c.file->site[i];
        CHECK(std::string(s->site.path).find("up.2") == 0);
        for (int64_t h = 0; h < s->site.heads; h++) {
            CHECK(s->density[h] == 1.0f); // its steps were not observed
            CHECK(s->density[s->site.heads + h] < 1.0f);
        }
    }
    CHECK(made.c.report.density <= 0.5);
    Calibrated one;
    std::string other = folder.path("b.hdplan");
    REQUIRE_OK(one.make(context, json, other, 0, "a fish"));
    CHECK(folder.read("a.hdplan") != folder.read("b.hdplan"));
}

TEST_CASE("calibrate: refusals", "[pipeline][paro]")
{
    Folder folder;
    Context context;
    std::string path = folder.path("a.hdplan");
    struct {
        std::string json;
        hd_status status;
        const char *message;
    } cases[] = {
        {"{", HD_ERR_FORMAT, "test.json"},
        {"[]", HD_ERR_ARGUMENT, "test.json"},
        {preset(", \"processors\": 3"), HD_ERR_ARGUMENT, "processors"},
        {preset(", \"processors\": [{\"use\": \"paro\"}, {\"use\": \"paro\"}]"), HD_ERR_UNSUPPORTED,
         "test.json: processors[1] is a second \"paro\""},
        {preset(", \"processors\": [{\"use\": \"paro\", \"tile\": 32}]"), HD_ERR_UNSUPPORTED,
         "test.json: processors[0] tile is 32"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"sites\": [\"cross\"]}]"),
         HD_ERR_UNSUPPORTED,
         "calibrate: cannot measure unet:down.0.attn.0 cross: its keys are not"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"sites\": [\"block.**\"]}]"),
         HD_ERR_ARGUMENT, "calibrate: \"sites\" matches no attention of this model"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"sites\": [\"self self\"]}]"),
         HD_ERR_ARGUMENT, "test.json: processors[0].sites[0]"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"buckets\": [0, 1]}]"), HD_ERR_ARGUMENT,
         "test.json: processors[0].buckets names the masks of 2 steps, the run has 4"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"buckets\": 5}]"), HD_ERR_ARGUMENT,
         "processors[0].buckets is 5, must be a whole number from 1 to 4"},
        {preset(", \"processors\": [{\"use\": \"paro\", \"align_text_first\": true}]"),
         HD_ERR_UNSUPPORTED, "processors[0].align_text_first is true"},
    };
    Calibrated made;
    for (auto &c : cases) {
        INFO(c.json);
        CHECK_FAILS(made.make(context, c.json, path), c.status, c.message);
        CHECK(folder.names().empty());
    }
    CHECK_FAILS(made.make(context, preset(), folder.path("no/such/a.hdplan")), HD_ERR_IO,
                "no/such");
    CHECK_FAILS(made.make(context, preset(), path, 0, "\n\n"), HD_ERR_ARGUMENT,
                "prompts.txt: has no prompt");
}
