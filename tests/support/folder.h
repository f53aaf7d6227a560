/* tests/support/folder.h: a folder of a test's own, gone with everything in it at the end. */
#ifndef HD_TESTS_SUPPORT_FOLDER_H
#define HD_TESTS_SUPPORT_FOLDER_H

#include <string>
#include <vector>

class Folder
{
  public:
    Folder();
    ~Folder();
    Folder(const Folder &) = delete;
    Folder &operator=(const Folder &) = delete;

    std::string path(const std::string &name = "") const;
    /* Writes a file (folders on the way are made) and returns its path. */
    std::string write(const std::string &name, const std::string &bytes) const;
    std::string read(const std::string &name) const; // throws when it cannot
    std::vector<std::string> names() const;          // what lies in it, sorted

  private:
    std::string root;
};

/* As long as it lives, a test that runs as root has nobody's rights, so that a permission that is
 * missing is missed. */
class Unprivileged
{
  public:
    Unprivileged();
    ~Unprivileged();
    Unprivileged(const Unprivileged &) = delete;
    Unprivileged &operator=(const Unprivileged &) = delete;
};

#endif
