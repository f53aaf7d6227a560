/* engine/samplers/all.c: every sampler, under every name. The only registry. */
#include "engine/samplers/class.h"

#include "engine/samplers/classes.h"

#define DPM_PLAIN                                                                                  \
    "\"solver_order\": 2, \"use_exponential_sigmas\": false, \"use_beta_sigmas\": false, "         \
    "\"use_lu_lambdas\": false"

const hd_sampler_entry hd_sampler_entries[] = {
    {"pndm", &hd_sampler_pndm, NULL},
    {"plms", &hd_sampler_pndm, "{\"skip_prk_steps\": true}"},
    {"lms", &hd_sampler_lms, NULL},
    {"ddim", &hd_sampler_ddim, NULL},
    {"ddim-inverse", &hd_sampler_ddim_inverse, NULL},
    {"ddpm", &hd_sampler_ddpm, NULL},
    {"euler", &hd_sampler_euler, NULL},
    {"euler-a", &hd_sampler_euler_ancestral, NULL},
    {"heun", &hd_sampler_heun, NULL},
    {"dpm++2m", &hd_sampler_dpm_multistep,
     "{\"algorithm_type\": \"dpmsolver++\", \"use_karras_sigmas\": false, " DPM_PLAIN "}"},
    {"dpm++2m-karras", &hd_sampler_dpm_multistep,
     "{\"algorithm_type\": \"dpmsolver++\", \"use_karras_sigmas\": true, " DPM_PLAIN "}"},
    {"dpm++2m-sde", &hd_sampler_dpm_multistep,
     "{\"algorithm_type\": \"sde-dpmsolver++\", \"use_karras_sigmas\": false, " DPM_PLAIN "}"},
    {"dpm++2m-sde-karras", &hd_sampler_dpm_multistep,
     "{\"algorithm_type\": \"sde-dpmsolver++\", \"use_karras_sigmas\": true, " DPM_PLAIN "}"},
    {"unipc", &hd_sampler_unipc, NULL},
    {"lcm", &hd_sampler_lcm, NULL},
    {"flow-euler", &hd_sampler_flow_euler, NULL},
    {NULL, NULL, NULL},
};
