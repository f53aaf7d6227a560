/* engine/attention/shown.c: see shown.h. */
#include "engine/attention/shown.h"

#include <stdio.h>
#include <stdlib.h>

static void free_shown(hd_shown *s)
{
    free(s->value);
    free(s->heat);
    free(s->mask);
}

hd_status hd_shown_add(hd_shown_list *list, const char *name, const char *branch, hd_shown **out)
{
    if (list->count == list->room) {
        int64_t room = list->room ? 2 * list->room : 8;
        hd_shown *grown = realloc(list->item, (size_t)room * sizeof *grown);
        if (!grown) return hd_fail(HD_ERR_NOMEM, "maps: no memory for %lld", (long long)room);
        list->item = grown;
        list->room = room;
    }
    const size_t pixels = (size_t)(list->height * list->width);
    hd_shown s = {.value =
                      calloc((size_t)(list->latent_height * list->latent_width), sizeof *s.value),
                  .heat = calloc(pixels, sizeof *s.heat),
                  .mask = calloc(pixels, sizeof *s.mask),
                  .rgb = list->rgb};
    if (!s.value || !s.heat || !s.mask) {
        free_shown(&s);
        return hd_fail(HD_ERR_NOMEM, "maps: no memory for \"%s\"", name);
    }
    snprintf(s.name, sizeof s.name, "%s", name);
    snprintf(s.branch, sizeof s.branch, "%s", branch);
    list->item[list->count] = s;
    *out = &list->item[list->count++];
    return HD_OK;
}

void hd_shown_free(hd_shown_list *list)
{
    for (int64_t i = 0; i < list->count; i++)
        free_shown(&list->item[i]);
    free(list->item);
    list->item = NULL;
    list->count = list->room = 0;
}
