// Plan files: what is written is read again; what is cut, changed or hostile is refused with its
// field, and nothing that is accepted means anything else than its bytes.
#include <algorithm>
#include <cstring>
#include <fstream>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/folder.h"
#include "support/plan_file.h"

namespace
{

hd_status parse(PlanFilePtr &out, const std::string &bytes)
{
    hd_plan_file *file = nullptr;
    // exactly as large as it is: the sanitizer sees a byte too much
    std::unique_ptr<char[]> copy(new char[bytes.size() + (bytes.empty() ? 1 : 0)]);
    memcpy(copy.get(), bytes.data(), bytes.size());
    hd_status status = hd_plan_file_parse(&file, "a.hdplan", copy.get(), bytes.size());
    if (status == HD_OK) out.reset(file);
    return status;
}

PlanFilePtr none()
{
    return PlanFilePtr(nullptr, hd_plan_file_free);
}

void put(std::string &bytes, size_t at, uint64_t value, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[at + i] = (char)(value >> (8 * i));
}

// One site "mid.attn.0 self", 2 heads, grid 1x6x5, tiles of 8, 3 steps, 2 masks.
PlanFilePtr small_file()
{
    hd_plan_file *file = nullptr;
    hd_plan_file_site *entry = nullptr;
    hd_site site = plan_site("mid.attn.0", 2);
    int64_t grid[3] = {1, 6, 5};
    REQUIRE_OK(hd_plan_file_create(&file, 8, 3, 2, 1));
    PlanFilePtr owner(file, hd_plan_file_free);
    REQUIRE_OK(hd_plan_file_add(file, &site, grid, 0, false, &entry));
    file->mask_of_step[2] = 1;
    file->model = 0x1122334455667788;
    randomise(file, entry, 0.5, 3);
    return owner;
}

enum : size_t { TABLE = 48, SITE = TABLE + 6, FIELDS = SITE + 48, ORDER = FIELDS + 32 };

} // namespace

TEST_CASE("plan_file: what is written is read again", "[plan_file]")
{
    uint64_t seed = GENERATE(range(1, 41));
    CAPTURE(seed);
    PlanFilePtr a = random_plan_file(seed), b = none();
    std::string bytes = plan_file_bytes(a.get());
    REQUIRE_OK(parse(b, bytes));
    CHECK(b->model == a->model);
    CHECK(b->tile == a->tile);
    CHECK(b->steps == a->steps);
    CHECK(b->masks == a->masks);
    CHECK(b->target == a->target);
    CHECK(std::equal(a->mask_of_step, a->mask_of_step + a->steps, b->mask_of_step));
    REQUIRE(b->sites == a->sites);
    for (int64_t i = 0; i < a->sites; i++) {
        const hd_plan_file_site &x = a->site[i], &y = b->site[i];
        const hd_plan_file_site *other;
        CHECK(hd_plan_file_find(b.get(), &x.site, x.grid, x.text, &other) == &y);
        CHECK(y.text_first == x.text_first);
        CHECK(y.tiles == x.tiles);
        int64_t maps = a->masks * x.site.heads;
        CHECK(std::equal(x.order, x.order + x.site.heads, y.order));
        CHECK(std::equal(x.retained, x.retained + maps, y.retained));
        CHECK(memcmp(x.bits, y.bits, (size_t)(maps * x.bitmap_bytes)) == 0);
        for (int64_t m = 0; m < maps; m++) // density: pairs counted token by token
        {
            int64_t tokens = x.site.tokens, ranks = tokens - (x.text_first ? 0 : x.text), pairs = 0;
            const uint8_t *bits = x.bits + m * x.bitmap_bytes;
            for (int64_t q = 0; q < tokens; q++)
                for (int64_t k = 0; k < tokens; k++)
                    pairs += q >= ranks || k >= ranks ||
                             hd_plan_bit(bits, q / a->tile * x.tiles + k / a->tile);
            CHECK((double)y.density[m] ==
                  Approx((double)pairs / (double)(tokens * tokens)).epsilon(1e-6));
        }
    }
    CHECK(plan_file_bytes(b.get()) == bytes);
}

TEST_CASE("plan_file: a file that is cut anywhere is refused", "[plan_file]")
{
    std::string bytes = plan_file_bytes(small_file().get());
    PlanFilePtr file = none();
    for (size_t length = 0; length < bytes.size(); length++) {
        CAPTURE(length);
        CHECK_FAILS(parse(file, bytes.substr(0, length)), HD_ERR_FORMAT,
                    length < 56 ? "a.hdplan: is no plan file" : "is it cut");
        // and when it says itself that it is as short as it is
        if (length < 56) continue;
        std::string shorter = bytes.substr(0, length);
        put(shorter, 16, length, 8);
        CHECK_FAILS(parse(file, with_checksum(shorter)), HD_ERR_FORMAT, "a.hdplan: ");
    }
    CHECK_FAILS(parse(file, bytes + "x"), HD_ERR_FORMAT, "is it cut");
}

TEST_CASE("plan_file: a changed bit is found, by the checksum or by the fields", "[plan_file]")
{
    std::string bytes = plan_file_bytes(small_file().get());
    PlanFilePtr file = none();
    for (size_t bit = 0; bit < bytes.size() * 8; bit++) {
        CAPTURE(bit);
        std::string changed = bytes;
        changed[bit / 8] = (char)(changed[bit / 8] ^ (1 << (bit % 8)));
        hd_status status = parse(file, changed);
        CHECK((status == HD_ERR_FORMAT || status == HD_ERR_UNSUPPORTED));
        CHECK(std::string(hd_message()).find("a.hdplan: ") == 0);
        if (bit / 8 >= bytes.size() - 8) continue;
        // somebody who makes the checksum right again: refused, or exactly what the bytes say
        changed = with_checksum(changed);
        if (parse(file, changed) == HD_OK) CHECK(plan_file_bytes(file.get()) == changed);
    }
}

TEST_CASE("plan_file: hostile fields are refused by name", "[plan_file]")
{
    const std::string bytes = plan_file_bytes(small_file().get());
    struct {
        size_t at;
        uint64_t value;
        size_t count;
        const char *message;
    } cases[] = {
        {12, 0, 4, "a.hdplan: tile is 0, must be 1 to 4096; make it again with heddle calibrate"},
        {32, 0xffffffff, 4, "steps is 4294967295, must be 1 to 10000"},
        {36, 4, 4, "masks is 4, must be 1 to 3"},
        {40, 0, 4, "sites is 0, must be 1 to 4096"},
        {40, 4096, 4, "the list of sites takes"},
        {40, 2, 4, "the list of sites takes"},
        {44, 0x7fc00000, 4, "the target density is nan, must be 0 to 1"},
        {TABLE, 2, 2, "the mask number of a step is 2, must be 0 to 1"},
        {SITE, 0, 1, "a site's path is not 1 to 47 letters"},
        {SITE + 47, 'x', 1, "a site's path is not 1 to 47 letters"},
        {SITE + 3, 0x1b, 1, "a site's path is not 1 to 47 letters"},
        {FIELDS, 9, 4, "network is 9, must be 0 to 3"},
        {FIELDS + 4, 4, 4, "kind is 4, must be 0 to 3"},
        {FIELDS + 8, 0, 4, "heads is 0, must be 1 to 1024"},
        {FIELDS + 8, 1024, 4, "mid.attn.0 takes"},
        {FIELDS + 12, 0, 4, "frames is 0"},
        {FIELDS + 16, 0x10001, 4, "height is 65537, must be 1 to 65536"},
        {FIELDS + 20, 0x10000, 4, "tiles per side is 49152, must be 1 to 32768"},
        {FIELDS + 24, 0xffffffff, 4, "text is 4294967295, must be 0 to 1073741824"},
        {FIELDS + 28, 2, 4, "text first is 2, must be 0 to 1"},
        {FIELDS + 28, 1, 4, ""}, // without text it says nothing
        {ORDER, 6, 1, "an order is 6, must be 0 to 5"},
        {ORDER + 2, 0x3f800001, 4, "a density is 1, must be 0 to 1"},
        {ORDER + 2, 0x3e000000, 4, "mid.attn.0: head 0 has density 0.125, its tiles make"},
        {ORDER + 2 + 16, 0xbf800000, 4, "a retained mass is -1, must be 0 to 1"},
    };
    PlanFilePtr file = none();
    for (auto &c : cases) {
        std::string changed = bytes;
        put(changed, c.at, c.value, c.count);
        INFO("byte " << c.at << ", value " << c.value);
        hd_status status = parse(file, with_checksum(changed));
        if (!*c.message) {
            REQUIRE_OK(status);
            continue;
        }
        CHECK_FAILS(status, HD_ERR_FORMAT, c.message);
    }
    std::string newer = bytes;
    put(newer, 8, 2, 4);
    CHECK_FAILS(parse(file, with_checksum(newer)), HD_ERR_UNSUPPORTED,
                "a.hdplan: is of version 2, this program reads 1");
    // 3 tiles: 9 bits in two bytes, of which 7 must be clear
    PlanFilePtr three = none();
    hd_plan_file *made = nullptr;
    hd_plan_file_site *entry = nullptr;
    hd_site site = plan_site("mid.attn.0", 1);
    int64_t grid[3] = {1, 3, 5};
    REQUIRE_OK(hd_plan_file_create(&made, 5, 1, 1, 2));
    three.reset(made);
    REQUIRE_OK(hd_plan_file_add(made, &site, grid, 0, false, &entry));
    std::string spare = plan_file_bytes(made);
    spare[spare.size() - 9] = 2;
    CHECK_FAILS(parse(file, with_checksum(spare)), HD_ERR_FORMAT,
                "mid.attn.0: head 0 has a tile beyond the last");
    REQUIRE_OK(hd_plan_file_add(made, &site, grid, 0, false, &entry));
    CHECK_FAILS(parse(file, plan_file_bytes(made)), HD_ERR_FORMAT, "mid.attn.0 is there twice");
}

TEST_CASE("plan_file: sizes of the published models' masks", "[plan_file]")
{
    hd_plan_file *file = nullptr;
    hd_plan_file_site *wan = nullptr, *cog = nullptr;
    REQUIRE_OK(hd_plan_file_create(&file, 64, 1, 1, 3));
    PlanFilePtr owner(file, hd_plan_file_free);
    hd_site site = plan_site("block.0", 1);
    int64_t wan_grid[3] = {21, 45, 80}, cog_grid[3] = {13, 30, 45};
    REQUIRE_OK(hd_plan_file_add(file, &site, wan_grid, 0, false, &wan));
    REQUIRE_OK(hd_plan_file_add(file, &site, cog_grid, 226, true, &cog));
    CHECK(wan->tiles == 1182);
    CHECK(wan->site.tokens - 1181 * 64 == 16);
    CHECK(wan->bitmap_bytes == 174641);
    CHECK(cog->tiles == 278);
    CHECK(cog->site.tokens - 277 * 64 == 48);
    CHECK(cog->bitmap_bytes == 9661);
    int64_t large[3] = {1 << 10, 1 << 10, 1 << 10};
    CHECK_FAILS(hd_plan_file_add(file, &site, large, 0, false, &wan), HD_ERR_ARGUMENT,
                "block.0: tiles per side is 16777216, must be 1 to 32768");
    for (int64_t &axis : large)
        axis = 1 << 16; // whose square is beyond 64 bits
    CHECK_FAILS(hd_plan_file_add(file, &site, large, 0, false, &wan), HD_ERR_ARGUMENT,
                "block.0: tokens of the grid and the text is 281474976710656");
}

TEST_CASE("plan_file: the table of steps is stretched over a run", "[plan_file]")
{
    PlanFilePtr file = small_file(); // masks 0 0 1
    std::vector<int64_t> same, twice, fewer;
    for (int64_t s = 0; s < 3; s++)
        same.push_back(hd_plan_file_mask(file.get(), s, 3));
    for (int64_t s = 0; s < 6; s++)
        twice.push_back(hd_plan_file_mask(file.get(), s, 6));
    for (int64_t s = 0; s < 2; s++)
        fewer.push_back(hd_plan_file_mask(file.get(), s, 2));
    CHECK(same == std::vector<int64_t>{0, 0, 1});
    CHECK(twice == std::vector<int64_t>{0, 0, 0, 0, 1, 1});
    CHECK(fewer == std::vector<int64_t>{0, 0});
}

TEST_CASE("plan_file: files that cannot be read or written", "[plan_file]")
{
    Folder folder;
    hd_plan_file *file = nullptr;
    CHECK_FAILS(hd_plan_file_open(&file, folder.path("none").c_str()), HD_ERR_IO, "none");
    CHECK_FAILS(hd_plan_file_open(&file, folder.path().c_str()), HD_ERR_IO, "");
    PlanFilePtr small = small_file();
    CHECK_FAILS(hd_plan_file_write(small.get(), folder.path("no/such").c_str()), HD_ERR_IO, "no");
    folder.write("a", "what was there");
    CHECK_FAILS(hd_plan_file_write(small.get(), "/dev/full"), HD_ERR_IO, "/dev/full");
    REQUIRE_OK(hd_plan_file_write(small.get(), folder.path("a").c_str()));
    REQUIRE_OK(hd_plan_file_open(&file, folder.path("a").c_str()));
    hd_plan_file_free(file);
    CHECK(folder.names() == std::vector<std::string>{"a"});
    std::string bytes = folder.read("a");
    fail_each_allocation([&] {
        hd_plan_file *read = nullptr;
        hd_status status = hd_plan_file_parse(&read, "a", bytes.data(), bytes.size());
        if (status == HD_OK) hd_plan_file_free(read);
        return status;
    });
    fail_each_allocation([&] { return hd_plan_file_write(small.get(), folder.path("b").c_str()); });
}

TEST_CASE("plan_file: files that another program made are read", "[plan_file]")
{
    PlanFilePtr file = none();
    auto corpus = [&](const std::string &name) {
        std::ifstream in(source_path("tests/fuzz/corpus/plan/" + name), std::ios::binary);
        REQUIRE(in);
        return parse(file, std::string(std::istreambuf_iterator<char>(in), {}));
    };
    for (const char *name : {"picture", "video", "text_first"})
        REQUIRE_OK(corpus(name));
    REQUIRE(file->sites == 1);
    CHECK(std::string(file->site[0].site.path) == "block.1");
    CHECK(file->site[0].text == 6);
    CHECK(file->site[0].text_first);
    CHECK(file->site[0].tiles == 5);
    CHECK_FAILS(corpus("cut"), HD_ERR_FORMAT, "is it cut");
    CHECK_FAILS(corpus("header"), HD_ERR_FORMAT, "is it cut");
}
