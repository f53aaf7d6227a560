// Messages: whole, cut between characters, one per thread.
#include "base/status.h"

#include <cstring>
#include <string>
#include <thread>

#include "support/catch.h"

namespace
{

// Length of the valid UTF-8 at the start of text.
size_t valid_utf8(const std::string &text)
{
    size_t i = 0;
    while (i < text.size()) {
        auto lead = (unsigned char)text[i];
        size_t more = lead < 0x80 ? 0 : lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 9;
        if (i + more >= text.size()) return i;
        for (size_t k = 1; k <= more; k++)
            if (((unsigned char)text[i + k] & 0xc0) != 0x80) return i;
        i += more + 1;
    }
    return i;
}

std::string repeated(const char *text, int times)
{
    std::string out;
    for (int i = 0; i < times; i++)
        out += text;
    return out;
}

hd_status tries(hd_status first, int *reached)
{
    HD_TRY(first);
    ++*reached;
    return HD_OK;
}

} // namespace

TEST_CASE("status: the message says what was given, and where it was made", "[base][status]")
{
    CHECK(hd_fail(HD_ERR_IO, "%s: no such file; line %d", "a.json", 7) == HD_ERR_IO);
    CHECK(std::string(hd_message()) == "a.json: no such file; line 7");
    std::string origin = hd_message_origin();
    CHECK(origin.find("test_status.cpp:") != std::string::npos);
}

TEST_CASE("status: a note is added to a failure and to nothing else", "[base][status]")
{
    (void)hd_fail(HD_ERR_FORMAT, "bad header");
    CHECK(hd_note(HD_ERR_FORMAT, "while opening %s", "x") == HD_ERR_FORMAT);
    CHECK(std::string(hd_message()) == "bad header; while opening x");
    CHECK(hd_note(HD_OK, "while doing nothing") == HD_OK);
    CHECK(std::string(hd_message()) == "bad header; while opening x");
    (void)hd_fail(HD_ERR_FORMAT, "again");
    CHECK(std::string(hd_message()) == "again");
}

TEST_CASE("status: the message may be an argument of the next one", "[base][status]")
{
    (void)hd_fail(HD_ERR_IO, "inner");
    (void)hd_fail(HD_ERR_FORMAT, "outer (%s)", hd_message());
    CHECK(std::string(hd_message()) == "outer (inner)");
    (void)hd_note(HD_ERR_FORMAT, "[%s]", hd_message());
    CHECK(std::string(hd_message()) == "outer (inner); [outer (inner)]");
}

TEST_CASE("status: what is too long is cut between characters", "[base][status]")
{
    for (const char *character : {"x", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x90\x9f"})
        for (const char *lead : {"", "a", "ab", "abc"}) {
            std::string text = lead + repeated(character, 3000);
            (void)hd_fail(HD_ERR_ARGUMENT, "%s", text.c_str());
            std::string kept = hd_message();
            CHECK(kept.size() > 2000);
            CHECK(kept.size() < 2048);
            CHECK(kept == text.substr(0, kept.size()));
            CHECK(valid_utf8(kept) == kept.size());

            std::string note = repeated(character, 600);
            (void)hd_fail(HD_ERR_ARGUMENT, "%s%s", lead, repeated("y", 1500).c_str());
            (void)hd_note(HD_ERR_ARGUMENT, "%s", note.c_str());
            kept = hd_message();
            CHECK(valid_utf8(kept) == kept.size());

            hd_message_set(text.c_str(), "origin");
            kept = hd_message();
            CHECK(kept.size() > 2000);
            CHECK(valid_utf8(kept) == kept.size());
        }
}

TEST_CASE("status: a text that just fits is kept whole", "[base][status]")
{
    for (size_t length : {2045u, 2046u}) {
        (void)hd_fail(HD_ERR_ARGUMENT, "%s", std::string(length, 'x').c_str());
        CHECK(strlen(hd_message()) == length);
    }
}

TEST_CASE("status: each thread has its own message", "[base][status][threads]")
{
    (void)hd_fail(HD_ERR_IO, "mine");
    std::string before, after;
    std::thread other([&] {
        before = hd_message();
        (void)hd_fail(HD_ERR_IO, "theirs");
        after = hd_message();
    });
    other.join();
    CHECK(before.empty());
    CHECK(after == "theirs");
    CHECK(std::string(hd_message()) == "mine");
}

TEST_CASE("status: a message is replaced as a whole, also by itself", "[base][status]")
{
    hd_message_set("from a worker", "engine/x.c:12");
    CHECK(std::string(hd_message()) == "from a worker");
    CHECK(std::string(hd_message_origin()) == "engine/x.c:12");
    hd_message_set(hd_message(), hd_message_origin());
    CHECK(std::string(hd_message()) == "from a worker");
    CHECK(std::string(hd_message_origin()) == "engine/x.c:12");
}

TEST_CASE("status: HD_TRY passes a failure up and goes on after HD_OK", "[base][status]")
{
    int reached = 0;
    CHECK(tries(HD_OK, &reached) == HD_OK);
    CHECK(tries(HD_ERR_SHAPE, &reached) == HD_ERR_SHAPE);
    CHECK(reached == 1);
}

TEST_CASE("status: every kind has words", "[base][status]")
{
    for (int s = HD_OK; s <= HD_ERR_INTERNAL; s++)
        CHECK(std::string(hd_status_name((hd_status)s)) != "unknown");
    CHECK(std::string(hd_status_name((hd_status)99)) == "unknown");
}
