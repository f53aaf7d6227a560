/* engine/samplers/find.c: which sampler a name or a model's folder means. */
#include "engine/samplers/find.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

// Other words for the same thing, squeezed as below.
static const char *const aliases[][2] = {
    {"eulerancestral", "euler-a"},
    {"flowmatcheuler", "flow-euler"},
    {"ddiminversion", "ddim-inverse"},
    {"dpmsolver++", "dpm++2m"},
    {"unipcbh2", "unipc"},
};

// "DPM++ 2M Karras", "dpmpp_2m_karras" and "dpm++2m-karras" are one name: lower case, no
// separators, "pp" is "++".
static void squeeze(char *out, size_t bytes, const char *name)
{
    size_t used = 0;
    for (; *name && used + 1 < bytes; name++) {
        if (*name == '-' || *name == '_' || *name == ' ') continue;
        char c = (char)tolower((unsigned char)*name);
        out[used++] = c;
        if (used >= 2 && out[used - 1] == 'p' && out[used - 2] == 'p')
            out[used - 1] = out[used - 2] = '+';
    }
    out[used] = 0;
}

static const hd_sampler_entry *entry_named(const char *name)
{
    char wanted[64], have[64];
    squeeze(wanted, sizeof wanted, name);
    for (size_t i = 0; i < HD_COUNT(aliases); i++)
        if (strcmp(aliases[i][0], wanted) == 0) squeeze(wanted, sizeof wanted, aliases[i][1]);
    for (const hd_sampler_entry *e = hd_sampler_entries; e->name; e++) {
        squeeze(have, sizeof have, e->name);
        if (strcmp(have, wanted) == 0) return e;
    }
    return NULL;
}

static const hd_sampler_entry *entry_of_class(const char *diffusers)
{
    for (const hd_sampler_entry *e = hd_sampler_entries; e->name; e++)
        if (strcmp(e->kind->diffusers, diffusers) == 0) return e;
    return NULL;
}

const char *hd_sampler_name_at(size_t index)
{
    size_t i = 0;
    for (const hd_sampler_entry *e = hd_sampler_entries; e->name; e++)
        if (i++ == index) return e->name;
    return NULL;
}

static const char *names_text(char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (const hd_sampler_entry *e = hd_sampler_entries; e->name && used < bytes; e++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? ", " : "", e->name);
    return text;
}

static hd_status unknown_name(const char *name)
{
    char list[512];
    const char *names[64];
    size_t count = 0;
    while (count < HD_COUNT(names) && hd_sampler_name_at(count)) {
        names[count] = hd_sampler_name_at(count);
        count++;
    }
    const char *near = hd_nearest_name(name, names, count);
    if (near)
        return hd_fail(HD_ERR_ARGUMENT, "sampler: no \"%s\"; did you mean \"%s\"? There are %s",
                       name, near, names_text(list, sizeof list));
    return hd_fail(HD_ERR_ARGUMENT, "sampler: no \"%s\"; there are %s", name,
                   names_text(list, sizeof list));
}

hd_status hd_sampler_find(const char *name, const hd_json *config, const hd_sampler_entry **out,
                          bool *named)
{
    char list[512];
    *named = false;
    if (name) {
        *out = entry_of_class(name);
        if (!*out) {
            *out = entry_named(name);
            *named = true;
        }
        return *out ? HD_OK : unknown_name(name);
    }
    const hd_json *node = config ? hd_json_get(config, "_class_name") : NULL;
    if (!node)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s: no _class_name says which sampler the model wants; choose one with "
                       "--sampler: %s",
                       config ? hd_json_name(config) : "sampler", names_text(list, sizeof list));
    const char *class_name;
    HD_TRY(hd_json_to_string(node, &class_name));
    *out = entry_of_class(class_name);
    if (!*out)
        return hd_json_fail(node, HD_ERR_UNSUPPORTED,
                            "is \"%s\", which is not one of ours; choose one with --sampler: %s",
                            class_name, names_text(list, sizeof list));
    return HD_OK;
}
