#include "support/alloc_fail.h"

#include <atomic>
#include <cJSON.h>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace
{
std::atomic<int64_t> left{0}; // allocations up to and with the one that fails; 0: none does
std::atomic<bool> came{false};
std::atomic<bool> noting{false};
std::atomic<size_t> largest{0};

void note(size_t bytes)
{
    size_t most = largest.load();
    while (noting && bytes > most && !largest.compare_exchange_weak(most, bytes))
        ;
}

bool fails(size_t bytes)
{
    note(bytes);
    int64_t now = left.load();
    while (now > 0 && !left.compare_exchange_weak(now, now - 1))
        ;
    if (now != 1) return false;
    came = true;
    errno = ENOMEM;
    return true;
}
} // namespace

extern "C" {
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
void *__real_aligned_alloc(size_t, size_t);
int __real_posix_memalign(void **, size_t, size_t);
char *__real_strdup(const char *);

void *__wrap_malloc(size_t bytes)
{
    return fails(bytes) ? nullptr : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails(count * bytes) ? nullptr : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return fails(bytes) ? nullptr : __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fails(bytes) ? nullptr : __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
    return fails(bytes) ? ENOMEM : __real_posix_memalign(out, align, bytes);
}

char *__wrap_strdup(const char *text)
{
    return fails(strlen(text) + 1) ? nullptr : __real_strdup(text);
}
}

FailAllocation::FailAllocation(int64_t n)
{
    cJSON_Hooks hooks = {__wrap_malloc, free};
    cJSON_InitHooks(&hooks);
    came = false;
    left = n;
}

FailAllocation::~FailAllocation()
{
    left = 0;
    cJSON_InitHooks(nullptr);
}

bool FailAllocation::failed() const
{
    return came;
}

LargestAllocation::LargestAllocation()
{
    largest = 0;
    noting = true;
}

LargestAllocation::~LargestAllocation()
{
    noting = false;
}

size_t LargestAllocation::bytes() const
{
    return largest;
}
