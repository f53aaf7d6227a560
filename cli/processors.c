/* cli/processors.c: prints the attention processors, from the tables they are read by. */
#include "cli/processors.h"

#include "controls/all.h"
#include "sparse/all.h"

static void print_list(const hd_processor_list *list, FILE *to)
{
    for (size_t i = 0; i < list->count; i++) {
        fprintf(to, "\n%s: %s\n", list->item[i]->name, list->item[i]->summary);
        hd_params_print(list->item[i]->params, to);
        if (list->item[i]->plan) hd_params_print(hd_plan_params, to);
    }
}

void hd_processors_print(FILE *to)
{
    fprintf(to, "Attention processors are named in a run's \"processors\":\n\n"
                "  \"processors\": [{\"use\": \"temperature\", \"tau\": 0.8, \"sites\": "
                "[\"up.** self\"], \"steps\": [0, 0.4]}]\n\n"
                "or on the command line: --set processors[0].use=temperature "
                "--set processors[0].tau=0.8\n"
                "All take use, sites (layers), steps (from, to: fractions of the run) and "
                "branches (rows).\n");
    print_list(&hd_all_controls, to);
    print_list(&hd_all_accelerators, to);
}
