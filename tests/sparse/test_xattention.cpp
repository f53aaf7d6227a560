// XAttention: sampled scores, tile weights and kept tiles against worked examples and plain loops.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "sparse/all.h"
#include "sparse/xattention_score.h"
#include "support/catch.h"
#include "support/planning.h"

namespace
{

// The rows of tile weights that the scorer finds for head 0 of row 0.
std::vector<std::vector<float>> weights(const hd_exec *ex, PlanInput &in, int64_t stride,
                                        int64_t block, bool means, bool mask_padding,
                                        const int64_t *box = nullptr)
{
    hd_tiling *tiling = nullptr;
    hd_xattention_groups groups;
    hd_tiling_options options = {};
    options.tile = box ? 0 : block;
    for (int i = 0; box && i < 3; i++)
        options.box[i] = box[i];
    REQUIRE_OK(hd_tiling_create(&tiling, &in.call, options));
    REQUIRE_OK(hd_xattention_groups_make(&groups, tiling, stride));
    hd_room room = {nullptr, 0};
    hd_xattention_room_take(&room, tiling, &groups, means, 1, in.dim);
    char *memory = static_cast<char *>(aligned_alloc(64, (room.used + 127) / 64 * 64));
    room = {memory, 0};
    hd_xattention_room taken = hd_xattention_room_take(&room, tiling, &groups, means, 1, in.dim);
    std::vector<float> row((size_t)(HD_PLANNER_SHARES * tiling->tiles));
    struct Found {
        std::vector<std::vector<float>> weight;
    } found;
    found.weight.assign((size_t)tiling->tiles, std::vector<float>((size_t)tiling->tiles));
    hd_xattention_scorer scorer = {ex, tiling, &groups, means, mask_padding, in.call.scale};
    hd_planner_tokens q = hd_tiling_tokens(tiling, in.call.q, 0, 0, in.heads);
    hd_planner_tokens k = hd_tiling_tokens(tiling, in.call.k, 0, 0, in.heads);
    auto take = [](void *arg, int64_t, int64_t tile, const float *weight, int64_t) {
        auto &all = static_cast<Found *>(arg)->weight;
        all[(size_t)tile].assign(weight, weight + all.size());
        return HD_OK;
    };
    REQUIRE_OK(hd_xattention_score(&scorer, &taken, row.data(), &q, &k, 1, take, &found));
    free(memory);
    hd_xattention_groups_free(&groups);
    hd_tiling_free(tiling);
    return found.weight;
}

// The same from the definition, over tiles given as lists of tokens.
std::vector<std::vector<double>> plain_weights(const PlanInput &in,
                                               const std::vector<std::vector<int64_t>> &tile,
                                               int64_t stride, bool means)
{
    struct Group {
        size_t tile;
        std::vector<int64_t> token;
    };
    std::vector<Group> groups;
    for (size_t t = 0; t < tile.size(); t++)
        for (size_t i = 0; i < tile[t].size(); i += (size_t)stride)
            groups.push_back(
                {t,
                 {tile[t].begin() + (ptrdiff_t)i,
                  tile[t].begin() + (ptrdiff_t)std::min(i + (size_t)stride, tile[t].size())}});
    auto dot = [&](int64_t i, int64_t j) {
        double sum = 0;
        for (int64_t d = 0; d < in.dim; d++)
            sum += in.q_at(0, i, 0, d) * in.k_at(0, j, 0, d);
        return sum;
    };
    std::vector<std::vector<double>> weight(tile.size(), std::vector<double>(tile.size()));
    for (const Group &a : groups) {
        std::vector<double> score;
        double total = 0;
        for (const Group &b : groups) {
            double sum = 0;
            int64_t pairs = 0;
            for (int64_t x = 0; x < (int64_t)a.token.size(); x++)
                for (int64_t y = 0; y < (int64_t)b.token.size(); y++)
                    if (means || x + y == stride - 1) {
                        sum += dot(a.token[(size_t)x], b.token[(size_t)y]);
                        pairs++;
                    }
            if (pairs == 0) sum = dot(a.token[0], b.token[0]), pairs = 1;
            score.push_back(std::exp(sum / (double)pairs * (double)in.call.scale));
            total += score.back();
        }
        for (size_t j = 0; j < groups.size(); j++)
            weight[a.tile][groups[j].tile] += score[j] / total;
    }
    return weight;
}

std::vector<std::vector<int64_t>> runs(int64_t tokens, int64_t block)
{
    std::vector<std::vector<int64_t>> tile;
    for (int64_t t = 0; t < tokens; t++) {
        if (t % block == 0) tile.emplace_back();
        tile.back().push_back(t);
    }
    return tile;
}

void check_close(const std::vector<std::vector<float>> &a,
                 const std::vector<std::vector<double>> &b, double tolerance)
{
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); i++)
        for (size_t j = 0; j < a.size(); j++)
            CHECK(a[i][j] == Approx(b[i][j]).margin(tolerance));
}

PlanInput::Shape line(int64_t tokens)
{
    PlanInput::Shape s;
    s.dim = 1, s.height = 1, s.width = tokens;
    return s;
}

// Tokens 0 .. 11 of the worked example with tiles of 4 and groups of 2.
void put_example(PlanInput &in)
{
    PlanInput::put(in.q, 0, 0, {1, 1, 1, 1, 0, 0, 0, 0, -1, -1, -1, -1});
    PlanInput::put(in.k, 0, 0, {1, 1, 1, 1, 4, 4, 6, 6, 0, 0, 2, 2});
}

// Rows of kept tiles, as "110".
std::vector<std::string> kept(const hd_plan *plan, int64_t head = 0)
{
    std::vector<std::string> rows;
    for (int64_t t = 0; t < plan->query_tiles; t++) {
        std::string row((size_t)plan->key_tiles, '0');
        hd_visits visits = hd_plan_row(plan, head, t);
        for (int64_t i = 0; i < visits.count; i++)
            row[(size_t)visits.entry[i].key] = '1';
        rows.push_back(row);
    }
    return rows;
}

std::vector<std::string> example_rows(const std::string &tau, bool keep_first)
{
    Run ex(HD_CPU);
    PlanInput in(line(12));
    put_example(in);
    Planning p(hd_xattention,
               "{\"tau\": " + tau + ", \"stride\": 2, \"block\": 4, \"keep_first\": " +
                   (keep_first ? "true}" : "false}"),
               in);
    return kept(p.plan(&ex)[0]);
}

using Rows = std::vector<std::string>;

} // namespace

TEST_CASE("xattention: query offsets run backwards, key offsets forwards", "[sparse][xattention]")
{
    Run ex(GENERATE(from_range(every_isa())));
    PlanInput in(line(4));
    PlanInput::put(in.q, 0, 0, {1, 2, 3, 4});
    PlanInput::put(in.k, 0, 0, {10, 20, 30, 40});
    in.call.scale = 0.01f;
    // one tile per group; a = 40 100 / 100 240 summed over two pairs, the diagonal would differ
    auto w = weights(&ex, in, 2, 2, false, true);
    auto share = [](double a, double b) { return std::exp(a) / (std::exp(a) + std::exp(b)); };
    CHECK(w[0][0] == Approx(share(0.20, 0.50)).epsilon(1e-5));
    CHECK(w[1][0] == Approx(share(0.50, 1.20)).epsilon(1e-5));
    // group means: 22.5 52.5 / 52.5 122.5
    w = weights(&ex, in, 2, 2, true, true);
    CHECK(w[0][0] == Approx(share(0.225, 0.525)).epsilon(1e-5));
    CHECK(w[1][0] == Approx(share(0.525, 1.225)).epsilon(1e-5));
}

TEST_CASE("xattention: tile weights of the worked example", "[sparse][xattention]")
{
    Run ex(GENERATE(from_range(every_isa())));
    PlanInput in(line(12));
    put_example(in);
    auto w = weights(&ex, in, 2, 4, false, true);
    check_close(w,
                {{0.023043, 1.941399, 0.035558},
                 {0.666667, 0.666667, 0.666667},
                 {0.777804, 0.021983, 1.200214}},
                2e-6);
    for (auto &row : w)
        CHECK(row[0] + row[1] + row[2] == Approx(2.0));
}

TEST_CASE("xattention: kept tiles of the worked example", "[sparse][xattention]")
{
    CHECK(example_rows("0.5", true) == Rows{"110", "110", "101"});
    CHECK(example_rows("0.9", true) == Rows{"110", "111", "101"});
    CHECK(example_rows("0.99", true) == Rows{"111", "111", "111"});
    CHECK(example_rows("0.5", false) == Rows{"010", "110", "001"});
    CHECK(example_rows("0.9", false) == Rows{"010", "111", "101"});
    CHECK(example_rows("1", false) == Rows{"111", "111", "111"});
}

TEST_CASE("xattention: padding is left out, or absorbs as in the published code",
          "[sparse][xattention]")
{
    Run ex(GENERATE(from_range(every_isa())));
    PlanInput in(line(6));
    PlanInput::put(in.q, 0, 0, {1, 1, 1, 1, 1, 1});
    PlanInput::put(in.k, 0, 0, {-1, -1, -1, -1, -2, -2});
    auto w = weights(&ex, in, 2, 4, false, true);
    CHECK(w[0][0] == Approx(2 * 0.844638).margin(4e-6)); // 2 groups of 0.422319 + 0.422319
    CHECK(w[0][1] == Approx(2 * 0.155362).margin(4e-6));
    w = weights(&ex, in, 2, 4, false, false);
    CHECK(w[0][0] == Approx(2 * 0.393224).margin(4e-6));
    CHECK(w[0][1] == Approx(2 * (0.072329 + 0.534447)).margin(4e-6));
}

TEST_CASE("xattention: constant keys, dominant tiles, tau 1", "[sparse][xattention]")
{
    Run ex;
    PlanInput::Shape shape = line(80);
    shape.dim = 4;
    PlanInput in(shape);
    PlanInput::put(in.k, 0, 0, std::vector<double>(80 * 4, 0.5));
    for (auto &row : weights(&ex, in, 2, 8, false, true))
        for (float w : row)
            CHECK(w == Approx(4.0 * 4.0 / 40.0).epsilon(1e-5));
    Planning part(hd_xattention, R"({"tau": 0.45, "stride": 2, "block": 8})", in);
    for (auto &row : kept(part.plan(&ex)[0]))
        CHECK(row == "1111100000"); // ceil(0.45 * 10), ties by index

    std::vector<double> keys(80 * 4, -1.0), queries(80 * 4, 4.0);
    std::fill(keys.begin() + 24 * 4, keys.begin() + 32 * 4, 4.0);
    PlanInput::put(in.q, 0, 0, queries);
    PlanInput::put(in.k, 0, 0, keys);
    Planning one(hd_xattention, R"({"tau": 0.9, "stride": 2, "block": 8, "keep_first": false})",
                 in);
    Planning first(hd_xattention, R"({"tau": 0.9, "stride": 2, "block": 8})", in);
    Planning own(hd_xattention,
                 R"({"tau": 0.9, "stride": 2, "block": 8, "keep_first": false, "keep_diag": true})",
                 in);
    Rows diagonal = kept(own.plan(&ex)[0]);
    for (auto &row : kept(one.plan(&ex)[0]))
        CHECK(row == "0001000000");
    for (auto &row : kept(first.plan(&ex)[0]))
        CHECK(row == "1001000000");
    for (size_t t = 0; t < diagonal.size(); t++) {
        Rows::value_type row = "0001000000";
        row[t] = '1';
        CHECK(diagonal[t] == row);
    }
}

TEST_CASE("xattention: weights on ragged grids and random tokens against the definition",
          "[sparse][xattention]")
{
    const int64_t seed = GENERATE(range(1, 13));
    CAPTURE(seed);
    PlanInput::Shape shape;
    shape.seed = (uint64_t)seed;
    shape.dim = 1 + seed * 5 % 17;
    shape.frames = 1 + seed % 3, shape.height = 3 + seed % 5, shape.width = 4 + seed * 3 % 7;
    shape.dtype = seed % 2 ? HD_F32 : HD_BF16;
    shape.text_before = seed % 4;
    PlanInput in(shape);
    const bool means = seed % 3 == 0;
    const int64_t stride = seed % 2 ? 4 : 2, block = 8;
    const double tolerance = shape.dtype == HD_BF16 && means ? 3e-2 : 2e-5;
    Run ex(every_isa()[(size_t)seed % every_isa().size()], 2);
    auto tile = runs(in.tokens - in.text_before, block);
    for (auto &t : tile)
        for (int64_t &token : t)
            token += in.text_before;
    check_close(weights(&ex, in, stride, block, means, true),
                plain_weights(in, tile, stride, means), tolerance);
    const int64_t box[3] = {2, 2, 4};
    Planning boxes(hd_xattention, R"({"tile": [2, 2, 4], "stride": 2, "tau": 0.5})", in);
    PlanMeaning m = boxes.meaning(&ex);
    check_close(weights(&ex, in, 2, 0, means, true, box),
                plain_weights(in, m.tile_tokens, 2, means), tolerance);
}

TEST_CASE("xattention: density grows with tau, tau 1 is dense, rows of a head have their own",
          "[sparse][xattention]")
{
    Run ex(hd_cpu_features(), 2);
    PlanInput::Shape shape;
    shape.height = 16, shape.width = 15, shape.dim = 16, shape.heads = 2, shape.text_behind = 5;
    const bool means = GENERATE(false, true);
    PlanInput in(shape);
    int64_t last = 0;
    for (const char *tau : {"0.1", "0.3", "0.5", "0.7", "0.9", "0.97", "1"}) {
        Planning p(hd_xattention,
                   std::string("{\"block\": 16, \"stride\": 4, \"keep_first\": false, \"tau\": ") +
                       tau + (means ? ", \"score\": \"groupmean\"}" : "}"),
                   in);
        PlanMeaning m = p.meaning(&ex);
        CHECK(m.pairs() >= last);
        last = m.pairs();
        for (int64_t i = 0; i < in.tokens; i++)
            for (int64_t j = in.tokens - 5; j < in.tokens; j++)
                CHECK((m.at(i, j) && m.at(j, i))); // text is a dense tail
    }
    CHECK(last == in.tokens * in.tokens);
    Planning heads(hd_xattention, R"({"block": 16, "stride": 4, "tau": [0.2, 1]})", in);
    CHECK(heads.meaning(&ex, 0, 0).pairs() < last);
    CHECK(heads.meaning(&ex, 0, 1).pairs() == last);
    strcpy(in.call.site.path, "block.1");
    Planning layers(hd_xattention, R"({"block": 16, "stride": 4, "tau": [[0.2, 0.2], [1, 0.2]]})",
                    in);
    CHECK(layers.meaning(&ex, 0, 0).pairs() == last);
    CHECK(layers.meaning(&ex, 0, 1).pairs() < last);
    Planning capped(hd_xattention,
                    R"({"block": 16, "stride": 4, "tau": 1, "rho_max": 0.5, "keep_first": false})",
                    in);
    for (auto &row : kept(capped.plan(&ex)[0]))
        CHECK(std::count(row.begin(), row.end(), '1') <= 7);
}

TEST_CASE("xattention: whole key tiles in another order permute the columns",
          "[sparse][xattention]")
{
    Run ex;
    PlanInput::Shape shape = line(64);
    shape.dim = 8;
    PlanInput a(shape), b(shape);
    const int64_t tiles = 8;
    for (int64_t t = 0; t < 64; t++) // tile t of a is tile (3 t) mod 8 of b
        for (int64_t d = 0; d < 8; d++) {
            int64_t to = (t / 8 * 3 % tiles) * 8 + t % 8;
            b.k.set(to * 8 + d, (float)a.k.at(t * 8 + d));
            b.v.set(to * 8 + d, (float)a.v.at(t * 8 + d));
        }
    const char *json = R"({"block": 8, "stride": 4, "tau": 0.7, "keep_first": false})";
    Planning pa(hd_xattention, json, a), pb(hd_xattention, json, b);
    Rows ra = kept(pa.plan(&ex)[0]), rb = kept(pb.plan(&ex)[0]);
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 8; j++)
            CHECK(ra[i][j] == rb[i][j * 3 % 8]);
    CHECK(relative_l1(attention_over(a, pa.meaning(&ex)), attention_over(b, pb.meaning(&ex))) <
          1e-12);
}

TEST_CASE("xattention: text may be scored like the grid", "[sparse][xattention]")
{
    Run ex;
    PlanInput::Shape shape;
    shape.height = 5, shape.width = 8, shape.text_behind = 10, shape.text_before = 3;
    PlanInput in(shape);
    Planning p(hd_xattention, R"({"block": 8, "stride": 4, "tau": 0.4, "text": "scored"})", in);
    const hd_plan *plan = p.plan(&ex)[0];
    CHECK(plan->query_ranks == in.tokens);
    CHECK(plan->key_tiles == 7);
    CHECK(p.meaning(&ex).pairs() < in.tokens * in.tokens);
    const int64_t len = in.tokens;
    in.call.key_len = &len;
    Planning padded(hd_xattention, R"({"text": "scored"})", in);
    CHECK(padded.status == HD_ERR_UNSUPPORTED);
    CHECK(padded.message.find("\"dense\"") != std::string::npos);
}

TEST_CASE("xattention: a list is reused for the steps that were asked for", "[sparse][xattention]")
{
    Run ex;
    PlanInput::Shape shape = line(64);
    shape.dim = 8;
    PlanInput in(shape);
    Planning p(hd_xattention, R"({"block": 8, "stride": 4, "tau": 0.5, "reuse": 2})", in);
    Planning fresh(hd_xattention, R"({"block": 8, "stride": 4, "tau": 0.5})", in);
    Rows old = kept(p.plan(&ex, 3)[0]);
    Values k = Values::normal(HD_F32, hd_tensor_shape(in.k.t), 77);
    for (int64_t i = 0; i < k.count(); i++)
        in.k.set(i, (float)k.at(i));
    Rows now = kept(fresh.plan(&ex, 3)[0]);
    REQUIRE(old != now);
    CHECK(kept(p.plan(&ex, 4)[0]) == old);
    CHECK(kept(p.plan(&ex, 5)[0]) == old);
    CHECK(kept(p.plan(&ex, 6)[0]) == now);
    CHECK(kept(p.plan(&ex, 2)[0]) == now); // the next picture begins
}

TEST_CASE("xattention: the same plan for any number of threads and rows", "[sparse][xattention]")
{
    PlanInput::Shape shape;
    shape.frames = 3, shape.height = 9, shape.width = 11, shape.rows = 3, shape.heads = 2;
    shape.key_heads = 1, shape.dim = 16, shape.dtype = GENERATE(HD_F32, HD_BF16);
    PlanInput all(shape);
    shape.rows = 1;
    PlanInput one(shape);
    const int64_t q = one.q.count(), k = one.k.count();
    for (int64_t i = 0; i < q; i++)
        one.q.set(i, (float)all.q.at(q + i));
    for (int64_t i = 0; i < k; i++)
        one.k.set(i, (float)all.k.at(k + i));
    const char *json = R"({"block": 16, "stride": 4, "tau": 0.6, "score": "groupmean"})";
    Planning pa(hd_xattention, json, all), po(hd_xattention, json, one);
    Run three(hd_cpu_features(), 3), alone;
    for (int64_t h = 0; h < 2; h++) {
        Rows a = kept(pa.plan(&three)[1], h);
        CHECK(a == kept(pa.plan(&alone)[1], h));
        CHECK(a == kept(po.plan(&alone)[0], h));
    }
    pa.active = {1, 0, 1};
    CHECK(pa.plan(&alone)[1] == nullptr);
}

TEST_CASE("xattention: what makes no sense is refused", "[sparse][xattention]")
{
    PlanInput in(PlanInput::Shape{});
    auto refused = [&](const char *json, const char *text) {
        Planning p(hd_xattention, json, in);
        INFO(json << ": " << p.message);
        CHECK(p.status != HD_OK);
        CHECK(p.message.find(text) != std::string::npos);
    };
    refused(R"({"stride": 3})", "must divide the block");
    refused(R"({"tau": 0})", "tau");
    refused(R"({"tau": [0.5, 0.5, 0.5]})", "has 3 heads, block.0 has 1");
    refused(R"({"tau": [[0.5], [0.5, 0.6]]})", "tau[1]");
    refused(R"({"tile": [4, 4]})", "tile");
    refused(R"({"tile": [3, 3, 3]})", "multiple of the stride");
    refused(R"({"rho_max": 0})", "rho_max");
    strcpy(in.call.site.path, "block.7");
    refused(R"({"tau": [[0.5], [0.6]]})", "none for block.7");
    strcpy(in.call.site.path, "mid.attn.0");
    refused(R"({"tau": [[0.5], [0.6]]})", "no numbered block");
    in.call.k_layout = hd_layout_text(64);
    refused("{}", "keys are not one grid");
}
