/* tests/pipelines/runner.h: a run through the public API, in a folder of its own. */
#ifndef HD_TESTS_PIPELINES_RUNNER_H
#define HD_TESTS_PIPELINES_RUNNER_H

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "heddle.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"

using ResultPtr = std::unique_ptr<hd_result, void (*)(hd_result *)>;

struct Context {
    hd_context *context = nullptr;
    explicit Context(int threads = 2)
    {
        hd_context_options options = {threads};
        REQUIRE_OK(hd_context_create(&context, &options));
    }
    ~Context()
    {
        hd_context_free(context);
    }
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;

    hd_status try_run(const std::string &json, ResultPtr &result,
                      const hd_callbacks *callbacks = nullptr)
    {
        hd_result *r = nullptr;
        hd_status status = hd_context_run(context, json.c_str(), "test.json", callbacks, &r);
        result.reset(r);
        return status;
    }
    ResultPtr run(const std::string &json, const hd_callbacks *callbacks = nullptr)
    {
        ResultPtr result(nullptr, hd_result_free);
        REQUIRE_OK(try_run(json, result, callbacks));
        return result;
    }
};

inline std::string starter()
{
    return "\"model\": \"" + source_path("models/starter-image") + "\"";
}

inline std::vector<uint8_t> pixels(const hd_result *result, int index)
{
    const hd_picture *p = hd_result_picture(result, index);
    return std::vector<uint8_t>(p->rgb, p->rgb + (size_t)p->width * (size_t)p->height * 3);
}

inline double psnr(const uint8_t *a, const uint8_t *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum == 0 ? 99.0 : 10.0 * std::log10(255.0 * 255.0 * (double)count / sum);
}

#endif
