/* tests/support/planning.h: an accelerator's plan hook on its own: parameters from JSON, prepare,
 * one call's plans, and what attention over such a plan gives, in f64. */
#ifndef HD_TESTS_SUPPORT_PLANNING_H
#define HD_TESTS_SUPPORT_PLANNING_H

#include <memory>
#include <string>
#include <vector>

#include "engine/attention/processor.h"
#include "support/plan.h"
#include "support/values.h"

/* q, k, v of a self-attention call: a grid with text before and behind it. */
struct PlanInput {
    int64_t rows, heads, dim, tokens, text_before, text_behind;
    hd_dtype dtype;
    Values q, k, v;
    std::vector<hd_row> names;
    hd_forward forward{};
    hd_attention_call call{};

    struct Shape {
        int64_t rows = 1, heads = 1, dim = 8, frames = 1, height = 8, width = 8, text_before = 0,
                text_behind = 0, key_heads = 0; // 0: heads
        hd_dtype dtype = HD_F32;
        uint64_t seed = 1;
    };
    explicit PlanInput(const Shape &shape);
    PlanInput(const PlanInput &) = delete;
    PlanInput &operator=(const PlanInput &) = delete;

    /* Numbers of one row and head, token after token, `dim` of each. */
    static void put(Values &x, int64_t row, int64_t head, const std::vector<double> &numbers);
    double q_at(int64_t row, int64_t token, int64_t head, int64_t d) const;
    double k_at(int64_t row, int64_t token, int64_t head, int64_t d) const;
    double v_at(int64_t row, int64_t token, int64_t head, int64_t d) const;
};

class Planning
{
  public:
    /* Reads, checks and prepares; `status` says how that went. json: an object, without "use" and
     * the engine's fields; rest: the class's own if none is given. */
    Planning(const hd_processor_class &kind, const std::string &json, PlanInput &input,
             const hd_plan_rest *rest = nullptr);
    ~Planning();
    Planning(const Planning &) = delete;
    Planning &operator=(const Planning &) = delete;

    /* The plans of all rows; borrowed until the next call. Fails the test if the hook does. */
    std::vector<const hd_plan *> plan(const hd_exec *ex, int64_t step = 0);
    PlanMeaning meaning(const hd_exec *ex, int64_t row = 0, int64_t head = 0, int64_t step = 0);

    hd_status status = HD_OK;
    std::string message; // of a failure
    hd_prepare_ctx prepared{};
    std::vector<char> active; // [rows], 1 unless a test says otherwise

  private:
    struct Free {
        void operator()(void *p) const;
    };
    const hd_processor_class &kind_;
    PlanInput &input_;
    hd_json_doc *doc_ = nullptr;
    std::unique_ptr<void, Free> params_, scratch_;
    std::vector<std::unique_ptr<void, Free>> state_;
};

/* What the whole attention call gives with some processors (a JSON array, of 10 steps), [rows]
 * [tokens][heads][dim]. Fails the test if they are refused. */
std::vector<double> attention_by(PlanInput &input, const hd_processor_list *list,
                                 const std::string &processors, int64_t step = 0);

/* What stands for a tile that is not seen. */
struct ProxyForm {
    bool counted = true;        // ln(tokens) is added to its score
    std::vector<int64_t> token; // [tiles]: a token of it; empty: the mean
    bool value_too = true;      // the token's value, too; else the mean
    double clip = 0.0;          // most that half the variance of the scores adds
};

/* Attention over a meaning, [tokens][dim]: keys that are seen and, where the meaning has proxies,
 * one key and value per tile. */
std::vector<double> attention_over(const PlanInput &input, const PlanMeaning &meaning,
                                   int64_t row = 0, int64_t head = 0, const ProxyForm &form = {});
/* The weights of all keys for every query, dense: [tokens][tokens]. */
std::vector<std::vector<double>> attention_map(const PlanInput &input, int64_t row = 0,
                                               int64_t head = 0);
/* The mean over queries of the weight, in a dense map, of what they see. */
double retained_mass(const std::vector<std::vector<double>> &map, const PlanMeaning &meaning);
/* The same where everything is seen. */
std::vector<double> dense_attention(const PlanInput &input, int64_t row = 0, int64_t head = 0);
/* sum |a - b| / sum |b| */
double relative_l1(const std::vector<double> &a, const std::vector<double> &b);

#endif
