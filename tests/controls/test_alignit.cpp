// AlignIT: the method's numbers, whose rows it touches, and Custom Diffusion and LoRA as diffusers
// has them (tools/fixtures/learned.py).
#include "controls/alignit.h"

#include <map>

#include "engine/ops/sdpa.h"
#include "pipelines/context.h"
#include "pipelines/runner.h"
#include "support/safetensors.h"
#include "support/values.h"

namespace
{

std::string learned(const std::string &name)
{
    return fixture_path("learned/" + name);
}

std::string tiny(const std::string &prompt, const std::string &processor,
                 const std::string &more = "")
{
    return "{\"model\": \"" + fixture_path("pipeline/tiny-sd") + "\", \"prompt\": \"" + prompt +
           "\", \"negative\": \"a <hat>\", \"guidance\": 4, \"seed\": 17, "
           "\"precision\": \"f32\", \"embeddings\": [\"" +
           learned("toy.safetensors") + "\", {\"file\": \"" + learned("hat.safetensors") +
           "\", \"token\": \"<hat>\"}]" +
           (processor.empty() ? ""
                              : ", \"processors\": [{\"use\": \"alignit\", " + processor + "}]") +
           more + "}";
}

const std::string quick = ", \"steps\": 3, \"width\": 48, \"height\": 32";

// Keys and values of main/cond at the first cross attention of the first step, column by column.
struct Seen {
    std::vector<std::vector<float>> k, v;
};

hd_status look(void *user, const hd_attention_seen *seen)
{
    auto *s = (Seen *)user;
    const hd_attention_call *c = seen->call;
    if (seen->ex->recording || c->site.kind != HD_SITE_CROSS || !s->k.empty()) return HD_OK;
    int64_t row = hd_rows_find(&c->forward->rows, "main", "cond", 0);
    for (const hd_tensor *t : {&c->k, &c->v})
        for (int64_t j = 0; j < t->dim[1]; j++) {
            std::vector<float> column;
            for (int64_t h = 0; h < t->dim[2]; h++)
                for (int64_t d = 0; d < t->dim[3]; d++)
                    column.push_back((
                        (const float *)
                            t->data)[row * t->stride[0] + j * t->stride[1] + h * t->stride[2] + d]);
            (t == &c->k ? s->k : s->v).push_back(column);
        }
    return HD_OK;
}

Seen seen_of(Context &context, const std::string &json)
{
    Seen s;
    hd_result *result = nullptr;
    REQUIRE_OK(hd_context_run_watched(context.context, json.c_str(), "test.json", nullptr, look, &s,
                                      &result));
    hd_result_free(result);
    REQUIRE(s.k.size() == 32);
    return s;
}

// The columns in which two calls differ.
std::vector<int> differing(const std::vector<std::vector<float>> &a,
                           const std::vector<std::vector<float>> &b)
{
    std::vector<int> columns;
    for (size_t j = 0; j < a.size(); j++)
        if (a[j] != b[j]) columns.push_back((int)j);
    return columns;
}

double attend(const std::vector<float> &keys, const std::vector<float> &values, float *weights)
{
    Run run;
    std::vector<float> q = {1, 0}, k = keys, v = values, out(1), ones = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    std::vector<float> probed(3);
    hd_sdpa a = {};
    a.q = hd_tensor_of(q.data(), HD_F32, hd_shape4(1, 1, 1, 2));
    a.k = hd_tensor_of(k.data(), HD_F32, hd_shape4(1, 3, 1, 2));
    a.v = hd_tensor_of(v.data(), HD_F32, hd_shape4(1, 3, 1, 1));
    a.out = hd_tensor_of(out.data(), HD_F32, hd_shape4(1, 1, 1, 1));
    a.indicator = hd_tensor_of(ones.data(), HD_F32, hd_shape3(1, 3, 3));
    a.probed = hd_tensor_of(probed.data(), HD_F32, hd_shape4(1, 1, 1, 3));
    a.scale = (float)(1 / std::sqrt(2.0));
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    std::copy(probed.begin(), probed.end(), weights);
    return (double)out[0];
}

} // namespace

TEST_CASE("alignit: three words by hand", "[controls][alignit]")
{
    const std::vector<float> base_k = {0, 0, 1, 0, 0, 1}, base_v = {1, 2, 3};
    std::vector<float> own_k = {0, 0, 2, 0, 5, 5}, own_v = {7, 20, 70};
    float p[3];
    CHECK(attend(base_k, base_v, p) == Approx(2.0).margin(1e-6));
    CHECK((p[0] == Approx(.248255).margin(1e-6) && p[1] == Approx(.503490).margin(1e-6)));
    CHECK(attend(own_k, own_v, p) == Approx(63.185751).epsilon(1e-6));
    auto aligned = [&](float eta) {
        std::vector<float> k = base_k, v = base_v;
        float vector[2];
        const alignit_place place = {1, 1, 1, 1};
        alignit_infuse(hd_tensor_of(k.data(), HD_F32, hd_shape4(1, 3, 1, 2)), 0,
                       hd_tensor_of(own_k.data(), HD_F32, hd_shape4(1, 3, 1, 2)), &place, eta,
                       false, vector);
        alignit_infuse(hd_tensor_of(v.data(), HD_F32, hd_shape4(1, 3, 1, 1)), 0,
                       hd_tensor_of(own_v.data(), HD_F32, hd_shape4(1, 3, 1, 1)), &place, eta,
                       false, vector);
        return attend(k, v, p);
    };
    CHECK(aligned(.5f) == Approx(7.317721).epsilon(1e-6));
    CHECK(aligned(1) == Approx(14.111152).epsilon(1e-6));
    CHECK((p[0] == Approx(.163579).margin(1e-6) && p[1] == Approx(.672842).margin(1e-6)));
    CHECK(aligned(0) == Approx(2.0).margin(1e-6));
}

TEST_CASE("alignit: pieces that meet, their mean, and a cap of their length", "[controls][alignit]")
{
    alignit_place p[8];
    auto said = [&](alignit_align align, int64_t count, int64_t pieces, int64_t most = 8) {
        std::string text;
        int64_t n = alignit_pair(p, most, align, 4, count, 7, pieces);
        for (int64_t i = 0; i < n; i++)
            text += std::to_string(p[i].column) + "<" + std::to_string(p[i].from) +
                    (p[i].count > 1 ? "+" + std::to_string(p[i].count - 1) : "") + " ";
        return text;
    };
    CHECK(said(ALIGNIT_LAST, 1, 1) == "4<7 ");
    CHECK(said(ALIGNIT_LAST, 1, 3) == "4<9 ");
    CHECK(said(ALIGNIT_LAST, 2, 3) == "4<8 5<9 ");
    CHECK(said(ALIGNIT_LAST, 3, 1) == "4<7 5<7 6<7 ");
    CHECK(said(ALIGNIT_INSERT, 2, 2) == "4<7 5<8 ");
    CHECK(said(ALIGNIT_INSERT, 1, 3) == "4<9 -1<7 -1<8 ");
    CHECK(said(ALIGNIT_MEAN, 1, 3) == "4<7+2 ");
    CHECK(said(ALIGNIT_INSERT, 1, 20, 8).size() > 0); // never more than there is room for
    // mean of (3, 4) and (9, 12) is (6, 8), of length 10; the base key is of length 5
    for (hd_dtype dtype : {HD_F32, HD_BF16}) {
        Values own(dtype, hd_shape4(1, 2, 2, 1)), to(dtype, hd_shape4(2, 2, 2, 1), 1);
        const float numbers[] = {3, 4, 9, 12};
        for (int i = 0; i < 4; i++)
            own.set(i, numbers[i]);
        to.set(6, -3), to.set(7, 4); // row 1, column 1
        float vector[2];
        const alignit_place mean = {1, 1, 0, 2};
        Values capped = to;
        alignit_infuse(to.t, 1, own.t, &mean, 1, false, vector);
        CHECK((to.at(6) == 6 && to.at(7) == 8));
        CHECK((to.at(4) == 1 && to.at(0) == 1));
        alignit_infuse(capped.t, 1, own.t, &mean, 1, true, vector);
        CHECK((capped.at(6) == 3 && capped.at(7) == 4));
    }
}

TEST_CASE("alignit: Custom Diffusion and LoRA as diffusers has them", "[controls][alignit]")
{
    Folder folder;
    Context context;
    Fixture truth = fixture_open("learned/answers.safetensors");
    const std::string prompt = "a red <toy> with <Hat> and a cat";
    auto error = [&](const std::string &answer, const std::string &processor) {
        context.run(
            tiny(prompt, processor,
                 ", \"steps\": 6, \"latents_out\": \"" + folder.path("x.safetensors") + "\""));
        Fixture ours = fixture_open(
            std::filesystem::relative(folder.path("x.safetensors"), fixture_path("")).string());
        return relative_error(ours.at("latents").f32(), truth.at(answer).f32(),
                              truth.at(answer).count());
    };
    auto kv = [&](const char *name) {
        return "\"scope\": \"prompt\", \"kv\": \"" + learned(name) + "\"";
    };
    CHECK(error("latents_custom", kv("custom.safetensors")) <= 1e-4);
    CHECK(error("latents_lora", kv("lora.safetensors")) <= 1e-4);
    CHECK(error("latents_custom", "\"scope\": \"prompt\"") > 1e-2);
    CHECK(error("latents_lora", "\"scope\": \"prompt\"") > 1e-2);
}

TEST_CASE("alignit: only the concept's columns change, and they know nothing of the sentence",
          "[controls][alignit]")
{
    Context context;
    const std::string prompt = "a big cat at night",
                      concept = "\"concept_words\": \"<toy> cat\", \"align\": \"";
    auto custom = [&](const std::string &align, const std::string &file) {
        return concept + align + "\", \"kv\": \"" + learned(file) + "\"";
    };
    Seen plain = seen_of(context, tiny(prompt, "", quick));
    // begin, a, big, cat: the starter's tokenizer has each of these words as one token
    const std::vector<int> cat = {3};
    Seen last = seen_of(context, tiny(prompt, custom("last", "custom.safetensors"), quick));
    CHECK(differing(plain.k, last.k) == cat);
    CHECK(differing(plain.v, last.v) == cat);
    // another file: the others stay
    Seen lora = seen_of(context, tiny(prompt, custom("last", "lora.safetensors"), quick));
    CHECK(differing(last.k, lora.k) == cat);
    // another sentence: what is infused stays
    Seen other = seen_of(
        context, tiny("a red cat in the snow", custom("last", "custom.safetensors"), quick));
    CHECK(other.k[3] == last.k[3]);
    CHECK(other.v[3] == last.v[3]);
    CHECK(other.k[2] != last.k[2]);
    CHECK(other.k[6] != last.k[6]);
    // <toy> has three pieces: with "cat" they are four, of which three go to the padding's end
    Seen insert = seen_of(context, tiny(prompt, custom("insert", "custom.safetensors"), quick));
    CHECK(differing(plain.k, insert.k) == std::vector<int>{3, 29, 30, 31});
    CHECK(insert.k[3] == last.k[3]);
    Seen mean = seen_of(context, tiny(prompt, custom("mean", "custom.safetensors"), quick));
    CHECK(differing(plain.k, mean.k) == cat);
    double worst = 0;
    for (size_t i = 0; i < mean.k[3].size(); i++)
        worst = std::fmax(worst, std::fabs((double)mean.k[3][i] -
                                           ((double)insert.k[3][i] + (double)insert.k[29][i] +
                                            (double)insert.k[30][i] + (double)insert.k[31][i]) /
                                               4));
    CHECK(worst < 1e-6);
}

TEST_CASE("alignit: with a causal encoder the words before a learned one know nothing of it",
          "[controls][alignit][embeddings]")
{
    Context context;
    Seen base = seen_of(context, tiny("a red cat at night", "", quick)),
         learned_one = seen_of(context, tiny("a red <hat> at night", "", quick));
    std::vector<int> after;
    for (int j = 3; j < 32; j++)
        after.push_back(j);
    CHECK(differing(base.k, learned_one.k) == after);
}

TEST_CASE("alignit: a low-rank change of one word's row is the row of the changed projection",
          "[controls][alignit]")
{
    // the dummy prompt is the sentence up to the concept: c_n = c*_n
    Context context;
    const std::string kv = "\"kv\": \"" + learned("lora.safetensors") + "\"";
    const std::string prompt = "a photo of cat at night";
    Seen scoped = seen_of(context, tiny(prompt, "\"concept_words\": \"cat\", " + kv, quick)),
         whole = seen_of(context, tiny(prompt, "\"scope\": \"prompt\", " + kv, quick)),
         plain = seen_of(context, tiny(prompt, "", quick));
    std::vector<int> columns = differing(scoped.k, plain.k);
    REQUIRE(columns.size() == 1);
    const auto n = (size_t)columns[0];
    for (size_t i = 0; i < scoped.k[n].size(); i++) {
        CHECK(scoped.k[n][i] == Approx(whole.k[n][i]).margin(1e-5));
        CHECK(scoped.v[n][i] == Approx(whole.v[n][i]).margin(1e-5));
    }
    CHECK(differing(whole.k, plain.k).size() == 32);
}

TEST_CASE("alignit: what changes no bit", "[controls][alignit]")
{
    Context context;
    auto run = [&](const std::string &prompt, const std::string &processor) {
        return pixels(context.run(tiny(prompt, processor, quick)).get(), 0);
    };
    const std::string prompt = "a photo of a cat at night",
                      kv = ", \"kv\": \"" + learned("custom.safetensors") + "\"";
    const std::vector<uint8_t> plain = run(prompt, "");
    for (const char *align : {"insert", "last", "mean"}) {
        CAPTURE(align);
        const std::string words =
            "\"concept_words\": \"<toy> cat\", \"align\": \"" + std::string(align) + "\"";
        CHECK(run(prompt, words + kv + ", \"eta_k\": 0, \"eta_v\": 0") == plain);
        CHECK(run(prompt, words + kv) != plain);
        CHECK(run(prompt, words + kv + ", \"eta_k\": 0") != plain);
        CHECK(run(prompt, words + kv + ", \"branches\": [\"uncond\"]") == plain);
    }
    // no customisation: the base run only where the concept's own prompt says the same before it
    const std::string same = "\"concept_words\": \"cat\", \"dummy_template\": \"a photo of a "
                             "{concept}\"";
    CHECK(run(prompt, same) == plain);
    CHECK(run(prompt, "\"concept_words\": \"cat\", \"dummy_template\": \"one {concept}\"") !=
          plain);
    CHECK(run(prompt, same + ", \"norm_cap\": true") == plain);
}

TEST_CASE("alignit: several concepts, each in its place", "[controls][alignit]")
{
    Context context;
    const std::string prompt = "a cat and a dog";
    Seen plain = seen_of(context, tiny(prompt, "", quick));
    Seen both = seen_of(context, tiny(prompt,
                                      "\"concept_words\": [\"<hat>\", \"<toy>\"], \"class_words\": "
                                      "[\"dog\", \"cat\"], \"align\": \"last\"",
                                      quick));
    Seen one = seen_of(context, tiny(prompt,
                                     "\"concept_words\": \"<hat>\", \"class_words\": "
                                     "\"dog\", \"align\": \"last\"",
                                     quick));
    std::vector<int> all = differing(plain.k, both.k), dog = differing(plain.k, one.k);
    REQUIRE(!dog.empty());
    CHECK(all.size() > dog.size());
    for (int j : dog)
        CHECK(both.k[(size_t)j] == one.k[(size_t)j]);
    CHECK(all.front() == 2);
}

TEST_CASE("alignit: what cannot work is refused before step 0", "[controls][alignit]")
{
    Folder folder;
    Context context;
    const std::string words = "\"concept_words\": \"<toy> cat\"";
    std::string narrow = folder.write(
        "narrow.safetensors",
        raw_safetensors(
            {raw_f32("down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_"
                     "diffusion.weight",
                     {2, 2}, {1, 2, 3, 4}),
             raw_f32("down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_v_custom_"
                     "diffusion.weight",
                     {2, 2}, {1, 2, 3, 4})}));
    std::string half = folder.write(
        "half.safetensors",
        raw_safetensors({raw_f32(
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
            {1, 32}, std::vector<float>(32))}));
    std::string deep = folder.write(
        "deep.safetensors",
        raw_safetensors({raw_f32("down_blocks.9.attentions.0.transformer_blocks.0.attn2.to_k."
                                 "lora_A.weight",
                                 {1, 32}, std::vector<float>(32))}));
    std::string queries = folder.write(
        "queries.safetensors",
        raw_safetensors({raw_f32("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor."
                                 "to_q_custom_diffusion.weight",
                                 {1, 1}, {1})}));
    struct {
        std::string processor, says;
    } cases[] = {
        {"\"align\": \"last\"", "processors[0] (alignit) lacks \"concept_words\""},
        {"\"concept_words\": 7", "processors[0].concept_words"},
        {"\"concept_words\": []", "must name as many"},
        {"\"concept_words\": [\"<toy>\"], \"class_words\": [\"cat\", \"dog\"]",
         "processors[0].class_words must name as many as \"concept_words\""},
        {words + ", \"class_words\": \"fish\"",
         "processors[0].class_words \"fish\" is not in the prompt"},
        {words + ", \"dummy_template\": \"a photo\"",
         "processors[0].dummy_template is \"a photo\", must hold {concept}"},
        {words + ", \"eta_k\": 2", "processors[0].eta_k is 2, must be 0 to 1"},
        {"\"concept_words\": [\"<toy> cat\", \"<hat> cat\"]", "stand for the same word"},
        {words + ", \"kv\": \"/nowhere\"", "processors[0].kv /nowhere"},
        {words + ", \"kv\": \"" + narrow + "\"", "is [2, 2], the model's cross attention"},
        {words + ", \"kv\": \"" + half + "\"", "lacks its other half"},
        {words + ", \"kv\": \"" + deep + "\"", "belongs to no cross attention of this model"},
        {words + ", \"kv\": \"" + queries + "\"", "\"unet\": \"base\" takes its keys"},
        {words + ", \"unet\": \"base\", \"kv\": \"" + queries + "\"", "holds no keys and values"},
        {words + ", \"kv\": \"" + learned("toy.safetensors") + "\"", "is neither key nor value"},
        {words + ", \"sites\": [\"** self\"]", "matches no attention site"},
    };
    for (const auto &c : cases) {
        INFO(c.processor);
        ResultPtr result(nullptr, hd_result_free);
        CHECK(context.try_run(tiny("a cat at night", c.processor), result) != HD_OK);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(c.says) != std::string::npos);
    }
    // more pieces than the padding has places
    ResultPtr result(nullptr, hd_result_free);
    std::string full = "a cat";
    for (int i = 0; i < 27; i++)
        full += " a";
    CHECK(context.try_run(tiny(full, words), result) != HD_OK);
    INFO(hd_message());
    CHECK(std::string(hd_message()).find("1 of its 32 tokens free, 3 more are needed") !=
          std::string::npos);
}

TEST_CASE("words: a word may claim columns of the padding", "[attention][words]")
{
    hd_prompt_token token[] = {{0, 0, 0, -1}, {1, 0, 1, 0},  {2, 2, 5, 1},
                               {5, 0, 0, -1}, {5, 0, 0, -1}, {5, 0, 0, -1}};
    hd_prompt prompt = {"a cat", 6, 4, token};
    int64_t first;
    CHECK_FAILS(hd_prompt_claim(&prompt, 2, 3, &first), HD_ERR_ARGUMENT, "2 of its 6");
    REQUIRE_OK(hd_prompt_claim(&prompt, 2, 1, &first));
    CHECK(first == 5);
    REQUIRE_OK(hd_prompt_claim(&prompt, 2, 1, &first));
    CHECK(first == 4);
    bool columns[6];
    REQUIRE_OK(hd_prompt_find(&prompt, "cat", columns));
    CHECK((columns[2] && columns[4] && columns[5] && !columns[3] && !columns[1]));
}

TEST_CASE("alignit: a learned colour takes the word's place, the rest stays",
          "[controls][alignit][meaning]")
{
    // <plum> is purple; seed 0 draws a yellow apple. How blue (and not green) the middle is, how
    // green the rim.
    Context context;
    auto look_at = [&](const std::string &processors, double *rim) {
        auto result = context.run(
            "{" + starter() +
            ", \"prompt\": \"a big apple on a green background\", \"steps\": 8, \"seed\": 0, "
            "\"guidance\": 5, \"sampler\": \"ddim\", \"precision\": \"f32\", \"embeddings\": \"" +
            source_path("presets/customize/plum.safetensors") + "\"" + processors + "}");
        std::vector<uint8_t> rgb = pixels(result.get(), 0);
        double middle = 0, around = 0;
        for (size_t y = 0; y < 64; y++)
            for (size_t x = 0; x < 64; x++) {
                const uint8_t *p = &rgb[3 * (y * 64 + x)];
                const double bluer = (double)p[2] - (double)p[1];
                if (y >= 24 && y < 40 && x >= 24 && x < 40) middle += bluer / 256;
                if (y < 8) around -= bluer / 512;
            }
        *rim = around;
        return middle;
    };
    double rim_off, rim_on;
    const double off = look_at("", &rim_off),
                 on = look_at(", \"processors\": [{\"use\": \"alignit\", \"concept_words\": "
                              "\"<plum>\", \"class_words\": \"apple\"}]",
                              &rim_on);
    CAPTURE(off, on, rim_off, rim_on);
    CHECK(on > -21); // midway: about -54 without, 12 with it
    CHECK(off < -21);
    CHECK(std::fabs(rim_on - rim_off) < 12);
}
