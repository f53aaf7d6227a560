/* base/status.h: how a function says that it failed, and why.
 *
 * A function that can fail returns hd_status. The message belongs to the calling thread and is made
 * where the fault is found: where (file, JSON path, tensor), what was found and what was expected,
 * what to do. Callers add the outer view with hd_note. The status itself, its name and hd_message
 * are public: include/heddle.h. */
#ifndef HD_BASE_STATUS_H
#define HD_BASE_STATUS_H

#include "include/heddle.h"

#define HD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define HD_COUNT(array)      (sizeof(array) / sizeof((array)[0]))

HD_BEGIN_DECLS

/* Keeps the message for the calling thread (older text is replaced) and returns `status`. */
#define hd_fail(status, ...) hd_fail_at(__FILE__, __LINE__, (status), __VA_ARGS__)
hd_status hd_fail_at(const char *file, int line, hd_status status, const char *format, ...)
    HD_PRINTF(4, 5);

/* Adds an outer view to the message ("...; while opening x") and returns `status` unchanged. Does
 * nothing for HD_OK. */
hd_status hd_note(hd_status status, const char *format, ...) HD_PRINTF(2, 3);

#ifdef __clang_analyzer__
/* The analyser sees one file at a time: it has to be told that a failure is not HD_OK. */
#undef hd_fail
#define hd_fail(status, ...)                                                                       \
    ((void)hd_fail_at(__FILE__, __LINE__, (status), __VA_ARGS__), (hd_status)(status))
#endif

/* "engine/arena.c:41" of the last failure: for --verbose and bug reports. */
const char *hd_message_origin(void);
/* Replaces this thread's message as a whole: brings a worker's failure back to its caller. */
void hd_message_set(const char *message, const char *origin);

#define HD_TRY(call)                                                                               \
    do {                                                                                           \
        hd_status hd_try_status_ = (call);                                                         \
        if (hd_try_status_ != HD_OK) return hd_try_status_;                                        \
    } while (0)

/* An invariant of ours: HD_ERR_INTERNAL, and a trap in debug builds. */
#ifdef NDEBUG
#define HD_BREAK() ((void)0)
#else
#define HD_BREAK() __builtin_trap()
#endif
#define HD_ENSURE(cond)                                                                            \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            HD_BREAK();                                                                            \
            return hd_fail(HD_ERR_INTERNAL, "internal: %s does not hold", #cond);                  \
        }                                                                                          \
    } while (0)

HD_END_DECLS
#endif
