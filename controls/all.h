/* controls/all.h: the control processors that exist. */
#ifndef HD_CONTROLS_ALL_H
#define HD_CONTROLS_ALL_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

extern const hd_processor_class hd_alignit;
extern const hd_processor_class hd_anagram;
extern const hd_processor_class hd_attention_masks;
extern const hd_processor_class hd_localized_subjects;
extern const hd_processor_class hd_masked_reference;
extern const hd_processor_class hd_perturbed_attention;
extern const hd_processor_class hd_plug_and_play;
extern const hd_processor_class hd_prompt_to_prompt;
extern const hd_processor_class hd_self_subject;
extern const hd_processor_class hd_style_injection;
extern const hd_processor_class hd_temperature;

extern const hd_processor_list hd_all_controls;

HD_END_DECLS
#endif
