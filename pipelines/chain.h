/* pipelines/chain.h: who acts where in a run, for `inspect chain`: rows, branches, the processors
 * of every attention site and the hooks beside it, as JSON. */
#ifndef HD_PIPELINES_CHAIN_H
#define HD_PIPELINES_CHAIN_H

#include "pipelines/generation.h"

HD_BEGIN_DECLS

/* After the dry pass. The caller frees *json with free. */
HD_CHECKED hd_status hd_chain_write(char **json, const generation *g);

HD_END_DECLS
#endif
