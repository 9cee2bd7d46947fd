#!/bin/bash
# Builds the kernels and their tests for 64-bit ARM and runs them in QEMU: results, not speed.
#
#   scripts/test_neon.sh [GTEST ARGUMENTS...]
#
# Once, as root:
#   dpkg --add-architecture arm64 && apt-get update
#   apt-get install g++-aarch64-linux-gnu qemu-user-static libhwy-dev:arm64 libgtest-dev:arm64 libfmt-dev:arm64
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/common.sh"

readonly kCompiler=aarch64-linux-gnu-g++ kEmulator=qemu-aarch64-static
for tool in $kCompiler $kEmulator; do
  command -v "$tool" >/dev/null || die "$tool is missing; the head of this script says what to install."
done
disabled="HWY_DISABLED_TARGETS=($(sed -n 's/^set(_disabled \(HWY.*\))$/\1/p' "$root/cmake/PithSimd.cmake" | tr ' ' '|'))"
out=$root/build/neon
mkdir -p "$out"
flags=(-O2 -std=c++20 -Wall -Wextra -Werror -Wno-restrict -DHWY_SHARED_DEFINE -DFMT_SHARED "-D$disabled"
  '-DPITH_VERSION="0"' "-I$root/src" "-I$root/include")
sources=("$root"/src/kernels/*.cc)
for source in "$root"/src/base/*.cc; do [[ $source == *_test.cc ]] || sources+=("$source"); done
say "building the kernels' tests for ARM"
export kCompiler out
compile() { "$kCompiler" "${@:2}" -c "$1" -o "$out/$(basename "$1" .cc).o"; }
export -f compile
printf '%s\0' "${sources[@]}" | xargs -0 -P "$(nproc)" -I{} bash -c 'compile "$@"' _ {} "${flags[@]}"
objects=()
for source in "${sources[@]}"; do objects+=("$out/$(basename "$source" .cc).o"); done
"$kCompiler" "${objects[@]}" -o "$out/pith_kernels_tests" -lgtest -lgtest_main -lhwy -lfmt -lpthread
exec "$kEmulator" "$out/pith_kernels_tests" "$@"
