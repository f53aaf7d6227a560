// What a network declares against what files hold; what comes out of packing; failures half way.
#include "engine/weights/binder.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <unistd.h>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/folder.h"
#include "support/run.h"
#include "support/safetensors.h"

namespace
{
const hd_conv_spec padded = {1, 1, 1, 1, 1}, pointwise = {1, 0, 0, 0, 0};

// A tensor whose values are made from its name and can be made again; exact in every type.
float value_of(const std::string &name, int64_t i)
{
    return (float)((int)((i * 7 + (int64_t)name.size() * 3 + name[0]) % 33) - 16) / 8;
}

RawTensor tensor(const std::string &name, const std::vector<int64_t> &shape,
                 const std::string &dtype = "F32")
{
    int64_t count = 1;
    for (int64_t d : shape)
        count *= d;
    RawTensor t{name, dtype, shape, ""};
    for (int64_t i = 0; i < count; i++) {
        float v = value_of(name, i);
        hd_bf16 bf16 = hd_bf16_from_f32(v);
        hd_f16 f16 = hd_f16_from_f32(v);
        if (dtype == "F32") t.bytes.append((char *)&v, sizeof v);
        if (dtype == "BF16") t.bytes.append((char *)&bf16, sizeof bf16);
        if (dtype == "F16") t.bytes.append((char *)&f16, sizeof f16);
        if (dtype == "I8") t.bytes += (char)i;
        if (dtype == "I64") t.bytes.append(8, 0);
    }
    return t;
}

struct Network {
    hd_linear *proj = nullptr, *qkv = nullptr;
    hd_conv *conv = nullptr, *shortcut = nullptr;
    float *gamma = nullptr, *beta = nullptr, *vector = nullptr, *table = nullptr;
    hd_binder *binder = nullptr;

    Network()
    {
        REQUIRE(declare() == HD_OK);
    }
    explicit Network(hd_status &status)
    {
        status = declare();
    }
    hd_status declare()
    {
        static const char *const parts[] = {"to_q", "to_k", "to_v"};
        static const int64_t outs[] = {64, 32, 32};
        HD_TRY(hd_binder_create(&binder));
        hd_bind_linear(binder, &proj, "proj", 48, 80, true);
        hd_bind_linears(binder, &qkv, "attn", 3, parts, 48, outs, true);
        hd_bind_conv(binder, &conv, "conv", 16, 24, 3, padded, true);
        hd_bind_conv(binder, &shortcut, "shortcut", 16, 24, 1, pointwise, false);
        hd_bind_norm(binder, &gamma, &beta, "norm", 48);
        hd_bind_vector(binder, &vector, "class_embedding", 10);
        hd_bind_table(binder, &table, "embeddings.weight", 50, 6);
        hd_bind_ignore(binder, "*.position_ids");
        hd_bind_ignore(binder, "logit_scale");
        return HD_OK;
    }
    ~Network()
    {
        free_parts();
        hd_binder_free(binder);
    }
    void free_parts()
    {
        hd_linear_free(proj);
        hd_linear_free(qkv);
        hd_conv_free(conv);
        hd_conv_free(shortcut);
        for (float *p : {gamma, beta, vector, table})
            free(p);
    }
    bool empty() const
    {
        return !proj && !qkv && !conv && !shortcut && !gamma && !beta && !vector && !table;
    }
};

// Everything that Network wants, and what it ignores.
std::vector<RawTensor> sound(const std::string &dtype = "F32")
{
    return {tensor("table.position_ids", {1, 7}, "I64"),
            tensor("logit_scale", {}, "F32"),
            tensor("proj.weight", {80, 48}, dtype),
            tensor("proj.bias", {80}, dtype),
            tensor("attn.to_q.weight", {64, 48}, dtype),
            tensor("attn.to_k.weight", {32, 48, 1, 1}, dtype), // as a 1x1 convolution
            tensor("attn.to_v.weight", {32, 48, 1}, dtype),
            tensor("attn.to_q.bias", {64}, dtype),
            tensor("attn.to_k.bias", {32}, dtype),
            tensor("attn.to_v.bias", {32}, dtype),
            tensor("conv.weight", {24, 16, 3, 3}, dtype),
            tensor("conv.bias", {24}, dtype),
            tensor("shortcut.weight", {24, 16}, dtype), // as a matrix
            tensor("norm.weight", {48}, dtype),
            tensor("norm.bias", {48}, dtype),
            tensor("class_embedding", {10}, dtype),
            tensor("embeddings.weight", {50, 6}, dtype)};
}

using Weights = std::unique_ptr<hd_weights, void (*)(hd_weights *)>;

Weights open_weights(const std::string &path)
{
    hd_weights *w = nullptr;
    REQUIRE_OK(hd_weights_open(&w, path.c_str(), "model"));
    return Weights(w, hd_weights_free);
}

Weights write_weights(const Folder &folder, const std::vector<RawTensor> &tensors)
{
    folder.write("model.safetensors", raw_safetensors(tensors));
    return open_weights(folder.path());
}

hd_status load(Network &n, const Weights &w, const hd_exec *ex, hd_dtype compute = HD_F32)
{
    return hd_binder_load(n.binder, ex, w.get(), compute, nullptr, nullptr);
}

void check_floats(const char *name, const float *values, int64_t count)
{
    CAPTURE(name);
    REQUIRE(values);
    for (int64_t i = 0; i < count; i++)
        if (values[i] != value_of(name, i)) FAIL(i);
}

// y = x W^T + b of one token, row by row from the parts that the layer is made of.
void check_linear(const hd_exec *ex, const hd_linear *l, const std::vector<std::string> &parts,
                  const std::vector<int64_t> &outs)
{
    REQUIRE(l);
    std::vector<float> x(48), y((size_t)hd_linear_out(l));
    for (size_t i = 0; i < x.size(); i++)
        x[i] = value_of("x", (int64_t)i);
    REQUIRE_OK(
        hd_linear_run(ex, l, hd_tensor_of(y.data(), HD_F32, hd_shape3(1, 1, (int64_t)y.size())),
                      hd_tensor_of(x.data(), HD_F32, hd_shape3(1, 1, 48)), hd_tensor_none()));
    size_t at = 0;
    for (size_t p = 0; p < parts.size(); p++)
        for (int64_t o = 0; o < outs[p]; o++, at++) {
            double sum = (double)value_of(parts[p] + ".bias", o);
            for (int64_t i = 0; i < 48; i++)
                sum += (double)x[(size_t)i] * (double)value_of(parts[p] + ".weight", o * 48 + i);
            CAPTURE(parts[p], o);
            REQUIRE(std::fabs((double)y[at] - sum) < 1e-4);
        }
    CHECK(at == y.size());
}

// The middle pixel of a 3 x 3 picture.
void check_conv(const hd_exec *ex, const hd_conv *c, const std::string &name, int64_t kernel,
                bool bias)
{
    REQUIRE(c);
    std::vector<float> x(3 * 3 * 16), y(3 * 3 * 24);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = value_of("x", (int64_t)i);
    REQUIRE_OK(hd_conv_run(ex, c, hd_tensor_of(y.data(), HD_F32, hd_shape4(1, 3, 3, 24)),
                           hd_tensor_of(x.data(), HD_F32, hd_shape4(1, 3, 3, 16)), nullptr));
    for (int64_t o = 0; o < 24; o++) {
        double sum = bias ? (double)value_of(name + ".bias", o) : 0;
        for (int64_t i = 0; i < 16; i++)
            for (int64_t k = 0; k < kernel * kernel; k++) {
                int64_t pixel = kernel == 3 ? k : 4;
                sum += (double)x[(size_t)(pixel * 16 + i)] *
                       (double)value_of(name + ".weight", (o * 16 + i) * kernel * kernel + k);
            }
        CAPTURE(name, o);
        REQUIRE(std::fabs((double)y[4 * 24 + (size_t)o] - sum) < 1e-4);
    }
}

void check_loaded(const Network &n, const hd_exec *ex)
{
    check_floats("norm.weight", n.gamma, 48);
    check_floats("norm.bias", n.beta, 48);
    check_floats("class_embedding", n.vector, 10);
    check_floats("embeddings.weight", n.table, 300);
    check_linear(ex, n.proj, {"proj"}, {80});
    check_linear(ex, n.qkv, {"attn.to_q", "attn.to_k", "attn.to_v"}, {64, 32, 32});
    check_conv(ex, n.conv, "conv", 3, true);
    check_conv(ex, n.shortcut, "shortcut", 1, false);
}
} // namespace

TEST_CASE("binder: what was declared comes out packed, from every type", "[weights][threads]")
{
    Folder folder;
    auto dtype = GENERATE(as<std::string>{}, "F32", "F16", "BF16");
    auto threads = GENERATE(1, 2, 7);
    CAPTURE(dtype, threads);
    Run run(hd_cpu_features(), threads);
    Network n;
    REQUIRE(n.empty());
    REQUIRE_OK(load(n, write_weights(folder, sound(dtype)), &run));
    check_loaded(n, &run);
}

TEST_CASE("binder: shards in any order, and bf16 weights", "[weights]")
{
    Folder folder;
    Run run;
    auto all = sound();
    std::vector<RawTensor> even, odd;
    for (size_t i = 0; i < all.size(); i++)
        (i % 2 ? odd : even).push_back(all[all.size() - 1 - i]);
    folder.write("model-00001-of-00002.safetensors", raw_safetensors(even));
    folder.write("model-00002-of-00002.safetensors", raw_safetensors(odd));
    Weights w = open_weights(folder.path());
    Network n;
    REQUIRE_OK(load(n, w, &run));
    check_loaded(n, &run);
    if (!hd_exec_has(&run, HD_AVX512)) return;
    Network half;
    REQUIRE_OK(load(half, w, &run, HD_BF16));
    CHECK(hd_linear_compute(half.proj) == HD_BF16);
    CHECK(hd_linear_bytes(half.proj) < hd_linear_bytes(n.proj));
    check_floats("norm.weight", half.gamma, 48); // stays f32
}

TEST_CASE("binder: everything that does not fit is told at once", "[weights]")
{
    Folder folder;
    Run run;
    Network n;
    auto tensors = sound();
    auto find = [&](const std::string &name) -> RawTensor & {
        for (RawTensor &t : tensors)
            if (t.name == name) return t;
        throw std::runtime_error(name);
    };
    find("proj.bias").name = "proj.biases";
    find("conv.weight") = tensor("conv.weight", {24, 16, 3, 1});
    find("norm.weight") = tensor("norm.weight", {48}, "I8");
    find("attn.to_q.weight") = tensor("attn.to_q.weight", {64, 47, 1, 1});
    Weights w = write_weights(folder, tensors);
    CHECK(load(n, w, &run) == HD_ERR_FORMAT);
    CHECK(
        std::string(hd_message()) ==
        folder.path() +
            ": the weights do not fit the model's config: 1 tensor is missing: proj.bias [80]; "
            "1 is unexpected: proj.biases; 2 have another shape: attn.to_q.weight is [64, 47, 1, "
            "1], expected [64, 48], conv.weight is [24, 16, 3, 1], expected [24, 16, 3, 3]; 1 has "
            "another type: norm.weight is i8, expected f32, f16 or bf16");
    CHECK(n.empty());

    hd_weight_info none = {};
    CHECK_FAILS(hd_binder_check(n.binder, "names", 0, &none), HD_ERR_FORMAT,
                "names: the weights do not fit the model's config: 15 tensors are missing: "
                "attn.to_k.bias [32], attn.to_k.weight [32, 48], attn.to_q.bias [64]");
    CHECK(std::string(hd_message()).find(" ...") != std::string::npos);
    CHECK(std::string(hd_message()).find("proj.weight") == std::string::npos); // the fifteenth
}

TEST_CASE("binder: a thousand problems still make a message", "[weights]")
{
    Network n;
    std::vector<std::string> names;
    for (int i = 0; i < 1000; i++)
        names.push_back(std::string(300, 'x') + std::to_string(i));
    std::vector<hd_weight_info> infos;
    for (auto &name : names)
        infos.push_back({name.c_str(), "f", HD_F32, hd_shape1(1), 4, 0, 0});
    CHECK_FAILS(hd_binder_check(n.binder, "names", 1000, infos.data()), HD_ERR_FORMAT,
                "1000 are unexpected: xxx");
    CHECK(strlen(hd_message()) < 2000);
}

TEST_CASE("binder: a tensor may be wanted twice", "[weights]")
{
    Folder folder;
    Run run;
    hd_binder *b;
    float *one = nullptr, *two = nullptr;
    REQUIRE_OK(hd_binder_create(&b));
    hd_bind_vector(b, &one, "norm.weight", 48);
    hd_bind_vector(b, &two, "norm.weight", 48);
    Weights w = write_weights(folder, {tensor("norm.weight", {48})});
    REQUIRE_OK(hd_binder_load(b, &run, w.get(), HD_F32, nullptr, nullptr));
    check_floats("norm.weight", one, 48);
    check_floats("norm.weight", two, 48);
    CHECK(one != two);
    free(one);
    free(two);
    hd_binder_free(b);
}

TEST_CASE("binder: a declaration that is none is told when it is loaded", "[weights]")
{
    hd_weight_info none = {};
    hd_binder *b;
    float *dst;
    REQUIRE_OK(hd_binder_create(&b));
    hd_bind_vector(b, &dst, std::string(600, 'n').c_str(), 1);
    hd_bind_vector(b, &dst, "fine", 1);
    CHECK_FAILS(hd_binder_check(b, "names", 0, &none), HD_ERR_INTERNAL, "nnn... is too long");
    hd_binder_free(b);
    hd_binder_free(nullptr);
}

TEST_CASE("binder: progress comes to its end, and can stop the load", "[weights][threads]")
{
    struct Progress {
        int64_t calls = 0, last = 0, all = 0, stop_after = 0;
        static int call(void *arg, int64_t done, int64_t all)
        {
            auto *p = static_cast<Progress *>(arg);
            CHECK(done > p->last);
            p->last = done;
            p->all = all;
            return ++p->calls == p->stop_after;
        }
    };
    Folder folder;
    Run run(hd_cpu_features(), GENERATE(1, 3));
    Weights w = write_weights(folder, sound());
    Network n, stopped;
    Progress p, stop;
    REQUIRE_OK(hd_binder_load(n.binder, &run, w.get(), HD_F32, Progress::call, &p));
    CHECK(p.calls == 8);
    CHECK(p.last == p.all);
    stop.stop_after = 3;
    CHECK_FAILS(hd_binder_load(stopped.binder, &run, w.get(), HD_F32, Progress::call, &stop),
                HD_ERR_CANCELLED, "loading was cancelled");
    CHECK(stopped.empty());
}

TEST_CASE("binder: a file that is cut leaves nothing behind", "[weights]")
{
    Folder folder;
    Run run(hd_cpu_features(), 2);
    Weights w = write_weights(folder, sound());
    Network n;
    REQUIRE(truncate(folder.path("model.safetensors").c_str(), 30000) == 0);
    CHECK_FAILS(load(n, w, &run), HD_ERR_IO, "model.safetensors: ends at byte 30000");
    CHECK(std::string(hd_message()).find("while reading") != std::string::npos);
    CHECK(n.empty());
}

TEST_CASE("binder: the largest matrices, each once", "[weights]")
{
    Network n;
    int64_t shapes[4][2];
    REQUIRE(hd_binder_shapes(n.binder, 4, shapes) == 4);
    const int64_t expected[4][2] = {{48, 128}, {48, 80}, {144, 24}, {16, 24}};
    CHECK(memcmp(shapes, expected, sizeof expected) == 0);
    REQUIRE(hd_binder_shapes(n.binder, 2, shapes) == 2);
    CHECK(memcmp(shapes, expected, 2 * sizeof expected[0]) == 0);
    hd_binder *b;
    hd_linear *l[3];
    REQUIRE_OK(hd_binder_create(&b));
    hd_bind_linear(b, &l[0], "a", 8, 4, false);
    hd_bind_linear(b, &l[1], "b", 4, 8, false);
    hd_bind_linear(b, &l[2], "c", 8, 4, false);
    CHECK(hd_binder_shapes(b, 4, shapes) == 2);
    hd_binder_free(b);
}

TEST_CASE("binder: each allocation in turn fails", "[weights][nomem]")
{
    Folder folder;
    Run run(hd_cpu_features(), GENERATE(1, 2));
    folder.write("model.safetensors.index.json",
                 "{\"weight_map\": {\"conv.bias\": \"s.safetensors\"}}");
    folder.write("s.safetensors", raw_safetensors(sound("F16")));
    int64_t count = fail_each_allocation([&] {
        hd_weights *w = nullptr;
        char hash[17];
        HD_TRY(hd_weights_open(&w, folder.path().c_str(), "model"));
        hd_status status;
        {
            Network n(status);
            if (status == HD_OK)
                status = hd_binder_load(n.binder, &run, w, HD_F32, nullptr, nullptr);
            if (status != HD_OK && !n.empty()) status = HD_ERR_INTERNAL;
        }
        if (status == HD_OK) status = hd_weights_hash(w, hash);
        hd_weights_free(w);
        return status;
    });
    CHECK(count > 100);
}
