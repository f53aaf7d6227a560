// The comparison of attention layers: figures of a plan whose truth is computed in f64 beside it,
// through the engine's own call; rows that are refused; stops.
#include <cmath>
#include <string>

#include "benchmark/attention.h"
#include "benchmark/errors.h"
#include "engine/attention/planner/builder.h"
#include "support/catch.h"
#include "support/run.h"

namespace
{

/* An accelerator that lives here: tiles of 8, each query tile sees its own key tile and the next
 * one, half of which a column mask hides. */
struct Near {
    bool refuse;
};

const hd_param near_params[] = {
    HD_PARAM_BOOL(Near, refuse, .def = 0, .help = "refuse every site"),
    HD_PARAM_END,
};

hd_status near_prepare(hd_prepare_ctx *ctx)
{
    if (static_cast<const Near *>(ctx->params)->refuse)
        return hd_fail(HD_ERR_ARGUMENT, "it was told to");
    const int64_t tokens = ctx->call->q.dim[1];
    auto *b = static_cast<hd_plan_builder *>(calloc(1, sizeof(hd_plan_builder)));
    hd_plan_builder_init(b, nullptr, 0);
    ctx->made = b;
    b->plan = {};
    b->plan.query_tile = b->plan.key_tile = 8;
    b->plan.query_tiles = b->plan.key_tiles = tokens / 8;
    b->plan.query_ranks = b->plan.key_ranks = tokens;
    b->plan.orders = b->plan.heads = 1;
    HD_TRY(hd_plan_begin(b, 16, 16, HD_PLAN_COLUMN_MASKS));
    for (int64_t t = 0; t < tokens / 8; t++) {
        HD_TRY(hd_plan_add(b, t, HD_VISIT_FULL));
        if (t + 1 < tokens / 8) {
            int32_t mask;
            uint64_t *row, *column;
            HD_TRY(hd_plan_mask(b, &mask, &row, &column));
            column[0] = 0x0f;
            HD_TRY(hd_plan_add(b, t + 1, mask));
        }
        hd_plan_close_row(b);
    }
    return hd_plan_end(b);
}

hd_status near_plan(const hd_hook_ctx *ctx, const hd_tokens *, const hd_plan **plan)
{
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++)
        plan[b] = &static_cast<hd_plan_builder *>(ctx->made)->plan;
    return HD_OK;
}

void near_release(void *made)
{
    if (made) hd_plan_builder_free(static_cast<hd_plan_builder *>(made));
    free(made);
}

const hd_processor_class near_class = [] {
    hd_processor_class c = {};
    c.name = "near";
    c.summary = "sees its own tile and half of the next";
    c.params = near_params;
    c.params_size = sizeof(Near);
    c.prepare = near_prepare;
    c.plan = near_plan;
    c.release = near_release;
    return c;
}();

const hd_processor_class *const classes[] = {&near_class};
const hd_processor_list list = {1, classes};

bool sees(int64_t q, int64_t k)
{
    return k / 8 == q / 8 || (k / 8 == q / 8 + 1 && k % 8 < 4);
}

struct Truth {
    double mass = 0, rel_l1 = 0, cosine = 0, pairs = 0;
};

// Attention with and without the plan, in f64.
Truth truth_of(const hd_bench_inputs &in)
{
    const int64_t tokens = in.q.dim[1], heads = in.q.dim[2], dim = in.q.dim[3];
    auto value = [&](hd_tensor t, int64_t token, int64_t head, int64_t d) {
        return (double)static_cast<float *>(t.data)[(token * heads + head) * dim + d];
    };
    Truth truth;
    double difference = 0, size = 0, aa = 0, bb = 0, ab = 0;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < tokens; i++) {
            double all = 0, seen = 0;
            std::vector<double> dense((size_t)dim), sparse((size_t)dim);
            for (int64_t j = 0; j < tokens; j++) {
                double s = 0;
                for (int64_t d = 0; d < dim; d++)
                    s += value(in.q, i, h, d) * value(in.k, j, h, d);
                const double p = std::exp(s / std::sqrt((double)dim));
                all += p;
                truth.pairs += sees(i, j);
                if (sees(i, j)) seen += p;
                for (int64_t d = 0; d < dim; d++) {
                    dense[(size_t)d] += p * value(in.v, j, h, d);
                    if (sees(i, j)) sparse[(size_t)d] += p * value(in.v, j, h, d);
                }
            }
            truth.mass += seen / all / (double)(tokens * heads);
            for (int64_t d = 0; d < dim; d++) {
                const double x = sparse[(size_t)d] / seen, y = dense[(size_t)d] / all;
                difference += std::fabs(x - y), size += std::fabs(y);
                aa += x * x, bb += y * y, ab += x * y;
            }
        }
    truth.rel_l1 = difference / size;
    truth.cosine = ab / std::sqrt(aa * bb);
    return truth;
}

struct Comparison {
    Run run{hd_cpu_features(), 2};
    hd_bench_shape shape{};
    hd_bench_inputs inputs{};
    hd_bench_rows rows{};
    hd_bench_report report{};

    Comparison(const char *rows_text, int64_t text = 0)
    {
        shape.network = HD_NETWORK_DIT;
        shape.grid[0] = 1, shape.grid[1] = 8, shape.grid[2] = 8;
        std::copy(shape.grid, shape.grid + 3, shape.base);
        shape.scale = 1, shape.heads = 3, shape.head_dim = 16, shape.text = text;
        REQUIRE_OK(hd_bench_inputs_field(&inputs, &run, &shape, HD_F32, 6, 11));
        REQUIRE_OK(hd_bench_rows_read(&rows, rows_text, &shape, false, &list));
    }
    ~Comparison()
    {
        hd_bench_report_free(&report);
        hd_bench_rows_free(&rows);
        hd_bench_inputs_free(&inputs);
    }
    hd_status measure(hd_bench_progress progress = nullptr, void *user = nullptr)
    {
        hd_bench_attention_options o = {};
        o.shape = &shape, o.inputs = &inputs, o.rows = &rows, o.list = &list, o.ex = &run;
        o.repeats = 2, o.progress = progress, o.user = user;
        return hd_bench_attention(&report, &o);
    }
};

} // namespace

TEST_CASE("bench attention: figures are those of the plan", "[bench]")
{
    Comparison c("near");
    REQUIRE_OK(c.measure());
    REQUIRE(c.report.count == 2);
    const Truth truth = truth_of(c.inputs);
    const double all = 64.0 * 64 * 3, flops = 2.0 * (16 + 16);
    const double *dense = c.report.result[0].figure, *near = c.report.result[1].figure;
    CHECK(dense[HD_BENCH_DENSITY] == 1);
    CHECK(dense[HD_BENCH_RATIO] == 1);
    CHECK(dense[HD_BENCH_REL_L1] == 0);
    CHECK(dense[HD_BENCH_MASS] == 1);
    CHECK(dense[HD_BENCH_EXECUTED] == all * flops);
    CHECK(near[HD_BENCH_USEFUL] == truth.pairs * flops);
    CHECK(near[HD_BENCH_EXECUTED] == (8 + 7) * 64.0 * 3 * flops); // entries as a whole
    CHECK(near[HD_BENCH_DENSITY] == Approx((8 + 7) / 64.0));
    CHECK(near[HD_BENCH_IDEAL] == Approx(all / truth.pairs));
    CHECK(near[HD_BENCH_MASS] == Approx(truth.mass).epsilon(1e-4));
    CHECK(near[HD_BENCH_REL_L1] == Approx(truth.rel_l1).epsilon(1e-4));
    CHECK(near[HD_BENCH_COSINE] == Approx(truth.cosine).epsilon(1e-5));
    for (auto figure : {HD_BENCH_MS_MIN, HD_BENCH_MS_MEDIAN, HD_BENCH_RATIO, HD_BENCH_GFLOPS})
        CHECK(near[figure] > 0);
    CHECK(near[HD_BENCH_MS_MIN] <= near[HD_BENCH_MS_MEDIAN]);
    CHECK(near[HD_BENCH_PLAN_MS] >= 0);
    CHECK(near[HD_BENCH_PLAN_MS] <= near[HD_BENCH_MS_MEDIAN]);
    CHECK(near[HD_BENCH_SETUP_MS] > 0);
}

TEST_CASE("bench attention: proxies count as nothing retained", "[bench]")
{
    Comparison with(R"([{"use": "near", "rest": "proxy"}])"), without("near");
    REQUIRE_OK(with.measure());
    REQUIRE_OK(without.measure());
    INFO(with.report.result[1].why);
    REQUIRE(with.report.result[1].status == HD_OK);
    const double *a = with.report.result[1].figure, *b = without.report.result[1].figure;
    CHECK(a[HD_BENCH_MASS] == Approx(b[HD_BENCH_MASS]).epsilon(1e-4));
    CHECK(a[HD_BENCH_REL_L1] < b[HD_BENCH_REL_L1]);
    CHECK(a[HD_BENCH_EXECUTED] > b[HD_BENCH_EXECUTED]);
}

TEST_CASE("bench attention: a row that is refused leaves the others", "[bench]")
{
    Comparison c(R"([{"use": "near", "refuse": true, "name": "no"}, {"use": "near"}])");
    REQUIRE_OK(c.measure());
    REQUIRE(c.report.count == 3);
    CHECK(c.report.result[1].status == HD_ERR_ARGUMENT);
    CHECK(std::string(c.report.result[1].why).find("it was told to") != std::string::npos);
    CHECK(c.report.result[2].status == HD_OK);
}

TEST_CASE("bench attention: a stop keeps the rows that are done", "[bench]")
{
    static bool stopped;
    stopped = false;
    Comparison c("near");
    c.run.exec.cancelled = [](void *) { return stopped; };
    CHECK_FAILS(c.measure(
                    [](void *, const char *label, int step, int) {
                        if (std::string(label) == "near" && step == 1) stopped = true;
                    },
                    nullptr),
                HD_ERR_CANCELLED, "");
    CHECK(c.report.count == 1);
    CHECK(std::string(c.report.result[0].label) == "dense");
}
