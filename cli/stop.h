/* cli/stop.h: Ctrl-C: SIGINT and SIGTERM set a flag that the work asks for; a second one ends the
 * program at once. */
#ifndef HD_CLI_STOP_H
#define HD_CLI_STOP_H

#include <stdbool.h>

void hd_stop_listen(void);
bool hd_stop_asked(void);

#endif
