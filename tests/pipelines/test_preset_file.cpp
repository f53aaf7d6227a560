// The JSON of a run out of preset files and pictures; what a picture may not say.
#include <cstdlib>
#include <cstring>

#include "codecs/png.h"
#include "heddle.h"
#include "support/alloc_fail.h"
#include "support/fixture.h"
#include "support/folder.h"

namespace
{
std::string picture(const Folder &folder, const char *json)
{
    uint8_t rgb[12] = {0};
    hd_image image = {2, 2, rgb};
    hd_png_text text = {"heddle", json};
    std::string path = folder.path("a.png");
    REQUIRE_OK(hd_png_write(path.c_str(), &image, &text, 1));
    return path;
}

std::string read(const std::string &path)
{
    char *json = nullptr;
    REQUIRE_OK(hd_preset_read(path.c_str(), &json));
    std::string out = json;
    hd_text_free(json);
    return out;
}
} // namespace

TEST_CASE("preset: a picture never says where to write", "[pipelines]")
{
    Folder f;
    std::string path = picture(f, R"({"output": "/etc/passwd", "seed": 18446744073709551615,
        "latents_out": "/tmp/l", "prompt": "魚 output", "preview": "p.png"})");
    std::string json = read(path);
    CHECK(json.find("\"seed\": 18446744073709551615") != std::string::npos);
    CHECK(json.find("魚 output") != std::string::npos);
    for (auto key : {"\"output\"", "\"latents_out\"", "\"preview\""})
        CHECK(json.find(key) == std::string::npos);
}

TEST_CASE("preset: a file comes as it is, damaged or not", "[pipelines]")
{
    Folder f;
    std::string text = "{\n \"output\": \"x.png\", }";
    CHECK(read(f.write("a.json", text)) == text); // hd_context_run says what is wrong, and where
}

TEST_CASE("preset: pictures that cannot be repeated say why", "[pipelines]")
{
    Folder f;
    char *json = nullptr;
    CHECK_FAILS(hd_preset_read(fixture_path("png/c2_8.png").c_str(), &json), HD_ERR_FORMAT,
                "c2_8.png: the picture does not say how it was made");
    CHECK_FAILS(hd_preset_read(picture(f, "{\"seed\": ").c_str(), &json), HD_ERR_FORMAT, "a.png: ");
    CHECK_FAILS(hd_preset_read(picture(f, "[1]").c_str(), &json), HD_ERR_ARGUMENT, "a.png: ");
    CHECK_FAILS(hd_preset_read(f.write("b", std::string("a\0b", 3)).c_str(), &json), HD_ERR_FORMAT,
                "neither JSON nor a PNG file");
    CHECK_FAILS(hd_preset_read(f.path("absent").c_str(), &json), HD_ERR_IO, "absent");
    CHECK(json == nullptr);
}

TEST_CASE("preset: no memory, at any allocation, is said", "[pipelines]")
{
    Folder f;
    std::string path = picture(f, R"({"seed": 3, "processors": [{"use": "temperature"}]})");
    fail_each_allocation([&] {
        char *json = nullptr;
        hd_status status = hd_preset_read(path.c_str(), &json);
        hd_text_free(json);
        return status;
    });
}
