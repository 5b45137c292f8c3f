#!/usr/bin/env bash
# install_dependencies.sh [--dev] [--list]: installs the Debian or Ubuntu packages that building, running and testing
# need and that are not there yet. Does nothing, as any user, when all are there; otherwise as root or through sudo,
# without asking. --dev adds the linters and the benchmark library, --list only prints the missing packages.
# CUDA is not installed: where nvcc is on PATH the build uses it.
set -euo pipefail

tools=(build-essential ccache cmake git ninja-build pkg-config)
libraries=(
  libboost-program-options-dev  # command line
  libavcodec-dev libavformat-dev libavutil-dev libswscale-dev  # videos; the build works without them
  libfmt-dev                    # messages
  libhdf5-dev hdf5-tools        # shards and checkpoints; h5ls to look at them. The serial build, which is thread-safe
  libjpeg-dev libpng-dev libwebp-dev zlib1g-dev  # images
  libopenblas-openmp-dev        # matrix products on the CPU
  libopenmpi-dev openmpi-bin    # ranks
  libsndfile1-dev libsoxr-dev   # sounds and their sample rates
  libxxhash-dev                 # checksums
  libyaml-cpp-dev               # configuration
  nlohmann-json3-dev            # metrics, safetensors headers, JSONL
)
tests=(libgtest-dev libgmock-dev python3-h5py python3-numpy)
linters=(clang-format-14 clang-tidy-14 libbenchmark-dev libomp-14-dev shellcheck)

wanted=("${tools[@]}" "${libraries[@]}" "${tests[@]}")
list_only=false
for argument in "$@"; do
  case $argument in
    --dev) wanted+=("${linters[@]}") ;;
    --list) list_only=true ;;
    *)
      echo "install_dependencies: unknown argument $argument; known: --dev, --list" >&2
      exit 1
      ;;
  esac
done

if ! command -v apt-get >/dev/null; then
  echo "install_dependencies: this machine has no apt-get. Install what these Debian packages hold, then build" >&2
  echo "with cmake --preset release && cmake --build build: ${wanted[*]}" >&2
  exit 1
fi

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null || true)
  # A package may be there for several architectures: one line each.
  grep -qx installed <<<"$status" || missing+=("$package")
done

if $list_only; then
  ((${#missing[@]})) && printf '%s\n' "${missing[@]}"
  exit 0
fi
if ((${#missing[@]} == 0)); then
  echo "All ${#wanted[@]} packages are there."
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "install_dependencies: run this as root, or install sudo; missing: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}
echo "Installing ${#missing[@]} of ${#wanted[@]} packages: ${missing[*]}"
# The lists may be absent (a fresh container) or name versions that are gone. A source that cannot be reached is not
# fatal by itself: the installation says whether something is really lacking.
apt update || echo "install_dependencies: apt-get update failed; trying with the lists at hand" >&2
apt install -y --no-install-recommends "${missing[@]}" >/dev/null
echo "Installed."
