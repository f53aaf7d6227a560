/* cli/defaults.h: what the program chooses when a run leaves it open: model, seed, name of the
 * picture. The library chooses none of these but the seed. */
#ifndef HD_CLI_DEFAULTS_H
#define HD_CLI_DEFAULTS_H

#include "base/status.h"

HD_BEGIN_DECLS

/* Puts "model", "seed" and "output" into *json (owned, replaced) where they are missing.
 * model: the folder that the environment's HEDDLE_MODEL names, else the starter model beside the
 * program or in the current folder; HD_ERR_ARGUMENT when there is none. seed: random, 32 bits.
 * output: heddle-SEED.png in the current folder, or heddle-SEED_2.png ... : a name nobody chose
 * never replaces a file. */
HD_CHECKED hd_status hd_defaults_put(char **json, const char *name);

HD_END_DECLS
#endif
