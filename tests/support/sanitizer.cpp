// What ThreadSanitizer cannot know: oneDNN is not built with it. One thread reads in the library's
// own cache what another has put there, and the hand-over between them is out of its sight. Both
// sides of a report lie inside the library then; what our code shares is still seen.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TESTS_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(TESTS_TSAN)
extern "C" const char *__tsan_default_suppressions()
{
    return "race:libdnnl.so\n";
}
#endif
