/* tests/controls/reference_stage.h: one attention call with a control whose references are branches
 * and whose masks are numbers of the test. */
#ifndef HD_TESTS_CONTROLS_REFERENCE_STAGE_H
#define HD_TESTS_CONTROLS_REFERENCE_STAGE_H

#include <map>
#include <memory>

#include "controls/all.h"
#include "engine/attention/beside_run.h"
#include "support/attention.h"

using Masks = std::map<std::string, std::vector<float>>; // by "path"

/* A processor of JSON text that has asked for its branches and begun, on a latent of height x
 * width. */
struct Stage {
    TestRun run;
    std::unique_ptr<hd_branches> branches = std::make_unique<hd_branches>();
    hd_features *features = nullptr;
    hd_beside_run *beside = nullptr;
    Masks masks;
    hd_status status = HD_OK;

    Stage(const std::string &processor, int64_t height, int64_t width, Masks given = {},
          std::vector<std::string> named = {}, int64_t steps = 10)
        : run(&hd_all_controls, "{\"processors\": [" + processor + "]}", steps),
          masks(std::move(given))
    {
        status = run.status;
        if (status != HD_OK) return;
        hd_branches_init(branches.get());
        for (const std::string &name : named) {
            hd_branch *made;
            REQUIRE_OK(hd_branches_add(branches.get(), name.c_str(), nullptr, &made));
        }
        REQUIRE_OK(hd_features_create(&features));
        REQUIRE_OK(hd_beside_run_create(&beside, run.run));
        hd_branches_ctx ask = {};
        ask.calls = steps;
        ask.channels = 4;
        ask.height = height;
        ask.width = width;
        ask.guidance = 5;
        ask.branches = branches.get();
        ask.features = features;
        status = hd_beside_run_ask(beside, &ask);
        hd_begin_ctx begin = {};
        begin.calls = steps;
        begin.channels = 4;
        begin.height = height;
        begin.width = width;
        begin.factor = 4;
        begin.branches = branches.get();
        begin.read_mask = [](void *arg, const hd_json *, const char *path, int, float *mask) {
            const std::vector<float> &m = static_cast<Stage *>(arg)->masks.at(path);
            std::copy(m.begin(), m.end(), mask);
            return HD_OK;
        };
        begin.read_mask_arg = this;
        if (status == HD_OK) status = hd_beside_run_begin(beside, &begin);
    }
    ~Stage()
    {
        hd_beside_run_free(beside);
        hd_features_free(features);
    }
    Stage(const Stage &) = delete;
    Stage &operator=(const Stage &) = delete;
};

/* Names the rows of a call: "main/cond", "reference.0/cond" ... */
inline void name_rows(TestCall &c, const std::vector<std::string> &names)
{
    REQUIRE(names.size() == c.rows.size());
    for (size_t i = 0; i < names.size(); i++) {
        size_t slash = names[i].find('/');
        c.rows[i] = hd_row{};
        strcpy(c.rows[i].branch, names[i].substr(0, slash).c_str());
        strcpy(c.rows[i].role, names[i].substr(slash + 1).c_str());
    }
}

/* The call as the stage's processor leaves it. */
inline std::vector<float> act(TestCall &c, Stage &s, int64_t step = 0)
{
    REQUIRE_OK(s.status);
    REQUIRE_OK(c.dry(s.run));
    return c.act(s.run, step);
}

inline std::vector<float> plain(TestCall &c)
{
    TestRun none(&hd_all_controls, "{\"processors\": []}");
    REQUIRE_OK(c.dry(none));
    return c.act(none);
}

#endif
