/* cli/args.c: parses a command line by a table of options, and prints the table. */
#include "cli/args.h"

#include <stdlib.h>
#include <string.h>

static bool is_end(const hd_option *o)
{
    return !o->name && !o->help;
}

static const hd_option *find_name(const hd_option *options, const char *name, size_t length)
{
    for (const hd_option *o = options; !is_end(o); o++)
        if (o->name && strlen(o->name) == length && memcmp(o->name, name, length) == 0) return o;
    return NULL;
}

static const hd_option *find_letter(const hd_option *options, char letter)
{
    for (const hd_option *o = options; !is_end(o); o++)
        if (o->name && o->letter == letter) return o;
    return NULL;
}

static hd_status unknown_option(const hd_option *options, const char *name, size_t length)
{
    enum { NAMES_MOST = 128 };
    const char *names[NAMES_MOST];
    size_t count = 0;
    for (const hd_option *o = options; !is_end(o) && count < NAMES_MOST; o++)
        if (o->name) names[count++] = o->name;
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)(length < 63 ? length : 63), name);
    const char *near = hd_nearest_name(word, names, count);
    return hd_fail(HD_ERR_ARGUMENT, "unknown option --%s%s%s%s", word,
                   near ? "; did you mean --" : "", near ? near : "", near ? "?" : "");
}

// What is being read: the table, the line, and the place in it.
typedef struct line {
    const hd_option *options;
    char **argv;
    int argc, next;
    hd_args args;
} line;

static void add(line *l, const hd_option *option, const char *value)
{
    l->args.list[l->args.count++] = (hd_arg){.option = option, .value = value};
}

static hd_status take_value(line *l, const hd_option *o)
{
    if (l->next == l->argc)
        return hd_fail(HD_ERR_ARGUMENT, "--%s needs a value: --%s %s", o->name, o->name, o->value);
    add(l, o, l->argv[l->next++]);
    return HD_OK;
}

// --name, --name value, --name=value
static hd_status read_long(line *l, const char *word)
{
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    const hd_option *o = find_name(l->options, word, length);
    if (!o) return unknown_option(l->options, word, length);
    if (o->value && !equals) return take_value(l, o);
    if (!o->value && equals)
        return hd_fail(HD_ERR_ARGUMENT, "--%s takes no value, found \"%.80s\"", o->name,
                       equals + 1);
    add(l, o, equals ? equals + 1 : NULL);
    return HD_OK;
}

// -l, -lm (switches), -l value, -lvalue
static hd_status read_letters(line *l, const char *letters)
{
    for (; *letters; letters++) {
        const hd_option *o = find_letter(l->options, *letters);
        if (!o)
            return hd_fail(HD_ERR_ARGUMENT,
                           "unknown option -%c; long options begin with two dashes", *letters);
        if (!o->value) {
            add(l, o, NULL);
        } else if (letters[1]) {
            add(l, o, letters + 1);
            return HD_OK;
        } else {
            return take_value(l, o);
        }
    }
    return HD_OK;
}

static hd_status read_line(line *l)
{
    bool options_ended = false;
    while (l->next < l->argc) {
        const char *word = l->argv[l->next++];
        if (options_ended || word[0] != '-' || !word[1])
            add(l, NULL, word);
        else if (strcmp(word, "--") == 0)
            options_ended = true;
        else if (word[1] == '-')
            HD_TRY(read_long(l, word + 2));
        else
            HD_TRY(read_letters(l, word + 1));
    }
    return HD_OK;
}

hd_status hd_args_parse(hd_args *out, const hd_option *options, int argc, char **argv)
{
    size_t most = 1; // joined switches are several in one word
    for (int i = 0; i < argc; i++)
        most += strlen(argv[i]) + 1;
    line l = {.options = options, .argv = argv, .argc = argc};
    l.args.list = calloc(most, sizeof *l.args.list);
    if (!l.args.list) return hd_fail(HD_ERR_NOMEM, "no memory for the command line");
    hd_status status = read_line(&l);
    if (status != HD_OK) {
        hd_args_free(&l.args);
        return status;
    }
    *out = l.args;
    return HD_OK;
}

void hd_args_free(hd_args *args)
{
    free(args->list);
    *args = (hd_args){0};
}

static const hd_arg *find_arg(const hd_args *args, const char *name)
{
    for (int i = args->count - 1; i >= 0; i--)
        if (args->list[i].option && strcmp(args->list[i].option->name, name) == 0)
            return &args->list[i];
    return NULL;
}

bool hd_args_has(const hd_args *args, const char *name)
{
    return find_arg(args, name) != NULL;
}

const char *hd_args_value(const hd_args *args, const char *name)
{
    const hd_arg *arg = find_arg(args, name);
    return arg ? arg->value : NULL;
}

hd_status hd_args_word(const hd_args *args, const char *what, const char **out)
{
    const char *found = NULL;
    for (int i = 0; i < args->count; i++) {
        if (args->list[i].option) continue;
        if (found)
            return hd_fail(HD_ERR_ARGUMENT, "one of %s is wanted, found \"%.80s\" and \"%.80s\"",
                           what, found, args->list[i].value);
        found = args->list[i].value;
    }
    if (!found) return hd_fail(HD_ERR_ARGUMENT, "%s is missing", what);
    *out = found;
    return HD_OK;
}

// "  -W, --width N" into text.
static void option_text(char *text, size_t bytes, const hd_option *o)
{
    char letter[8] = "    ";
    if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(text, bytes, "  %s--%s%s%s", letter, o->name, o->value ? " " : "",
             o->value ? o->value : "");
}

// "what it does (1 to 1000, default 25)" into text.
static void help_text(char *text, size_t bytes, const hd_option *o, const hd_param *fields)
{
    const hd_param *row = o->field && fields ? hd_params_find(fields, o->field) : NULL;
    const char *help = o->help ? o->help : row && row->help ? row->help : "";
    char limits[300] = "";
    if (row && o->value && !o->help) hd_param_limits(limits, sizeof limits, row);
    snprintf(text, bytes, "%s%s%s%s", help, limits[0] ? " (" : "", limits, limits[0] ? ")" : "");
}

// Words of `text` from column `at` on, further lines indented as far.
static void print_wrapped(const char *text, int at, int columns, FILE *to)
{
    int column = at;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > at && column + 1 + length > columns) {
            fprintf(to, "\n%*s", at, "");
            column = at;
        } else if (column > at) {
            fputc(' ', to);
            column++;
        }
        fprintf(to, "%.*s", length, text);
        column += length;
        text += length;
        while (*text == ' ')
            text++;
    }
    fputc('\n', to);
}

void hd_options_print(const hd_option *options, const hd_param *fields, int columns, FILE *to)
{
    enum { HELP_COLUMN = 32 };
    for (const hd_option *o = options; !is_end(o); o++) {
        if (!o->name) {
            fprintf(to, "\n%s\n", o->help);
            continue;
        }
        char left[80], help[800];
        option_text(left, sizeof left, o);
        help_text(help, sizeof help, o, fields);
        int used = fprintf(to, "%s", left);
        if (used > HELP_COLUMN - 2)
            fprintf(to, "\n%*s", HELP_COLUMN, "");
        else
            fprintf(to, "%*s", HELP_COLUMN - used, "");
        print_wrapped(help, HELP_COLUMN, columns, to);
    }
}
