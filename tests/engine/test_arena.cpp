// The arena: aligned, taken back to a mark, and a dry pass that finds the size of the real one.
#include "engine/arena.h"

#include <cmath>
#include <cstring>
#include <random>

#include "support/catch.h"

namespace
{

struct Arena {
    explicit Arena(size_t bytes)
    {
        REQUIRE_OK(hd_arena_create(&arena, bytes));
    }
    Arena()
    {
        REQUIRE_OK(hd_arena_create_measuring(&arena));
    }
    ~Arena()
    {
        hd_arena_free(arena);
    }
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    hd_arena *arena = nullptr;
};

// Blocks within blocks, as a network does it; the same for the same seed. Writes what it got.
bool nest(hd_arena *arena, std::mt19937 &rng, int depth)
{
    size_t mark = hd_arena_mark(arena);
    bool fits = true;
    for (int i = 0; i < 4; i++) {
        hd_tensor t = hd_arena_tensor(arena, i % 2 ? HD_BF16 : HD_F32,
                                      hd_shape2((int64_t)(rng() % 50), (int64_t)(rng() % 70)));
        fits &= t.data != nullptr;
        if (t.data && !hd_arena_measuring(arena)) memset(t.data, 1, (size_t)hd_tensor_bytes(t));
        if (depth > 0) fits &= nest(arena, rng, depth - 1);
    }
    hd_arena_rewind(arena, mark);
    return fits;
}

} // namespace

TEST_CASE("arena: a real arena of the measured size is just enough", "[engine][arena]")
{
    for (unsigned seed = 1; seed <= 20; seed++) {
        std::mt19937 dry(seed), real(seed), less(seed);
        Arena measuring;
        CHECK(hd_arena_measuring(measuring.arena));
        CHECK(nest(measuring.arena, dry, 3));
        size_t bytes = hd_arena_peak_bytes(measuring.arena);
        Arena enough(bytes);
        CHECK(!hd_arena_measuring(enough.arena));
        CHECK(nest(enough.arena, real, 3));
        CHECK(hd_arena_peak_bytes(enough.arena) == bytes);
        CHECK(hd_arena_mark(enough.arena) == 0);
        Arena small(bytes - 1);
        CHECK(!nest(small.arena, less, 3));
    }
}

TEST_CASE("arena: what it hands out is aligned and does not overlap", "[engine][arena]")
{
    Arena a(1 << 16);
    char *end = nullptr;
    for (size_t bytes : {1, 63, 64, 65, 3, 4096}) {
        auto *p = (char *)hd_arena_bytes(a.arena, bytes);
        REQUIRE(p != nullptr);
        CHECK((uintptr_t)p % 64 == 0);
        CHECK((!end || p >= end));
        memset(p, 0, bytes);
        end = p + bytes;
    }
    hd_tensor t = hd_arena_tensor(a.arena, HD_BF16, hd_shape3(2, 3, 5));
    CHECK((uintptr_t)t.data % 64 == 0);
    CHECK(t.dtype == HD_BF16);
    CHECK(hd_tensor_contiguous(t));
    CHECK(hd_tensor_count(t) == 30);
}

TEST_CASE("arena: after a rewind the same memory is handed out again; the peak stays",
          "[engine][arena]")
{
    Arena a(1 << 16);
    void *first = hd_arena_bytes(a.arena, 100);
    size_t mark = hd_arena_mark(a.arena);
    void *second = hd_arena_bytes(a.arena, 3000);
    size_t peak = hd_arena_peak_bytes(a.arena);
    CHECK(peak >= 3100);
    hd_arena_rewind(a.arena, mark);
    CHECK(hd_arena_bytes(a.arena, 10) == second);
    CHECK(hd_arena_peak_bytes(a.arena) == peak);
    hd_arena_rewind(a.arena, 0);
    CHECK(hd_arena_bytes(a.arena, 10) == first);
}

TEST_CASE("arena: what does not fit has no data, and less still fits", "[engine][arena]")
{
    Arena a(1024);
    CHECK(hd_arena_bytes(a.arena, 1025) == nullptr);
    CHECK(hd_arena_bytes(a.arena, SIZE_MAX) == nullptr);
    CHECK(hd_arena_tensor(a.arena, HD_F32, hd_shape1(257)).data == nullptr);
    CHECK(hd_arena_tensor(a.arena, HD_F32, hd_shape3(INT64_MAX, 4, 4)).data == nullptr);
    CHECK(hd_arena_tensor(a.arena, HD_F32, hd_shape1(-1)).data == nullptr);
    CHECK(hd_arena_mark(a.arena) == 0);
    CHECK(hd_arena_tensor(a.arena, HD_F32, hd_shape1(256)).data != nullptr);
    CHECK(hd_arena_bytes(a.arena, 1) == nullptr);
    Arena none(0);
    CHECK(!hd_arena_measuring(none.arena));
    CHECK(hd_arena_bytes(none.arena, 1) == nullptr);
    CHECK(hd_arena_bytes(none.arena, 0) == nullptr);
}

TEST_CASE("arena: an empty tensor has an address", "[engine][arena]")
{
    Arena a(1024), measuring;
    CHECK(hd_arena_tensor(a.arena, HD_F32, hd_shape2(0, 5)).data != nullptr);
    CHECK(hd_arena_tensor(measuring.arena, HD_F32, hd_shape2(0, 5)).data != nullptr);
}

TEST_CASE("arena: more than the address space is refused with a message", "[engine][arena]")
{
    hd_arena *arena = nullptr;
    CHECK_FAILS(hd_arena_create(&arena, (size_t)1 << 60), HD_ERR_NOMEM,
                "MiB for activations; make the picture smaller");
    CHECK(arena == nullptr);
    hd_arena_free(nullptr);
}

#ifndef NDEBUG
TEST_CASE("arena: debug builds hand out NaN, not what was there before", "[engine][arena]")
{
    Arena a(4096);
    for (int round = 0; round < 2; round++) {
        hd_tensor t = hd_arena_tensor(a.arena, HD_F32, hd_shape1(100));
        auto *values = (float *)t.data;
        for (int i = 0; i < 100; i++) {
            CHECK(std::isnan(values[i]));
            values[i] = 1;
        }
        hd_arena_rewind(a.arena, 0);
    }
}
#endif
