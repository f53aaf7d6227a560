/* engine/samplers/classes.h: one line per file of this folder that is a sampler. */
#ifndef HD_ENGINE_SAMPLERS_CLASSES_H
#define HD_ENGINE_SAMPLERS_CLASSES_H

#include "engine/samplers/class.h"

HD_BEGIN_DECLS

extern const hd_sampler_class hd_sampler_pndm;
extern const hd_sampler_class hd_sampler_lms;
extern const hd_sampler_class hd_sampler_ddim;
extern const hd_sampler_class hd_sampler_ddim_inverse;
extern const hd_sampler_class hd_sampler_ddpm;
extern const hd_sampler_class hd_sampler_euler;
extern const hd_sampler_class hd_sampler_euler_ancestral;
extern const hd_sampler_class hd_sampler_heun;
extern const hd_sampler_class hd_sampler_dpm_multistep;
extern const hd_sampler_class hd_sampler_unipc;
extern const hd_sampler_class hd_sampler_lcm;
extern const hd_sampler_class hd_sampler_flow_euler;

HD_END_DECLS
#endif
