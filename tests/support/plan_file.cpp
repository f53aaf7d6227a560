#include "support/plan_file.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <xxhash.h>

#include "support/catch.h"
#include "support/folder.h"

hd_site plan_site(const char *path, int64_t heads, hd_site_kind kind)
{
    hd_site site{};
    site.kind = kind;
    site.heads = heads;
    snprintf(site.path, sizeof site.path, "%s", path);
    return site;
}

void randomise(hd_plan_file *file, hd_plan_file_site *site, double density, uint64_t seed)
{
    std::mt19937_64 random(seed);
    for (int64_t h = 0; h < site->site.heads; h++)
        site->order[h] = (uint8_t)(random() % HD_PLAN_FILE_ORDERS);
    for (int64_t m = 0; m < file->masks; m++)
        for (int64_t h = 0; h < site->site.heads; h++) {
            uint8_t *bits = hd_plan_file_bits(site, m, h);
            memset(bits, 0, (size_t)site->bitmap_bytes);
            for (int64_t i = 0; i < site->tiles * site->tiles; i++)
                if ((double)(random() % 4096) < density * 4096)
                    bits[i / 8] |= (uint8_t)(1u << (i % 8));
            site->retained[m * site->site.heads + h] = (float)(random() % 1000) / 1000.0f;
        }
}

PlanFilePtr random_plan_file(uint64_t seed)
{
    std::mt19937_64 random(seed);
    auto upto = [&](int64_t n) { return 1 + (int64_t)(random() % (uint64_t)n); };
    int64_t steps = upto(6), masks = upto(steps), sites = upto(3);
    hd_plan_file *file = nullptr;
    REQUIRE_OK(hd_plan_file_create(&file, upto(9), steps, masks, sites));
    PlanFilePtr owner(file, hd_plan_file_free);
    file->model = random();
    file->target = 0.25f;
    for (int64_t s = 0; s < steps; s++)
        file->mask_of_step[s] = (uint16_t)(random() % (uint64_t)masks);
    for (int64_t i = 0; i < sites; i++) {
        hd_site site = plan_site(("block." + std::to_string(i)).c_str(), upto(3), HD_SITE_JOINT);
        int64_t grid[3] = {upto(3), upto(5), upto(5)};
        hd_plan_file_site *entry = nullptr;
        REQUIRE_OK(hd_plan_file_add(file, &site, grid, (int64_t)(random() % 7), random() % 2 != 0,
                                    &entry));
        randomise(file, entry, 0.5, random());
    }
    return owner;
}

std::string plan_file_bytes(hd_plan_file *file)
{
    Folder folder;
    REQUIRE_OK(hd_plan_file_write(file, folder.path("a.hdplan").c_str()));
    return folder.read("a.hdplan");
}

std::string with_checksum(std::string bytes)
{
    uint64_t sum = XXH64(bytes.data(), bytes.size() - 8, 0);
    for (size_t i = 0; i < 8; i++)
        bytes[bytes.size() - 8 + i] = (char)(sum >> (8 * i));
    return bytes;
}
