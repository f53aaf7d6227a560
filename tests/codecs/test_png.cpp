// PNG files of every kind against what Pillow makes of them; damaged, hostile and huge ones; what
// is written reads back, with its texts, in the same bytes every time.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "codecs/png.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"

namespace fs = std::filesystem;

namespace
{
struct Png {
    hd_png png{};
    ~Png()
    {
        hd_png_free(&png);
    }
    hd_png *operator&()
    {
        return &png;
    }
    std::string text(const char *key) const
    {
        const char *found = hd_png_find_text(&png, key);
        return found ? found : "(none)";
    }
};

std::string png_path(const std::string &name)
{
    return fixture_path("png/" + name + ".png");
}

std::string temporary(const std::string &name)
{
    fs::path folder = fs::temp_directory_path() / "heddle_test_png";
    fs::create_directories(folder);
    return (folder / name).string();
}

std::string encode(const hd_image &image, const std::vector<hd_png_text> &texts)
{
    void *data = nullptr;
    size_t bytes = 0;
    REQUIRE_OK(hd_png_encode(&data, &bytes, &image, texts.data(), (int)texts.size()));
    std::string out((char *)data, bytes);
    free(data);
    return out;
}

std::vector<uint8_t> gradient(int width, int height)
{
    std::vector<uint8_t> rgb((size_t)width * height * 3);
    for (size_t i = 0; i < rgb.size(); i++)
        rgb[i] = (uint8_t)(i * 7 + i / 97);
    return rgb;
}
} // namespace

TEST_CASE("png: every colour type, depth and interlacing reads as Pillow reads it", "[codecs]")
{
    Fixture expected = fixture_open("png/rgb.safetensors");
    REQUIRE(expected.size() == 35);
    for (auto &[name, rgb] : expected) {
        INFO(name);
        Png p;
        REQUIRE_OK(hd_png_read(&p, png_path(name).c_str()));
        REQUIRE(p.png.image.height == rgb.shape[0]);
        REQUIRE(p.png.image.width == rgb.shape[1]);
        REQUIRE(hd_image_bytes(&p.png.image) == rgb.bytes.size());
        CHECK(memcmp(p.png.image.rgb, rgb.bytes.data(), rgb.bytes.size()) == 0);
    }
}

TEST_CASE("png: texts of every kind, before and after the pixels, come as UTF-8", "[codecs]")
{
    Png p;
    REQUIRE_OK(hd_png_read(&p, png_path("texts").c_str()));
    const std::string fish = "\u00e9\u8d64\u3044\u9b5a \U0001f41f";
    CHECK(p.text("Author") == "J\u00fcrgen");
    CHECK(p.text("heddle") == fish);
    CHECK(p.text("packed") == fish + fish + fish);
    CHECK(p.text("late") == "after the pixels");
    CHECK(p.text("empty") == "");
    CHECK(p.text("broken") == "(none)"); // not Unicode
    CHECK(p.text("absent") == "(none)");
    Png bomb; // the pixels are fine, the text that unfolds to 16 MiB is left out
    REQUIRE_OK(hd_png_read(&bomb, png_path("text_bomb").c_str()));
    CHECK(bomb.text("bomb") == "(none)");
}

TEST_CASE("png: damaged and hostile files are refused by name", "[codecs]")
{
    struct {
        const char *name;
        hd_status status;
        const char *text;
    } cases[] = {
        {"wide", HD_ERR_ARGUMENT, "wide.png: the picture is 20000x1, may have up to 16384"},
        {"many", HD_ERR_ARGUMENT, "many.png: the picture is 16384x16384"},
        {"beyond", HD_ERR_ARGUMENT, "beyond.png: the picture is 2147483647x2147483647"},
        {"zero", HD_ERR_FORMAT, "zero.png: damaged PNG"},
        {"no_palette", HD_ERR_FORMAT, "no_palette.png: damaged PNG"},
        {"crc", HD_ERR_FORMAT, "crc.png: damaged PNG"},
        {"short_data", HD_ERR_FORMAT, "short_data.png: damaged PNG"},
        {"claims", HD_ERR_FORMAT, "claims.png: the PNG is cut short"}, // a text of 1.8 GB
        {"no_pixels", HD_ERR_FORMAT, "no_pixels.png: damaged PNG"},
    };
    for (auto &c : cases) {
        Png p;
        CHECK_FAILS(hd_png_read(&p, png_path(c.name).c_str()), c.status, c.text);
        CHECK(p.png.image.rgb == nullptr);
    }
    Png p;
    CHECK_FAILS(hd_png_read(&p, "/no/such/picture.png"), HD_ERR_IO,
                "/no/such/picture.png: cannot be opened: No such file");
    CHECK_FAILS(hd_png_read(&p, fixture_path("").c_str()), HD_ERR_IO,
                "cannot be read: Is a directory");
    CHECK_FAILS(hd_png_decode(&p, "GIF89a..........", 16, "a.png"), HD_ERR_FORMAT,
                "a.png: not a PNG file");
    CHECK_FAILS(hd_png_decode(&p, "", 0, "a.png"), HD_ERR_FORMAT, "ends after 0 bytes");
}

TEST_CASE("png: a file cut anywhere is an error that says so", "[codecs]")
{
    std::string whole = fixture_text("png/texts.png");
    for (size_t cut = 0; cut < whole.size(); cut++) {
        INFO("cut at " << cut);
        Png p;
        // A copy of exactly that size: reading beyond it is seen by the sanitizer.
        std::vector<char> part(whole.begin(), whole.begin() + (long)cut);
        CHECK_FAILS(hd_png_decode(&p, part.data(), part.size(), "cut.png"), HD_ERR_FORMAT,
                    "cut.png: the PNG is cut short");
    }
}

TEST_CASE("png: what is written reads back, in the same bytes every time", "[codecs]")
{
    auto rgb = gradient(37, 21);
    hd_image image = {37, 21, rgb.data()};
    std::vector<hd_png_text> texts = {{"heddle", "{\"prompt\": \"\u9b5a\"}"},
                                      {"parameters", "a red fish\nSteps: 20"}};
    std::string first = encode(image, texts);
    CHECK(first == encode(image, texts));
    // Unicode is iTXt, plain ASCII is tEXt, which more programs read.
    CHECK(first.find("iTXtheddle") < first.find("IDAT"));
    CHECK(first.find("tEXtparameters") < first.find("IDAT"));
    CHECK(first.find("tIME") == std::string::npos);

    Png back;
    REQUIRE_OK(hd_png_decode(&back, first.data(), first.size(), "memory"));
    REQUIRE(hd_image_bytes(&back.png.image) == rgb.size());
    CHECK(back.png.image.width == 37);
    CHECK(memcmp(back.png.image.rgb, rgb.data(), rgb.size()) == 0);
    CHECK(back.text("heddle") == texts[0].text);
    CHECK(back.text("parameters") == texts[1].text);

    std::string path = temporary("written.png");
    REQUIRE_OK(hd_png_write(path.c_str(), &image, texts.data(), (int)texts.size()));
    std::ifstream in(path, std::ios::binary);
    CHECK(std::string(std::istreambuf_iterator<char>(in), {}) == first);
}

TEST_CASE("png: what cannot be written says where and why", "[codecs]")
{
    auto rgb = gradient(4, 4);
    hd_image image = {4, 4, rgb.data()};
    CHECK_FAILS(hd_png_write("/no/such/folder/a.png", &image, nullptr, 0), HD_ERR_IO,
                "/no/such/folder/a.png");
    CHECK_FAILS(hd_png_write("/dev/full", &image, nullptr, 0), HD_ERR_IO, "/dev/full");
    std::string longest(80, 'k');
    hd_png_text text = {longest.c_str(), "value"};
    std::string path = temporary("refused.png");
    fs::remove(path);
    CHECK_FAILS(hd_png_write(path.c_str(), &image, &text, 1), HD_ERR_ARGUMENT, path);
    CHECK(!fs::exists(path));
}

TEST_CASE("png: no memory, at any allocation, is said and leaves nothing", "[codecs]")
{
    std::string file = fixture_text("png/texts.png");
    int64_t reads = fail_each_allocation([&] {
        hd_png png = {};
        hd_status status = hd_png_decode(&png, file.data(), file.size(), "memory");
        hd_png_free(&png);
        return status;
    });
    CHECK(reads > 10); // libpng's own among them
    auto rgb = gradient(64, 64);
    hd_image image = {64, 64, rgb.data()};
    hd_png_text text = {"key", "\u9b5a"};
    fail_each_allocation([&] {
        void *data = nullptr;
        size_t bytes = 0;
        hd_status status = hd_png_encode(&data, &bytes, &image, &text, 1);
        free(data);
        return status;
    });
}
