// Every two processors in one run, from the lists of controls and accelerators themselves: a pair
// either runs, differs from both alone and stands in `inspect chain`, or is refused before step 0
// with a reason that the table below states. A class without a row here fails the test.
#include <cJSON.h>

#include <map>
#include <set>

#include "controls/all.h"
#include "pipelines/calibrate.h"
#include "pipelines/runner.h"
#include "sparse/all.h"

namespace
{

// How a class is asked for, small enough for pictures of 48 x 32 and two steps.
struct Row {
    const char *use;
    const char *options = "";  // of the processor, behind "use"
    const char *branches = ""; // members of the run's "branches"
    bool neutral = false;      // a picture is the same without it
    const char *alone = "";    // why an image's run refuses it by itself
};

const char *const source_branch = R"("source": {"prompt": "a big red fish at night"})";

const char *const reference_branch = R"("reference.0": {"prompt": "a big red fish at night"})";

const Row rows[] = {
    {"localized_subjects", R"(, "subjects": [{"words": "fish", "region": [0, 0, 0.5, 1]}])"},
    {"alignit", R"(, "concept_words": "red cat", "class_words": "fish")"},
    {"anagram", R"(, "views": [{"view": "identity"}, {"view": "rotate_180"}])"},
    {"attention_masks", "", "", true},
    {"masked_reference", R"(, "boxes": [0, 0, 24, 32])", reference_branch},
    {"prompt_to_prompt",
     R"(, "cross_replace_steps": 1, "self_replace_steps": 0.5, "self_min_factor": 2)",
     source_branch},
    {"perturbed_attention", R"(, "scale": 5)"},
    {"self_subject", R"(, "references": [{"weight": 3}], "delta_t": 0, "delta_t_uncond": 0)",
     reference_branch},
    {"plug_and_play", R"(, "feature_steps": 1, "attn_sites": ["up.1.attn.1 self"])", source_branch},
    {"style_injection", R"(, "layers": ["up.1.attn.1 self"])",
     R"("content": {"prompt": "a red fish"}, "style": {"prompt": "a tree", "seed": 9})"},
    {"temperature", R"(, "tau": 0.5)"},
    {"agent", R"(, "sites": ["** self"], "sx": 2, "sy": 2, "ratio": 0.4, "agents": false)"},
    {"block_causal", R"(, "sites": ["** self factor<=1"])", "", true}, // a picture is one frame
    {"dense", R"(, "sites": ["** self"], "qk": "int8")"},
    {"dynamic_mask", R"(, "sites": ["** self factor<=1"], "window": [1, 4, 4], "keep": 0.25)"},
    {"gna", R"(, "sites": ["** self factor<=1"], "window": [4, 4], "stride": [2, 2])"},
    {"kv_cache", "", "", false, "block by block"},
    {"paro", R"(, "sites": ["** self factor<=1"], "plan": "PLAN", "density": 0.5,
               "force_last": false)"},
    {"proxy", R"(, "sites": ["** self factor<=1"], "window": [1, 4, 4])"},
    {"swin_windows", R"(, "sites": ["** self factor<=1"], "window": [4, 4], "rest": "proxy")"},
    {"vmoba", R"(, "sites": ["** self factor<=1"], "block2": [4, 4], "k2": 2)"},
    {"xattention", R"(, "sites": ["** self factor<=1"], "tau": 0.5, "tile": [1, 4, 4], "block": 16,
               "stride": 4)"},
};

// Pairs that cannot work, in either order unless it is given; names or kinds of classes.
struct Refusal {
    const char *a, *b, *reason;
    bool order = false; // refused with `a` first; the other way round they go together
};

const Refusal refusals[] = {
    {"@plan", "@plan", "a row can have one plan"},
    {"anagram", "self_subject", "replaces the guidance of branch \"main\""},
    {"self_subject", "agent", "it needs one key for each query: no appended keys", true},
    {"agent", "self_subject", "it addresses tokens by their places", true},
    {"masked_reference", "agent", "it needs one key for each query: no appended keys", true},
    {"agent", "masked_reference", "it addresses tokens by their places", true},
    {"masked_reference", "proxy", "the other changes scores pair by pair"},
    {"masked_reference", "dynamic_mask", "the other changes scores pair by pair"},
    {"masked_reference", "swin_windows", "the other changes scores pair by pair"},
    {"@mover", "@plan", "its plan needs the tokens in their places"},
};

struct Pair {
    const hd_processor_class *a, *b;
    const Refusal *refused = nullptr; // in this order
};

bool is(const hd_processor_class *c, const std::string &what)
{
    if (what == "@plan") return c->plan != nullptr;
    if (what == "@mover") return (c->edits & HD_MOVES_TOKENS) != 0;
    return what == c->name;
}

const Refusal *refusal_of(const hd_processor_class *a, const hd_processor_class *b)
{
    for (const Refusal &r : refusals)
        if ((is(a, r.a) && is(b, r.b)) || (!r.order && is(a, r.b) && is(b, r.a))) return &r;
    return nullptr;
}

const Row *row_of(const hd_processor_class *c)
{
    for (const Row &r : rows)
        if (std::string(r.use) == c->name) return &r;
    return nullptr;
}

std::vector<const hd_processor_class *> classes()
{
    std::vector<const hd_processor_class *> all;
    for (const hd_processor_list *list : {&hd_all_controls, &hd_all_accelerators})
        all.insert(all.end(), list->item, list->item + list->count);
    return all;
}

// Those that run by themselves.
std::vector<const hd_processor_class *> runnable()
{
    std::vector<const hd_processor_class *> all;
    for (const hd_processor_class *c : classes()) {
        const Row *row = row_of(c);
        if (row && !row->alone[0]) all.push_back(c);
    }
    return all;
}

class Pairs
{
  public:
    std::string preset(const std::vector<const hd_processor_class *> &chain)
    {
        std::string branches, processors;
        std::set<std::string> there;
        for (const hd_processor_class *c : chain) {
            const Row *row = row_of(c);
            std::string options = row->options;
            if (options.find("PLAN") != std::string::npos)
                options.replace(options.find("PLAN"), 4, plan());
            processors += std::string(processors.empty() ? "" : ", ") + "{\"use\": \"" + c->name +
                          "\"" + options + "}";
            if (row->branches[0] && there.insert(row->branches).second)
                branches += std::string(branches.empty() ? "" : ", ") + row->branches;
        }
        return "{" + starter() +
               ", \"prompt\": \"a big blue fish at night\", \"steps\": 2, \"width\": 48, "
               "\"height\": 32, \"seed\": 5, \"guidance\": 5, \"sampler\": \"ddim\", "
               "\"precision\": \"f32\", \"branches\": {" +
               branches + "}, \"processors\": [" + processors + "], \"latents_out\": \"" +
               folder.path("out.safetensors") + "\"}";
    }

    hd_status chain_of(const std::string &json, std::string &text)
    {
        char *said = nullptr;
        hd_status status = hd_context_chain(context.context, json.c_str(), "pair", nullptr, &said);
        text = said ? said : "";
        hd_text_free(said);
        return status;
    }

    // main's latents after the last step
    const std::vector<float> &alone(const hd_processor_class *c)
    {
        auto known = single.find(c->name);
        if (known == single.end())
            known = single.emplace(c->name, run(c ? preset({c}) : preset({}))).first;
        return known->second;
    }

    std::vector<float> run(const std::string &json)
    {
        context.run(json);
        const std::string path = folder.path("out.safetensors");
        Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
        const FixtureTensor &t = f.at("latents");
        return {t.f32(), t.f32() + t.count()};
    }

    // This machine may have no 8-bit products: then it says so, and there is nothing to pair.
    bool machine_lacks(const hd_processor_class *c)
    {
        std::string text;
        return std::string(c->name) == "dense" && chain_of(preset({c}), text) == HD_ERR_UNSUPPORTED;
    }

  private:
    std::string plan()
    {
        const std::string path = folder.path("pair.hdplan");
        if (std::filesystem::exists(path)) return path;
        folder.write("pair.hdplan", "");
        hd_calibrate_options options{};
        options.plan = path.c_str();
        hd_calibrated made{};
        for (const hd_processor_class *c : runnable()) {
            if (std::string(row_of(c)->options).find("PLAN") == std::string::npos) continue;
            REQUIRE_OK(hd_calibrate(context.context, preset({c}).c_str(), "pair", &options, nullptr,
                                    &made));
            hd_calibrated_free(&made);
        }
        return path;
    }

    Folder folder;
    Context context;
    std::map<std::string, std::vector<float>> single;
};

std::vector<Pair> pairs_of(const std::vector<const hd_processor_class *> &all)
{
    std::vector<Pair> pairs;
    for (size_t i = 0; i < all.size(); i++)
        for (size_t j = i + 1; j < all.size(); j++) {
            Pair p = {all[i], all[j], refusal_of(all[i], all[j])};
            if (p.refused && p.refused->order) p = {all[j], all[i], refusal_of(all[j], all[i])};
            pairs.push_back(p);
        }
    return pairs;
}

// Both stand among the run's processors, and at a site where they act on attention.
void check_listed(const std::string &chain, const hd_processor_class *c)
{
    const bool calls = c->prepare || c->pass || c->tokens || c->logits || c->probe || c->plan ||
                       c->map || c->output;
    cJSON *root = cJSON_Parse(chain.c_str()), *site, *range, *processor;
    bool known = false;
    cJSON_ArrayForEach(processor, cJSON_GetObjectItem(root, "processors")) known |=
        std::string(c->name) == cJSON_GetObjectItem(processor, "use")->valuestring;
    CHECK(known);
    bool listed = false;
    cJSON_ArrayForEach(site, cJSON_GetObjectItem(root, "sites"))
        cJSON_ArrayForEach(range, cJSON_GetObjectItem(site, "ranges"))
    {
        const std::string names =
            ", " + std::string(cJSON_GetObjectItem(range, "processors")->valuestring) + ",";
        listed |= names.find(", " + std::string(c->name) + ",") != std::string::npos;
    }
    cJSON_Delete(root);
    CHECK(listed == calls);
}

// Part `part` of `parts` of the pairs that go together.
void run_part(size_t part, size_t parts)
{
    Pairs run;
    std::vector<Pair> all;
    for (const Pair &p : pairs_of(runnable()))
        if (!p.refused) all.push_back(p);
    for (size_t i = part; i < all.size(); i += parts) {
        const Pair &p = all[i];
        if (run.machine_lacks(p.a) || run.machine_lacks(p.b)) continue;
        INFO(p.a->name << " and " << p.b->name);
        const std::vector<float> both = run.run(run.preset({p.a, p.b}));
        const std::vector<float> &a = run.alone(p.a), &b = run.alone(p.b);
        CHECK((both == a) == row_of(p.b)->neutral);
        CHECK((both == b) == row_of(p.a)->neutral);
    }
}

} // namespace

TEST_CASE("pairs: every class has its row of defaults", "[controls][pairs]")
{
    std::set<std::string> known;
    for (const Row &r : rows)
        CHECK(known.insert(r.use).second);
    for (const hd_processor_class *c : classes()) {
        INFO("tests/controls/test_pairs.cpp: give " << c->name << " a row");
        CHECK(known.erase(c->name) == 1);
    }
    CHECK(known.empty());
}

TEST_CASE("pairs: what goes together is listed, what does not is refused with the reason",
          "[pipeline][controls][pairs]")
{
    Pairs run;
    std::string chain;
    for (const hd_processor_class *c : classes()) {
        INFO(c->name);
        if (row_of(c) && row_of(c)->alone[0])
            CHECK_FAILS(run.chain_of(run.preset({c}), chain), HD_ERR_UNSUPPORTED, row_of(c)->alone);
    }
    std::set<const Refusal *> used;
    for (const Pair &p : pairs_of(runnable())) {
        if (run.machine_lacks(p.a) || run.machine_lacks(p.b)) continue;
        for (auto [a, b] : {std::pair(p.a, p.b), std::pair(p.b, p.a)}) {
            INFO(a->name << ", then " << b->name);
            const Refusal *refused = refusal_of(a, b);
            const hd_status status = run.chain_of(run.preset({a, b}), chain);
            if (refused) {
                CHECK_FAILS(status, HD_ERR_UNSUPPORTED, refused->reason);
                used.insert(refused);
                continue;
            }
            INFO((status == HD_OK ? "" : hd_message()));
            CHECK(status == HD_OK);
            if (status != HD_OK) continue;
            check_listed(chain, a);
            check_listed(chain, b);
        }
    }
    for (const Refusal &r : refusals) {
        INFO(r.a << " and " << r.b);
        CHECK(used.count(&r) == 1);
    }
}

TEST_CASE("pairs: the result differs from both alone (1 of 4)", "[pipeline][controls][pairs]")
{
    run_part(0, 4);
}

TEST_CASE("pairs: the result differs from both alone (2 of 4)", "[pipeline][controls][pairs]")
{
    run_part(1, 4);
}

TEST_CASE("pairs: the result differs from both alone (3 of 4)", "[pipeline][controls][pairs]")
{
    run_part(2, 4);
}

TEST_CASE("pairs: the result differs from both alone (4 of 4)", "[pipeline][controls][pairs]")
{
    run_part(3, 4);
}
