/* tests/support/network.h: runs networks as programs do: a dry pass that measures, then the real
 * one on an arena of exactly that size; and reads configurations and weights of fixtures. */
#ifndef HD_TESTS_SUPPORT_NETWORK_H
#define HD_TESTS_SUPPORT_NETWORK_H

#include <functional>
#include <string>
#include <vector>

#include "base/exec.h"
#include "engine/arena.h"
#include "engine/options/json.h"
#include "engine/weights/weights.h"
#include "support/catch.h"

/* Runs `forward` twice: recording, then for real. Requires that the real pass used what the dry one
 * measured, and gives that number of bytes. */
inline size_t run_network(int threads, const std::function<hd_status(const hd_exec *)> &forward,
                          unsigned has = hd_cpu_features())
{
    hd_exec ex{};
    ex.has = has;
    REQUIRE_OK(hd_pool_create(&ex.pool, threads));
    REQUIRE_OK(hd_arena_create_measuring(&ex.arena));
    ex.recording = true;
    REQUIRE_OK(forward(&ex));
    CHECK(hd_arena_mark(ex.arena) == 0);
    size_t bytes = hd_arena_peak_bytes(ex.arena);
    hd_arena_free(ex.arena);
    REQUIRE_OK(hd_arena_create(&ex.arena, bytes));
    ex.recording = false;
    REQUIRE_OK(forward(&ex));
    CHECK(hd_arena_mark(ex.arena) == 0);
    CHECK(hd_arena_peak_bytes(ex.arena) == bytes);
    hd_arena_free(ex.arena);
    hd_pool_free(ex.pool);
    return bytes;
}

/* A parsed JSON text. */
class Json
{
  public:
    Json(const std::string &name, const std::string &text)
    {
        REQUIRE_OK(hd_json_parse(&doc, name.c_str(), text.data(), text.size()));
    }
    ~Json()
    {
        hd_json_free(doc);
    }
    Json(const Json &) = delete;
    Json &operator=(const Json &) = delete;
    const hd_json *root() const
    {
        return hd_json_root(doc);
    }

  private:
    hd_json_doc *doc = nullptr;
};

/* The tensors of tests/fixtures/names/<network>.txt: a name and its sizes a line. */
class NameList
{
  public:
    explicit NameList(const std::string &text,
                      const std::function<std::string(const std::string &)> &rename = {});
    /* Borrows the names: the list must outlive it. */
    std::vector<hd_weight_info> infos() const;

  private:
    std::vector<std::string> names;
    std::vector<hd_shape> shapes;
};

#endif
