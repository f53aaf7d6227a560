/* heddle.h: the public C API of Heddle, a diffusion engine.
 *
 * A program makes a context, hands it runs as JSON text and gets pictures in memory. With
 * preset_json = {"model": "models/starter-image", "prompt": "a red fish"}:
 *
 *     hd_context *context = NULL;
 *     hd_result *result = NULL;
 *     hd_status status = hd_context_create(&context, NULL);
 *     if (status == HD_OK)
 *         status = hd_context_run(context, preset_json, "my program", NULL, &result);
 *     if (status == HD_OK) status = hd_result_write_png(result, 0, "fish.png");
 *     if (status != HD_OK) fprintf(stderr, "%s\n", hd_message());
 *     hd_result_free(result);
 *     hd_context_free(context);
 *
 * The fields of a run are described by presets/schema.json. Strings are UTF-8 and end in 0. Nothing
 * here prints, aborts or installs a signal handler. A context is used by one thread at a time; two
 * contexts share nothing and may be used by two threads at once. Structures are passed by address
 * and read only during the call; zero means "the default" in every field, so that `= {0}` is valid.
 * The header may be included from C++. */
#ifndef HEDDLE_H
#define HEDDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define HD_BEGIN_DECLS extern "C" {
#define HD_END_DECLS   }
#else
#define HD_BEGIN_DECLS
#define HD_END_DECLS
#endif

#if defined(__GNUC__) || defined(__clang__)
#define HD_CHECKED __attribute__((warn_unused_result))
#else
#define HD_CHECKED
#endif

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

/* The message of this thread's last failure: where, what was found and expected, what to do. ""
 * if there was none; ask only after a failure. Borrowed: it lives until the next failure. */
const char *hd_message(void);

/* "0.1.0" */
const char *hd_version(void);

/* What a run tells while it works, on the thread that called hd_context_run. */

typedef enum hd_log_level {
    HD_LOG_WARNING, // the run goes on, but not as one might expect: words beyond the prompt's limit
    HD_LOG_INFO,    // what was decided: precision and why, model loaded or kept
} hd_log_level;

typedef struct hd_progress {
    const char *stage;      // "load", "prompt", "encode", "invert", "sample", "decode"; borrowed
    int step;               // steps of this stage that are done, 0 when it begins
    int count;              // steps of this stage; 1 for a stage that is not counted
    double step_seconds;    // what the last finished step took; 0 at step 0
    double elapsed_seconds; // since the stage began
} hd_progress;

/* A picture while it is being made. rgb [height, width, 3], rows top to bottom; borrowed: it lives
 * during the call. */
typedef struct hd_preview {
    int step; // steps that are done, 1 .. count - 1
    int count;
    int index; // which picture of the batch
    int width, height;
    const uint8_t *rgb;
} hd_preview;

/* Every function may be NULL. `user` is handed through. */
typedef struct hd_callbacks {
    void *user;
    void (*progress)(void *user, const hd_progress *progress);
    /* Asked several times per step, and between operators of a long stage. true: stop. The run then
     * returns HD_ERR_CANCELLED. */
    bool (*cancel)(void *user);
    /* Called every `preview_every` steps of the run's JSON when it names them; never at the last.
     */
    void (*preview)(void *user, const hd_preview *preview);
    void (*log)(void *user, hd_log_level level, const char *text);
} hd_callbacks;

/* Threads, and the model that was loaded last. */
typedef struct hd_context hd_context;

typedef struct hd_context_options {
    int threads; // 1 .. 1024; 0: what affinity and cgroup quota allow. A run's own "threads" wins.
} hd_context_options;

/* options may be NULL. The caller owns *out, which is written on success only. */
HD_CHECKED hd_status hd_context_create(hd_context **out, const hd_context_options *options);
/* hd_context_free(NULL) does nothing. Results stay valid after their context is gone. */
void hd_context_free(hd_context *context);
/* Gives back the memory of the model that is kept for the next run. */
void hd_context_forget_model(hd_context *context);

/* The pictures of one run, and how it went. */
typedef struct hd_result hd_result;

/* Makes the pictures that `preset_json` describes.
 *
 * preset_json: one JSON object, presets/schema.json. name: what it is called in messages
 * ("my.json", "command line"); NULL: "preset". callbacks: may be NULL. The run writes exactly the
 * files it names ("output", "latents_out", "capture", "preview" ...), each complete or not at all,
 * existing ones replaced; without "output" pictures are in memory only. Relative paths are relative
 * to the current directory. The model of the last run is kept and used again when folder, its files
 * and the precision are the same.
 *
 * On success *out holds `batch` pictures, or more when the run has branches that are saved: for
 * each picture main's first, then theirs. On HD_ERR_CANCELLED *out holds the pictures finished and
 * written before the stop, perhaps none. On any other failure *out is NULL. The caller owns *out.
 */
HD_CHECKED hd_status hd_context_run(hd_context *context, const char *preset_json, const char *name,
                                    const hd_callbacks *callbacks, hd_result **out);

/* Prepares the run that `preset_json` describes, draws nothing and writes nothing, and says as one
 * JSON object who would act where: "branches" with their rows, "processors" with what they do
 * beside attention, "sites" with the chain and the kernels of each, and "fork", the site before
 * which rows are shared. What the run would refuse before its first step is refused here too. The
 * caller frees *json with hd_text_free. */
HD_CHECKED hd_status hd_context_chain(hd_context *context, const char *preset_json,
                                      const char *name, const hd_callbacks *callbacks, char **json);

/* A finished picture. Everything is borrowed and lives as long as its result. */
typedef struct hd_picture {
    int width, height;
    const uint8_t *rgb;     // [height, width, 3], rows top to bottom
    uint64_t seed;          // seed of the run + index
    const char *metadata;   // JSON that repeats this picture alone; the PNG's text "heddle"
    const char *parameters; // the same for people, as AUTOMATIC1111 writes it; text "parameters"
    const char *path;       // where it was written; NULL when the run names no output
    const char *branch;     // "main", or which of the run's branches it shows
} hd_picture;

typedef struct hd_stage {
    const char *name; // as in hd_progress
    double seconds;
    int steps; // 1 for a stage that is not counted
} hd_stage;

/* How the run went. Everything is borrowed and lives as long as its result. */
typedef struct hd_report {
    const char *model;            // the folder, as the run names it
    const char *model_hash;       // in hex, over all of the model's files
    bool model_kept;              // it was in memory from the run before
    const char *sampler;          // resolved: "ddim"
    int steps;                    // asked of the sampler
    double guidance;              // resolved
    const char *precision;        // resolved: "f32" or "bf16"
    const char *precision_reason; // "auto: bf16 took 0.53 of f32's time", "asked for"
    const char *latents_path;     // where latents_out was written, or NULL
    const char *capture_path;     // where capture was written, or NULL
    const char *const *files;     // heat maps, masks and map values, as they were written
    int file_count;
    int threads;
    double seconds;         // all of hd_context_run
    uint64_t peak_bytes;    // peak resident memory of the process, mapped pages included
    uint64_t arena_bytes;   // activations at their highest
    uint64_t weights_bytes; // packed weights
    const hd_stage *stages;
    int stage_count;
    const char *const *warnings; // what the log callback was told with HD_LOG_WARNING
    int warning_count;
} hd_report;

int hd_result_count(const hd_result *result);
/* NULL when there is no picture `index`, 0 .. count - 1. */
const hd_picture *hd_result_picture(const hd_result *result, int index);
const hd_report *hd_result_report(const hd_result *result);
/* Writes picture `index` with its metadata: complete or not at all; an existing file is replaced.
 */
HD_CHECKED hd_status hd_result_write_png(const hd_result *result, int index, const char *path);
void hd_result_free(hd_result *result);

/* Reads the JSON of a run from a preset file, or from a PNG that Heddle made; the contents tell
 * which. From a picture the fields that say where to write ("output", "latents_out" ...) are
 * never taken. The JSON itself is checked by hd_context_run. The caller frees *json with
 * hd_text_free. HD_ERR_FORMAT when a picture carries no run. */
HD_CHECKED hd_status hd_preset_read(const char *path, char **json);

/* Describes a model folder or a safetensors file as one JSON object: which model it is, its
 * components, and every tensor with type, shape and bytes. The caller frees *json with
 * hd_text_free. */
HD_CHECKED hd_status hd_model_inspect(const char *path, char **json);

void hd_text_free(char *text);

HD_END_DECLS
#endif
