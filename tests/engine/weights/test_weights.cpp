// Folders of weights: which files count, indexes, names, hashes.
#include "engine/weights/weights.h"

#include <cstring>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

#include "support/catch.h"
#include "support/folder.h"
#include "support/safetensors.h"

using Weights = std::unique_ptr<hd_weights, void (*)(hd_weights *)>;

static hd_status try_open(const std::string &path, const char *stem = "model")
{
    hd_weights *w = nullptr;
    hd_status status = hd_weights_open(&w, path.c_str(), stem);
    CHECK((w != nullptr) == (status == HD_OK));
    hd_weights_free(w);
    return status;
}

static Weights open_weights(const std::string &path, const char *stem = "model")
{
    hd_weights *w = nullptr;
    REQUIRE_OK(hd_weights_open(&w, path.c_str(), stem));
    return Weights(w, hd_weights_free);
}

static RawTensor value(const std::string &name, float v)
{
    return raw_f32(name, {1}, {v});
}

static float first_value(const Weights &w, const std::string &name)
{
    int64_t index = hd_weights_find(w.get(), name.c_str());
    REQUIRE(index >= 0);
    float v = 0;
    REQUIRE_OK(hd_weights_read(w.get(), index, &v));
    return v;
}

static std::string hash_of(const Weights &w)
{
    char text[17];
    REQUIRE_OK(hd_weights_hash(w.get(), text));
    CHECK(strlen(text) == 16);
    return text;
}

TEST_CASE("weights: the file that a folder's layout means", "[weights]")
{
    Folder folder;
    auto put = [&](const std::string &name, float v) {
        folder.write(name, raw_safetensors({value("x", v)}));
    };
    // From the least wanted to the most: each new file wins over those before it.
    put("other.safetensors", 1);
    CHECK_FAILS(try_open(folder.path()), HD_ERR_IO,
                folder.path() + ": has no weights: no model.safetensors, nor its fp16 or sharded "
                                "forms; it has other.safetensors");
    put("model.bf16.safetensors", 2);
    CHECK(first_value(open_weights(folder.path()), "x") == 2);
    put("model.fp16-00001-of-00001.safetensors", 3);
    CHECK(first_value(open_weights(folder.path()), "x") == 3);
    for (const char *index :
         {"model.fp16.index.json", "model.safetensors.fp16.index.json",
          "model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"}) {
        std::string shard = std::string("from-") + index + ".safetensors";
        put(shard, (float)strlen(index));
        folder.write(index, "{\"weight_map\":{\"x\":\"" + shard + "\"}}");
        CHECK(first_value(open_weights(folder.path()), "x") == (float)strlen(index));
    }
    put("model.fp16.safetensors", 4);
    CHECK(first_value(open_weights(folder.path()), "x") == 4);
    put("model-00001-of-00001.safetensors", 5);
    CHECK(first_value(open_weights(folder.path()), "x") == 5);
    folder.write("model.safetensors.index.json", "{\"weight_map\":{\"x\":\"other.safetensors\"}}");
    CHECK(first_value(open_weights(folder.path()), "x") == 1);
    put("model.safetensors", 6);
    CHECK(first_value(open_weights(folder.path()), "x") == 6);
    CHECK(first_value(open_weights(folder.path(), nullptr), "x") == 6);
    put("diffusion_pytorch_model.safetensors", 7);
    CHECK(first_value(open_weights(folder.path(), nullptr), "x") == 7);
    CHECK(first_value(open_weights(folder.path()), "x") == 6);
    // and files by name
    CHECK(first_value(open_weights(folder.path("other.safetensors")), "x") == 1);
    CHECK(first_value(open_weights(folder.path("model.safetensors.index.json")), "x") == 1);
}

TEST_CASE("weights: folders without weights say what they lack", "[weights]")
{
    Folder folder;
    CHECK_FAILS(try_open(folder.path("none")), HD_ERR_IO,
                folder.path("none") + ": there is no such file or folder");
    CHECK_FAILS(try_open(folder.path()), HD_ERR_IO, "it has nothing");
    folder.write("config.json", "{}");
    CHECK_FAILS(try_open(folder.path(), nullptr), HD_ERR_IO,
                "no diffusion_pytorch_model or model.safetensors");
    CHECK_FAILS(try_open(folder.path()), HD_ERR_IO, "it has config.json");
    folder.write("pytorch_model.bin", "x");
    CHECK_FAILS(try_open(folder.path()), HD_ERR_UNSUPPORTED,
                "has its weights as a PyTorch pickle only (pytorch_model.bin), which can run any "
                "program and is not read; convert the model once: python3 -c");
    CHECK_FAILS(try_open(folder.path("pytorch_model.bin")), HD_ERR_UNSUPPORTED, "convert");
    chmod(folder.path().c_str(), 0);
    {
        Unprivileged nobody;
        CHECK_FAILS(try_open(folder.path()), HD_ERR_IO, folder.path() + ": cannot list it");
    }
    chmod(folder.path().c_str(), 0755);
}

TEST_CASE("weights: an index is believed only as far as the files bear it out", "[weights]")
{
    Folder folder;
    folder.write("s1.safetensors", raw_safetensors({value("a", 1), value("b", 2)}));
    folder.write("s2.safetensors", raw_safetensors({value("c", 3)}));
    folder.write("s3.safetensors", raw_safetensors({value("b", 3)}));
    auto index = [&](const std::string &text) {
        folder.write("model.safetensors.index.json", text);
        return try_open(folder.path());
    };
    auto map = [&](const std::string &text) { return index("{\"weight_map\":{" + text + "}}"); };
    std::string ab = "\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\"";
    CHECK(map(ab + ",\"c\":\"s2.safetensors\"") == HD_OK);
    CHECK(map(ab) == HD_OK);
    CHECK_FAILS(index("{\"weight_map\": [}"), HD_ERR_FORMAT,
                "model.safetensors.index.json: line 1, column 17");
    CHECK_FAILS(index("[]"), HD_ERR_FORMAT, "the top level is an array, must be an object");
    CHECK_FAILS(index("{}"), HD_ERR_FORMAT, "index.json: the top level lacks \"weight_map\"");
    CHECK_FAILS(index("{\"weight_map\":1}"), HD_ERR_FORMAT, "weight_map is 1, must be an object");
    CHECK_FAILS(map("\"a\":1"), HD_ERR_FORMAT, "weight_map.a is 1, must be a text");
    for (const char *name : {"../outside.safetensors", "/etc/passwd", "sub/s1.safetensors", "..",
                             "", "s1", ".s1.safetensors", "./s1.safetensors"})
        CHECK_FAILS(map(std::string("\"a\":\"") + name + "\""), HD_ERR_FORMAT,
                    "weight_map.a is \"" + std::string(name) +
                        "\", must be the name of a .safetensors file in the folder of the index");
    CHECK_FAILS(map(ab + ",\"c\":\"s9.safetensors\""), HD_ERR_IO,
                "weight_map.c is in \"s9.safetensors\", which is not in the folder");
    CHECK_FAILS(map(ab + ",\"d\":\"s2.safetensors\""), HD_ERR_FORMAT,
                "d is not in s2.safetensors, where it should be");
    CHECK_FAILS(map(ab + ",\"c\":\"s1.safetensors\",\"c2\":\"s2.safetensors\""), HD_ERR_FORMAT,
                "c is not in s1.safetensors, where it should be; it is in s2.safetensors");
    CHECK_FAILS(map(ab + ",\"c\":\"s3.safetensors\""), HD_ERR_FORMAT,
                "b is in both s1.safetensors and s3.safetensors");
    std::string many;
    for (int i = 0; i < 1001; i++) {
        std::string n = std::to_string(i);
        folder.write("n" + n + ".safetensors", raw_safetensors({value("t" + n, 1)}));
        many += (i ? ",\"t" : "\"t") + n + "\":\"n" + n + ".safetensors\"";
    }
    CHECK_FAILS(map(many), HD_ERR_FORMAT, "is shard number 1001, at most 1000 are read");
}

TEST_CASE("weights: shards without an index must all be there", "[weights]")
{
    Folder folder;
    folder.write("model-00001-of-00003.safetensors", raw_safetensors({value("a", 1)}));
    folder.write("model-00003-of-00003.safetensors", raw_safetensors({value("c", 3)}));
    CHECK_FAILS(try_open(folder.path()), HD_ERR_IO,
                "has shards of model, but not model-00002-of-00003.safetensors");
    folder.write("model-00002-of-00003.safetensors", raw_safetensors({value("b", 2)}));
    Weights w = open_weights(folder.path());
    REQUIRE(hd_weights_count(w.get()) == 3);
    CHECK(hd_weights_info(w.get(), 1).name == std::string("b"));
    CHECK(hd_weights_info(w.get(), 1).file == std::string("model-00002-of-00003.safetensors"));
    CHECK(first_value(w, "c") == 3);
    CHECK(hd_weights_path(w.get()) == folder.path());
}

TEST_CASE("weights: names are sorted, found, and changed", "[weights]")
{
    Folder folder;
    folder.write("model.safetensors", raw_safetensors({value("to_v.0", 3), value("query", 1),
                                                       value("value", 2), value("norm", 4)}));
    Weights w = open_weights(folder.path());
    CHECK(hd_weights_find(w.get(), "query") == 1);
    CHECK(hd_weights_find(w.get(), "none") == -1);
    std::string before = hash_of(w);
    REQUIRE_OK(hd_weights_rename(w.get(), [](const char *name, char *out, size_t bytes) {
        bool known = strcmp(name, "query") == 0 || strcmp(name, "value") == 0;
        if (known) snprintf(out, bytes, "zz.to_%c", name[0]);
        return known;
    }));
    std::vector<std::string> names;
    for (int64_t i = 0; i < hd_weights_count(w.get()); i++)
        names.push_back(hd_weights_info(w.get(), i).name);
    CHECK(names == std::vector<std::string>{"norm", "to_v.0", "zz.to_q", "zz.to_v"});
    CHECK(first_value(w, "zz.to_q") == 1);
    CHECK(hash_of(w) == before); // of the files, not of what we call their tensors
    CHECK_FAILS(hd_weights_rename(w.get(),
                                  [](const char *, char *out, size_t bytes) {
                                      snprintf(out, bytes, "same");
                                      return true;
                                  }),
                HD_ERR_FORMAT, "are one tensor to us (same)");
}

TEST_CASE("weights: the hash sees names, types, shapes and contents, not the files", "[weights]")
{
    Folder folder;
    // more than one chunk of the hash, so that its end is seen, too
    std::vector<float> big(700000, 0.25f);
    auto one = [&](const std::string &name, const std::vector<RawTensor> &tensors) {
        folder.write(name + "/model.safetensors", raw_safetensors(tensors));
        return hash_of(open_weights(folder.path(name)));
    };
    std::vector<RawTensor> base = {raw_f32("a", {700, 1000}, big), value("b", 1)};
    std::string hash = one("base", base);
    CHECK(one("order", {base[1], base[0]}) == hash);
    folder.write("shards/model-00001-of-00002.safetensors", raw_safetensors({base[1]}));
    folder.write("shards/model-00002-of-00002.safetensors", raw_safetensors({base[0]}));
    CHECK(hash_of(open_weights(folder.path("shards"))) == hash);

    std::vector<std::string> others;
    auto changed = base;
    changed[1].name = "c";
    others.push_back(one("name", changed));
    changed = base;
    changed[0].shape = {1000, 700};
    others.push_back(one("shape", changed));
    changed = base;
    changed[1].dtype = "I32";
    others.push_back(one("type", changed));
    changed = base;
    changed[0].bytes.back() ^= 1;
    others.push_back(one("last", changed));
    changed = base;
    changed[0].bytes[0] ^= 1;
    others.push_back(one("first", changed));
    changed = {base[0], value("b", 1), value("c", 1)};
    others.push_back(one("more", changed));
    for (size_t i = 0; i < others.size(); i++) {
        CHECK(others[i] != hash);
        for (size_t j = 0; j < i; j++)
            CHECK(others[i] != others[j]);
    }
}

TEST_CASE("weights: what was read is not read again for the hash", "[weights]")
{
    Folder folder;
    std::string path = folder.write("model.safetensors", raw_safetensors({value("a", 1)}));
    Weights w = open_weights(folder.path());
    Weights cut = open_weights(folder.path());
    CHECK(first_value(w, "a") == 1);
    REQUIRE(truncate(path.c_str(), 8) == 0);
    char text[17];
    CHECK(hd_weights_hash(w.get(), text) == HD_OK);
    CHECK_FAILS(hd_weights_hash(cut.get(), text), HD_ERR_IO, "while reading a");
    float v;
    CHECK_FAILS(hd_weights_read(cut.get(), 0, &v), HD_ERR_IO, "model.safetensors: ends at byte");
}

// Bytes of memory that are files' pages.
static int64_t file_bytes_resident()
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[200];
    long long kb = -1;
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "RssFile: %lld", &kb) == 1) break;
    fclose(status);
    return kb * 1024;
}

TEST_CASE("weights: a file that was read does not count as our memory", "[weights]")
{
    Folder folder;
    const int64_t count = 8 << 20;
    folder.write("model.safetensors",
                 raw_safetensors({raw_f32("a", {count}, std::vector<float>(count, 1))}));
    Weights w = open_weights(folder.path());
    std::vector<float> into(count);
    int64_t before = file_bytes_resident();
    REQUIRE_OK(hd_weights_read(w.get(), 0, into.data()));
    CHECK(file_bytes_resident() - before < count); // of 4 * count bytes
}
