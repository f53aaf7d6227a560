/* tests/support/plan_file.h: plan files made at random, and as bytes. */
#ifndef HD_TESTS_SUPPORT_PLAN_FILE_H
#define HD_TESTS_SUPPORT_PLAN_FILE_H

#include <cstdint>
#include <memory>
#include <string>

#include "engine/attention/planner/plan_file.h"

using PlanFilePtr = std::unique_ptr<hd_plan_file, void (*)(hd_plan_file *)>;

/* A place with a grid, as a plan file names it. */
hd_site plan_site(const char *path, int64_t heads, hd_site_kind kind = HD_SITE_SELF);

/* Puts random orders, masks (about `density` of the tiles) and retained masses into a site. */
void randomise(hd_plan_file *file, hd_plan_file_site *site, double density, uint64_t seed);

/* Some sites, masks and steps, all from the seed. */
PlanFilePtr random_plan_file(uint64_t seed);

/* The file that hd_plan_file_write makes of it. */
std::string plan_file_bytes(hd_plan_file *file);

/* Bytes with the checksum at their end made right again. */
std::string with_checksum(std::string bytes);

#endif
