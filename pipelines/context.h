/* pipelines/context.h: what a program that links the engine itself may do with a context beyond
 * heddle.h. */
#ifndef HD_PIPELINES_CONTEXT_H
#define HD_PIPELINES_CONTEXT_H

#include "engine/attention/processor.h"
#include "heddle.h"

HD_BEGIN_DECLS

/* Makes a processor of the program's own known to presets run in this context. `processor` is
 * borrowed until the context is freed. HD_ERR_ARGUMENT if the name is taken. */
HD_CHECKED hd_status hd_context_add_processor(hd_context *context,
                                              const hd_processor_class *processor);

HD_END_DECLS
#endif
