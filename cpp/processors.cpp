#include "processors.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "system.hpp"

namespace fusedstep {
namespace {

constexpr int no_limit = std::numeric_limits<int>::max();

// Returns no lines if the file does not exist, as on systems other than Linux.
std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t end = text.find(at);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

bool contains(const std::vector<std::string>& parts, std::string_view part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

// Decodes a path of /proc/self/mountinfo, where a blank is written as \040.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned code = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '\\' && i + 3 < text.size() && std::from_chars(digits, digits + 3, code, 8).ptr == digits + 3) {
      plain += static_cast<char>(code);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// Returns a number, or -1 for anything else, such as "max" or nothing.
std::int64_t number(std::string_view text) {
  std::int64_t value = -1;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() ? value : -1;
}

// The processors that one group grants: processor time per period.
int quota_of(const std::string& folder, bool version_2) {
  std::vector<std::string> written;
  if (version_2) {
    for (const std::string& line : lines_of(folder + "/cpu.max")) written = split(line, ' ');
  } else {
    for (const char* name : {"/cpu.cfs_quota_us", "/cpu.cfs_period_us"}) {
      for (const std::string& line : lines_of(folder + name)) written.push_back(line);
    }
  }
  if (written.size() != 2) return no_limit;
  const std::int64_t time = number(written[0]);
  const std::int64_t period = number(written[1]);
  if (time <= 0 || period <= 0) return no_limit;
  return static_cast<int>(std::min<std::int64_t>((time - 1) / period + 1, no_limit));
}

// A mounted file system of control groups, as a line of /proc/self/mountinfo describes it.
struct Mount {
  bool version_2;
  std::string root;  // the group that `point` shows
  std::string point;
};

std::vector<Mount> mounts() {
  std::vector<Mount> found;
  for (const std::string& line : lines_of("/proc/self/mountinfo")) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> where = split(std::string_view(line).substr(0, dash), ' ');
    const std::vector<std::string> what = split(std::string_view(line).substr(dash + 3), ' ');
    if (where.size() < 5 || what.size() < 3) continue;
    const bool version_2 = what[0] == "cgroup2";
    if (!version_2 && !(what[0] == "cgroup" && contains(split(what[2], ','), "cpu"))) continue;
    found.push_back({version_2, unescaped(where[3]), unescaped(where[4])});
  }
  return found;
}

// The smallest quota of the nested control groups of this process, as far as it can see them.
int processors_by_quota() {
  int least = no_limit;
  const std::vector<Mount> mounts = fusedstep::mounts();
  if (mounts.empty()) return least;
  for (const std::string& line : lines_of("/proc/self/cgroup")) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && !contains(split(controllers, ','), "cpu")) continue;
    const std::string group = line.substr(second + 1);
    for (const Mount& mount : mounts) {
      if (mount.version_2 != version_2) continue;
      const std::string above = mount.root == "/" ? "" : mount.root;
      std::string below;  // the group's path below the mount; empty if it lies elsewhere
      if (group.starts_with(above + "/") && group.find("/..") == std::string::npos) below = group.substr(above.size());
      while (!below.empty() && below.back() == '/') below.pop_back();
      for (;;) {
        least = std::min(least, quota_of(mount.point + below, version_2));
        if (below.empty()) break;
        below.erase(below.rfind('/'));
      }
    }
  }
  return least;
}

}  // namespace

int usable_processors() { return std::max(1, std::min(processors_by_affinity(), processors_by_quota())); }

}  // namespace fusedstep
