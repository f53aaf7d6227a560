/* tests/support/inflated.h: fixtures that are stored compressed, and reading their numbers. */
#ifndef HD_TESTS_SUPPORT_INFLATED_H
#define HD_TESTS_SUPPORT_INFLATED_H

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

/* The contents of a zlib file in tests/fixtures. Throws std::runtime_error. */
std::string inflated(const std::string &path);

/* Takes little-endian numbers and strings from the front of a text. */
class Reader
{
  public:
    explicit Reader(std::string data) : text(std::move(data))
    {
    }
    template <typename T> T number()
    {
        T value;
        std::string bytes = string(sizeof value);
        memcpy(&value, bytes.data(), sizeof value);
        return value;
    }
    std::string string(size_t bytes)
    {
        if (bytes > text.size() - at) throw std::runtime_error("a fixture ends too early");
        at += bytes;
        return text.substr(at - bytes, bytes);
    }
    bool done() const
    {
        return at == text.size();
    }

  private:
    std::string text;
    size_t at = 0;
};

#endif
