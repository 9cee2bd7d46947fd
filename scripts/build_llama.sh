#!/bin/bash
# Builds libllama once and prints the folder it is installed in.
#
#   scripts/build_llama.sh                 build when missing, print the prefix
#   scripts/build_llama.sh --tsan          the same for ThreadSanitizer, in a folder of its own
#   scripts/build_llama.sh [--tsan] --print-prefix  print the prefix; exit 1 if it is not built yet
#
# The source is the PyPI package llama-cpp-python. The result lies in the cache
# folder under a key of everything it depends on: version, flags, compiler and
# CPU features (the build is native, so another CPU gets another build). The
# headers are put there as soon as they are unpacked, so that pith can be
# compiled meanwhile; the archives are built beside their place and renamed into
# it at the end.
#
# PITH_LLAMA_SDIST names an sdist already on this machine; PITH_JOBS bounds the compiler jobs; PITH_GGML_FLAGS are further
# flags for CMake, such as "-DGGML_NATIVE=OFF" (AVX2 at most) or "-DGGML_CUDA=ON".
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
source scripts/build_once.sh

readonly kVersion=0.3.36
readonly kSha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly kNeededMib=700
kFlags=(
  -DCMAKE_BUILD_TYPE=Release
  -DBUILD_SHARED_LIBS=OFF
  -DCMAKE_POSITION_INDEPENDENT_CODE=ON
  -DCMAKE_INSTALL_LIBDIR=lib
  -DLLAMA_BUILD_COMMON=OFF
  -DLLAMA_BUILD_TESTS=OFF
  -DLLAMA_BUILD_TOOLS=OFF
  -DLLAMA_BUILD_EXAMPLES=OFF
  -DLLAMA_BUILD_SERVER=OFF
  -DLLAMA_BUILD_APP=OFF
  -DLLAMA_CURL=OFF
  -DGGML_NATIVE=ON
  -DGGML_OPENMP=ON
)
read -ra further_flags <<<"${PITH_GGML_FLAGS:-}"
kFlags+=("${further_flags[@]}")
readonly kCompiler=c++
# libllama's engine for chat templates and its converter of JSON schemas to grammars, which its tools use and the library
# does not have: files of common/.
readonly kJinjaFiles=(jinja/{caps,lexer,parser,runtime,string,value}.cpp unicode.cpp json.cpp
  json-schema-to-grammar.cpp json-schema.cpp trie.cpp)
jinja_flags=(-std=c++17 -O2 -fPIC -DNDEBUG -w)

case ${1:-} in
  --tsan)
    # ThreadSanitizer does not see the barriers of GCC's OpenMP runtime; it sees those of ggml's own thread pool.
    shift
    kFlags+=(-DGGML_OPENMP=OFF -DCMAKE_C_FLAGS=-fsanitize=thread -DCMAKE_CXX_FLAGS=-fsanitize=thread)
    jinja_flags+=(-fsanitize=thread)
    ;;
esac

command -v "$kCompiler" >/dev/null || die "no C++ compiler was found; install the package g++."
cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo || uname -m)
key=$(printf '%s\n' "$kVersion" "${kFlags[@]}" "${kJinjaFiles[@]}" "${jinja_flags[@]}" "$("$kCompiler" -dumpfullversion -dumpmachine)" "$cpu" |
  sha256sum | cut -c1-12)
root=$(pith_cache_dir)/llama
prefix=$root/$kVersion-$key

if [[ ${1:-} == --print-prefix ]]; then
  echo "$prefix"
  [[ -e $prefix/lib/libllama.a ]]
  exit
elif [[ $# -gt 0 ]]; then
  die "build_llama.sh knows no arguments but --tsan and --print-prefix."
fi
if [[ -e $prefix/lib/libllama.a ]]; then
  echo "$prefix"
  exit
fi

begin_build "$root" "$prefix/lib/libllama.a" $kNeededMib libllama
unpack_sdist PITH_LLAMA_SDIST libllama 77 llama-cpp-python $kVersion $kSha256 --exclude='*/llama.cpp/models/*' \
  --exclude='*/llama.cpp/docs/*' --exclude='*/llama.cpp/tools/*' --exclude='*/llama.cpp/tests/*'

source=$work/llama_cpp_python-$kVersion/vendor/llama.cpp

# Both folders come whole: what an interrupted build left is replaced.
put_headers() {
  mkdir -p "$prefix" "$work/include/jinja"
  cp "$source"/include/*.h "$source"/ggml/include/*.h "$work/include/"
  cp "$source"/common/jinja/*.h "$work/include/jinja/"
  cp "$source"/common/{json-schema-to-grammar,json-schema,json}.h "$work/include/"
  rm -rf "$prefix/include"
  mv -T "$work/include" "$prefix/include"
}
put_headers || die "$prefix could not be put in place."

log=$root/build.log
fail() {
  if disk_full "$root" "$log"; then die "the disk of $root is full; libllama was not built."; fi
  tail -n 20 "$log" >&2
  die "libllama could not be built; the compiler's last lines are above, all of them in $log."
}
[[ -n ${PITH_PROGRESS:-} ]] || say "building libllama once for this machine (a few minutes)"
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
# GIT_DIR: the source is no clone, and must not take a repository around it for its own.
export GIT_DIR=/nonexistent
cmake -G Ninja -S "$source" -B "$work/build" "${kFlags[@]}" "${launcher[@]}" \
  -DCMAKE_C_COMPILER=cc -DCMAKE_CXX_COMPILER="$kCompiler" \
  -DCMAKE_INSTALL_PREFIX="$work/prefix" >"$log" 2>&1 9>&- || fail

cmake --build "$work/build" -j "$(build_jobs)" 2>&1 9>&- | show_progress libllama "$log" || fail
cmake --install "$work/build" >>"$log" 2>&1 9>&- || fail

build_jinja() {
  local common=$source/common objects=$work/jinja file
  mkdir -p "$objects"
  for file in "${kJinjaFiles[@]}"; do
    ${launcher[0]:+ccache} "$kCompiler" "${jinja_flags[@]}" -I"$common" -I"$source/vendor" -I"$prefix/include" \
      -c "$common/$file" -o "$objects/$(basename "$file" .cpp).o" || return
  done
  ar rcs "$work/prefix/lib/libllama-jinja.a" "$objects"/*.o || return
}
build_jinja >>"$log" 2>&1 9>&- || fail

cp "$source/LICENSE" "$prefix/LICENSE" 2>/dev/null || true
rm -rf "$prefix/lib"
mv -T "$work/prefix/lib" "$prefix/lib" || die "$prefix could not be put in place."
echo "$prefix"
