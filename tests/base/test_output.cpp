// A file appears whole or not at all, and every way in which it cannot is told.
#include "base/file.h"
#include "base/output.h"

#include <csignal>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "support/catch.h"
#include "support/folder.h"

using Names = std::vector<std::string>;

static hd_status write_whole(const std::string &path, const std::string &bytes)
{
    hd_output *o;
    HD_TRY(hd_output_open(&o, path.c_str()));
    hd_status status = hd_output_write(o, bytes.data(), bytes.size());
    if (status != HD_OK) {
        hd_output_discard(o);
        return status;
    }
    return hd_output_commit(o);
}

static mode_t mode_of(const std::string &path)
{
    struct stat info;
    REQUIRE(stat(path.c_str(), &info) == 0);
    return info.st_mode & 0777;
}

TEST_CASE("output: nothing is seen until it is committed", "[base]")
{
    Folder folder;
    hd_output *o;
    folder.write("a.png", "old");
    REQUIRE_OK(hd_output_open(&o, folder.path("a.png").c_str()));
    CHECK(hd_output_path(o) == folder.path("a.png"));
    REQUIRE_OK(hd_output_write(o, "new ", 4));
    REQUIRE_OK(hd_output_write(o, "one", 3));
    CHECK(folder.read("a.png") == "old");
    SECTION("commit")
    {
        REQUIRE_OK(hd_output_commit(o));
        CHECK(folder.read("a.png") == "new one");
    }
    SECTION("discard")
    {
        hd_output_discard(o);
        CHECK(folder.read("a.png") == "old");
    }
    CHECK(folder.names() == Names{"a.png"});
    hd_output_discard(nullptr);
}

TEST_CASE("output: permissions are the umask's for a new file, the old ones for an old", "[base]")
{
    Folder folder;
    mode_t before = umask(027);
    REQUIRE_OK(write_whole(folder.path("new"), "x"));
    umask(before);
    CHECK(mode_of(folder.path("new")) == 0640);
    chmod(folder.path("new").c_str(), 0604);
    REQUIRE_OK(write_whole(folder.path("new"), "y"));
    CHECK(mode_of(folder.path("new")) == 0604);
    CHECK(folder.read("new") == "y");
}

TEST_CASE("output: a symbolic link stays one", "[base]")
{
    Folder folder;
    folder.write("real/a.png", "old");
    REQUIRE(symlink("real/a.png", folder.path("link").c_str()) == 0);
    REQUIRE(symlink("link", folder.path("chain").c_str()) == 0);
    REQUIRE(symlink((folder.path("real/new.png")).c_str(), folder.path("dangling").c_str()) == 0);
    REQUIRE(symlink("loop", folder.path("loop").c_str()) == 0);
    REQUIRE_OK(write_whole(folder.path("chain"), "new"));
    REQUIRE_OK(write_whole(folder.path("dangling"), "fresh"));
    CHECK(folder.read("real/a.png") == "new");
    CHECK(folder.read("real/new.png") == "fresh");
    struct stat info;
    for (auto name : {"link", "chain", "dangling"}) {
        REQUIRE(lstat(folder.path(name).c_str(), &info) == 0);
        CHECK(S_ISLNK(info.st_mode));
    }
    CHECK_FAILS(write_whole(folder.path("loop"), "x"), HD_ERR_IO, "symbolic links");
}

TEST_CASE("output: the longest name a file may have", "[base]")
{
    Folder folder;
    REQUIRE_OK(write_whole(folder.path(std::string(255, 'n')), "x"));
    CHECK_FAILS(write_whole(folder.path(std::string(256, 'n')), "x"), HD_ERR_IO, "too long");
    CHECK(folder.names().size() == 1);
}

TEST_CASE("output: places that cannot be written are refused by name", "[base]")
{
    Folder folder;
    folder.write("file", "x");
    folder.write("closed/old", "x");
    CHECK_FAILS(write_whole("", "x"), HD_ERR_ARGUMENT, "the name of the output file is empty");
    CHECK_FAILS(write_whole(folder.path(), "x"), HD_ERR_IO, "is a folder; add the name of a file");
    CHECK_FAILS(write_whole(folder.path("new/"), "x"), HD_ERR_IO, "names a folder");
    CHECK_FAILS(write_whole(folder.path("no/such/a.png"), "x"), HD_ERR_IO,
                "no/such/a.png: there is no folder " + folder.path("no/such/"));
    CHECK_FAILS(write_whole(folder.path("file/a.png"), "x"), HD_ERR_IO, "there is no folder");
    CHECK_FAILS(write_whole("/dev/fd/9999", "x"), HD_ERR_IO, "/dev/fd/9999: cannot write");
    chmod(folder.path("closed").c_str(), 0555);
    chmod(folder.path("file").c_str(), 0444);
    Unprivileged nobody;
    CHECK_FAILS(write_whole(folder.path("closed/a.png"), "x"), HD_ERR_IO,
                "a.png: no permission to create a file in its folder");
    CHECK_FAILS(write_whole(folder.path("file"), "x"), HD_ERR_IO, "file: no permission to replace");
}

TEST_CASE("output: a full disk keeps the old file and no half one", "[base]")
{
    CHECK_FAILS(write_whole("/dev/full", "x"), HD_ERR_IO, "/dev/full: the disk is full");

    // A limit on the size of files stands in for a full disk: the write fails half way.
    Folder folder;
    folder.write("a.png", "old");
    struct rlimit before, small = {4096, 4096};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small.rlim_max = before.rlim_max;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    hd_status status = write_whole(folder.path("a.png"), std::string(10000, 'x'));
    std::string message = hd_message();
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(status == HD_ERR_IO);
    CHECK(message.find("a.png: larger than the system allows") != std::string::npos);
    CHECK(folder.read("a.png") == "old");
    CHECK(folder.names() == Names{"a.png"});
}

TEST_CASE("output: a target that goes away leaves no temporary file", "[base]")
{
    Folder folder;
    hd_output *o;
    REQUIRE_OK(hd_output_open(&o, folder.path("a.png").c_str()));
    REQUIRE(mkdir(folder.path("a.png").c_str(), 0755) == 0);
    CHECK_FAILS(hd_output_commit(o), HD_ERR_IO, "a.png: cannot put it in place");
    CHECK(folder.names() == Names{"a.png"});
}

TEST_CASE("output: pipes are written directly, and a reader that has gone is an error", "[base]")
{
    Folder folder;
    std::string fifo = folder.path("fifo");
    REQUIRE(mkfifo(fifo.c_str(), 0666) == 0);
    std::string got;
    std::thread reader([&] {
        int fd = open(fifo.c_str(), O_RDONLY);
        char text[64];
        for (ssize_t n; (n = read(fd, text, sizeof text)) > 0;)
            got.append(text, (size_t)n);
        close(fd);
    });
    CHECK(write_whole(fifo, "through a pipe") == HD_OK);
    reader.join();
    CHECK(got == "through a pipe");
    CHECK(folder.names() == Names{"fifo"});

    int ends[2];
    REQUIRE(pipe(ends) == 0);
    close(ends[0]);
    std::string name = "/dev/fd/" + std::to_string(ends[1]);
    CHECK_FAILS(write_whole(name, "x"), HD_ERR_IO, "whoever read it has gone");
    close(ends[1]);
}

TEST_CASE("output: an open descriptor is appended to, not replaced", "[base]")
{
    Folder folder;
    folder.write("log", "before ");
    int fd = open(folder.path("log").c_str(), O_WRONLY | O_APPEND);
    REQUIRE(fd >= 0);
    REQUIRE_OK(write_whole("/proc/self/fd/" + std::to_string(fd), "after"));
    close(fd);
    CHECK(folder.read("log") == "before after");
}

TEST_CASE("file: what cannot be read is named, with the reason", "[base]")
{
    Folder folder;
    char *text;
    size_t bytes;
    folder.write("closed", "x");
    chmod(folder.path("closed").c_str(), 0);
    CHECK_FAILS(hd_file_read(&text, &bytes, folder.path("none").c_str(), 9), HD_ERR_IO,
                "none: there is no such file");
    CHECK_FAILS(hd_file_read(&text, &bytes, folder.path().c_str(), 9), HD_ERR_IO,
                folder.path() + ": is a folder, not a file");
    {
        Unprivileged nobody;
        CHECK_FAILS(hd_file_read(&text, &bytes, folder.path("closed").c_str(), 9), HD_ERR_IO,
                    "closed: no permission to read it");
    }
    folder.write("ten", "0123456789");
    CHECK_FAILS(hd_file_read(&text, &bytes, folder.path("ten").c_str(), 9), HD_ERR_FORMAT,
                "ten: is larger than 9 bytes");
    REQUIRE_OK(hd_file_read(&text, &bytes, folder.path("ten").c_str(), 10));
    CHECK(bytes == 10);
    CHECK(std::string(text) == "0123456789");
    free(text);
    REQUIRE_OK(hd_file_read(&text, &bytes, "/proc/self/status", 1 << 20)); // says that it has 0
    CHECK(std::string(text).find("VmRSS") != std::string::npos);
    free(text);
}
