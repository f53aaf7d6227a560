// One .safetensors file: every field that can be wrong, reads, writes.
#include "base/file.h"
#include "engine/weights/safetensors.h"
#include "engine/weights/safetensors_write.h"

#include <cstring>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/safetensors.h"

using File = std::unique_ptr<hd_safetensors, void (*)(hd_safetensors *)>;

static hd_status try_open(const std::string &path)
{
    hd_safetensors *file = nullptr;
    hd_status status = hd_safetensors_open(&file, path.c_str());
    CHECK((file != nullptr) == (status == HD_OK));
    hd_safetensors_free(file);
    return status;
}

static File open_file(const std::string &path)
{
    hd_safetensors *file = nullptr;
    REQUIRE_OK(hd_safetensors_open(&file, path.c_str()));
    return File(file, hd_safetensors_free);
}

static const hd_safetensors_entry *entry(const File &file, const std::string &name)
{
    for (int64_t i = 0; i < hd_safetensors_count(file.get()); i++)
        if (hd_safetensors_at(file.get(), i)->name == name) return hd_safetensors_at(file.get(), i);
    FAIL("no " << name);
    return nullptr;
}

// One tensor "a" described by `fields`, before `data_bytes` bytes.
static std::string one(const std::string &fields, size_t data_bytes)
{
    return raw_file("{\"a\":{" + fields + "}}", std::string(data_bytes, 'x'));
}

TEST_CASE("safetensors: files that are none, or only in part", "[weights]")
{
    Folder folder;
    auto file = [&](const std::string &bytes) { return folder.write("m.safetensors", bytes); };
    std::string path = folder.path("m.safetensors");
    std::string sound = raw_safetensors({raw_f32("a", {2}, {1, 2})});
    CHECK_FAILS(try_open(path), HD_ERR_IO, path + ": there is no such file");
    CHECK_FAILS(try_open(folder.path()), HD_ERR_IO, "is a folder, not a file");
    CHECK_FAILS(try_open("/dev/null"), HD_ERR_IO, "/dev/null: is not a regular file");
    REQUIRE(mkfifo(folder.path("fifo").c_str(), 0666) == 0);
    CHECK_FAILS(try_open(folder.path("fifo")), HD_ERR_IO, "fifo: is not a regular file");
    CHECK_FAILS(try_open(file("")), HD_ERR_FORMAT, "m.safetensors: is 0 bytes long, too short");
    CHECK_FAILS(try_open(file("1234567")), HD_ERR_FORMAT, "is 7 bytes long");
    CHECK_FAILS(try_open(file(std::string(16, '\xff'))), HD_ERR_FORMAT,
                "its header would be 18446744073709551615 bytes, at most 100000000 are allowed");
    CHECK_FAILS(try_open(file(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10))), HD_ERR_FORMAT,
                "its header would be 100000001 bytes");
    CHECK_FAILS(try_open(file(std::string("\x03\0\0\0\0\0\0\0{}", 10))), HD_ERR_FORMAT,
                "its header takes 3 bytes, the file has 10; is it cut");
    CHECK_FAILS(try_open(file(sound.substr(0, sound.size() - 1))), HD_ERR_FORMAT,
                "a ends at byte 8 of the data, the file has only 7; is it cut");
    CHECK_FAILS(try_open(file(sound + "x")), HD_ERR_FORMAT,
                "1 bytes after the last tensor belong to none");
    CHECK_FAILS(try_open(file("version https://git-lfs.github.com/spec/v1\noid")), HD_ERR_FORMAT,
                "is a Git LFS pointer, not the file; run git lfs pull");
    CHECK_FAILS(try_open(file(std::string("PK\x03\x04\0\0\x08\x08 archive/data.pkl", 24))),
                HD_ERR_UNSUPPORTED, "is a PyTorch checkpoint");
    CHECK_FAILS(try_open(file(raw_file("", ""))), HD_ERR_FORMAT, "does not begin with {");
    CHECK_FAILS(try_open(file(raw_file("[]", ""))), HD_ERR_FORMAT, "does not begin with {");
    CHECK_FAILS(try_open(file(raw_file("{\"a\":\n ]", ""))), HD_ERR_FORMAT,
                "m.safetensors: header: line 2, column 2: found \"]\", expected a value");
    CHECK_FAILS(try_open(file(raw_file("{} x", ""))), HD_ERR_FORMAT, "expected the end");
}

TEST_CASE("safetensors: a header's fields are checked one by one", "[weights]")
{
    const std::string dtype = "\"dtype\":\"F32\",", shape = "\"shape\":[2],";
    struct {
        std::string header;
        hd_status status;
        std::string message;
    } const cases[] = {
        {"{\"a\":1}", HD_ERR_FORMAT, "header: a is 1, must be an object"},
        {"{\"a\":{}}", HD_ERR_FORMAT, "a lacks \"dtype\""},
        {"{\"a\":{\"dtype\":1}}", HD_ERR_FORMAT, "a.dtype is 1, must be a text"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\"}}", HD_ERR_UNSUPPORTED, "a is of type F8_E4M3; F32"},
        {"{\"a\":{" + dtype + "\"s\":1}}", HD_ERR_FORMAT, "a lacks \"shape\""},
        {"{\"a\":{" + dtype + "\"shape\":2}}", HD_ERR_FORMAT, "a.shape is 2, must be an array"},
        {"{\"a\":{" + dtype + "\"shape\":[-1]}}", HD_ERR_FORMAT,
         "a.shape[0] is -1, must be a whole number, at least 0"},
        {"{\"a\":{" + dtype + "\"shape\":[1.5]}}", HD_ERR_FORMAT, "a.shape[0] is 1.5, must be"},
        {"{\"a\":{" + dtype + "\"shape\":[18446744073709551617]}}", HD_ERR_FORMAT, "a.shape[0] is"},
        {"{\"a\":{" + dtype + "\"shape\":[1,1,1,1,1,1,2]}}", HD_ERR_UNSUPPORTED, "a has 7 axes"},
        {"{\"a\":{" + dtype + shape + "\"d\":1}}", HD_ERR_FORMAT, "a lacks \"data_offsets\""},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[0]}}", HD_ERR_FORMAT,
         "a.data_offsets has 1 entries, must have 2"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[-8,0]}}", HD_ERR_FORMAT,
         "a.data_offsets[0] is -8, must be a whole number, at least 0"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[8,0]}}", HD_ERR_FORMAT,
         "a.data_offsets is [8, 0], it ends before it begins"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[0,16]}}", HD_ERR_FORMAT,
         "m.safetensors: a ends at byte 16 of the data, the file has only 8"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[0,18446744073709551615]}}", HD_ERR_FORMAT,
         "a.data_offsets[1] is 18446744073709551615, must be"},
        {"{\"a\":{" + dtype + "\"shape\":[3],\"data_offsets\":[0,8]}}", HD_ERR_FORMAT,
         "a is [3] f32, which takes 12 bytes; it has 8"},
        // products that wrap around 64 bits to the right size
        {"{\"a\":{" + dtype + "\"shape\":[4611686018427387905,2],\"data_offsets\":[0,8]}}",
         HD_ERR_FORMAT, "a is [4611686018427387905, 2], too large to exist"},
        {"{\"a\":{" + dtype + "\"shape\":[4611686018427387906],\"data_offsets\":[0,8]}}",
         HD_ERR_FORMAT, "too large to exist"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[0,8]},\"a\":{" + dtype + shape +
             "\"data_offsets\":[0,8]}}",
         HD_ERR_FORMAT, "the top level has \"a\" twice"},
        {"{\"a\":{" + dtype + "\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{" + dtype + shape +
             "\"data_offsets\":[0,8]}}",
         HD_ERR_FORMAT, "m.safetensors: a and b overlap"},
        {"{\"b\":{" + dtype + "\"shape\":[1],\"data_offsets\":[3,7]},\"a\":{" + dtype +
             "\"shape\":[1],\"data_offsets\":[0,4]}}",
         HD_ERR_FORMAT, "m.safetensors: a and b overlap"},
        {"{\"a\":{" + dtype + "\"shape\":[1],\"data_offsets\":[4,8]}}", HD_ERR_FORMAT,
         "4 bytes between the header and a belong to no tensor"},
        {"{\"a\":{" + dtype + shape + "\"data_offsets\":[0,8]},\"b\":{" + dtype +
             "\"shape\":[0],\"data_offsets\":[4,4]}}",
         HD_ERR_FORMAT, "a and b overlap"},
        {"{\"a\\u001b[2J\":{}}", HD_ERR_FORMAT, "is a name with a control character"},
        {"{\"__metadata__\":1}", HD_ERR_FORMAT, "__metadata__ is 1, must be an object"},
        {"{\"__metadata__\":{\"k\":1}}", HD_ERR_FORMAT, "__metadata__.k is 1, must be a text"},
        {"{}", HD_ERR_FORMAT, "8 bytes after the last tensor belong to none"},
    };
    Folder folder;
    for (const auto &c : cases) {
        CAPTURE(c.header);
        std::string path = folder.write("m.safetensors", raw_file(c.header, "12345678"));
        CHECK_FAILS(try_open(path), c.status, c.message);
    }
    // "shape" may be a long way from what exists as long as one axis is 0
    std::string path =
        folder.write("m.safetensors",
                     one(dtype + "\"shape\":[9223372036854775807,0],\"data_offsets\":[0,0]", 0));
    CHECK(try_open(path) == HD_OK);
}

TEST_CASE("safetensors: what the public package wrote is read, every type", "[weights]")
{
    File file = open_file(fixture_path("weights/types.safetensors"));
    Fixture expected = fixture_open("weights/types.safetensors");
    CHECK(hd_safetensors_count(file.get()) == (int64_t)expected.size());
    CHECK(expected.size() == 15);
    for (auto &[name, tensor] : expected) {
        CAPTURE(name);
        const hd_safetensors_entry *e = entry(file, name);
        CHECK(e->dtype == tensor.dtype);
        REQUIRE(e->shape.rank == (int)tensor.shape.size());
        for (int i = 0; i < e->shape.rank; i++)
            CHECK(e->shape.dim[i] == tensor.shape[(size_t)i]);
        REQUIRE(e->bytes == (int64_t)tensor.bytes.size());
        std::vector<char> bytes(tensor.bytes.size());
        REQUIRE_OK(hd_safetensors_read(file.get(), e, 0, bytes.data(), e->bytes));
        CHECK(bytes == tensor.bytes);
    }
    uint16_t bf16[6];
    const hd_safetensors_entry *e = entry(file, "layer.bf16");
    REQUIRE_OK(hd_safetensors_read(file.get(), e, 0, bf16, sizeof bf16));
    CHECK(hd_bf16_to_f32(bf16[4]) == 100.0f);
    REQUIRE_OK(hd_safetensors_read(file.get(), e, 8, bf16, 4)); // a part of it
    CHECK(hd_bf16_to_f32(bf16[0]) == 100.0f);
}

TEST_CASE("safetensors: a file that is cut while it is open is an error", "[weights]")
{
    Folder folder;
    std::string path = folder.write(
        "m.safetensors", raw_safetensors({raw_f32("a", {4096}, std::vector<float>(4096, 1)),
                                          raw_f32("b", {4096}, std::vector<float>(4096, 2))}));
    File file = open_file(path);
    const hd_safetensors_entry *a = entry(file, "a"), *b = entry(file, "b");
    std::vector<float> into(4096);
    REQUIRE(truncate(path.c_str(), b->offset + 100) == 0);
    REQUIRE_OK(hd_safetensors_read(file.get(), a, 0, into.data(), a->bytes));
    CHECK(into[4095] == 1);
    CHECK_FAILS(hd_safetensors_read(file.get(), b, 0, into.data(), b->bytes), HD_ERR_IO,
                path + ": ends at byte " + std::to_string(b->offset + 100) +
                    ", 16284 more were expected; was it cut or replaced while it was read?; while "
                    "reading b");
}

TEST_CASE("safetensors: what is written is read again", "[weights]")
{
    Folder folder;
    float values[] = {1, -2, 3.5f, 4, 5, 6};
    uint8_t bytes[] = {1, 2, 3};
    const char *metadata[] = {"prompt", "a \"red\" fish\n\xf0\x9f\x90\x9f", nullptr};
    const hd_named_tensor tensors[] = {
        {"odd", hd_tensor_of(bytes, HD_U8, hd_shape1(3))},
        {"latents", hd_tensor_of(values, HD_F32, hd_shape2(2, 3))},
    };
    std::string path = folder.path("out.safetensors");
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 2, tensors, metadata));
    File file = open_file(path);
    CHECK(hd_safetensors_count(file.get()) == 2);
    const hd_safetensors_entry *e = entry(file, "latents");
    CHECK(e->dtype == HD_F32);
    CHECK(e->shape.rank == 2);
    CHECK(e->offset % 8 == 3); // behind the odd one: no alignment is assumed
    float again[6];
    REQUIRE_OK(hd_safetensors_read(file.get(), e, 0, again, e->bytes));
    CHECK(memcmp(again, values, sizeof again) == 0);
    CHECK(folder.read("out.safetensors").find("a \\\"red\\\" fish\\n") != std::string::npos);
    CHECK(folder.names() == std::vector<std::string>{"out.safetensors"});

    const hd_named_tensor twice[] = {tensors[0], tensors[0]};
    CHECK_FAILS(hd_safetensors_write(path.c_str(), 2, twice, nullptr), HD_ERR_ARGUMENT,
                "the name odd is taken");
    CHECK_FAILS(hd_safetensors_write(folder.path("no/x").c_str(), 1, tensors, nullptr), HD_ERR_IO,
                "there is no folder");
    CHECK_FAILS(hd_safetensors_write("/dev/full", 1, tensors, nullptr), HD_ERR_IO, "disk is full");
}

TEST_CASE("safetensors: each allocation in turn fails, reading and writing", "[weights][nomem]")
{
    Folder folder;
    std::string path = folder.path("m.safetensors");
    float values[] = {1, 2};
    const hd_named_tensor tensor = {"a", hd_tensor_of(values, HD_F32, hd_shape1(2))};
    const char *metadata[] = {"k", "v", nullptr};
    CHECK(fail_each_allocation([&] {
              hd_safetensors *file = nullptr;
              HD_TRY(hd_safetensors_write(path.c_str(), 1, &tensor, metadata));
              HD_TRY(hd_safetensors_open(&file, path.c_str()));
              hd_safetensors_free(file);
              return HD_OK;
          }) > 20);
    CHECK(folder.names() == std::vector<std::string>{"m.safetensors"});
}
