/* engine/ops/spans.h: a long loop over alike units, in pieces of a fixed size, over the pool. */
#ifndef HD_ENGINE_OPS_SPANS_H
#define HD_ENGINE_OPS_SPANS_H

#include "base/exec.h"

HD_BEGIN_DECLS

/* Elements of one piece of work: some tens of microseconds, a few times what waking a thread costs.
 */
#define HD_SPAN_ELEMENTS 32768

/* Units from .. from + count - 1. What becomes of a unit must not depend on the piece it is in. */
typedef hd_status hd_span_run(const void *arg, int64_t from, int64_t count);

/* Runs all of [0, units), each of `elements` elements. */
HD_CHECKED hd_status hd_for_spans(const hd_exec *ex, int64_t units, int64_t elements,
                                  hd_span_run *run, const void *arg);

HD_END_DECLS
#endif
