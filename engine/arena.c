/* engine/arena.c: bump allocation over one mapping, or over nothing at all while measuring. */
#include "engine/arena.h"

#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif
#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define ARENA_ALIGN ((size_t)64)
// Addresses of a measuring arena start here: not NULL, never mapped, so that a touch traps.
#define ARENA_FAKE_BASE ((uintptr_t)1 << 46)

struct hd_arena {
    char *base; // NULL while measuring
    size_t bytes, used, peak;
};

static void hide(hd_arena *arena, size_t from, size_t to)
{
#ifdef ARENA_ASAN
    if (arena->base && to > from) ASAN_POISON_MEMORY_REGION(arena->base + from, to - from);
#else
    (void)arena, (void)from, (void)to;
#endif
}

static void show(hd_arena *arena, size_t from, size_t to)
{
#ifdef ARENA_ASAN
    if (arena->base && to > from) ASAN_UNPOISON_MEMORY_REGION(arena->base + from, to - from);
#else
    (void)arena, (void)from, (void)to;
#endif
}

hd_status hd_arena_create(hd_arena **out, size_t bytes)
{
    hd_arena *arena = calloc(1, sizeof *arena);
    if (!arena) return hd_fail(HD_ERR_NOMEM, "arena: no memory for its record");
    arena->bytes = bytes;
    if (bytes > 0) {
        void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) {
            free(arena);
            return hd_fail(HD_ERR_NOMEM,
                           "arena: the system has no %.1f MiB for activations; make the picture "
                           "smaller or use bf16",
                           (double)bytes / 0x1p20);
        }
#ifdef MADV_HUGEPAGE
        (void)madvise(map, bytes,
                      MADV_HUGEPAGE); // an optimisation: nothing is lost when it is refused
#endif
        arena->base = map;
    }
    hide(arena, 0, bytes);
    *out = arena;
    return HD_OK;
}

hd_status hd_arena_create_measuring(hd_arena **out)
{
    hd_arena *arena = calloc(1, sizeof *arena);
    if (!arena) return hd_fail(HD_ERR_NOMEM, "arena: no memory for its record");
    arena->bytes = SIZE_MAX / 2;
    *out = arena;
    return HD_OK;
}

void hd_arena_free(hd_arena *arena)
{
    if (!arena) return;
    if (arena->base) {
        show(arena, 0, arena->bytes);
        munmap(arena->base, arena->bytes);
    }
    free(arena);
}

bool hd_arena_measuring(const hd_arena *arena)
{
    return !arena->base && arena->bytes > 0;
}

void *hd_arena_bytes(hd_arena *arena, size_t bytes)
{
    size_t start = (arena->used + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1);
    if (bytes > arena->bytes || start > arena->bytes - bytes) return NULL;
    arena->used = start + bytes;
    if (arena->used > arena->peak) arena->peak = arena->used;
    if (hd_arena_measuring(arena)) return (void *)(ARENA_FAKE_BASE + start);
    if (!arena->base) return NULL;
    show(arena, start, start + bytes);
#ifndef NDEBUG
    memset(arena->base + start, 0xff, bytes); // NaN in every floating type
#endif
    return arena->base + start;
}

hd_tensor hd_arena_tensor(hd_arena *arena, hd_dtype dtype, hd_shape shape)
{
    hd_tensor t = hd_tensor_of(NULL, dtype, shape);
    int64_t bytes = hd_tensor_bytes(t);
    // An empty tensor still gets an address: NULL means "did not fit".
    if (bytes >= 0) t.data = hd_arena_bytes(arena, bytes > 0 ? (size_t)bytes : 1);
    return t;
}

size_t hd_arena_mark(const hd_arena *arena)
{
    return arena->used;
}

void hd_arena_rewind(hd_arena *arena, size_t mark)
{
#ifndef NDEBUG
    show(arena, mark, arena->used); // the gaps between two tensors are hidden
    if (arena->base && arena->used > mark) memset(arena->base + mark, 0xfb, arena->used - mark);
#endif
    hide(arena, mark, arena->used);
    arena->used = mark;
}

size_t hd_arena_peak_bytes(const hd_arena *arena)
{
    return arena->peak;
}
