// Resampling bit for bit as Pillow, roundings as diffusers, on values where the choice shows.
#include <cmath>
#include <cstring>

#include "codecs/image_ops.h"
#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"

namespace
{
hd_image view(FixtureTensor &t)
{
    return {(int)t.shape[1], (int)t.shape[0], reinterpret_cast<uint8_t *>(t.bytes.data())};
}
} // namespace

TEST_CASE("image: Lanczos resizing equals Pillow's bit for bit", "[codecs]")
{
    Fixture expected = fixture_open("png/resize.safetensors");
    REQUIRE(expected.size() == 10);
    hd_image source = view(expected["source"]);
    for (auto &[name, rgb] : expected) {
        if (name == "source") continue;
        INFO(name);
        hd_image out = {};
        REQUIRE_OK(hd_image_resize(&out, &source, (int)rgb.shape[1], (int)rgb.shape[0]));
        CHECK(memcmp(out.rgb, rgb.bytes.data(), rgb.bytes.size()) == 0);
        hd_image_free(&out);
    }
}

TEST_CASE("image: sizes that are not allowed are refused before anything is allocated", "[codecs]")
{
    uint8_t rgb[3] = {1, 2, 3};
    hd_image source = {1, 1, rgb}, out = {};
    CHECK_FAILS(hd_image_resize(&out, &source, 0, 5), HD_ERR_ARGUMENT, "to 0x5");
    CHECK_FAILS(hd_image_resize(&out, &source, 1, 16385), HD_ERR_ARGUMENT, "1 to 16384");
    CHECK_FAILS(hd_image_resize(&out, &source, 16384, 16384), HD_ERR_ARGUMENT, "16384x16384");
    CHECK_FAILS(hd_image_create(&out, INT64_MAX, INT64_MAX, "a.png"), HD_ERR_ARGUMENT, "a.png");
    CHECK(out.rgb == nullptr);
}

TEST_CASE("image: f32 and back as diffusers rounds", "[codecs]")
{
    std::vector<uint8_t> rgb(256 * 3), back(256 * 3);
    for (size_t i = 0; i < rgb.size(); i++)
        rgb[i] = (uint8_t)(i / 3);
    hd_image image = {16, 16, rgb.data()}, again = {16, 16, back.data()};
    std::vector<float> x(rgb.size());
    hd_image_to_f32(x.data(), &image);
    CHECK(x.front() == -1.0f);
    CHECK(x.back() == 1.0f);
    CHECK(x[3 * 51] == 2.0f * (51.0f / 255.0f) - 1.0f);
    hd_image_from_f32(&again, x.data());
    CHECK(rgb == back);

    // 255 * (x / 2 + 0.5): halves go to the even neighbour, what is outside is clamped.
    float edges[12] = {-7.0f,        7.0f,          INFINITY, -INFINITY, NAN,   0.0f,
                       0.003921569f, -0.003921569f, 0.0039f,  0.01f,     -1.0f, 1.0f};
    uint8_t got[12];
    hd_image small = {2, 2, got};
    hd_image_from_f32(&small, edges);
    for (int i = 0; i < 12; i++) {
        float v = edges[i] * 0.5f + 0.5f;
        float limited = std::isnan(v) ? 0.0f : std::fmin(std::fmax(v, 0.0f), 1.0f) * 255.0f;
        INFO(i << ": " << limited);
        CHECK((int)got[i] == (int)std::nearbyint(limited));
    }
    CHECK((int)got[5] == 128); // 127.5
}

TEST_CASE("image: enlarging repeats pixels", "[codecs]")
{
    uint8_t rgb[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    hd_image source = {2, 2, rgb}, out = {};
    REQUIRE_OK(hd_image_enlarge(&out, &source, 3));
    REQUIRE(out.width == 6);
    REQUIRE(out.height == 6);
    for (int y = 0; y < 6; y++)
        for (int x = 0; x < 6; x++)
            for (int c = 0; c < 3; c++)
                CHECK(out.rgb[(y * 6 + x) * 3 + c] == rgb[((y / 3) * 2 + x / 3) * 3 + c]);
    hd_image_free(&out);
}

TEST_CASE("image: no memory, at any allocation, is said and leaves nothing", "[codecs]")
{
    Fixture fixture = fixture_open("png/resize.safetensors");
    hd_image source = view(fixture["source"]);
    int64_t count = fail_each_allocation([&] {
        hd_image out = {};
        hd_status status = hd_image_resize(&out, &source, 20, 20);
        hd_image_free(&out);
        return status;
    });
    CHECK(count == 10); // twice four tables of weights and a picture
}
