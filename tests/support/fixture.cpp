#include "support/fixture.h"

#include <cJSON.h>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

std::string fixture_path(const std::string &path)
{
    return source_path("tests/fixtures/" + path);
}

std::string source_path(const std::string &path)
{
    return std::string(HD_SOURCE_DIR) + "/" + path;
}

std::string heddle_program()
{
    return HD_HEDDLE;
}

std::string fixture_text(const std::string &path)
{
    std::ifstream in(fixture_path(path), std::ios::binary);
    if (!in) throw std::runtime_error("no fixture " + fixture_path(path));
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
}

static hd_dtype dtype_of(const std::string &name)
{
    static const std::map<std::string, hd_dtype> names = {
        {"F32", HD_F32}, {"BF16", HD_BF16}, {"F16", HD_F16},  {"F64", HD_F64}, {"I8", HD_I8},
        {"U8", HD_U8},   {"I16", HD_I16},   {"U16", HD_U16},  {"I32", HD_I32}, {"U32", HD_U32},
        {"I64", HD_I64}, {"U64", HD_U64},   {"BOOL", HD_BOOL}};
    auto found = names.find(name);
    if (found == names.end()) throw std::runtime_error("fixture of type " + name);
    return found->second;
}

Fixture fixture_open(const std::string &path)
{
    std::string text = fixture_text(path);
    uint64_t header = 0;
    memcpy(&header, text.data(), sizeof header);
    cJSON *root = cJSON_ParseWithLength(text.data() + 8, header);
    if (!root) throw std::runtime_error("damaged fixture " + path);
    Fixture out;
    for (cJSON *item = root->child; item; item = item->next) {
        if (std::string(item->string) == "__metadata__") continue;
        FixtureTensor t;
        t.dtype = dtype_of(cJSON_GetObjectItem(item, "dtype")->valuestring);
        for (cJSON *d = cJSON_GetObjectItem(item, "shape")->child; d; d = d->next)
            t.shape.push_back((int64_t)d->valuedouble);
        cJSON *range = cJSON_GetObjectItem(item, "data_offsets")->child;
        size_t from = (size_t)range->valuedouble, to = (size_t)range->next->valuedouble;
        const char *data = text.data() + 8 + header;
        t.bytes.assign(data + from, data + to);
        out[item->string] = std::move(t);
    }
    cJSON_Delete(root);
    return out;
}

int64_t FixtureTensor::count() const
{
    int64_t n = 1;
    for (int64_t d : shape)
        n *= d;
    return n;
}

hd_tensor FixtureTensor::view()
{
    hd_shape s = {(int)shape.size(), {}};
    for (size_t i = 0; i < shape.size(); i++)
        s.dim[i] = shape[i];
    return hd_tensor_of(bytes.data(), dtype, s);
}

const float *FixtureTensor::f32() const
{
    if (dtype != HD_F32) throw std::runtime_error("fixture tensor is not f32");
    return reinterpret_cast<const float *>(bytes.data());
}

const int64_t *FixtureTensor::i64() const
{
    if (dtype != HD_I64) throw std::runtime_error("fixture tensor is not i64");
    return reinterpret_cast<const int64_t *>(bytes.data());
}

double relative_error(const float *a, const float *b, int64_t count)
{
    double worst = 0, top = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = std::fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; // NaN counts
        top = std::fmax(top, std::fabs((double)b[i]));
    }
    return top > 0 ? worst / top : worst;
}
