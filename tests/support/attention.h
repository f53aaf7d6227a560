/* tests/support/attention.h: attention calls with processors made on the spot, and what they ought
 * to compute, in f64. */
#ifndef HD_TESTS_SUPPORT_ATTENTION_H
#define HD_TESTS_SUPPORT_ATTENTION_H

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/attention/run.h"
#include "support/catch.h"
#include "support/run.h"

/* A processor class whose hooks are functions of the test. A hook that is not set is not there. */
struct TestClass {
    std::string name;
    unsigned edits = 0;
    bool static_plan = false;
    std::function<hd_status(hd_prepare_ctx *)> prepare;
    std::function<hd_status(const hd_hook_ctx *, int, hd_pass *)> pass;
    std::function<hd_status(const hd_hook_ctx *, hd_tokens *)> tokens;
    std::function<hd_status(const hd_hook_ctx *, hd_logits *)> logits;
    std::function<hd_status(const hd_hook_ctx *, hd_tensor)> probe;
    std::function<hd_status(const hd_hook_ctx *, const hd_tokens *, const hd_plan **)> plan;
    std::function<hd_status(const hd_hook_ctx *, hd_attention_map *)> map;
    std::function<hd_status(const hd_hook_ctx *, hd_attention_output *)> output;
    bool releases = false; // prepare makes a TestMade
    std::function<hd_status(void)> check;
    std::function<void(void)> clear;
};

/* What a prepare of a test class may put into `made` (with new): told when it is released. */
struct TestMade {
    std::function<void()> released;
};

/* The list of some test classes, as the engine wants it. Lives as long as it is used. */
class TestList
{
  public:
    explicit TestList(std::vector<TestClass> classes);
    ~TestList();
    TestList(const TestList &) = delete;
    TestList &operator=(const TestList &) = delete;
    operator const hd_processor_list *() const
    {
        return &list_;
    }

  private:
    std::vector<TestClass> classes_;
    std::vector<std::unique_ptr<hd_processor_class>> made_;
    std::vector<const hd_processor_class *> item_;
    hd_processor_list list_{};
};

/* A run from JSON text: an object with "processors". */
struct TestRun {
    hd_json_doc *doc = nullptr;
    hd_attention_run *run = nullptr;
    hd_status status;

    TestRun(const hd_processor_list *list, const std::string &json, int64_t steps = 10);
    ~TestRun();
    TestRun(const TestRun &) = delete;
    TestRun &operator=(const TestRun &) = delete;
    std::string chain(int64_t site = 0) const;
};

/* A call over random q, k, v, with everything it points to. Rows are main/uncond and main/cond of
 * picture 0, 1 ... in turn. */
struct TestCall {
    int64_t B, Lq, Lk, H, D;
    std::vector<float> q, k, v, x, out;
    std::vector<hd_row> rows;
    hd_forward forward{};
    hd_attention_call call{};

    TestCall(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim,
             uint64_t seed = 1);
    TestCall(const TestCall &) = delete;
    TestCall &operator=(const TestCall &) = delete;

    /* The dry pass, which resolves the site; then the arena's size is known and used by act(). */
    hd_status dry(TestRun &run);
    hd_status try_act(TestRun &run, int64_t step = 0, int threads = 1,
                      unsigned isa = hd_cpu_features());
    std::vector<float> act(TestRun &run, int64_t step = 0);

  private:
    size_t arena_ = 1 << 20;
};

/* softmax of the scores of one row, head and query, as `score` gives them (-HUGE_VAL: not seen),
 * over `keys` keys. */
std::vector<double> softmax_f64(int64_t keys, const std::function<double(int64_t)> &score);

/* The call's own scaled score. */
double score_f64(const TestCall &c, int64_t b, int64_t h, int64_t i, int64_t j);

/* Every output of row b from weights [H][Lq] -> [Lk]: the largest difference. */
double error_f64(const TestCall &c, const std::vector<float> &out, int64_t b,
                 const std::function<std::vector<double>(int64_t h, int64_t i)> &weights,
                 const std::function<double(int64_t j, int64_t h, int64_t d)> &value = nullptr);

#endif
