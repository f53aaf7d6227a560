/* base/status.h: how a function says that it failed, and why.
 *
 * A function that can fail returns hd_status. The message belongs to the calling thread and is made
 * where the fault is found: where (file, JSON path, tensor), what was found and what was expected,
 * what to do. Callers add the outer view with hd_note. Ask for the message only after a failure. */
#ifndef HD_BASE_STATUS_H
#define HD_BASE_STATUS_H

#ifdef __cplusplus
#define HD_BEGIN_DECLS extern "C" {
#define HD_END_DECLS   }
#else
#define HD_BEGIN_DECLS
#define HD_END_DECLS
#endif

#define HD_CHECKED           __attribute__((warn_unused_result))
#define HD_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define HD_COUNT(array)      (sizeof(array) / sizeof((array)[0]))

HD_BEGIN_DECLS

typedef enum hd_status {
    HD_OK = 0,
    HD_ERR_NOMEM,       // no memory, or a tensor that does not fit its arena
    HD_ERR_IO,          // a file that cannot be read or written
    HD_ERR_FORMAT,      // a file whose contents are damaged or not what its name says
    HD_ERR_ARGUMENT,    // a value the user gave that is not allowed
    HD_ERR_SHAPE,       // tensors that do not fit together
    HD_ERR_UNSUPPORTED, // legal, but not something this build or this machine can do
    HD_ERR_CANCELLED,   // the caller's cancel callback said stop
    HD_ERR_INTERNAL,    // an invariant of ours is broken
} hd_status;

/* "out of memory", "input/output", ... : the kind in words, never NULL. */
const char *hd_status_name(hd_status status);

/* Keeps the message for the calling thread (older text is replaced) and returns `status`. */
#define hd_fail(status, ...) hd_fail_at(__FILE__, __LINE__, (status), __VA_ARGS__)
hd_status hd_fail_at(const char *file, int line, hd_status status, const char *format, ...)
    HD_PRINTF(4, 5);

/* Adds an outer view to the message ("...; while opening x") and returns `status` unchanged. Does
 * nothing for HD_OK. */
hd_status hd_note(hd_status status, const char *format, ...) HD_PRINTF(2, 3);

/* The message of this thread's last failure; "" if there was none. Borrowed: it lives until the
 * next failure. */
const char *hd_message(void);
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
