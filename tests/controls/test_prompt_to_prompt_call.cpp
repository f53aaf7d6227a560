// Prompt-to-Prompt inside one attention call: the two streaming passes against probabilities that
// are made and edited in f64 (Hertz et al., arXiv 2208.01626), and what memory they take.
#include <cstring>

#include "controls/all.h"
#include "controls/word_map.h"
#include "engine/attention/beside_run.h"
#include "support/alloc_fail.h"
#include "support/attention.h"
#include "support/prompt.h"

namespace
{

// A call of four rows, source and main, uncond and cond each, whose columns are the words of two
// prompts; with the processor that stands in `json`.
struct Edit {
    Prompt source, target;
    TestCall c;
    TestRun run;
    hd_branches branches{};
    hd_features *features = nullptr;
    hd_beside_run *beside = nullptr;

    Edit(const std::string &from, const std::string &to, const std::string &options,
         const hd_processor_list *list = &hd_all_controls, int64_t queries = 24,
         int64_t columns = 77, int64_t heads = 2)
        : source(from, (size_t)columns), target(to, (size_t)columns),
          c(4, queries, columns, heads, 8),
          run(list, R"({"processors": [{"use": "prompt_to_prompt")" + options + "}]}")
    {
        REQUIRE_OK(run.status);
        for (size_t b = 0; b < 4; b++) {
            strcpy(c.rows[b].branch, b % 2 ? "main" : "source");
            strcpy(c.rows[b].role, b < 2 ? "uncond" : "cond");
            c.rows[b].picture = 0;
        }
        c.call.site.kind = HD_SITE_CROSS;
        strcpy(c.call.site.path, "down.0.attn.0");
        c.call.k_layout = hd_layout_text(columns);
        hd_branches_init(&branches);
        REQUIRE_OK(hd_beside_run_create(&beside, run.run));
        REQUIRE_OK(hd_features_create(&features));
        hd_branches_ctx ask = {};
        ask.calls = 10, ask.channels = 4, ask.height = 4, ask.width = 6, ask.guidance = 5;
        ask.branches = &branches, ask.features = features;
        REQUIRE_OK(hd_beside_run_ask(beside, &ask));
        const int number = hd_branches_find(&branches, "source");
        if (number >= 0) branches.item[number].tokens[1] = source.p;
        branches.item[0].tokens[1] = target.p;
        hd_begin_ctx begin = {};
        begin.calls = 10, begin.channels = 4, begin.height = 4, begin.width = 6;
        begin.branches = &branches;
        REQUIRE_OK(hd_beside_run_begin(beside, &begin));
    }
    ~Edit()
    {
        hd_beside_run_free(beside);
        hd_features_free(features);
    }
    Edit(const Edit &) = delete;

    // The row's own map at head h and query i.
    std::vector<double> map(int64_t row, int64_t h, int64_t i) const
    {
        return softmax_f64(c.Lk, [&](int64_t j) { return score_f64(c, row, h, i, j); });
    }

    // Peak of the arena on the dry pass, which takes what a call takes.
    size_t arena_bytes()
    {
        Run ex(HD_CPU);
        hd_arena *measuring = nullptr;
        REQUIRE_OK(hd_arena_create_measuring(&measuring));
        hd_exec dry = ex.exec;
        dry.arena = measuring;
        dry.recording = true;
        c.forward.run = run.run;
        REQUIRE_OK(hd_attention(&dry, &c.call));
        const size_t bytes = hd_arena_peak_bytes(measuring);
        hd_arena_free(measuring);
        return bytes;
    }
};

const char *const fish = "a big red fish at night";

} // namespace

TEST_CASE("prompt_to_prompt: one call equals the map, edited column by column, in f64",
          "[controls][prompt_to_prompt]")
{
    struct Case {
        const char *target, *options;
        hd_word_map_mode mode;
        // of the target's words
        std::map<std::string, float> weight;
        std::map<std::string, int64_t> end; // "": the others
    };
    const Case cases[] = {
        {"a big blue lasag+ne at night",
         R"(, "mode": "replace", "weights": {"blue": 2, "night": -1},
            "cross_replace_steps": {"default_": 0.8, "big": 0.3})",
         HD_WORD_MAP_REPLACE,
         {{"blue", 2.0f}, {"night", -1.0f}},
         {{"", 8}, {"big", 3}}},
        {"a small big red fish at night",
         R"(, "mode": "refine", "weights": {"small": 0, "fish": 3},
            "cross_replace_steps": {"default_": 0.8, "fish": 0.5})",
         HD_WORD_MAP_REFINE,
         {{"small", 0.0f}, {"fish", 3.0f}},
         {{"", 8}, {"fish", 5}}},
    };
    for (const Case &t : cases) {
        Edit e(fish, t.target, t.options);
        std::vector<float> weight(77, 1.0f);
        std::vector<int64_t> end(77, t.end.at(""));
        bool columns[77];
        for (const auto &[word, value] : t.weight) {
            REQUIRE_OK(hd_prompt_find(&e.target.p, word.c_str(), columns));
            for (size_t j = 0; j < 77; j++)
                if (columns[j]) weight[j] = value;
        }
        for (const auto &[word, value] : t.end) {
            if (word.empty()) continue;
            REQUIRE_OK(hd_prompt_find(&e.target.p, word.c_str(), columns));
            for (size_t j = 0; j < 77; j++)
                if (columns[j]) end[j] = value;
        }
        hd_word_map m{};
        REQUIRE_OK(hd_word_map_create(&m, t.mode, false, false, &e.source.p, &e.target.p));
        REQUIRE_OK(e.c.dry(e.run));
        for (int64_t step : {0, 4, 7, 8}) {
            CAPTURE(t.target, step);
            const std::vector<float> out = e.c.act(e.run, step);
            auto edited = [&](int64_t h, int64_t i) {
                const std::vector<double> s = e.map(2, h, i), own = e.map(3, h, i);
                std::vector<double> p = own;
                for (size_t j = 0; j < 77; j++) {
                    if (step >= end[j]) continue;
                    double inherited = 0;
                    for (size_t k = 0; k < 77; k++)
                        inherited += s[k] * (double)m.m[k * 77 + j];
                    const double a = (double)m.a[j];
                    p[j] = (a * inherited + (1 - a) * own[j]) * (double)weight[j];
                }
                return p;
            };
            CHECK(error_f64(e.c, out, 3, edited) <= 1e-5);
            for (int64_t row = 0; row < 3; row++)
                CHECK(error_f64(e.c, out, row,
                                [&](int64_t h, int64_t i) { return e.map(row, h, i); }) <= 1e-5);
        }
        hd_word_map_free(&m);
    }
}

TEST_CASE("prompt_to_prompt: equal prompts whose words end at different steps stay equal",
          "[controls][prompt_to_prompt]")
{
    Edit e(fish, fish, R"(, "cross_replace_steps": {"default_": 0.8, "red": 0.2, "night": 0.4})");
    for (std::vector<float> *rows : {&e.c.q, &e.c.k, &e.c.v}) {
        const size_t row = rows->size() / 4;
        std::copy_n(rows->begin() + (ptrdiff_t)(2 * row), row,
                    rows->begin() + (ptrdiff_t)(3 * row));
    }
    REQUIRE_OK(e.c.dry(e.run));
    for (int64_t step : {0, 2, 5, 9}) {
        CAPTURE(step);
        const std::vector<float> out = e.c.act(e.run, step);
        const int64_t row = (int64_t)out.size() / 4;
        double worst = 0, most = 0;
        for (int64_t i = 0; i < row; i++) {
            const float source = out[(size_t)(2 * row + i)], target = out[(size_t)(3 * row + i)];
            worst = std::fmax(worst, (double)std::fabs(source - target));
            most = std::fmax(most, (double)std::fabs(source));
        }
        CHECK(worst <= 1e-6 * most);
    }
}

// The arena's peak and the largest allocation beside it. Measured: 0.8 MB (cross), 0.3 MB (self) of
// a map's 2.1.
TEST_CASE("prompt_to_prompt: no room for a map is taken, but where a map is asked for",
          "[controls][prompt_to_prompt]")
{
    const int64_t queries = 1024, columns = 512;
    const size_t map = (size_t)(queries * columns) * sizeof(float); // of one row and head
    const std::string options = R"(, "weights": {"red": 2}, "cross_replace_steps": {"default_": 0.8,
        "night": 0.4}, "self_min_factor": 1, "local_blend": {"source": "fish", "target": "fish",
        "factor": 1})";
    for (hd_site_kind kind : {HD_SITE_CROSS, HD_SITE_SELF}) {
        Edit e(fish, fish, options, &hd_all_controls, queries, columns, 1);
        e.c.call.site.kind = kind;
        LargestAllocation largest;
        REQUIRE_OK(e.c.dry(e.run));
        e.c.act(e.run, 5); // both passes
        CAPTURE(kind, map, e.arena_bytes());
        CHECK(largest.bytes() < map);
        CHECK(e.arena_bytes() < map);
    }
    TestClass maps;
    maps.name = "prompt_to_prompt";
    maps.map = [](const hd_hook_ctx *, hd_attention_map *) { return HD_OK; };
    TestList list({maps});
    Edit whole(fish, fish, "", list, queries, columns, 1);
    CHECK(whole.arena_bytes() >= map);
}
