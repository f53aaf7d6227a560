// The pool: every item once, failures brought home, thousands of loops on the same threads.
#include "base/pool.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "support/catch.h"

namespace
{

struct Pool {
    explicit Pool(int threads)
    {
        REQUIRE_OK(hd_pool_create(&pool, threads));
    }
    ~Pool()
    {
        hd_pool_free(pool);
    }
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;
    hd_pool *pool = nullptr;
};

struct Tally {
    explicit Tally(int64_t count, int threads) : times((size_t)count), busy((size_t)threads)
    {
    }
    std::vector<std::atomic<int>> times;
    std::vector<std::atomic<int>> busy;
    std::atomic<bool> shared{false};
    std::vector<int64_t> fails;
};

hd_status count_item(void *arg, int64_t item, int thread)
{
    auto *tally = static_cast<Tally *>(arg);
    // `thread` selects scratch: nobody else may have the same number now
    if (tally->busy.at((size_t)thread)++ != 0) tally->shared = true;
    tally->times.at((size_t)item)++;
    for (int64_t bad : tally->fails)
        if (item == bad) {
            tally->busy.at((size_t)thread)--;
            return hd_fail(HD_ERR_FORMAT, "item %lld is bad", (long long)item);
        }
    tally->busy.at((size_t)thread)--;
    return HD_OK;
}

} // namespace

TEST_CASE("pool: every item runs once, and no two at a time under one thread number",
          "[base][pool][threads]")
{
    for (int threads = 1; threads <= 8; threads++) {
        Pool p(threads);
        CHECK(hd_pool_threads(p.pool) == threads);
        for (int64_t count : {0, 1, 2, 7, 1000}) {
            Tally tally(count, threads);
            REQUIRE_OK(hd_parallel_for(p.pool, count, count_item, &tally));
            bool once = true;
            for (auto &times : tally.times)
                once &= times == 1;
            CHECK(once);
            CHECK(!tally.shared);
        }
    }
}

TEST_CASE("pool: the failure with the lowest item number comes back with its message",
          "[base][pool][threads]")
{
    for (int threads = 1; threads <= 8; threads++) {
        Pool p(threads);
        for (int round = 0; round < 200; round++) {
            Tally tally(1000, threads);
            tally.fails = {40, 17, 18, 19, 20, 999};
            CHECK_FAILS(hd_parallel_for(p.pool, 1000, count_item, &tally), HD_ERR_FORMAT,
                        "item 17 is bad");
            CHECK(std::string(hd_message_origin()).find("test_pool.cpp") != std::string::npos);
            // what was handed out before the failure ran; no item twice
            bool earlier = true, once = true;
            for (size_t i = 0; i < 17; i++)
                earlier &= tally.times[i] == 1;
            for (auto &times : tally.times)
                once &= times <= 1;
            CHECK(earlier);
            CHECK(once);
            // and the pool still works
            Tally next(10, threads);
            REQUIRE_OK(hd_parallel_for(p.pool, 10, count_item, &next));
        }
    }
}

TEST_CASE("pool: after a failure no new item starts", "[base][pool][threads]")
{
    for (int threads : {1, 2, 4}) {
        Pool p(threads);
        Tally tally(1000000, threads);
        tally.fails = {0};
        CHECK(hd_parallel_for(p.pool, 1000000, count_item, &tally) == HD_ERR_FORMAT);
        int64_t ran = 0;
        for (auto &times : tally.times)
            ran += times;
        CHECK(ran < 1000000);
        if (threads == 1) CHECK(ran == 1);
    }
}

TEST_CASE("pool: thousands of short loops on the same threads see each other's work",
          "[base][pool][threads]")
{
    for (int threads : {1, 2, 3, 8}) {
        Pool p(threads);
        // plain memory, written by one loop and read by the next
        std::vector<int64_t> from(16, 1), to(16, 0);
        struct Step {
            std::vector<int64_t> *from, *to;
        } step{&from, &to};
        auto work = [](void *arg, int64_t item, int) {
            auto *s = static_cast<Step *>(arg);
            (*s->to)[(size_t)item] = (*s->from)[(size_t)(item + 1) % 16] + 1;
            return HD_OK;
        };
        for (int i = 0; i < 3000; i++) {
            if (hd_parallel_for(p.pool, 16, work, &step) != HD_OK) FAIL(hd_message());
            std::swap(step.from, step.to);
        }
        for (int64_t v : *step.from)
            CHECK(v == 3001);
    }
}

TEST_CASE("pool: no pool is the calling thread alone, in order", "[base][pool]")
{
    CHECK(hd_pool_threads(nullptr) == 1);
    hd_pool_free(nullptr);
    struct Order {
        std::vector<int64_t> items;
        std::thread::id caller = std::this_thread::get_id();
        bool here = true;
    } order;
    auto work = [](void *arg, int64_t item, int thread) {
        auto *o = static_cast<Order *>(arg);
        o->items.push_back(item);
        o->here &= std::this_thread::get_id() == o->caller && thread == 0;
        return item == 4 ? hd_fail(HD_ERR_CANCELLED, "stop") : HD_OK;
    };
    CHECK_FAILS(hd_parallel_for(nullptr, 10, work, &order), HD_ERR_CANCELLED, "stop");
    CHECK(order.items == std::vector<int64_t>{0, 1, 2, 3, 4});
    CHECK(order.here);
}

TEST_CASE("pool: two pools at once", "[base][pool][threads]")
{
    auto loop = [](int64_t *failures) {
        hd_pool *pool = nullptr;
        if (hd_pool_create(&pool, 3) != HD_OK) return;
        for (int i = 0; i < 500; i++) {
            Tally tally(20, 3);
            if (hd_parallel_for(pool, 20, count_item, &tally) != HD_OK) ++*failures;
            for (auto &times : tally.times)
                if (times != 1) ++*failures;
        }
        hd_pool_free(pool);
        --*failures; // reached the end
    };
    int64_t first = 1, second = 1;
    std::thread a(loop, &first), b(loop, &second);
    a.join();
    b.join();
    CHECK(first == 0);
    CHECK(second == 0);
}

TEST_CASE("pool: impossible numbers of threads are refused", "[base][pool]")
{
    hd_pool *pool = nullptr;
    CHECK_FAILS(hd_pool_create(&pool, 0), HD_ERR_ARGUMENT, "threads is 0, must be 1 to 4096");
    CHECK_FAILS(hd_pool_create(&pool, 5000), HD_ERR_ARGUMENT, "threads is 5000");
    CHECK(pool == nullptr);
    CHECK(hd_pool_default_threads() >= 1);
    CHECK(hd_pool_default_threads() <= (int)std::max(1u, std::thread::hardware_concurrency()));
}
