/* sparse/all.c: the list of accelerators: a new one is a file of its own and a row here. There is
 * none yet. */
#include "sparse/all.h"

const hd_processor_list hd_all_accelerators = {0, NULL};
