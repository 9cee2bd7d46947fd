#!/bin/bash
# Builds libvalkey, the client of Redis and Valkey, once and prints the folder it is installed in.
#
#   scripts/build_valkey.sh                  build when missing, print the prefix
#   scripts/build_valkey.sh --print-prefix   print the prefix; exit 1 if it is not built yet
#
# The source is the PyPI package libvalkey, which carries the C library (BSD-3-Clause) with its client of clusters. The
# result lies in the cache folder under a key of version, flags and compiler.
#
# PITH_VALKEY_SDIST names an sdist already on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
source scripts/build_once.sh

readonly kVersion=4.2.1
readonly kSha256=7f0ffb6dfa9c01cde7f398d8bab93d2566597cbad17f4068d019bb5cf335bd47
readonly kFlags=(-std=c99 -O2 -fPIC -D_GNU_SOURCE -DNDEBUG -w)
readonly kCompiler=cc

command -v "$kCompiler" >/dev/null || die "no C compiler was found; install the package gcc."
key=$(printf '%s\n' "$kVersion" "${kFlags[@]}" "$("$kCompiler" -dumpfullversion -dumpmachine)" | sha256sum | cut -c1-12)
root=$(pith_cache_dir)/valkey
prefix=$root/$kVersion-$key
if [[ ${1:-} == --print-prefix ]]; then
  echo "$prefix"
  [[ -e $prefix/lib/libvalkey.a ]]
  exit
elif [[ $# -gt 0 ]]; then
  die "build_valkey.sh knows no argument but --print-prefix."
fi
if [[ -e $prefix/lib/libvalkey.a ]]; then
  echo "$prefix"
  exit
fi
begin_build "$root" "$prefix/lib/libvalkey.a" 20 libvalkey
unpack_sdist PITH_VALKEY_SDIST libvalkey 1 libvalkey $kVersion $kSha256
source=$work/libvalkey-$kVersion/vendor/libvalkey
mkdir -p "$work/out/lib" "$work/out/include" "$work/objects"
# Transport over InfiniBand and TLS are left out.
printf '%s\n' "$source"/src/*.c | grep -v -e '/rdma\.c$' -e '/tls\.c$' |
  xargs -P "$(build_jobs)" -I '{}' sh -c 'out=$1/$(basename "$2" .c).o; shift 2; "$@" -o "$out"' - "$work/objects" '{}' \
    "$kCompiler" "${kFlags[@]}" -I"$source"/{include,include/valkey,src} -c '{}' 9>&- ||
  die "libvalkey could not be compiled; see the messages above."
ar rcs "$work/out/lib/libvalkey.a" "$work"/objects/*.o
cp -r "$source/include/valkey" "$work/out/include/"
cp "$source/COPYING" "$work/out/"
rm -rf "$prefix"
mv -T "$work/out" "$prefix"
echo "$prefix"
