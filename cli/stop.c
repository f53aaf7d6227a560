/* cli/stop.c: the program's signal handler. */
#include "cli/stop.h"

#include <signal.h>
#include <unistd.h>

#include "cli/command.h"

static volatile sig_atomic_t stop_asked; // a signal handler can reach nothing else

static void on_stop(int signal_number)
{
    (void)signal_number;
    if (stop_asked) _exit(HD_EXIT_STOPPED);
    stop_asked = 1;
}

void hd_stop_listen(void)
{
    struct sigaction action = {.sa_handler = on_stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool hd_stop_asked(void)
{
    return stop_asked != 0;
}
