// See asked.h.
#include "support/asked.h"

#include "controls/all.h"

hd_processor_class class_named(const char *name)
{
    static const hd_param no_params[] = {HD_PARAM_END};
    hd_processor_class c = {};
    c.name = name;
    c.params = no_params;
    return c;
}

AskedRun::AskedRun(const std::string &use, const std::string &options,
                   const std::vector<const char *> &others, int64_t steps, float guidance)
    : run(&hd_all_controls, "{\"processors\": [{\"use\": \"" + use + "\"" + options + "}]}", steps)
{
    REQUIRE_OK(run.status);
    hd_branches_init(&branches);
    for (const char *name : others) {
        hd_branch *b;
        REQUIRE_OK(hd_branches_add(&branches, name, hd_json_root(run.doc), &b));
        b->prompt = "a fish";
    }
    REQUIRE_OK(hd_features_create(&features));
    REQUIRE_OK(hd_beside_run_create(&beside, run.run));
    hd_branches_ctx ctx{};
    ctx.calls = steps;
    ctx.channels = 4, ctx.height = 64, ctx.width = 64;
    ctx.guidance = guidance;
    ctx.branches = &branches;
    ctx.features = features;
    REQUIRE_OK(hd_beside_run_ask(beside, &ctx));
}

AskedRun::~AskedRun()
{
    hd_beside_run_free(beside);
    hd_features_free(features);
}
