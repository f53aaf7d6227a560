// VMoBA: partitions, gates, every scope and mode, and both layouts against worked examples and a
// plain restatement of the selection.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "sparse/all.h"
#include "support/catch.h"
#include "support/planning.h"

namespace
{

using Kept = std::vector<std::set<int64_t>>; // per query (in partition order) its blocks

// One head of what a test knows of a partition: tokens of each block.
struct Partition {
    std::vector<std::vector<int64_t>> block;
    std::vector<int64_t> of; // block of each token
};

Partition partition(int64_t frames, int64_t height, int64_t width, int64_t bt, int64_t bh,
                    int64_t bw, int64_t run = 0)
{
    Partition p;
    const int64_t tokens = frames * height * width;
    p.of.resize((size_t)tokens);
    auto pieces = [](int64_t n, int64_t b) { return (n + b - 1) / b; };
    for (int64_t i = 0; i < tokens; i++) {
        int64_t t = i / (height * width), y = i / width % height, x = i % width;
        int64_t b =
            run ? i / run : (t / bt * pieces(height, bh) + y / bh) * pieces(width, bw) + x / bw;
        p.of[(size_t)i] = b;
        if ((size_t)b >= p.block.size()) p.block.resize((size_t)b + 1);
        p.block[(size_t)b].push_back(i);
    }
    return p;
}

// Does the plan keep exactly these blocks, as a whole, for every grid token?
void check_kept(const PlanMeaning &m, const Partition &p, const Kept &kept, int64_t first = 0)
{
    for (size_t i = 0; i < p.of.size(); i++)
        for (size_t j = 0; j < p.of.size(); j++) {
            bool should = kept[i].count(p.of[j]) > 0;
            if (m.at(first + (int64_t)i, first + (int64_t)j) != should) {
                CAPTURE(i, j, p.of[i], p.of[j], should);
                REQUIRE(m.at(first + (int64_t)i, first + (int64_t)j) == should);
            }
        }
}

struct Rule {
    std::string scope;
    bool topk;
    int64_t k;
    double tau;
    bool pool_rows = false;
};

// The selection from its definition: kept[row][head][token].
std::vector<std::vector<Kept>> select(const PlanInput &in, const Partition &p, const Rule &rule)
{
    struct Gate {
        int64_t row, head, block, query;
        double g;
        bool own;
    };
    const int64_t blocks = (int64_t)p.block.size(), tokens = (int64_t)p.of.size();
    std::vector<std::vector<Kept>> kept((size_t)in.rows,
                                        std::vector<Kept>((size_t)in.heads, Kept((size_t)tokens)));
    std::vector<int64_t> rank((size_t)tokens); // queries count in partition order
    int64_t r = 0;
    for (auto &block : p.block)
        for (int64_t t : block)
            rank[(size_t)t] = r++;
    std::map<std::vector<int64_t>, std::vector<Gate>> groups;
    for (int64_t b = 0; b < in.rows; b++)
        for (int64_t h = 0; h < in.heads; h++)
            for (int64_t c = 0; c < blocks; c++) {
                std::vector<double> mean((size_t)in.dim);
                for (int64_t t : p.block[(size_t)c])
                    for (int64_t d = 0; d < in.dim; d++)
                        mean[(size_t)d] += in.k_at(b, in.text_before + t, h, d) /
                                           (double)p.block[(size_t)c].size();
                for (int64_t i = 0; i < tokens; i++) {
                    double g = 0;
                    for (int64_t d = 0; d < in.dim; d++)
                        g += mean[(size_t)d] * in.q_at(b, in.text_before + i, h, d);
                    int64_t row = rule.pool_rows ? 0 : b;
                    std::vector<int64_t> group = {row};
                    if (rule.scope == "local") group = {b, h, i};
                    if (rule.scope == "global") group = {row, h};
                    if (rule.scope == "block") group = {row, c};
                    groups[group].push_back({b, h, c, i, g, p.of[(size_t)i] == c});
                }
            }
    for (auto &[key, group] : groups) {
        double low = INFINITY, high = -INFINITY, sum = 0, own = 0;
        int64_t queries = 0;
        for (Gate &g : group) {
            low = std::min(low, g.g), high = std::max(high, g.g);
            queries += g.own;
        }
        double range = high - low <= 1e-6 ? 1.0 : high - low;
        for (Gate &g : group) {
            g.g = (g.g - low) / range;
            sum += g.g;
            own += g.own ? g.g : 0;
            if (g.own) kept[(size_t)g.row][(size_t)g.head][(size_t)g.query].insert(g.block);
        }
        std::vector<Gate> others;
        for (Gate &g : group)
            if (!g.own) others.push_back(g);
        std::stable_sort(others.begin(), others.end(), [&](const Gate &a, const Gate &b) {
            if (a.g != b.g) return a.g > b.g;
            if (a.row != b.row) return a.row < b.row;
            if (a.head != b.head) return a.head < b.head;
            if (a.block != b.block) return a.block < b.block;
            return rank[(size_t)a.query] < rank[(size_t)b.query];
        });
        size_t count = 0;
        if (rule.topk) {
            count = (size_t)((rule.k - 1) * queries);
        } else {
            double taken = 0, need = std::max(0.0, rule.tau - own / (sum + 1e-6));
            while (count < others.size()) {
                taken += others[count++].g;
                if (rule.tau < 1 && taken / (sum + 1e-6) >= need) break;
            }
        }
        for (size_t i = 0; i < count && i < others.size(); i++)
            kept[(size_t)others[i].row][(size_t)others[i].head][(size_t)others[i].query].insert(
                others[i].block);
    }
    return kept;
}

PlanInput::Shape line(int64_t tokens, int64_t dim = 1)
{
    PlanInput::Shape s;
    s.dim = dim, s.frames = tokens, s.height = 1, s.width = 1;
    return s;
}

std::string runs_of(int64_t frames, const std::string &more)
{
    return "{\"cycle\": [1, 0, 0], \"block1\": " + std::to_string(frames) + ", " + more + "}";
}

Kept kept_of(const PlanMeaning &m, const Partition &p)
{
    Kept kept(p.of.size());
    for (size_t i = 0; i < kept.size(); i++)
        for (size_t j = 0; j < kept.size(); j++)
            if (m.at((int64_t)i, (int64_t)j)) kept[i].insert(p.of[j]);
    check_kept(m, p, kept);
    return kept;
}

// Six tokens of one channel in three blocks of two.
struct Six {
    PlanInput in{line(6)};
    Partition blocks = partition(6, 1, 1, 1, 1, 1, 2);
    Six()
    {
        PlanInput::put(in.k, 0, 0, {1, 1, 2, 2, 4, 4});
        PlanInput::put(in.q, 0, 0, {1, -1, 2, .5, 1, -2});
        PlanInput::put(in.v, 0, 0, {0, 1, 2, 3, 4, 5});
    }
    Kept kept(const std::string &more)
    {
        Run ex;
        Planning p(hd_vmoba, runs_of(2, more), in);
        return kept_of(p.meaning(&ex), blocks);
    }
    std::vector<double> output(const std::string &more)
    {
        Run ex;
        Planning p(hd_vmoba, runs_of(2, more), in);
        return attention_over(in, p.meaning(&ex));
    }
};

void check_values(const std::vector<double> &a, const std::vector<double> &b)
{
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); i++)
        CHECK(a[i] == Approx(b[i]).margin(1e-6));
}

const std::string threshold = R"("mode": "threshold", "tau": )";

} // namespace

TEST_CASE("vmoba: partitions of the three kinds, there and back", "[sparse][vmoba]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.frames = 2, shape.height = 2, shape.width = 4;
    PlanInput in(shape);
    Planning p2(hd_vmoba, R"({"cycle": [0, 1, 0], "block2": [1, 2], "k2": 2, "layout": "A"})", in);
    const hd_plan *plan = p2.plan(&ex)[0];
    const int32_t expected[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
    for (int r = 0; r < 16; r++) {
        CHECK(plan->query_order[r] == expected[r]);
        CHECK(plan->key_order[r] == expected[r]);
    }
    for (const char *json : {R"({"cycle": [1, 0, 0], "block1": 0.6, "k1": 2})",
                             R"({"cycle": [0, 1, 0], "block2": [2, 3], "k2": 2})",
                             R"({"cycle": [0, 0, 1], "block3": [2, 1, 3], "k3": 2})"}) {
        Planning p(hd_vmoba, json, in);
        p.meaning(&ex); // throws unless the orders are permutations
    }
    Planning p1(hd_vmoba, R"({"cycle": [1, 0, 0], "block1": 0.6, "k1": 2})", in);
    CHECK(p1.plan(&ex)[0]->key_tiles == 4); // blocks of int(0.6 * 8) = 4
}

TEST_CASE("vmoba: thresholds of one query's gates", "[sparse][vmoba]")
{
    // five tokens, a block each; the gates of query 0 are its products with the keys
    auto kept = [](const std::vector<double> &gates, const std::string &tau) {
        Run ex;
        PlanInput in(line(5));
        PlanInput::put(in.k, 0, 0, gates);
        PlanInput::put(in.q, 0, 0, {1, 1, 1, 1, 1});
        Planning p(hd_vmoba, runs_of(1, R"("scope": "local", )" + threshold + tau), in);
        return kept_of(p.meaning(&ex), partition(5, 1, 1, 1, 1, 1, 1))[0];
    };
    using Set = std::set<int64_t>;
    const std::vector<double> falling = {5, 4, 3, 2, 1}, rising = {1, 2, 3, 4, 5};
    CHECK(kept(falling, "0.2") == Set{0, 1});
    CHECK(kept(falling, "0.5") == Set{0, 1});
    CHECK(kept(falling, "0.8") == Set{0, 1, 2});
    CHECK(kept(falling, "0.95") == Set{0, 1, 2, 3});
    CHECK(kept(falling, "1") == Set{0, 1, 2, 3, 4});
    CHECK(kept(rising, "0.25") == Set{0, 4});
    CHECK(kept(rising, "0.5") == Set{0, 3, 4});
    CHECK(kept(rising, "0.8") == Set{0, 2, 3, 4});
    CHECK(kept(rising, "0.95") == Set{0, 1, 2, 3, 4});
    // a positive affine map of the gates changes nothing
    std::vector<double> moved = rising;
    for (double &g : moved)
        g = g * 7 + 3;
    for (const char *tau : {"0.25", "0.5", "0.8", "0.95"})
        CHECK(kept(moved, tau) == kept(rising, tau));
    // equal gates: no count reaches the threshold, all are kept
    CHECK(kept({2, 2, 2, 2, 2}, "0.25") == Set{0, 1, 2, 3, 4});
}

TEST_CASE("vmoba: six tokens in three blocks", "[sparse][vmoba]")
{
    Six six;
    const Kept local = {{0, 2}, {0, 1}, {1, 2}, {1, 2}, {1, 2}, {0, 2}};
    CHECK(six.kept(R"("scope": "local", )" + threshold + "0.25") == local);
    CHECK(six.kept(R"("k1": 2)") == local);
    check_values(six.output(R"("k1": 2)"),
                 {4.310297, 1.037883, 4.464028, 3.962117, 4.261594, 0.509890});
    Kept more = local;
    more[0].insert(1), more[5].insert(1);
    CHECK(six.kept(R"("scope": "local", )" + threshold + "0.75") == more);
    std::vector<double> out = six.output(R"("scope": "local", )" + threshold + "0.75");
    CHECK(out[0] == Approx(4.103569).margin(1e-6));
    CHECK(out[5] == Approx(0.746601).margin(1e-6));
    // one head is one group
    check_values(six.output(threshold + "0.25"), {0.5, 0.5, 4.464028, 2.5, 4.5, 4.5});
    check_values(six.output(threshold + "0.5"), {4.310297, 0.5, 4.454402, 2.5, 4.5, 4.5});
    const std::vector<double> dense = {4.103569, 1.159469, 4.454402, 3.476575, 4.103569, 0.746601};
    check_values(six.output(threshold + "1"), dense);
    check_values(six.output(R"("k1": 3)"), dense);
    check_values(six.output(R"("k1": 99)"), dense);
    check_values(dense_attention(six.in), dense);
    // top-k 1: a query's own block
    CHECK(six.kept(R"("k1": 1)") == Kept{{0}, {0}, {1}, {1}, {2}, {2}});
    CHECK(six.kept(R"("k1": 1, "scope": "global")") == Kept{{0}, {0}, {1}, {1}, {2}, {2}});
    CHECK(six.kept(R"("k1": 1, "scope": "overall")") == Kept{{0}, {0}, {1}, {1}, {2}, {2}});
}

TEST_CASE("vmoba: a short last block has the mean of its own tokens", "[sparse][vmoba]")
{
    Run ex;
    PlanInput one(line(5));
    PlanInput::put(one.k, 0, 0, {1, 1, 2, 2, 9});
    PlanInput::put(one.q, 0, 0, {1, 1, 1, 1, 1});
    // means 1 2 9: n = 0 .125 1 and the last block alone holds 0.89 of the sum; with 1 2 4.5 it
    // would be 0.78, and block 1 would be kept too
    Planning t(hd_vmoba, runs_of(2, R"("scope": "local", )" + threshold + "0.85"), one);
    CHECK(kept_of(t.meaning(&ex), partition(5, 1, 1, 1, 1, 1, 2))[0] == std::set<int64_t>{0, 2});
}

TEST_CASE("vmoba: every scope and mode on random ragged grids against the definition",
          "[sparse][vmoba]")
{
    const int64_t seed = GENERATE(range(1, 61));
    CAPTURE(seed);
    const char *const scopes[] = {"local", "global", "block", "overall"};
    Rule rule{scopes[seed % 4], seed % 4 != 2 && seed % 3 != 0, 1 + seed % 5,
              0.1 + 0.05 * (double)(seed % 17)};
    PlanInput::Shape shape;
    shape.seed = (uint64_t)seed;
    shape.frames = 1 + seed % 4, shape.height = 3 + seed * 5 % 7, shape.width = 2 + seed * 3 % 9;
    shape.dim = 1 + seed % 9, shape.heads = 1 + seed % 3, shape.rows = 1 + seed % 2;
    shape.text_before = seed % 5, shape.text_behind = seed % 3;
    rule.pool_rows = seed % 8 == 1;
    PlanInput in(shape);
    const int64_t bt = 1 + seed % 3, bh = 1 + seed % 4, bw = 1 + seed * 2 % 5;
    const bool boxes = shape.frames > 1 && seed % 2;
    Partition p =
        partition(shape.frames, shape.height, shape.width, boxes ? bt : shape.frames, bh, bw);
    std::string json = boxes ? "{\"cycle\": [0, 0, 1], \"block3\": [" + std::to_string(bt) + ", "
                             : "{\"cycle\": [0, 1, 0], \"block2\": [";
    json += std::to_string(bh) + ", " + std::to_string(bw) + "], \"scope\": \"" + rule.scope +
            "\", \"layout\": \"" +
            (seed % 5 == 0   ? "C"
             : seed % 5 == 1 ? "A"
                             : "auto") +
            "\", ";
    json += rule.topk ? std::string(boxes ? "\"k3\": " : "\"k2\": ") + std::to_string(rule.k)
                      : threshold + std::to_string(rule.tau);
    json += rule.pool_rows ? ", \"pool_rows\": true}" : "}";
    CAPTURE(json);
    Run ex(every_isa()[(size_t)seed % every_isa().size()], 2);
    Planning planning(hd_vmoba, json, in);
    std::vector<const hd_plan *> plans = planning.plan(&ex);
    auto kept = select(in, p, rule);
    for (int64_t b = 0; b < in.rows; b++)
        for (int64_t h = 0; h < in.heads; h++) {
            PlanMeaning m = plan_meaning(*plans[(size_t)b], h, in.tokens, in.tokens);
            check_kept(m, p, kept[(size_t)b][(size_t)h], in.text_before);
            for (int64_t i = 0; i < in.tokens; i++) // text: seen by all, sees all
                for (int64_t j : {(int64_t)0, in.tokens - 1})
                    if (j < in.text_before || j >= in.tokens - in.text_behind)
                        CHECK((m.at(i, j) && m.at(j, i)));
        }
}

TEST_CASE("vmoba: equal gates are kept by block, then query", "[sparse][vmoba]")
{
    // all gates but those of block 3 are equal: the boundary falls among equals
    PlanInput in(line(200));
    std::vector<double> k(200, 1.0), q(200, 1.0);
    std::fill(k.begin() + 150, k.end(), 0.0);
    PlanInput::put(in.k, 0, 0, k);
    PlanInput::put(in.q, 0, 0, q);
    Run ex;
    Partition p = partition(200, 1, 1, 1, 1, 1, 50);
    const char *mode =
        GENERATE("\"k1\": 2, \"scope\": \"global\"", "\"mode\": \"threshold\", \"tau\": 0.5",
                 "\"k1\": 2, \"scope\": \"overall\"");
    Rule rule{"global", std::string(mode).find("k1") != std::string::npos, 2, 0.5};
    Planning planning(hd_vmoba, runs_of(50, mode), in);
    check_kept(planning.meaning(&ex), p, select(in, p, rule)[0][0]);
}

TEST_CASE("vmoba: layouts give the same pairs, and C agrees more", "[sparse][vmoba]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.frames = 6, shape.height = 12, shape.width = 16, shape.dim = 12, shape.heads = 2;
    shape.text_behind = 4;
    PlanInput in(shape);
    const std::string json = R"({"cycle": [0, 0, 1], "block3": [3, 4, 4], "k3": 4, "layout": )";
    Planning a(hd_vmoba, json + "\"A\"}", in), c(hd_vmoba, json + "\"C\"}", in),
        any(hd_vmoba, json + "\"auto\"}", in);
    for (int64_t h = 0; h < 2; h++) {
        PlanMeaning ma = a.meaning(&ex, 0, h), mc = c.meaning(&ex, 0, h);
        CHECK(ma.sees == mc.sees);
        CHECK(any.meaning(&ex, 0, h).sees == ma.sees);
        CHECK(mc.entries <= ma.entries);
        CHECK(relative_l1(attention_over(in, ma, 0, h), attention_over(in, mc, 0, h)) < 1e-14);
    }
    CHECK(a.plan(&ex)[0]->orders == 1);
    CHECK(c.plan(&ex)[0]->orders == 2);
    // more than 64 blocks: sorted by the first few
    const std::string many = R"({"cycle": [0, 0, 1], "block3": [1, 2, 4], "k3": 4, "layout": )";
    Planning am(hd_vmoba, many + "\"A\"}", in), cm(hd_vmoba, many + "\"C\"}", in);
    CHECK(am.meaning(&ex, 0, 1).sees == cm.meaning(&ex, 0, 1).sees);
}

TEST_CASE("vmoba: blocks go by layer, pictures have 2-D blocks", "[sparse][vmoba]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.frames = 4, shape.height = 6, shape.width = 6;
    PlanInput in(shape);
    const char *json =
        R"({"block1": 1, "block2": [3, 3], "block3": [2, 2, 2], "k1": 2, "k2": 2, "k3": 2,
            "cycle": [1, 2, 1], "dense_layers": 1, "layout": "A"})";
    auto tiles = [&](const char *path) {
        strcpy(in.call.site.path, path);
        Planning p(hd_vmoba, json, in);
        const hd_plan *plan = p.plan(&ex)[0];
        return plan ? plan->key_tiles : -1;
    };
    CHECK(tiles("block.0") == -1); // dense
    CHECK(tiles("block.1") == 4);
    CHECK(tiles("block.2") == 4);
    CHECK(tiles("block.3") == 4);
    CHECK(tiles("block.4") == 18);
    CHECK(tiles("block.5") == 4);
    strcpy(in.call.site.path, "mid.attn.0");
    Planning nameless(hd_vmoba, json, in);
    CHECK(nameless.message.find("mid.attn.0 has none") != std::string::npos);
    shape.frames = 1;
    PlanInput picture(shape);
    strcpy(picture.call.site.path, "up.1.attn.0");
    Planning p(hd_vmoba, R"({"block2": [3, 2], "k2": 2})", picture);
    CHECK(p.plan(&ex)[0]->key_tiles == 6);
}

TEST_CASE("vmoba: defaults of the published grids", "[sparse][vmoba]")
{
    struct Grid {
        int64_t f, h, w, blocks[3];
    };
    const Grid grid = GENERATE(Grid{21, 30, 52, {7, 24, 72}}, Grid{21, 45, 80, {7, 40, 36}});
    PlanInput::Shape shape;
    shape.frames = grid.f, shape.height = grid.h, shape.width = grid.w, shape.dim = 1;
    PlanInput in(shape);
    Run ex(hd_cpu_features(), 2);
    for (int i = 0; i < 3; i++) {
        snprintf(in.call.site.path, sizeof in.call.site.path, "block.%d", i);
        Planning p(hd_vmoba, "{}", in);
        const hd_plan *plan = p.plan(&ex)[0];
        REQUIRE(plan);
        int64_t tokens = grid.f * grid.h * grid.w / grid.blocks[i], per = (tokens + 127) / 128;
        CHECK(plan->key_tiles == grid.blocks[i] * per);
    }
}

TEST_CASE("vmoba: the same plan for any number of threads and rows", "[sparse][vmoba]")
{
    PlanInput::Shape shape;
    shape.frames = 3, shape.height = 9, shape.width = 11, shape.rows = 2, shape.heads = 2;
    shape.key_heads = 1, shape.dim = 16, shape.dtype = GENERATE(HD_F32, HD_BF16);
    const char *mode =
        GENERATE("\"k3\": 3", "\"mode\": \"threshold\"", "\"k3\": 3, \"scope\": \"overall\"");
    PlanInput all(shape);
    shape.rows = 1;
    PlanInput one(shape);
    const int64_t q = one.q.count(), k = one.k.count();
    for (int64_t i = 0; i < q; i++)
        one.q.set(i, (float)all.q.at(q + i));
    for (int64_t i = 0; i < k; i++)
        one.k.set(i, (float)all.k.at(k + i));
    const std::string json =
        std::string("{\"cycle\": [0, 0, 1], \"block3\": [1, 3, 4], ") + mode + "}";
    Planning pa(hd_vmoba, json, all), po(hd_vmoba, json, one);
    Run three(hd_cpu_features(), 3), alone;
    for (int64_t h = 0; h < 2; h++) {
        PlanMeaning a = pa.meaning(&three, 1, h);
        CHECK(a.sees == pa.meaning(&alone, 1, h).sees);
        CHECK(a.sees == po.meaning(&alone, 0, h).sees);
    }
    pa.active = {0, 1};
    CHECK(pa.plan(&alone)[0] == nullptr);
    CHECK(pa.meaning(&alone, 1, 1).sees == po.meaning(&alone, 0, 1).sees);
}

TEST_CASE("vmoba: what makes no sense or is missing is refused", "[sparse][vmoba]")
{
    PlanInput::Shape shape;
    shape.frames = 4;
    PlanInput in(shape);
    auto refused = [&](const char *json, const char *text) {
        Planning p(hd_vmoba, json, in);
        INFO(json << ": " << p.message);
        CHECK(p.status != HD_OK);
        CHECK(p.message.find(text) != std::string::npos);
    };
    refused(R"({"layout": "B"})", "layout is \"B\"");
    refused(R"({"scope": "block", "mode": "topk"})", "no top-k form");
    refused(R"({"cycle": [0, 0, 0]})", "no layers");
    refused(R"({"tau": 1.5})", "tau");
    refused(R"({"block2": [4]})", "block2");
    refused("{}", "\"k1\" has no default for a grid of 4 x 8 x 8");
    refused(R"({"block1": 0.001, "k1": 2})", "less than a token");
    refused(R"({"cycle": [0, 1, 0], "k2": 2})", "\"block2\" has no default");
    refused(R"({"cycle": [0, 0, 1], "k3": 2})", "\"block3\" has no default");
    refused(R"({"cycle": [0, 0, 1], "block3": [2, 2, 2]})", "\"k3\" has no default");
    in.call.k_layout = hd_layout_text(64);
    refused("{}", "keys are not one grid");
}
