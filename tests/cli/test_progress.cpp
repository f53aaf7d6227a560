// The progress line at every width: never as wide as the terminal, the numbers right.
#include <algorithm>
#include <string>

#include "cli/progress.h"
#include "support/catch.h"

namespace
{
std::string line(int columns, hd_progress p)
{
    char text[256];
    return hd_progress_line(text, sizeof text, columns, &p);
}
} // namespace

TEST_CASE("progress: steps, time per step and time left", "[cli]")
{
    hd_progress p = {"sample", 12, 25, 1.21, 14.4};
    std::string text = line(80, p);
    CHECK(text.find("sample  [") == 0);
    CHECK(text.find("]  12/25  1.21 s/step  0:16 left") != std::string::npos); // 1.2 * 13
    size_t bar = text.find(']') - text.find('[') - 1,
           done = (size_t)std::count(text.begin(), text.end(), '#');
    CHECK(done == bar * 12 / 25);
    CHECK(line(80, {"load", 0, 1, 0, 0}) == "load ...");
    CHECK(line(80, {"sample", 0, 25, 0, 0}).find("0/25") != std::string::npos);
    CHECK(line(80, {"sample", 0, 25, 0, 0}).find("left") == std::string::npos);
    CHECK(line(80, {"load", 1024, 2048, 0, 3}).find("50 %  0:03 left") != std::string::npos);
    CHECK(line(200, {"sample", 1, 3601, 2, 2}).find("2:00:00 left") != std::string::npos);
}

TEST_CASE("progress: every width holds it", "[cli]")
{
    for (int columns = 0; columns < 300; columns++)
        for (int step : {0, 1, 13, 25}) {
            std::string text = line(columns, {"sample", step, 25, 1.21, 1.21 * step});
            INFO(columns << ": " << text);
            CHECK((int)text.size() <= (columns > 1 ? columns - 1 : 0));
        }
}

TEST_CASE("progress: a file is no terminal", "[cli]")
{
    FILE *file = tmpfile();
    hd_progress_bar bar = hd_progress_bar_begin(file, false);
    hd_progress p = {"sample", 1, 2, 1, 1};
    hd_progress_bar_update(&bar, &p);
    hd_progress_bar_clear(&bar);
    CHECK(ftell(file) == 0);
    fclose(file);
}
