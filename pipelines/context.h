/* pipelines/context.h: what a program that links the engine itself may do with a context beyond
 * heddle.h. */
#ifndef HD_PIPELINES_CONTEXT_H
#define HD_PIPELINES_CONTEXT_H

#include "engine/attention/run.h"
#include "heddle.h"

HD_BEGIN_DECLS

/* Makes a processor of the program's own known to presets run in this context. `processor` is
 * borrowed until the context is freed. HD_ERR_ARGUMENT if the name is taken. */
HD_CHECKED hd_status hd_context_add_processor(hd_context *context,
                                              const hd_processor_class *processor);

/* hd_context_run with somebody who looks on at every attention call of its networks. */
HD_CHECKED hd_status hd_context_run_watched(hd_context *context, const char *preset_json,
                                            const char *name, const hd_callbacks *callbacks,
                                            hd_attention_watch watch, void *watch_user,
                                            hd_result **out);

HD_END_DECLS
#endif
