/* cli/processors.c: prints the attention processors, from the tables they are read by. */
#include "cli/processors.h"

#include <string.h>

#include "controls/all.h"
#include "sparse/all.h"

static void print_class(const hd_processor_class *class, FILE *to)
{
    fprintf(to, "\n%s: %s\n", class->name, class->summary);
    hd_params_print(class->params, to);
    if (class->plan) hd_params_print(hd_plan_params, to);
}

static void print_list(const hd_processor_list *list, FILE *to)
{
    for (size_t i = 0; i < list->count; i++)
        print_class(list->item[i], to);
}

void hd_processor_print(const char *name, FILE *to)
{
    const hd_processor_list *const lists[] = {&hd_all_controls, &hd_all_accelerators};
    for (size_t l = 0; l < HD_COUNT(lists); l++)
        for (size_t i = 0; i < lists[l]->count; i++)
            if (strcmp(lists[l]->item[i]->name, name) == 0) print_class(lists[l]->item[i], to);
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
