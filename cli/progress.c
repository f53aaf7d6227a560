/* cli/progress.c: draws the progress line. */
#include "cli/progress.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_SECONDS 0.1

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int terminal_columns(FILE *to)
{
    struct winsize size;
    if (ioctl(fileno(to), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

hd_progress_bar hd_progress_bar_begin(FILE *to, bool quiet)
{
    const char *kind = getenv("TERM");
    bool dumb = !kind || !kind[0] || strcmp(kind, "dumb") == 0;
    return (hd_progress_bar){.to = !quiet && !dumb && isatty(fileno(to)) ? to : NULL};
}

// "0:16", "1:02:03"
static void duration_text(char *text, size_t bytes, double seconds)
{
    long long whole = (long long)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(text, bytes, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(text, bytes, "%lld:%02lld", whole / 60, whole % 60);
}

// "12/25  1.21 s/step  0:16 left"; "48 %  0:16 left" where steps are not timed, as bytes that are
// read; "" for a stage that is not counted.
static void count_text(char *text, size_t bytes, const hd_progress *p)
{
    text[0] = 0;
    if (p->count <= 1) return;
    if (p->step == 0) {
        snprintf(text, bytes, "0/%d", p->count);
        return;
    }
    double left = p->elapsed_seconds / p->step * (p->count - p->step);
    char left_text[40];
    duration_text(left_text, sizeof left_text, left);
    if (p->step_seconds > 0)
        snprintf(text, bytes, "%d/%d  %.*f s/step  %s left", p->step, p->count,
                 p->step_seconds < 10 ? 2 : 1, p->step_seconds, left_text);
    else
        snprintf(text, bytes, "%d %%  %s left", (int)(100.0 * p->step / p->count), left_text);
}

char *hd_progress_line(char *text, size_t bytes, int columns, const hd_progress *p)
{
    enum { BAR_MOST = 40, BAR_LEAST = 8 };
    char counts[120], bar[BAR_MOST + 1] = "";
    count_text(counts, sizeof counts, p);
    size_t room = columns > 1 ? (size_t)columns : 1; // with the 0; a full line would wrap
    if (room > bytes) room = bytes;
    int width = (int)room - 1 - (int)strlen(p->stage) - (int)strlen(counts) - 6;
    if (width > BAR_MOST) width = BAR_MOST;
    if (p->count > 1 && width >= BAR_LEAST) {
        int done = (int)((double)width * p->step / p->count);
        memset(bar, '.', (size_t)width);
        memset(bar, '#', (size_t)(done < 0 ? 0 : done > width ? width : done));
        snprintf(text, room, "%s  [%.*s]  %s", p->stage, width, bar, counts);
    } else {
        snprintf(text, room, "%s%s%s", p->stage, counts[0] ? "  " : " ...", counts);
    }
    return text;
}

void hd_progress_bar_update(hd_progress_bar *bar, const hd_progress *progress)
{
    if (!bar->to) return;
    double now = now_seconds();
    bool edge = progress->step == 0 || progress->step >= progress->count;
    if (bar->visible && !edge && now - bar->drawn_at < REDRAW_SECONDS) return;
    char line[256], out[300];
    hd_progress_line(line, sizeof line, terminal_columns(bar->to), progress);
    int length = snprintf(out, sizeof out, "\r%s\033[K", line); // the rest of the old line goes
    fwrite(out, 1, (size_t)length, bar->to);
    fflush(bar->to);
    bar->drawn_at = now;
    bar->visible = true;
}

void hd_progress_bar_clear(hd_progress_bar *bar)
{
    if (!bar->to || !bar->visible) return;
    fputs("\r\033[K", bar->to);
    fflush(bar->to);
    bar->visible = false;
}
