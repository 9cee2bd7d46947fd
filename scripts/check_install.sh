#!/bin/bash
# check_install.sh BUILD_TREE: installs pith into a temporary folder, builds
# examples/ against it by CMake and by pkg-config, checks what the library
# exports, and runs the examples with the default model.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/common.sh"
tree=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$tree" --prefix "$work/installed" >/dev/null
# Moved, to show that nothing remembers where it was installed.
mv "$work/installed" "$work/moved"
library=$(echo "$work"/moved/lib*/libpith.so "$work"/moved/lib*/*/libpith.so | tr ' ' '\n' | grep -v '\*' | head -n 1)

python3 "$root/tests/abi/check_abi.py" "$work/moved/include/pith/pith.h" "$library" || die "libpith has another interface."

cmake -S "$root/examples" -B "$work/examples" -DCMAKE_PREFIX_PATH="$work/moved" >"$work/log" 2>&1 &&
  cmake --build "$work/examples" >>"$work/log" 2>&1 || { cat "$work/log" >&2; die "examples/ does not build."; }
PKG_CONFIG_PATH=$(dirname "$library")/pkgconfig
export PKG_CONFIG_PATH
c++ -std=c++20 "$root/examples/generate.cc" -o "$work/generate" $(pkg-config --cflags --libs pith)
cc -std=c11 "$root/examples/generate.c" -o "$work/generate_c" $(pkg-config --cflags --libs pith)

model=${PITH_DEFAULT_MODEL:-$(pith_cache_dir)/models/SmolLM2-135M-Instruct.Q4_1.gguf}
if [[ ! -e $model ]]; then
  echo "[  SKIPPED ] the default model is not here; scripts/fetch_model.sh fetches it"
  exit
fi
PITH_DEFAULT_MODEL=$model python3 "$root/tests/examples_test.py" "$work/examples"
