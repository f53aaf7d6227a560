#include "support/safetensors.h"

#include <cstdint>

std::string raw_file(const std::string &header, const std::string &data)
{
    std::string file;
    for (int i = 0; i < 8; i++)
        file += (char)((uint64_t)header.size() >> (8 * i));
    return file + header + data;
}

std::string raw_safetensors(const std::vector<RawTensor> &tensors, const std::string &metadata)
{
    std::string header = "{", data;
    if (!metadata.empty()) header += "\"__metadata__\":" + metadata;
    for (const RawTensor &t : tensors) {
        if (header.size() > 1) header += ",";
        header += "\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[";
        for (size_t i = 0; i < t.shape.size(); i++)
            header += (i ? "," : "") + std::to_string(t.shape[i]);
        header += "],\"data_offsets\":[" + std::to_string(data.size()) + ",";
        data += t.bytes;
        header += std::to_string(data.size()) + "]}";
    }
    return raw_file(header + "}", data);
}

RawTensor raw_f32(const std::string &name, const std::vector<int64_t> &shape,
                  const std::vector<float> &values)
{
    return {name, "F32", shape,
            std::string((const char *)values.data(), values.size() * sizeof values[0])};
}
