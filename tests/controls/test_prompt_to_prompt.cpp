// Prompt-to-Prompt: known answers of its parts, neutrality, and the two streaming passes against
// maps that are made and edited as the paper has it (Hertz et al., arXiv 2208.01626).
#include <cstring>

#include "controls/prompt_to_prompt.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"

namespace
{

std::string run_of(const std::string &more, const char *prompt)
{
    return "{" + starter() +
           ", \"steps\": 6, \"width\": 48, \"height\": 64, \"seed\": 5, \"guidance\": 5, "
           "\"sampler\": \"ddim\", \"precision\": \"f32\", \"prompt\": \"" +
           prompt + "\"" + more + "}";
}

std::string edit_of(const std::string &options,
                    const std::string &source = "a big red fish at night")
{
    return ", \"branches\": {\"source\": {\"prompt\": \"" + source +
           "\", \"save\": true}}, \"processors\": [{\"use\": \"prompt_to_prompt\"" + options + "}]";
}

std::vector<uint8_t> picture_of(const hd_result *result, const std::string &branch, int skip = 0)
{
    for (int i = 0; i < hd_result_count(result); i++)
        if (branch == hd_result_picture(result, i)->branch && skip-- == 0) return pixels(result, i);
    FAIL("no picture of branch " << branch);
    return {};
}

// A target of five columns with hand-made memory.
struct Target {
    std::vector<float> m, a, weight;
    std::vector<p2p_range> replace;
    std::vector<hd_edit_term> term, b, c;
    prompt_to_prompt p{};
    p2p_target t{};

    Target(int64_t source, std::vector<float> map, std::vector<float> mapped,
           std::vector<float> weights)
        : m(std::move(map)), a(std::move(mapped)), weight(std::move(weights))
    {
        auto target = (int64_t)a.size();
        replace.assign(a.size(), p2p_range{0, 1});
        for (int64_t i = 0; i < source; i++)
            for (int64_t j = 0; j < target; j++)
                if (m[(size_t)(i * target + j)] != 0)
                    term.push_back({(int32_t)i, (int32_t)j, m[(size_t)(i * target + j)]});
        b.resize(term.size() + 1), c.resize(a.size() + 1);
        t.map = {source, target, m.data(), a.data()};
        t.terms = (int64_t)term.size();
        t.term = term.data(), t.inherited = b.data(), t.own = c.data();
        t.weight = weight.data(), t.replace = replace.data();
        p.columns = target;
    }
    // The edited row of the map: values 1 in one column each.
    std::vector<float> row(const std::vector<float> &source, const std::vector<float> &own,
                           int64_t step = 0)
    {
        p2p_edit e = p2p_edit_of(&p, &t, step);
        std::vector<float> out(own.size());
        for (int64_t k = 0; k < e.b_terms; k++)
            out[(size_t)e.b[k].from] += source[(size_t)e.b[k].to] * e.b[k].share;
        for (int64_t k = 0; k < e.c_terms; k++)
            out[(size_t)e.c[k].from] += own[(size_t)e.c[k].to] * e.c[k].share;
        return out;
    }
};

void check_row(const std::vector<float> &got, const std::vector<float> &wanted)
{
    REQUIRE(got.size() == wanted.size());
    for (size_t i = 0; i < got.size(); i++)
        CHECK(got[i] == Approx(wanted[i]).margin(1e-6));
}

} // namespace

TEST_CASE("prompt_to_prompt: one row of the map", "[controls][prompt_to_prompt]")
{
    const std::vector<float> source = {.4f, .1f, .3f, .2f}, own = {.3f, .1f, .25f, .2f, .15f};
    // m = [0, 1, -1, 2, 3]
    const std::vector<float> m = {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1};
    Target refine(4, m, {1, 1, 0, 1, 1}, {1, 1, 1, 1, 1});
    check_row(refine.row(source, own), {.4f, .1f, .25f, .3f, .2f});
    Target weighted(4, m, {1, 1, 0, 1, 1}, {1, 1, 2, 1, 1});
    check_row(weighted.row(source, own), {.4f, .1f, .5f, .3f, .2f});
    CHECK(!p2p_edit_of(&weighted.p, &weighted.t, 0).unchanged);
    CHECK(p2p_edit_of(&weighted.p, &weighted.t, 1).unchanged); // behind its range
    // column 2 by two pieces
    Target pieces(4, {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, .5f, .5f, 0, 0, 0, 0, 0, 1},
                  {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1});
    check_row(pieces.row(source, own), {.4f, .1f, .15f, .15f, .2f});
    Target own_weight(3, std::vector<float>(9), {0, 0, 0}, {1, 1, 2});
    check_row(own_weight.row({0, 0, 0}, {.5f, .3f, .2f}), {.5f, .3f, .4f});
    // weights of their own range: inside it and behind the replacement they act on the own map
    weighted.p.weight_range_given = true;
    weighted.p.weight_range = {1, 2};
    check_row(weighted.row(source, own, 0), {.4f, .1f, .25f, .3f, .2f});
    check_row(weighted.row(source, own, 1), {.3f, .1f, .5f, .2f, .15f});
}

TEST_CASE("prompt_to_prompt: the place of a word", "[controls][prompt_to_prompt]")
{
    auto place = [](int64_t row, int64_t column) {
        std::vector<float> map(256), wide(256);
        map[(size_t)(row * 16 + column)] = 2.5f;
        p2p_pool_max(wide.data(), map.data(), 16, 16, 3);
        std::vector<uint8_t> mask(64 * 64);
        p2p_add_to_mask(mask.data(), 64, 64, wide.data(), 16, 16, 0.3f, false);
        return mask;
    };
    std::vector<uint8_t> mask = place(5, 7);
    CHECK(std::count(mask.begin(), mask.end(), 1) == 144);
    for (int64_t y = 0; y < 64; y++)
        for (int64_t x = 0; x < 64; x++)
            REQUIRE(mask[(size_t)(y * 64 + x)] == (y >= 16 && y <= 27 && x >= 24 && x <= 35));
    std::vector<uint8_t> corner = place(0, 0);
    CHECK(std::count(corner.begin(), corner.end(), 1) == 64);
    // what is taken away
    std::vector<float> half(256);
    for (size_t i = 0; i < 256; i++)
        half[i] = i % 16 < 8 ? 1.0f : 0.3f; // 0.3 of the largest is not above 0.3
    p2p_add_to_mask(mask.data(), 64, 64, half.data(), 16, 16, 0.3f, true);
    CHECK(std::count(mask.begin(), mask.end(), 1) == 48);
}

TEST_CASE("prompt_to_prompt: proximal operators", "[controls][prompt_to_prompt]")
{
    const float in[] = {-3, -1, .5f, 2}, hard[] = {-3, 0, 0, 2}, soft[] = {-2, 0, 0, 1};
    for (int i = 0; i < 4; i++) {
        CHECK(p2p_proximal(in[i], 1, false) == hard[i]);
        CHECK(p2p_proximal(in[i], 1, true) == soft[i]);
    }
}

TEST_CASE("prompt_to_prompt: equal prompts give equal bytes; no range changes nothing",
          "[pipeline][controls][prompt_to_prompt]")
{
    Context context;
    const char *fish = "a big red fish at night";
    for (const char *options : {"", ", \"cross_replace_steps\": 1, \"self_replace_steps\": 1",
                                ", \"mode\": \"refine\", \"cross_replace_steps\": [0.3, 0.7]",
                                ", \"mode\": \"replace\", \"self_replace_steps\": [0.2, 0.5], "
                                "\"self_min_factor\": 1"}) {
        INFO(options);
        auto same = context.run(run_of(", \"batch\": 2" + edit_of(options), fish));
        for (int i = 0; i < 2; i++)
            CHECK(picture_of(same.get(), "main", i) == picture_of(same.get(), "source", i));
    }
    const char *whale = "a big blue whale at night";
    auto plain = context.run(run_of("", whale));
    auto off = context.run(
        run_of(edit_of(", \"cross_replace_steps\": 0, \"self_replace_steps\": 0"), whale));
    CHECK(picture_of(off.get(), "main") == pixels(plain.get(), 0));
    auto ones = context.run(run_of(
        edit_of(", \"mode\": \"none\", \"self_replace_steps\": 0, \"weights\": {\"whale\": 1}"),
        whale));
    CHECK(picture_of(ones.get(), "main") == pixels(plain.get(), 0));
    auto on = context.run(run_of(edit_of(""), whale));
    CHECK(picture_of(on.get(), "main") != pixels(plain.get(), 0));
    auto source = context.run(run_of("", fish));
    CHECK(picture_of(on.get(), "source") == pixels(source.get(), 0));
    CHECK(picture_of(on.get(), "main") != pixels(source.get(), 0));
}

namespace
{

// The edit on maps: a word map for every column, gates and weights that differ from word to word.
struct Oracle {
    hd_word_map map{};
    std::vector<float> weight;
    std::vector<std::pair<int64_t, int64_t>> range;
    int64_t self_end = 0;
} oracle;

hd_status oracle_branches(hd_branches_ctx *ctx)
{
    hd_branch_ask ask = {};
    ask.branch = "source";
    return hd_ask_branch(ctx, &ask);
}

hd_status oracle_begin(const hd_begin_ctx *ctx)
{
    const hd_prompt *s = hd_begin_prompt(ctx, "source", HD_ROLE_COND),
                    *t = hd_begin_prompt(ctx, "main", HD_ROLE_COND);
    HD_TRY(hd_word_map_create(&oracle.map, HD_WORD_MAP_AUTO, false, false, s, t));
    oracle.weight.assign((size_t)t->count, 1.0f);
    oracle.range.assign((size_t)t->count, {0, 5});
    bool columns[256];
    auto each = [&](const char *word, float weight, int64_t end) {
        if (hd_prompt_find(t, word, columns) != HD_OK) throw std::runtime_error(hd_message());
        for (size_t j = 0; j < oracle.weight.size(); j++)
            if (columns[j]) oracle.weight[j] = weight, oracle.range[j] = {0, end};
    };
    each("blue", 2.0f, 5);
    each("night", -1.0f, 3);
    each("whale", 1.0f, 2);
    oracle.self_end = 2;
    return HD_OK;
}

hd_status oracle_map(const hd_hook_ctx *ctx, hd_attention_map *map)
{
    const hd_rows *rows = &ctx->call->forward->rows;
    const int64_t step = ctx->call->forward->step.index;
    const int64_t heads = map->p.dim[1], lq = map->p.dim[2], lk = map->p.dim[3];
    const bool self = ctx->call->site.kind == HD_SITE_SELF;
    if (self && (ctx->call->site.factor < 2 || step >= oracle.self_end)) return HD_OK;
    for (int64_t r = 0; r < rows->count; r++) {
        if (strcmp(rows->row[r].branch, "main") != 0 || strcmp(rows->row[r].role, "cond") != 0)
            continue;
        int64_t s = hd_rows_find(rows, "source", "cond", rows->row[r].picture);
        for (int64_t i = 0; i < heads * lq; i++) {
            float *own = (float *)map->p.data + (r * heads * lq + i) * lk;
            const float *source = (const float *)map->p.data + (s * heads * lq + i) * lk;
            if (self) {
                memcpy(own, source, (size_t)lk * sizeof *own);
                continue;
            }
            for (int64_t j = 0; j < lk; j++) {
                if (step >= oracle.range[(size_t)j].second) continue;
                float e = 0;
                for (int64_t k = 0; k < lk; k++)
                    e += source[k] * oracle.map.m[k * lk + j];
                const float a = oracle.map.a[j];
                own[j] = (a * e + (1 - a) * own[j]) * oracle.weight[(size_t)j];
            }
        }
    }
    return HD_OK;
}

std::vector<float> latents_of(const std::string &path)
{
    Fixture f = fixture_open(std::filesystem::relative(path, fixture_path("")).string());
    const FixtureTensor &t = f.at("latents");
    return std::vector<float>(t.f32(), t.f32() + t.count());
}

} // namespace

TEST_CASE("prompt_to_prompt: two passes without a map equal the edited maps",
          "[pipeline][controls][prompt_to_prompt]")
{
    static const hd_param no_params[] = {HD_PARAM_END};
    static const hd_processor_class maps = [] {
        hd_processor_class c = {};
        c.name = "edited_maps";
        c.params = no_params;
        c.branches = oracle_branches;
        c.begin = oracle_begin;
        c.map = oracle_map;
        return c;
    }();
    Context context;
    Folder folder;
    REQUIRE_OK(hd_context_add_processor(context.context, &maps));
    const char *target = "a small big blue whale at night";
    const std::string out = ", \"latents_out\": \"" + folder.path("a.safetensors") + "\"";
    auto first = context.run(run_of(
        out + edit_of(", \"cross_replace_steps\": {\"default_\": 0.9, \"night\": 0.5, \"whale\": "
                      "0.4}, \"self_replace_steps\": 0.4, \"self_min_factor\": 2, \"weights\": "
                      "{\"blue\": 2, \"night\": -1}"),
        target));
    const std::string out2 = ", \"latents_out\": \"" + folder.path("b.safetensors") + "\"";
    auto second = context.run(run_of(
        out2 + ", \"branches\": {\"source\": {\"prompt\": \"a big red fish at night\", \"save\": "
               "true}}, \"processors\": [{\"use\": \"edited_maps\"}]",
        target));
    hd_word_map_free(&oracle.map);
    std::vector<float> a = latents_of(folder.path("a.safetensors")),
                       b = latents_of(folder.path("b.safetensors"));
    REQUIRE(a.size() == b.size());
    float worst = 0, most = 0;
    for (size_t i = 0; i < a.size(); i++) {
        worst = std::fmax(worst, std::fabs(a[i] - b[i]));
        most = std::fmax(most, std::fabs(b[i]));
    }
    CHECK(worst <= 1e-4f * most); // of six steps of the whole network
    CHECK(picture_of(first.get(), "main") != picture_of(first.get(), "source"));
}

TEST_CASE("prompt_to_prompt: a real picture comes back byte for byte, and is edited",
          "[pipeline][controls][prompt_to_prompt]")
{
    Context context;
    Folder folder;
    auto real = context.run(run_of(", \"output\": \"" + folder.path("real.png") + "\"",
                                   "a green tree on a blue background"));
    const std::string with = ", \"source_image\": \"" + folder.path("real.png") +
                             "\", \"source_prompt\": \"a green tree on a blue background\"";
    auto edit = [&](const std::string &more, const char *prompt) {
        return context.run(
            run_of(", \"branches\": {\"source\": {\"save\": true}}, \"processors\": [{\"use\": "
                   "\"prompt_to_prompt\"" +
                       with + more + "}]",
                   prompt));
    };
    auto one = edit("", "a red tree on a blue background");
    auto two = edit(", \"cross_replace_steps\": 0.4", "an orange tree on a blue background");
    // what the autoencoder makes of the picture, whatever the edit
    CHECK(picture_of(one.get(), "source") == picture_of(two.get(), "source"));
    std::vector<uint8_t> was = pixels(real.get(), 0), back = picture_of(one.get(), "source");
    CHECK(psnr(was.data(), back.data(), was.size()) > 25.0); // the autoencoder's own error
    CHECK(picture_of(one.get(), "main") != back);
    for (const char *more : {", \"inversion\": \"npi\", \"prox\": \"hard\"",
                             ", \"prox\": \"soft\", \"prox_quantile\": 0.75",
                             ", \"inversion\": \"ddim\", \"fixed_point\": 1"}) {
        INFO(more);
        auto other = edit(more, "a red tree on a blue background");
        CHECK(picture_of(other.get(), "main") != picture_of(one.get(), "main"));
    }
}

namespace
{

struct Rgb {
    double r = 0, g = 0, b = 0;
};

// Mean colour of the pixels of `where`, which is 1 inside the object.
Rgb mean_colour(const std::vector<uint8_t> &picture, const std::vector<uint8_t> &where)
{
    Rgb sum;
    double count = 0;
    for (size_t i = 0; i < where.size(); i++) {
        if (!where[i]) continue;
        sum.r += picture[3 * i], sum.g += picture[3 * i + 1], sum.b += picture[3 * i + 2];
        count++;
    }
    REQUIRE(count > 0);
    return {sum.r / count, sum.g / count, sum.b / count};
}

// Pixels of the object on its background: nearer to red than to the background's colour, which the
// corner shows.
std::vector<uint8_t> red_pixels(const std::vector<uint8_t> &p)
{
    std::vector<uint8_t> mask(p.size() / 3);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = p[3 * i] > 120 && p[3 * i + 1] < 100 && p[3 * i + 2] < 100;
    return mask;
}

std::vector<uint8_t> blue_pixels(const std::vector<uint8_t> &p)
{
    std::vector<uint8_t> mask(p.size() / 3);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = p[3 * i + 2] > 120 && p[3 * i] < 110 && p[3 * i + 2] > p[3 * i + 1] + 20;
    return mask;
}

// What both masks share of what either has.
double overlap(const std::vector<uint8_t> &a, const std::vector<uint8_t> &b)
{
    double both = 0, either = 0;
    for (size_t i = 0; i < a.size(); i++)
        both += a[i] && b[i], either += a[i] || b[i];
    return either > 0 ? both / either : 0;
}

} // namespace

// Overlap of the red fish with the blue one, mean of four pictures: 0.86 with the processor, 0.63
// without it; 0.75 lies midway.
TEST_CASE("prompt_to_prompt: a fish changes its colour and the rest stays",
          "[pipeline][controls][prompt_to_prompt]")
{
    Context context;
    const char *background[] = {"yellow", "green"};
    double with_it = 0, without = 0;
    for (int seed = 0; seed < 2; seed++)
        for (const char *colour : background) {
            const std::string tail = std::string(" fish on a ") + colour + " background";
            const std::string with =
                "{" + starter() +
                ", \"steps\": 20, \"guidance\": 5, \"sampler\": \"ddim\", \"precision\": \"f32\", "
                "\"seed\": " +
                std::to_string(seed) + ", \"prompt\": \"a big blue" + tail +
                "\", \"branches\": {\"source\": {\"prompt\": \"a big red" + tail +
                "\", \"save\": true}}";
            INFO(with);
            auto on = context.run(
                with + ", \"processors\": [{\"use\": \"prompt_to_prompt\", \"self_min_factor\": 2, "
                       "\"local_blend\": {\"source\": \"fish\", \"target\": \"fish\", \"th\": 0.5, "
                       "\"factor\": "
                       "1}}]}");
            std::vector<uint8_t> source = picture_of(on.get(), "source"),
                                 edited = picture_of(on.get(), "main");
            std::vector<uint8_t> fish = red_pixels(source);
            Rgb was = mean_colour(source, fish), is = mean_colour(edited, fish);
            CHECK((was.r > was.b + 60 && is.b > is.r + 60));
            auto off = context.run(with + "}");
            with_it += overlap(fish, blue_pixels(edited)) / 4;
            without += overlap(fish, blue_pixels(picture_of(off.get(), "main"))) / 4;
        }
    CHECK(with_it >= 0.75);
    CHECK(without < 0.75);
}

TEST_CASE("prompt_to_prompt: what cannot be done is refused before step 0",
          "[pipeline][controls][prompt_to_prompt]")
{
    Context context;
    ResultPtr none(nullptr, hd_result_free);
    auto refuse = [&](const std::string &options, hd_status status, const char *text) {
        INFO(options);
        CHECK_FAILS(context.try_run(run_of(edit_of(options), "a big blue fish at night"), none),
                    status, text);
    };
    refuse(", \"weights\": {\"whale\": 2}", HD_ERR_ARGUMENT,
           "processors[0].weights.whale \"whale\" is not in the prompt");
    refuse(", \"cross_replace_steps\": {\"whale\": 0.3}", HD_ERR_ARGUMENT,
           "processors[0].cross_replace_steps.whale \"whale\" is not in the prompt");
    refuse(", \"cross_replace_steps\": [0.8, 0.2]", HD_ERR_ARGUMENT, "must not go backwards");
    refuse(", \"self_replace_steps\": 1.5", HD_ERR_ARGUMENT, "is 1.5, must be");
    refuse(", \"local_blend\": {\"source\": \"fish\"}", HD_ERR_ARGUMENT, "lacks \"target\"");
    refuse(", \"local_blend\": {\"target\": \"fish\", \"taget\": 1}", HD_ERR_ARGUMENT,
           "has no \"taget\"");
    refuse(", \"local_blend\": {\"target\": \"fish\", \"factor\": 3}", HD_ERR_ARGUMENT,
           "processors[0].local_blend.factor is 3: no cross attention of the down and up blocks");
    refuse(", \"local_blend\": {\"target\": \"fish\"}", HD_ERR_ARGUMENT,
           "processors[0].local_blend lacks \"factor\", which is then 4: no cross attention");
    refuse(", \"inversion_file\": \"x.safetensors\"", HD_ERR_ARGUMENT, "give source_image");
    CHECK_FAILS(context.try_run(run_of(edit_of(", \"mode\": \"replace\""), "a fish"), none),
                HD_ERR_ARGUMENT, "\"replace\" needs as many");
}
