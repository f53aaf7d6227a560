/* base/status.c: the message of a failure, one per thread. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[2048];
static _Thread_local char origin[160];

const char *hd_status_name(hd_status status)
{
    switch (status) {
    case HD_OK:
        return "ok";
    case HD_ERR_NOMEM:
        return "out of memory";
    case HD_ERR_IO:
        return "input/output";
    case HD_ERR_FORMAT:
        return "damaged file";
    case HD_ERR_ARGUMENT:
        return "bad value";
    case HD_ERR_SHAPE:
        return "shapes do not fit";
    case HD_ERR_UNSUPPORTED:
        return "not supported";
    case HD_ERR_CANCELLED:
        return "cancelled";
    case HD_ERR_INTERNAL:
        return "internal error";
    }
    return "unknown";
}

// A message that was cut must not end inside a UTF-8 sequence: programs read it as JSON.
static void trim_utf8(char *text)
{
    size_t length = strlen(text);
    if (length < sizeof message - 1) return;
    while (length > 0 && ((unsigned char)text[length - 1] & 0xc0) == 0x80)
        length--;
    if (length > 0 && (unsigned char)text[length - 1] >= 0xc0) length--;
    text[length] = 0;
}

hd_status hd_fail_at(const char *file, int line, hd_status status, const char *format, ...)
{
    // The arguments may point into the message itself.
    char fresh[sizeof message];
    va_list args;
    va_start(args, format);
    vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    memcpy(message, fresh, strlen(fresh) + 1);
    trim_utf8(message);
    snprintf(origin, sizeof origin, "%s:%d", file, line);
    return status;
}

hd_status hd_note(hd_status status, const char *format, ...)
{
    if (status == HD_OK) return status;
    char note[sizeof message];
    va_list args;
    va_start(args, format);
    vsnprintf(note, sizeof note, format, args);
    va_end(args);
    size_t used = strlen(message);
    snprintf(message + used, sizeof message - used, "%s%s", used ? "; " : "", note);
    trim_utf8(message);
    return status;
}

const char *hd_message(void)
{
    return message;
}

const char *hd_message_origin(void)
{
    return origin;
}

void hd_message_set(const char *new_message, const char *new_origin)
{
    if (new_message != message) snprintf(message, sizeof message, "%s", new_message);
    trim_utf8(message);
    if (new_origin != origin) snprintf(origin, sizeof origin, "%s", new_origin);
}
