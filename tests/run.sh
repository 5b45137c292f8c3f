#!/usr/bin/env bash
# run.sh [CTEST ARGUMENTS]: installs what is missing, where it may, configures, builds and runs the tests. Examples:
#   tests/run.sh                      everything
#   tests/run.sh -R model_ -V         one room, with output
#   tests/run.sh -L mpi               by label: mpi, slow
# PRESET chooses another preset of CMakePresets.json (release, cpu-only, dev, tsan); release builds the CUDA code where
# nvcc is found. JOBS is the number of processes that build and test.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${PRESET:-release}
jobs=${JOBS:-$(nproc)}
case $preset in
  release | bench) build=build ;;
  cpu-only) build='build-cpu' ;;
  *) build=build-$preset ;;
esac

# Where packages come from elsewhere (modules of a cluster), configuring says what it misses.
launch/install_dependencies.sh || echo "tests/run.sh: going on with what is there" >&2
cmake --preset "$preset"
cmake --build "$build" -j "$jobs"
exec ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" "$@"
