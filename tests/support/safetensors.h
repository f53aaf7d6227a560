/* tests/support/safetensors.h: makes the bytes of .safetensors files, sound and hostile, without
 * the library's own writer. */
#ifndef HD_TESTS_SUPPORT_SAFETENSORS_H
#define HD_TESTS_SUPPORT_SAFETENSORS_H

#include <string>
#include <vector>

struct RawTensor {
    std::string name, dtype; // "F32" ...
    std::vector<int64_t> shape;
    std::string bytes;
};

/* Length, header, data: the three parts as they are. */
std::string raw_file(const std::string &header, const std::string &data);
/* A sound file of these tensors, one after the other. */
std::string raw_safetensors(const std::vector<RawTensor> &tensors,
                            const std::string &metadata = "");
/* An F32 tensor of `values`. */
RawTensor raw_f32(const std::string &name, const std::vector<int64_t> &shape,
                  const std::vector<float> &values);

#endif
