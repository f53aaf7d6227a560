/* cli/defaults.h: what the program chooses when a run leaves it open: model, seed, name of the
 * picture. The library chooses none of these but the seed. */
#ifndef HD_CLI_DEFAULTS_H
#define HD_CLI_DEFAULTS_H

#include <limits.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* Puts "model", "seed" and "output" into *json (owned, replaced) where they are missing.
 * model: the folder that the environment's HEDDLE_MODEL names, else the starter model beside the
 * program or in the current folder; HD_ERR_ARGUMENT when there is none. seed: random, 32 bits.
 * output: heddle-SEED.png in the current folder, or heddle-SEED_2.png ... : a name nobody chose
 * never replaces a file. */
HD_CHECKED hd_status hd_defaults_put(char **json, const char *name);
/* Only model and seed. */
HD_CHECKED hd_status hd_defaults_put_sources(char **json, const char *name);

bool hd_is_folder(const char *path);
/* A folder of the data that comes with the program ("models/starter-image", "presets"): installed,
 * or among the sources of a build folder two below them. False when it is not there. */
bool hd_beside_program(char path[PATH_MAX], const char *folder);

HD_END_DECLS
#endif
