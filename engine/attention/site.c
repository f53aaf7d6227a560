/* engine/attention/site.c: reading and matching site selectors. */
#include "engine/attention/site.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const hd_site_kinds[] = {"self", "cross", "temporal", "joint", NULL};
const char *const hd_networks[] = {"unet", "dit", "text", "vae", NULL};

static int name_index(const char *const *names, const char *word, size_t length)
{
    for (int i = 0; names[i]; i++)
        if (strlen(names[i]) == length && memcmp(names[i], word, length) == 0) return i;
    return -1;
}

static hd_status parse_condition(hd_site_selector *s, const char *text, const char *word)
{
    static const char *const fields[] = {"factor", "tokens", "heads", NULL};
    size_t length = strcspn(word, "<>=!");
    int field = name_index(fields, word, length);
    if (field < 0 || !word[length])
        return hd_fail(HD_ERR_ARGUMENT,
                       "site \"%s\": \"%s\" is no path, no kind (self, cross, temporal, joint) and "
                       "no condition on "
                       "factor, tokens or heads",
                       text, word);
    const char *op = word + length;
    bool equal = op[1] == '=';
    char code = op[0] == '<' ? (equal ? 'l' : '<') : op[0] == '>' ? (equal ? 'g' : '>') : op[0];
    const char *number = op + 1 + equal;
    char *end;
    long long value = strtoll(number, &end, 10);
    if (end == number || *end || (code == '!' && !equal))
        return hd_fail(HD_ERR_ARGUMENT,
                       "site \"%s\": \"%s\" must end in <=, >=, <, >, == or != and a whole number",
                       text, word);
    if (s->conditions == (int)HD_COUNT(s->condition))
        return hd_fail(HD_ERR_ARGUMENT, "site \"%s\" has more than %d conditions", text,
                       s->conditions);
    s->condition[s->conditions].field = fields[field][0];
    s->condition[s->conditions].op = code;
    s->condition[s->conditions].value = value;
    s->conditions++;
    return HD_OK;
}

static bool is_path(const char *word)
{
    static const char *const roots[] = {"down", "mid", "up", "block", "*", "**", NULL};
    return name_index(roots, word, strcspn(word, ".")) >= 0;
}

hd_status hd_site_selector_parse(hd_site_selector *out, const char *text)
{
    hd_site_selector s = {.path = "**"};
    char copy[160];
    if (strlen(text) >= sizeof copy)
        return hd_fail(HD_ERR_ARGUMENT, "site \"%.40s...\" is longer than %zu characters", text,
                       sizeof copy - 1);
    strcpy(copy, text);
    char *word, *rest = copy;
    bool path_given = false, anything = false;
    while ((word = strtok_r(rest, " \t", &rest))) {
        anything = true;
        char *colon = strchr(word, ':');
        if (colon && !s.network_given && !path_given) {
            int network = name_index(hd_networks, word, (size_t)(colon - word));
            if (network < 0)
                return hd_fail(HD_ERR_ARGUMENT,
                               "site \"%s\": \"%.*s\" is no network (unet, dit, text, vae)", text,
                               (int)(colon - word), word);
            s.network_given = true;
            s.network = (hd_network)network;
            word = colon + 1;
            if (!*word) continue;
        }
        int kind = name_index(hd_site_kinds, word, strlen(word));
        if (!path_given && is_path(word)) {
            if (strlen(word) >= sizeof s.path)
                return hd_fail(HD_ERR_ARGUMENT, "site \"%s\": the path is too long", text);
            strcpy(s.path, word);
            path_given = true;
        } else if (kind >= 0 && !s.kind_given) {
            s.kind_given = true;
            s.kind = (hd_site_kind)kind;
        } else {
            HD_TRY(parse_condition(&s, text, word));
        }
    }
    if (!anything)
        return hd_fail(HD_ERR_ARGUMENT, "a site selector is empty; \"**\" means every site");
    *out = s;
    return HD_OK;
}

// One component up to the next dot; moves *text behind it.
static size_t component(const char **text, const char **word)
{
    size_t length = strcspn(*text, ".");
    *word = *text;
    *text += length + ((*text)[length] == '.');
    return length;
}

bool hd_path_matches(const char *pattern, const char *path)
{
    while (*pattern && *path) {
        const char *p, *w;
        size_t np = component(&pattern, &p), nw = component(&path, &w);
        if (np == 2 && memcmp(p, "**", 2) == 0) return true;
        if (!(np == 1 && *p == '*') && (np != nw || memcmp(p, w, np) != 0)) return false;
    }
    if (*pattern) return strcmp(pattern, "**") == 0;
    // what may be left of the path is the depth inside a transformer: one number
    return !*path || (isdigit((unsigned char)*path) && !strchr(path, '.'));
}

static bool compare(char op, int64_t a, int64_t b)
{
    switch (op) {
    case '<':
        return a < b;
    case '>':
        return a > b;
    case 'l':
        return a <= b;
    case 'g':
        return a >= b;
    case '!':
        return a != b;
    default:
        return a == b;
    }
}

bool hd_site_matches(const hd_site_selector *s, const hd_site *site)
{
    bool denoiser = site->network == HD_NETWORK_UNET || site->network == HD_NETWORK_DIT;
    if (s->network_given ? s->network != site->network : !denoiser) return false;
    if (s->kind_given && s->kind != site->kind) return false;
    for (int i = 0; i < s->conditions; i++) {
        char field = s->condition[i].field;
        int64_t value = field == 'f' ? site->factor : field == 't' ? site->tokens : site->heads;
        if (!compare(s->condition[i].op, value, s->condition[i].value)) return false;
    }
    // there is one middle: no number follows its name
    if (strcmp(s->path, "mid") == 0) return strncmp(site->path, "mid.", 4) == 0;
    return hd_path_matches(s->path, site->path);
}

char *hd_site_text(char *text, size_t bytes, const hd_site *site)
{
    snprintf(text, bytes, "%s:%s %s", hd_networks[site->network], site->path,
             hd_site_kinds[site->kind]);
    return text;
}
