#include "support/folder.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <unistd.h>

namespace fs = std::filesystem;

Folder::Folder()
{
    std::string name = (fs::temp_directory_path() / "heddle-test-XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder " + name);
    root = name;
    fs::permissions(root, fs::perms(0755)); // for Unprivileged
}

Folder::~Folder()
{
    std::error_code ignored;
    fs::remove_all(root, ignored);
}

std::string Folder::path(const std::string &name) const
{
    return name.empty() ? root : root + "/" + name;
}

std::string Folder::write(const std::string &name, const std::string &bytes) const
{
    fs::create_directories(fs::path(path(name)).parent_path());
    std::ofstream out(path(name), std::ios::binary);
    out << bytes;
    out.close();
    if (!out) throw std::runtime_error("cannot write " + path(name));
    return path(name);
}

std::string Folder::read(const std::string &name) const
{
    std::ifstream in(path(name), std::ios::binary);
    if (!in) throw std::runtime_error("cannot read " + path(name));
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
}

std::vector<std::string> Folder::names() const
{
    std::vector<std::string> list;
    for (const auto &entry : fs::directory_iterator(root))
        list.push_back(entry.path().filename().string());
    std::sort(list.begin(), list.end());
    return list;
}

Unprivileged::Unprivileged()
{
    if (geteuid() == 0 && (setegid(65534) != 0 || seteuid(65534) != 0))
        throw std::runtime_error("cannot give up root");
}

Unprivileged::~Unprivileged()
{
    if (getuid() == 0 && (seteuid(0) != 0 || setegid(0) != 0)) std::terminate();
}
