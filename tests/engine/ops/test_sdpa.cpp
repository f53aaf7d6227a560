// The attention kernel: every variant against f64 loops, the properties that edits rest on, the
// refusals.
#include "tests/engine/ops/sdpa_call.h"

namespace
{

int64_t pick(std::mt19937_64 &rng, std::initializer_list<int64_t> values)
{
    return *(values.begin() + rng() % values.size());
}

Call random_call(uint64_t seed)
{
    std::mt19937_64 rng(seed);
    Sizes n;
    n.b = pick(rng, {1, 1, 2, 3});
    n.hk = pick(rng, {1, 2, 3});
    n.h = n.hk * pick(rng, {1, 1, 2, 4});
    n.lq = pick(rng, {1, 2, 7, 15, 16, 17, 31, 48, 63, 64, 65, 77, 130});
    n.lk = pick(rng, {1, 2, 5, 6, 7, 8, 63, 64, 65, 77, 127, 128, 129, 257, 300});
    n.d = pick(rng, {1, 2, 7, 8, 15, 16, 17, 33, 40, 64, 80});
    n.dv = pick(rng, {0, 0, 1, 5, 6, 7, 16, 17, 40, 72});
    if (n.dv == 0) n.dv = n.d;
    n.dtype = rng() % 2 ? HD_F32 : HD_BF16;
    Call c(n, seed, (Tokens::Layout)(rng() % 3), rng() % 4 ? 1.0f : 2.5f);

    auto some = [&](int64_t full) { return rng() % 2 ? full : 1; };
    if (rng() % 3 == 0)
        for (int64_t b = 0; b < n.b; b++)
            c.key_len.push_back(1 + (int64_t)(rng() % (uint64_t)n.lk));
    if (rng() % 3 == 0) c.causal = true;
    if (rng() % 3 == 0) c.add_bias(hd_shape4(some(n.b), some(n.h), some(n.lq), n.lk), seed + 10);
    if (rng() % 3 == 0)
        c.add_mask(hd_shape4(some(n.b), some(n.h), some(n.lq), n.lk), rng, rng() % 2 ? 0.7 : 0.02);
    if (rng() % 3 == 0)
        for (float x : normal_values(n.b * n.lq, seed + 20, 0.3f))
            c.row_scale.push_back(1.0f + x);
    if (rng() % 8 == 0) c.scale = -c.scale;
    if (rng() % 3 == 0)
        c.add_plan(some(n.h), pick(rng, {1, 16, 32, 60, 64, 128, 200}),
                   pick(rng, {1, 5, 16, 64, 100, 128, 1000}), rng, 0.5);
    return c;
}

} // namespace

TEST_CASE("sdpa: every variant agrees with f64 on random calls", "[ops][sdpa]")
{
    for (uint64_t seed = 1; seed <= 150; seed++) {
        const Call::Truth truth = random_call(seed).truth();
        for (unsigned isa : every_isa()) {
            Run run(isa, 1 + (int)(seed % 3));
            Call c = random_call(seed);
            char text[100];
            INFO("seed " << seed << ", " << hd_features_text(text, sizeof text, isa));
            INFO("B " << c.n.b << " Lq " << c.n.lq << " Lk " << c.n.lk << " H " << c.n.h << "/"
                      << c.n.hk << " D " << c.n.d << "/" << c.n.dv << " "
                      << hd_dtype_name(c.n.dtype));
            hd_sdpa a = c.args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
            check_against(truth, c);
            CHECK(hd_arena_mark(run.exec.arena) == 0);
        }
    }
}

TEST_CASE("sdpa: the head sizes of networks agree with f64", "[ops][sdpa]")
{
    auto d = GENERATE(40, 64, 80, 128, 160, 512);
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        Call c({1, 70, 141, 1, 1, d, d, dtype}, 7);
        hd_sdpa a = c.args();
        INFO("D " << d << " " << hd_dtype_name(dtype) << " isa " << isa);
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        check_against_f64(c);
    }
}

TEST_CASE("sdpa: scores of +-1e4 neither overflow nor lose the largest", "[ops][sdpa]")
{
    for (unsigned isa : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (float scale : {1.0f, -1.0f}) {
                Run run(isa);
                Call c({1, 70, 200, 1, 1, 4, 9, dtype}, 5, Tokens::packed, 100.0f);
                c.scale = scale;
                hd_sdpa a = c.args();
                REQUIRE_OK(hd_sdpa_run(&run, &a));
                // scores of 1e4 carry an f32 rounding of 1e-3 into the exponent
                double out_error, lse_error;
                c.errors(out_error, lse_error);
                CHECK(out_error <= (dtype == HD_F32 ? 1e-2 : 3e-2));
                CHECK(lse_error <= 1e-2);
            }
}

TEST_CASE("sdpa: a query that sees no key gives 0 and -inf", "[ops][sdpa]")
{
    for (unsigned isa : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            Run run(isa);
            Call c({1, 20, 150, 2, 2, 8, 8, dtype});
            c.mask_shape = hd_shape4(1, 1, 20, 150);
            c.mask.assign(20 * 150, 0);
            for (size_t j = 130; j < 150; j++)
                c.mask[3 * 150 + j] = 1; // query 3 sees the second tile only
            hd_sdpa a = c.args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
            check_against_f64(c);
            CHECK(c.out.at(0, 0, 0, 0) == 0.0);
            CHECK(c.lse[0] == -infinity);
            CHECK(c.lse[3] > -infinity);

            Call empty({1, 20, 150, 2, 2, 8, 8, dtype});
            std::mt19937_64 rng(1);
            empty.add_plan(1, 16, 64, rng, 0.0);
            a = empty.args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
            check_against_f64(empty);
            CHECK(empty.visited == 0);
        }
}

TEST_CASE("sdpa: two halves of the keys merge by lse to the whole", "[ops][sdpa]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        Call whole({2, 90, 200, 2, 1, 40, 40, dtype}), left = whole, right = whole;
        hd_sdpa a = whole.args(), l = left.args(), r = right.args();
        l.k = hd_tensor_slice(l.k, 1, 0, 77), l.v = hd_tensor_slice(l.v, 1, 0, 77);
        r.k = hd_tensor_slice(r.k, 1, 77, 123), r.v = hd_tensor_slice(r.v, 1, 77, 123);
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        REQUIRE_OK(hd_sdpa_run(&run, &l));
        REQUIRE_OK(hd_sdpa_run(&run, &r));
        double worst = 0.0;
        for (int64_t b = 0; b < 2; b++)
            for (int64_t h = 0; h < 2; h++)
                for (int64_t i = 0; i < 90; i++) {
                    auto at = (size_t)((b * 2 + h) * 90 + i);
                    double w = 1.0 / (1.0 + std::exp((double)(right.lse[at] - left.lse[at])));
                    for (int64_t d = 0; d < 40; d++) {
                        double merged =
                            w * left.out.at(b, i, h, d) + (1 - w) * right.out.at(b, i, h, d);
                        worst = std::max(worst, std::fabs(merged - whole.out.at(b, i, h, d)));
                    }
                }
        CHECK(worst <= tolerance(dtype));
    }
}

TEST_CASE("sdpa: counts the key tiles it visits", "[ops][sdpa]")
{
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        Call c({2, 100, 300, 3, 3, 16, 16});
        std::mt19937_64 rng(3);
        c.add_plan(1, 32, 64, rng, 1.0).row_start.clear(); // dense: 4 query tiles, 5 key tiles
        hd_sdpa a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(c.visited == 2 * 3 * 4 * 5);
        c.key_len = {300, 65}; // row 1: 2 key tiles
        a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(c.visited == 3 * 4 * (5 + 2));
        c.key_len.clear();
        c.causal = true; // queries ..31, ..63, ..95, ..99 reach 1, 1, 2, 2 tiles
        a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(c.visited == 2 * 3 * (1 + 1 + 2 + 2));

        Call sparse({1, 100, 300, 3, 3, 16, 16});
        sparse.add_plan(3, 32, 64, rng, 0.4);
        a = sparse.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(sparse.visited == sparse.owned[0].row_start.back());
        check_against_f64(sparse);
    }
}

TEST_CASE("sdpa: visiting a subset of tiles equals the masked dense call", "[ops][sdpa]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        Run run(isa, 2);
        Call sparse({1, 128, 256, 2, 2, 24, 24, dtype}), dense = sparse;
        std::mt19937_64 rng(11);
        sparse.add_plan(2, 32, 32, rng, 0.4);
        dense.mask_shape = hd_shape4(1, 2, 128, 256);
        for (int64_t h = 0; h < 2; h++) {
            PlanMeaning m = plan_meaning(*sparse.plan_of(0), h, 128, 256);
            dense.mask.insert(dense.mask.end(), m.sees.begin(), m.sees.end());
        }
        hd_sdpa s = sparse.args(), d = dense.args();
        REQUIRE_OK(hd_sdpa_run(&run, &s));
        REQUIRE_OK(hd_sdpa_run(&run, &d));
        double worst = 0.0;
        for (int64_t i = 0; i < 128; i++)
            for (int64_t c = 0; c < 24; c++)
                worst = std::max(worst,
                                 std::fabs(sparse.out.at(0, i, 1, c) - dense.out.at(0, i, 1, c)));
        CHECK(worst <= tolerance(dtype));
    }
}

TEST_CASE("sdpa: a row's bytes depend on that row alone", "[ops][sdpa][threads]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        if (isa == HD_CPU && dtype == HD_BF16) continue; // slow, and the same code
        auto full = [&](int64_t b) {
            return Call({b, 150, 300, 4, 2, 40, 24, dtype}, 31 + (uint64_t)b);
        };
        Call alone = full(1);
        alone.key_len = {290};
        Run single(isa, 1);
        hd_sdpa a = alone.args();
        REQUIRE_OK(hd_sdpa_run(&single, &a));
        for (int64_t b : {2, 3, 5})
            for (int threads : {1, 2, 4}) {
                Run run(isa, threads);
                Call batch = full(b);
                const int64_t row = b - 1 - (b == 5);
                batch.q.copy_row(row, alone.q, 0);
                batch.k.copy_row(row, alone.k, 0);
                batch.v.copy_row(row, alone.v, 0);
                batch.key_len.assign((size_t)b, 123);
                batch.key_len[(size_t)row] = 290;
                a = batch.args();
                REQUIRE_OK(hd_sdpa_run(&run, &a));
                CHECK(batch.out.bits(row) == alone.out.bits(0));
                CHECK(memcmp(&batch.lse[(size_t)(row * 4 * 150)], alone.lse.data(),
                             alone.lse.size() * sizeof(float)) == 0);
            }
    }
}

TEST_CASE("sdpa: a row that nobody edits has the plain call's bytes beside one that is edited",
          "[ops][sdpa]")
{
    for (unsigned isa : every_isa()) {
        Run run(isa);
        Call call({2, 70, 130, 2, 2, 40, 24, HD_F32}, 5);
        hd_sdpa a = call.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        const auto plain = call.out.bits(0), other = call.out.bits(1);
        std::vector<float> bias(2 * 2 * 130), gain(2 * 2, 1.0f), table(2 * 2);
        std::fill(bias.begin() + 2 * 130, bias.end(), 0.5f);
        bias.back() = -1.0f;
        a.column_bias = hd_tensor_of(bias.data(), HD_F32, hd_shape3(2, 2, 130));
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(call.out.bits(0) == plain);
        CHECK(call.out.bits(1) != other);
        std::vector<uint8_t> query(2 * 70), key(2 * 130);
        for (size_t i = 0; i < key.size(); i++)
            key[i] = i % 2;
        table[3] = -1.0f;
        hd_sdpa_segments segments = {query.data(), key.data(), 1, 2, table.data(), gain.data()};
        a.column_bias = hd_tensor_none();
        a.segments = &segments;
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        CHECK(call.out.bits(0) == plain);
        CHECK(call.out.bits(1) != other);
    }
}

TEST_CASE("sdpa: a query's bytes do not depend on its neighbours", "[ops][sdpa]")
{
    auto dtype = GENERATE(HD_F32, HD_BF16);
    for (unsigned isa : every_isa()) {
        Run run(isa);
        Call quiet({1, 64, 300, 1, 1, 40, 40, dtype}), loud = quiet;
        for (int64_t i = 0; i < 64; i++)
            for (int64_t d = 0; d < 40 && i != 13; d++)
                loud.q.set(0, i, 0, d,
                           i == 14 ? std::nanf("") : 9.0f * (float)loud.q.at(0, i, 0, d));
        Call lone({1, 1, 300, 1, 1, 40, 40, dtype});
        lone.k = quiet.k, lone.v = quiet.v;
        for (int64_t d = 0; d < 40; d++)
            lone.q.set(0, 0, 0, d, (float)quiet.q.at(0, 13, 0, d));
        for (Call *c : {&quiet, &loud, &lone}) {
            hd_sdpa a = c->args();
            REQUIRE_OK(hd_sdpa_run(&run, &a));
        }
        for (int64_t d = 0; d < 40; d++) {
            CHECK(quiet.out.at(0, 13, 0, d) == loud.out.at(0, 13, 0, d));
            CHECK(quiet.out.at(0, 13, 0, d) == lone.out.at(0, 0, 0, d));
        }
        CHECK(std::isnan(loud.out.at(0, 14, 0, 0)));
    }
}

TEST_CASE("sdpa: what lies beyond a row's key length is not read", "[ops][sdpa]")
{
    for (unsigned isa : every_isa()) {
        Run run(isa);
        Call c({1, 20, 100, 1, 1, 8, 8, HD_BF16});
        c.key_len = {37};
        for (int64_t j = 37; j < 100; j++)
            for (int64_t d = 0; d < 8; d++) {
                c.k.set(0, j, 0, d, std::nanf(""));
                c.v.set(0, j, 0, d, std::nanf(""));
            }
        hd_sdpa a = c.args();
        REQUIRE_OK(hd_sdpa_run(&run, &a));
        check_against_f64(c);
    }
}

TEST_CASE("sdpa: the dry pass finds what the real one needs, linear in the tokens", "[ops][sdpa]")
{
    for (unsigned isa : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            Run run(isa, 2);
            size_t peak[3];
            for (int i = 0; i < 3; i++) {
                const int64_t l = (int64_t)1024 << i;
                hd_arena *arena = nullptr;
                REQUIRE_OK(hd_arena_create_measuring(&arena));
                hd_exec dry = run.exec;
                dry.arena = arena, dry.recording = true;
                hd_sdpa a{};
                a.q = a.k = a.v = a.out =
                    hd_tensor_of((void *)64, dtype, hd_shape4(1, l, 2, 40)); // must not be touched
                a.scale = 1.0f;
                REQUIRE_OK(hd_sdpa_run(&dry, &a));
                peak[i] = hd_arena_peak_bytes(arena);
                hd_arena_free(arena);
            }
            CHECK(peak[1] <= 2 * peak[0]);
            CHECK(peak[2] <= 2 * peak[1]);
            CHECK(peak[2] < (size_t)4 << 20);

            hd_arena *exact = nullptr;
            REQUIRE_OK(hd_arena_create(&exact, peak[0]));
            hd_exec real = run.exec;
            real.arena = exact;
            Call c({1, 1024, 1024, 2, 2, 40, 40, dtype});
            hd_sdpa a = c.args();
            if (isa != HD_CPU) CHECK(hd_sdpa_run(&real, &a) == HD_OK);
            hd_arena_free(exact);
            REQUIRE_OK(hd_arena_create(&exact, peak[0] - 64));
            real.arena = exact;
            CHECK_FAILS(hd_sdpa_run(&real, &a), HD_ERR_NOMEM, "the arena is full");
            hd_arena_free(exact);
        }
}

TEST_CASE("sdpa: no queries is no work", "[ops][sdpa]")
{
    Run run;
    Call c({1, 0, 5, 1, 1, 8, 8});
    float nothing = 0.0f;
    hd_sdpa a = c.args(false);
    a.q.data = a.out.data = &nothing;
    REQUIRE_OK(hd_sdpa_run(&run, &a));
    CHECK(c.visited == 0);
}

TEST_CASE("sdpa: what does not fit is refused with both shapes", "[ops][sdpa]")
{
    Run run;
    Call c({2, 10, 20, 4, 2, 8, 8});
    hd_sdpa a = c.args();
    a.k = hd_tensor_slice(a.k, 3, 0, 7);
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE,
                "sdpa: k is [2, 20, 2, 7] f32, expected [2, 20, 2, 8] f32");
    a = c.args();
    a.v = hd_tensor_slice(a.v, 1, 0, 19);
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "sdpa: v is [2, 19, 2, 8] f32");
    a = c.args();
    a.v.dtype = HD_BF16;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "v is [2, 20, 2, 8] bf16, expected");
    a = c.args();
    a.q.dtype = HD_F16;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED, "q is f16, must be f32 or bf16");
    a = c.args();
    a.q.rank = 3;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "expected 4 axes [B, L, H, D]");
    a = c.args();
    a.q.dim[2] = 3, a.out.dim[2] = 3;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE,
                "3 query heads cannot share 2 key heads evenly");
    a = c.args();
    a.q.stride[3] = 2;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "q: the stride of its last axis is 2");
    a = c.args();
    a.out.data = nullptr;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_NOMEM, "sdpa: out has no memory");
    a = c.args();
    const int64_t too_long[] = {20, 21}, none[] = {0, 20};
    a.key_len = too_long;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "key_len[1] is 21, must be 1 to 20");
    a.key_len = none;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "key_len[0] is 0, must be 1 to 20");
}

TEST_CASE("sdpa: bias, mask, lse and plan that do not fit are refused", "[ops][sdpa]")
{
    Run run;
    Call c({2, 10, 20, 4, 2, 8, 8});
    std::vector<float> data(2 * 4 * 10 * 20);
    hd_sdpa a = c.args();
    a.bias = hd_tensor_of(data.data(), HD_F32, hd_shape4(3, 1, 1, 20));
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE,
                "bias is [3, 1, 1, 20] f32, expected [2, 4, 10, 20] f32");
    a.bias = hd_tensor_of(data.data(), HD_BF16, hd_shape4(1, 1, 1, 20));
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "bias is [1, 1, 1, 20] bf16");
    a = c.args();
    a.mask = hd_tensor_of(data.data(), HD_BOOL, hd_shape4(1, 1, 10, 1));
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "mask is [1, 1, 10, 1] bool");
    a = c.args();
    a.lse.dim[2] = 9;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "lse is [2, 4, 9] f32");

    const int64_t starts[] = {0, 2};
    const hd_visit twice[] = {{1, HD_VISIT_FULL}, {1, HD_VISIT_FULL}};
    const hd_visit beyond[] = {{0, HD_VISIT_FULL}, {2, HD_VISIT_FULL}};
    hd_plan plan = {};
    plan.query_tile = 16, plan.key_tile = 10, plan.heads = 1, plan.query_tiles = 1;
    plan.query_ranks = 10, plan.key_ranks = 20, plan.key_tiles = 2, plan.orders = 1,
    plan.row_start = starts, plan.visit = twice;
    const hd_plan *const plans[] = {&plan, &plan};
    a = c.args();
    a.plan = plans;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "visits key tile 1 after 1");
    plan.visit = beyond;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "must ascend and stay below 2");
    plan.query_tiles = 2;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_SHAPE, "2 query tiles of 16 for 10 ranks");
    plan.key_tile = 0;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_ARGUMENT, "tiles are 16 x 0, must be positive");
}
