/* controls/all.c: the list of control processors: a new one is a file of its own and a row here. */
#include "controls/all.h"

static const hd_processor_class *const controls[] = {
    &hd_alignit,          &hd_anagram,
    &hd_attention_masks,  &hd_localized_subjects,
    &hd_masked_reference, &hd_perturbed_attention,
    &hd_plug_and_play,    &hd_prompt_to_prompt,
    &hd_self_subject,     &hd_style_injection,
    &hd_temperature,
};

const hd_processor_list hd_all_controls = {HD_COUNT(controls), controls};
