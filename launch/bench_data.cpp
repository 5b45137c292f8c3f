// lapidary bench data: how fast one rank's loader is, on given data sets or on some that are made for it.
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iostream>
#include <optional>

#include "data/measure.h"
#include "data/random_data.h"
#include "kernels/check.h"
#include "launch/commands.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;

/// In a process of its own, whose memory does not count as the loader's.
void write_in_child(const fs::path& folder, RandomKind kind, std::int64_t bytes) {
  std::cout << std::flush;
  const pid_t child = fork();
  require(child >= 0, "cannot start a process that writes {}", folder.string());
  if (child == 0) {
    try {
      write_random_data(folder, kind, bytes);
      _exit(0);
    } catch (const std::exception& e) {
      std::cerr << "lapidary: " << e.what() << std::endl;
      _exit(1);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "{}: the data for this measurement was not written",
          folder.string());
}

/// A folder that is removed at the end, unless it is the user's.
class WorkFolder {
 public:
  explicit WorkFolder(const std::string& given) : path_(given), temporary_(given.empty()) {
    if (!temporary_) return;
    std::string name = (fs::temp_directory_path() / "lapidary-bench-XXXXXX").string();
    require(mkdtemp(name.data()) != nullptr, "{}: cannot make a folder for the data", name);
    path_ = name;
  }
  ~WorkFolder() {
    std::error_code ignored;
    if (temporary_) fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  bool temporary_;
};

void report(const std::string& name, const LoaderSpeed& speed) {
  constexpr double kMega = 1e6;
  const LoaderStats& stats = speed.stats;
  std::cout << fmt::format("{}\n", name);
  std::cout << fmt::format(
      "  data        {} documents, {} tokens; open after {:.2f} s, first step after {:.2f} s\n",
      speed.documents, speed.documents_tokens, speed.open_seconds, speed.first_step_seconds);
  std::cout << fmt::format(
      "  tokens      {:.2f} million/s ({} steps in {:.2f} s, {:.2f} s of them computing)\n",
      speed.each_second(speed.tokens) / kMega, speed.steps, speed.seconds, speed.cpu_seconds);
  std::cout << fmt::format("  of them     {:.0f} image and {:.0f} sound soft tokens/s\n",
                           speed.each_second(speed.patches), speed.each_second(speed.frames));
  std::cout << fmt::format("  read        {:.0f} MB/s from {} opened shards; rows {:.2f} % filled\n",
                           speed.each_second(stats.bytes_read) / kMega, stats.shards_opened,
                           100 * stats.packing_efficiency());
  std::cout << fmt::format("  memory      {:.0f} MB resident at most, so far\n",
                           static_cast<double>(speed.resident_bytes) / kMega);
  std::cout << std::flush;
}

/// The folders of the data that is made, or found from the last time.
std::vector<std::string> make_data(const fs::path& work, std::int64_t bytes) {
  constexpr std::array<std::pair<const char*, RandomKind>, 3> kKinds = {
      {{"text", RandomKind::text}, {"images", RandomKind::images}, {"sounds", RandomKind::sounds}}};
  std::vector<std::string> folders;
  for (const auto& [name, kind] : kKinds) {
    const fs::path folder = work / name;
    if (!fs::exists(folder / "manifest.json"))
      write_in_child(folder, kind, bytes / static_cast<std::int64_t>(kKinds.size()));
    folders.push_back(folder.string());
  }
  return folders;
}

}  // namespace

int run_bench_data(const BenchDataArguments& arguments) {
  LoaderOptions options;
  options.sequence_length = arguments.sequence_length;
  options.ranks = arguments.ranks;
  options.rows_per_step = arguments.ranks * arguments.rows_per_rank;
  options.rows_per_micro = arguments.rows_per_rank;
  options.read_ahead_bytes = arguments.read_ahead;
  options.skip_too_long = true;
  std::optional<WorkFolder> work;
  std::vector<std::string> folders = arguments.folders;
  if (folders.empty()) folders = make_data(work.emplace(arguments.keep).path(), arguments.size);

  std::vector<DataSource> all;
  for (const std::string& folder : folders) {
    options.sources = {{folder}};
    report(folder, measure_loader(options, arguments.seconds));
    all.push_back(options.sources.front());
  }
  if (all.size() == 1) return 0;
  options.sources = all;
  report("all of them mixed", measure_loader(options, arguments.seconds));
  return 0;
}

}  // namespace lapidary
