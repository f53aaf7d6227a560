#include "support/inflated.h"

#include <zlib.h>

#include "support/fixture.h"

std::string inflated(const std::string &path)
{
    std::string packed = fixture_text(path), out;
    z_stream z = {};
    if (inflateInit(&z) != Z_OK) throw std::runtime_error("zlib");
    z.next_in = reinterpret_cast<Bytef *>(packed.data());
    z.avail_in = (uInt)packed.size();
    char chunk[1 << 16];
    int result = Z_OK;
    while (result == Z_OK) {
        z.next_out = reinterpret_cast<Bytef *>(chunk);
        z.avail_out = sizeof chunk;
        result = inflate(&z, Z_NO_FLUSH);
        out.append(chunk, sizeof chunk - z.avail_out);
    }
    inflateEnd(&z);
    if (result != Z_STREAM_END) throw std::runtime_error("damaged fixture " + path);
    return out;
}
