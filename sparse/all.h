/* sparse/all.h: the sparse accelerators that exist. */
#ifndef HD_SPARSE_ALL_H
#define HD_SPARSE_ALL_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

extern const hd_processor_class hd_agent;        // sparse/agent.c
extern const hd_processor_class hd_block_causal; // sparse/block_causal.c
extern const hd_processor_class hd_dense;        // sparse/dense.c
extern const hd_processor_class hd_dynamic_mask; // sparse/dynamic_mask.c
extern const hd_processor_class hd_gna;          // sparse/gna.c
extern const hd_processor_class hd_kv_cache;     // sparse/kv_cache.c
extern const hd_processor_class hd_paro;         // sparse/paro.c
extern const hd_processor_class hd_proxy;        // sparse/proxy.c
extern const hd_processor_class hd_swin_windows; // sparse/swin_windows.c
extern const hd_processor_class hd_vmoba;        // sparse/vmoba.c
extern const hd_processor_class hd_xattention;   // sparse/xattention.c

extern const hd_processor_list hd_all_accelerators;

HD_END_DECLS
#endif
