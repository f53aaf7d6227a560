/* sparse/all.c: the list of accelerators: a new one is a file of its own and a row here. */
#include "sparse/all.h"

// a line each
// clang-format off
static const hd_processor_class *const accelerators[] = {
    &hd_agent,
    &hd_block_causal,
    &hd_dense,
    &hd_dynamic_mask,
    &hd_gna,
    &hd_kv_cache,
    &hd_paro,
    &hd_proxy,
    &hd_swin_windows,
    &hd_vmoba,
    &hd_xattention,
};
// clang-format on

const hd_processor_list hd_all_accelerators = {HD_COUNT(accelerators), accelerators};
