#include <cblas.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>
#include <xxhash.h>

#include <boost/version.hpp>
#include <nlohmann/json.hpp>

#include "data/video.h"
#include "kernels/build_info.h"
#include "kernels/commit.h"
#include "launch/command_line.h"

namespace lapidary {
namespace {

// Open MPI tells its life's story: the first line is enough, and MPI may be asked before it is started.
std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown";
  const std::string all(text, static_cast<std::size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) return "unknown";
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace

std::string version_text() {
  const unsigned xxhash = XXH_versionNumber();
  std::string text =
      fmt::format("lapidary {} ({})\n", kVersion, kCommit[0] != '\0' ? kCommit : "commit unknown");
  text += fmt::format("built with {}, {}, {}\n", kCompiler, kBuildType,
                      kCudaBuilt ? fmt::format("CUDA for {}", kCudaArchitectures) : "without CUDA");
  text += fmt::format(
      "{}; HDF5 {}; {}; yaml-cpp {}; Boost {}.{}.{}; fmt {}.{}.{}; nlohmann_json {}.{}.{}; xxHash {}.{}.{}; "
      "{}\n",
      mpi_version(), hdf5_version(), openblas_get_config(), LAPIDARY_YAML_CPP_VERSION, BOOST_VERSION / 100000,
      BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100, FMT_VERSION / 10000, FMT_VERSION / 100 % 100,
      FMT_VERSION % 100, NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
      NLOHMANN_JSON_VERSION_PATCH, xxhash / 10000, xxhash / 100 % 100, xxhash % 100, video_libraries());
  return text;
}

}  // namespace lapidary
