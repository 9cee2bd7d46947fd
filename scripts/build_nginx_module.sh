#!/bin/bash
# Builds the NGINX module with pith's evictors for the NGINX of this Debian.
#
#   scripts/build_nginx_module.sh            builds what is missing, prints the module's path
#   scripts/build_nginx_module.sh FOLDER     the same, in FOLDER (default: build/nginx)
#
# Needs the packages nginx-dev (headers and configure of the packaged NGINX), g++, cmake, libfmt-dev and libexpected-dev.
# NGINX itself stays as it is; the module fits the version of nginx-dev and, by NGINX's signature, no other.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

case ${1:-} in
  -*) die "build_nginx_module.sh takes a folder; see its first lines." ;;
esac
readonly kNginx=/usr/share/nginx/src
[[ -e $kNginx/configure ]] || die "NGINX's headers are missing; install the package nginx-dev."
folder=$(realpath -m "${1:-build/nginx}")
source_folder=$PWD/nginx
module=$folder/ngx_http_pith_evict_module.so
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
log=$folder/build.log

run() { "$@" >>"$log" 2>&1 9>&- || die "the NGINX module was not built: $(grep -m1 -iE 'error|missing' "$log" || tail -n 1 "$log") (see $log)"; }
: >"$log"
run cmake -S nginx -B "$folder/evict"
run cmake --build "$folder/evict" -j "${PITH_JOBS:-$(nproc)}"
export PITH_EVICT_LIBRARY=$folder/evict/libpith_evict.a

# configure asks for the compiler's manners one after the other: only where something has changed.
stamp=$folder/stamp
version=$(dpkg-query -W -f '${Version}' nginx-dev 2>/dev/null || sed -n 's/^#define NGINX_VERSION *//p' $kNginx/src/core/nginx.h)
if [[ ! -e $module || $(cat "$stamp" 2>/dev/null) != "$version" ||
  -n $(find nginx "$PITH_EVICT_LIBRARY" -newer "$module" -type f -print -quit) ]]; then
  rm -rf "$folder/tree" "$folder/objects" "$stamp"
  mkdir "$folder/tree"
  # configure writes where it runs.
  ln -s $kNginx/{auto,src,configure} "$folder/tree/"
  # shellcheck disable=SC1091
  source $kNginx/conf_flags
  cd "$folder/tree"
  run bash ./configure "${NGX_CONF_FLAGS[@]}" --with-cc-opt="-g -O2 -fPIC" --add-dynamic-module="$source_folder" \
    --builddir="$folder/objects"
  run make -f "$folder/objects/Makefile" modules
  # NGINX itself is what the linker may leave open.
  if nm -D --undefined-only "$folder/objects/ngx_http_pith_evict_module.so" | grep -qE '_ZNK?4pith|pith_'; then
    die "the NGINX module lacks a part of pith (see $log)."
  fi
  cp "$folder/objects/ngx_http_pith_evict_module.so" "$module.tmp"
  mv "$module.tmp" "$module"
  echo "$version" >"$stamp"
fi
echo "$module"
