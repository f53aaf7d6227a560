// How prompts are aligned, against the maps that the authors' aligner gives (Hertz et al., arXiv
// 2208.01626; computed with it) and, where ours differs on purpose, against maps written by hand.
#include "controls/word_map.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/prompt.h"

namespace
{

struct Map {
    hd_word_map map{};
    Map(const char *source, const char *target, hd_word_map_mode mode, bool own = false,
        bool compat = false)
    {
        Prompt s(source), t(target);
        REQUIRE(hd_word_map_create(&map, mode, own, compat, &s.p, &t.p) == HD_OK);
    }
    ~Map()
    {
        hd_word_map_free(&map);
    }
    Map(const Map &) = delete;
    float at(int64_t s, int64_t t) const
    {
        return map.m[s * map.target + t];
    }
    // For maps of one source column each: that column, or -1.
    std::vector<int64_t> columns(int64_t count) const
    {
        std::vector<int64_t> m;
        for (int64_t j = 0; j < count; j++) {
            m.push_back(-1);
            for (int64_t i = 0; i < map.source; i++)
                if (at(i, j) == 1.0f) m.back() = i;
            CHECK((m.back() >= 0) == (map.a[j] == 1.0f));
        }
        return m;
    }
    double total() const
    {
        double sum = 0;
        for (int64_t i = 0; i < map.source * map.target; i++)
            sum += (double)map.m[i];
        return sum;
    }
};

using Columns = std::vector<int64_t>;
const auto refine = HD_WORD_MAP_REFINE, replace = HD_WORD_MAP_REPLACE, both = HD_WORD_MAP_AUTO;

} // namespace

TEST_CASE("word map: refine is the authors' alignment", "[controls][word_map]")
{
    const char *photo = "a photo of a cat";
    Map more(photo, "a photo of a tiger cat", refine);
    CHECK(more.columns(10) == Columns{0, 1, 2, 3, 4, -1, 5, 6, 8, 9});
    CHECK(more.columns(77)[76] == 76);
    Map less("a photo of a tiger cat", photo, refine);
    CHECK(less.columns(9) == Columns{0, 1, 2, 3, 4, 6, 7, 7, 8});
    CHECK(Map("soup", "pea soup", refine).columns(6) == Columns{0, -1, 1, 2, 4, 5});
    Map silver("a cat sitting on a mat", "a silver cat sculpture sitting on a mat", refine);
    CHECK(silver.columns(6) == Columns{0, 1, -1, 2, -1, 3});
    Map neo("A painting of it", "A neo+classical painting of it", refine);
    CHECK(neo.columns(7) == Columns{0, 1, -1, -1, 2, 3, 4});
    Map same(photo, photo, refine);
    for (int64_t j = 0; j < 77; j++)
        CHECK((same.at(j, j) == 1.0f && same.map.a[j] == 1.0f));
    CHECK(same.total() == 77.0);
}

TEST_CASE("word map: replace spreads a word over its pieces, the tail aligned",
          "[controls][word_map]")
{
    Map m("a burger on a table", "a lasag+ne on a table", replace);
    CHECK((m.at(0, 0) == 1 && m.at(1, 1) == 1 && m.at(2, 2) == 0.5f && m.at(2, 3) == 0.5f));
    for (int64_t i = 3; i < 76; i++)
        CHECK(m.at(i, i + 1) == 1);
    CHECK(m.total() == 76.0);

    Map back("a lasag+ne on a table", "a burger on a table", replace);
    CHECK((back.at(2, 2) == 1 && back.at(3, 2) == 1 && back.at(4, 3) == 1 && back.at(76, 75) == 1));
    CHECK((back.map.a[75] == 1 && back.map.a[76] == 0));
    CHECK(back.total() == 2 + 2 + 73);

    Map two("a skate+boarder near a rabbit on ice", "a rabbit near a skate+boarder on ice",
            replace);
    CHECK((two.at(2, 2) == 1 && two.at(3, 2) == 1 && two.at(4, 3) == 1 && two.at(5, 4) == 1));
    CHECK(
        (two.at(6, 5) == 0.5f && two.at(6, 6) == 0.5f && two.at(7, 7) == 1 && two.at(76, 76) == 1));
}

TEST_CASE("word map: compat_tail is the authors' replace", "[controls][word_map]")
{
    Map m("a burger on a table", "a lasag+ne on a table", replace, false, true);
    CHECK((m.at(2, 2) == 0.5f && m.at(2, 3) == 0.5f && m.at(3, 4) == 0));
    for (int64_t j = 4; j < 77; j++)
        CHECK(m.at(j, j) == 1);
    Map back("a lasag+ne on a table", "a burger on a table", replace, false, true);
    float row = 0, column = 0;
    for (int64_t j = 0; j < 77; j++)
        row += back.at(3, j), column += back.at(j, 76);
    CHECK((row == 2 && column == 0));
}

TEST_CASE("word map: auto is refine where words are added, replace where they are swapped",
          "[controls][word_map]")
{
    const char *pairs[][3] = {{"a photo of a cat", "a photo of a tiger cat", "refine"},
                              {"A painting of it", "A neo+classical painting of it", "refine"},
                              {"a burger on a table", "a lasag+ne on a table", "replace"},
                              {"a burger on a table", "a burger on a table", "replace"},
                              {"the lasag+ne", "the burger", "replace"}};
    for (auto &pair : pairs) {
        INFO(pair[0] << " -> " << pair[1]);
        Map a(pair[0], pair[1], both);
        Map b(pair[0], pair[1], std::string(pair[2]) == "refine" ? refine : replace);
        for (int64_t i = 0; i < 77 * 77; i++)
            REQUIRE(a.map.m[i] == b.map.m[i]);
        for (int64_t j = 0; j < 77; j++)
            REQUIRE(a.map.a[j] == b.map.a[j]);
    }
    // two words for one, and one more: block "red bird" of "fish", "big" on its own
    Map m("a fish in water", "a red bird in big water", both);
    CHECK((m.at(2, 2) == 0.5f && m.at(2, 3) == 0.5f && m.at(3, 4) == 1 && m.at(4, 6) == 1));
    CHECK((m.map.a[5] == 0 && m.at(5, 7) == 1));
    Map own("a fish in water", "a red bird in big water", both, true);
    CHECK((own.map.a[2] == 0 && own.map.a[3] == 0 && own.at(3, 4) == 1));
    Prompt s("one two"), t("one two three");
    hd_word_map map{};
    CHECK_FAILS(hd_word_map_create(&map, replace, false, false, &s.p, &t.p), HD_ERR_ARGUMENT,
                "\"one two\" has 2 words and \"one two three\" 3");
}

TEST_CASE("word map: each allocation in turn fails", "[controls][word_map][nomem]")
{
    Prompt s("a burger on a table"), t("a big lasag+ne on a table");
    CHECK(fail_each_allocation([&] {
              hd_word_map map{};
              HD_TRY(hd_word_map_create(&map, both, false, false, &s.p, &t.p));
              hd_word_map_free(&map);
              return HD_OK;
          }) >= 5);
}

TEST_CASE("words: a selector finds the pieces of a word or phrase", "[controls][words]")
{
    Prompt p("A lasag+ne, near the house, not THE+se house-boats");
    auto find = [&](const char *selector) {
        bool columns[77];
        REQUIRE(hd_prompt_find(&p.p, selector, columns) == HD_OK);
        Columns list;
        for (int64_t j = 0; j < 77; j++)
            if (columns[j]) list.push_back(j);
        return list;
    };
    CHECK(find("lasagne") == Columns{2, 3});
    CHECK(find("LASAGNE,") == Columns{2, 3});
    CHECK(find("the  house") == Columns{5, 6});
    CHECK(find("house") == Columns{6, 10});
    CHECK(find("house#2") == Columns{10});
    CHECK(find("these") == Columns{8, 9});
    bool columns[77];
    CHECK_FAILS(hd_prompt_find(&p.p, "hose", columns), HD_ERR_ARGUMENT,
                "\"hose\" is not in the prompt");
    CHECK(std::string(hd_message()).find("did you mean \"house\"?") != std::string::npos);
    CHECK_FAILS(hd_prompt_find(&p.p, "hous", columns), HD_ERR_ARGUMENT, "is not in the prompt");
    CHECK_FAILS(hd_prompt_find(&p.p, "house#3", columns), HD_ERR_ARGUMENT, "has only 2 of it");
    CHECK_FAILS(hd_prompt_find(&p.p, "house#0", columns), HD_ERR_ARGUMENT, "counted from #1");
    CHECK_FAILS(hd_prompt_find(&p.p, " ,", columns), HD_ERR_ARGUMENT, "names no word");
    std::string text = p.text + " lighthouse";
    p.p.text = text.c_str(); // a word that no token of the 77 covers
    CHECK_FAILS(hd_prompt_find(&p.p, "lighthouse", columns), HD_ERR_ARGUMENT,
                "lies beyond the 75 tokens");
}
