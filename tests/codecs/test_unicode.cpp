// Classes, lower case and composition of every code point against what the reference tokenizer's
// libraries make of it (tools/fixtures/tokenizer.py), and UTF-8 that is none.
#include "codecs/unicode.h"

#include <cstdio>
#include <vector>

#include "support/catch.h"
#include "support/inflated.h"

static std::string utf8(uint32_t c)
{
    char text[4];
    return std::string(text, (size_t)hd_utf8_encode(c, text));
}

static std::string nfc(const std::vector<uint32_t> &in)
{
    std::vector<hd_char> text(in.size()), out(in.size() * HD_UNICODE_NFC_ROOM);
    for (size_t i = 0; i < in.size(); i++)
        text[i].c = in[i];
    int64_t count = hd_unicode_nfc(out.data(), text.data(), (int64_t)in.size());
    std::string all;
    for (int64_t i = 0; i < count; i++)
        all += utf8(out[(size_t)i].c);
    return all;
}

// class, lower case, and the character composed: alone, among marks, before and after a mark.
static std::string record(uint32_t c)
{
    uint32_t lower[2];
    int n = hd_unicode_lower(c, lower);
    std::string text = std::to_string((int)hd_unicode_class_of(c)) + utf8(lower[0]);
    if (n == 2) text += utf8(lower[1]);
    for (const std::vector<uint32_t> &in :
         {std::vector<uint32_t>{c}, {0x315, c, 0x316, 0x334}, {'a', c, 0x301}, {c, 0x308}})
        text += "|" + nfc(in);
    return text;
}

TEST_CASE("unicode: every code point as the reference has it", "[codecs][unicode]")
{
    Reader truth(inflated("tokenizer/unicode.z"));
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c < 0xd800 || c >= 0xe000)
            for (unsigned char b : record(c))
                hash = (hash ^ b) * 0x100000001b3u;
        if (c % 4096 < 4095) continue;
        INFO("code points " << c - 4095 << " to " << c);
        CHECK(hash == truth.number<uint64_t>());
        hash = 0xcbf29ce484222325u;
    }
    CHECK(truth.done());
}

TEST_CASE("unicode: a composed character spans all it is made of", "[codecs][unicode]")
{
    // e, dot below, circumflex: the marks join in the order of their classes
    hd_char in[] = {{'e', 0, 1, 0}, {0x302, 1, 3, 0}, {0x323, 3, 5, 0}, {'x', 5, 6, 0}}, out[16];
    REQUIRE(hd_unicode_nfc(out, in, 4) == 2);
    CHECK(out[0].c == 0x1ec7);
    CHECK((out[0].start == 0 && out[0].end == 5));
    CHECK((out[1].start == 5 && out[1].end == 6));
}

TEST_CASE("unicode: UTF-8 there and back, and what is none", "[codecs][unicode]")
{
    for (uint32_t c :
         {0u, 0x7fu, 0x80u, 0x7ffu, 0x800u, 0xd7ffu, 0xe000u, 0xffffu, 0x10000u, 0x10ffffu}) {
        std::string text = utf8(c);
        uint32_t back = 1;
        CHECK(hd_utf8_decode(text.data(), text.size(), &back) == (int)text.size());
        CHECK(back == c);
        if (text.size() > 1) CHECK(hd_utf8_decode(text.data(), text.size() - 1, &back) == 0);
    }
    uint32_t c;
    for (std::string bad :
         {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3(", "\xe2\x82(", "\xf0\x9f\x92("})
        CHECK(hd_utf8_decode(bad.data(), bad.size(), &c) == 0);
}
