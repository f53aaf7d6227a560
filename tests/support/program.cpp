#include "support/program.h"

#include "support/fixture.h"
#include "support/folder.h"

#include <chrono>
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace
{
std::string contents(const std::string &path)
{
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

// The child: never returns.
[[noreturn]] void become(const std::string &folder, std::vector<char *> &argv,
                         const std::string &out, const std::string &err)
{
    int to_out = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int to_err = open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int from = open("/dev/null", O_RDONLY);
    if (dup2(from, 0) == 0 && dup2(to_out, 1) == 1 && dup2(to_err, 2) == 2 &&
        chdir(folder.c_str()) == 0)
        execv(argv[0], argv.data());
    _exit(127);
}

int wait_for(pid_t pid, const std::function<void(int)> &meanwhile)
{
    int state = 0;
    for (int i = 0; waitpid(pid, &state, WNOHANG) == 0; i++) {
        if (i == 6000) kill(pid, SIGKILL);
        if (meanwhile) meanwhile(pid);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
}
} // namespace

Said heddle(const std::string &folder, const std::vector<std::string> &arguments,
            const std::function<void(int)> &meanwhile)
{
    Folder said;
    std::string out = said.path("out"), err = said.path("err"), program = heddle_program();
    std::vector<std::string> words = arguments;
    std::vector<char *> argv = {program.data()};
    for (auto &w : words)
        argv.push_back(w.data());
    argv.push_back(nullptr);
    pid_t pid = fork();
    if (pid < 0) throw std::runtime_error("fork failed");
    if (pid == 0) become(folder, argv, out, err);
    int code = wait_for(pid, meanwhile);
    return {code, contents(out), contents(err)};
}
