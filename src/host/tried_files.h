// Which files have already been loaded in a child without harm.
//
// A trial (host/trial.h) costs as much as loading, so that a large file is tried once: what passed is a line in
// CacheDir()/tried that names the very file by device, inode, size and times, and this build of pith. Whoever can forge
// such a line can as well change the program.
#ifndef PITH_HOST_TRIED_FILES_H_
#define PITH_HOST_TRIED_FILES_H_

#include <span>
#include <string>
#include <string_view>

namespace pith {

// Identifies these files as they are now, with what they are loaded with beside them; empty if one cannot be read.
std::string FilesKey(std::span<const std::string> paths, std::string_view options = {});

// False when there is no such note, or none can be read.
bool WasTried(const std::string& key);

// Remembers the last few hundred. Failures are ignored: the next load tries again.
void RememberTried(const std::string& key);

}  // namespace pith

#endif  // PITH_HOST_TRIED_FILES_H_
