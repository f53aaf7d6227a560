/* tests/support/fixture.h: reads the checked-in answers: a small safetensors reader of its own, so
 * that a bug in ours cannot hide in both. */
#ifndef HD_TESTS_SUPPORT_FIXTURE_H
#define HD_TESTS_SUPPORT_FIXTURE_H

#include <map>
#include <string>
#include <vector>

#include "base/tensor.h"

/* A tensor with memory of its own. */
struct FixtureTensor {
    std::vector<char> bytes;
    hd_dtype dtype = HD_F32;
    std::vector<int64_t> shape;

    hd_tensor view();
    const float *f32() const; // requires dtype F32
    const int64_t *i64() const;
    int64_t count() const;
};

using Fixture = std::map<std::string, FixtureTensor>;

/* `path` is relative to tests/fixtures. Throws std::runtime_error that names the file. */
Fixture fixture_open(const std::string &path);
std::string fixture_path(const std::string &path);
std::string source_path(const std::string &path); // relative to the checkout
std::string heddle_program();                     // the built command line
std::string fixture_text(const std::string &path);

/* max |a - b| / max |b|: the measure of every parity test. */
double relative_error(const float *a, const float *b, int64_t count);

#endif
