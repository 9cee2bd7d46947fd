# Sourced by ./pith and the scripts beside this file: messages, the cache folder, downloads.
# Everything said here goes to standard error.

# PITH_PROGRESS=lines keeps what runs beside something else from redrawing the terminal's last line.
redraws() { [[ -t 2 && ${PITH_PROGRESS:-} != lines ]]; }
say() {
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
  printf 'pith: %s\n' "$*" >&2
}
die() { printf 'pith: error: %s\n' "$*" >&2; exit 1; }

# Whether a Debian package is installed, for one architecture or several.
# Without a pipe: grep -q would end at the first line, and a dpkg-query that still writes would fail under pipefail.
is_installed() { grep -qx installed <<<"$(dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null)"; }

# The same rule as CacheDir() in src/base/paths.cc.
pith_cache_dir() {
  local home=${HOME:-}
  # Never a folder that others can write, who could then choose the model.
  if [[ -z $home ]]; then home=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6 || true); [[ $home == /* ]] || home=/nonexistent; fi
  if [[ -n ${PITH_CACHE_DIR:-} ]]; then printf '%s' "$PITH_CACHE_DIR"
  elif [[ -n ${XDG_CACHE_HOME:-} ]]; then printf '%s/pith' "$XDG_CACHE_HOME"
  else printf '%s/.cache/pith' "$home"
  fi
}

# Creates a folder and proves that it can be written.
need_writable_dir() {
  local probe
  mkdir -p "$1" 2>/dev/null && probe=$(mktemp "$1/.probe.XXXXXX" 2>/dev/null) && rm -f "$probe" ||
    die "the folder $1 cannot be written; set PITH_CACHE_DIR to one that can."
}

# MiB free where a folder lies.
free_mib() { df -Pm "$1" | awk 'NR == 2 { print $4 }'; }

need_free_mib() {
  local have
  have=$(free_mib "$1")
  ((have >= $2)) || die "$1 has $have MiB free and $3 needs $2 MiB; free some space or set PITH_CACHE_DIR."
}

# A Python that has pip.
python_with_pip() {
  local python
  for python in "${PITH_PYTHON:-python3}" /usr/bin/python3; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      printf '%s' "$python"
      return
    fi
  done
  die "Python's pip is missing; install the package python3-pip."
}

# pip_download FOLDER WHAT MB ARGUMENTS...: downloads packages of MB megabytes from PyPI;
# one sentence on failure.
pip_download() {
  local folder=$1 what=$2 mb=$3 python output status=0 watcher=
  shift 3
  python=$(python_with_pip) || exit 1
  mkdir -p "$folder/tmp"
  say "fetching $what ($mb MB)"
  if redraws; then
    while sleep 0.5; do
      printf '\rpith: %3d%% ' $((100 * $(du -sm "$folder" 2>/dev/null | cut -f1) / (mb + 1) % 101)) >&2
    done &
    watcher=$!
  fi
  # The output is kept in memory: the disk may be what is full.
  output=$(TMPDIR=$folder/tmp "$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
    --progress-bar off --dest "$folder" "$@" 2>&1 </dev/null) || status=$?
  if [[ -n $watcher ]]; then
    kill $watcher
    wait $watcher 2>/dev/null || true
    printf '\r\033[K' >&2
  fi
  ((status != 0)) || return 0
  if grep -qi 'no space left' <<<"$output"; then
    die "the disk of $(dirname "$folder") is full; $what was not fetched."
  elif grep -qiE 'connection|resolution|timed out|retries|unreachable|No matching distribution' <<<"$output"; then
    die "the Python package index could not be reached; $what was not fetched."
  fi
  tail -n 5 <<<"$output" >&2
  die "$what could not be fetched from the Python package index (its message is above)."
}

# disk_full FOLDER LOG: whether a failure came from a full disk (LOG itself may be cut short by it).
disk_full() { grep -q 'No space left on device' "$2" 2>/dev/null || (($(free_mib "$1") < 5)); }

# check_sha256 FILE SUM
check_sha256() {
  [[ $(sha256sum "$1" | cut -d' ' -f1) == "$2" ]] ||
    die "$(basename "$1") does not have the expected SHA-256; the download is damaged or was replaced."
}

# build_jobs [BUILDS]: compiler jobs of each of BUILDS builds that run at once: one per processor, fewer where memory
# is short (1.5 GiB each); PITH_JOBS decides otherwise.
build_jobs() {
  local by_memory by_cpu
  by_memory=$(awk -v builds="${1:-1}" '/MemAvailable/ { print int($2 / 1572864 / builds) }' /proc/meminfo)
  by_cpu=$(nproc)
  ((by_memory >= 1)) || by_memory=1
  printf '%s' "${PITH_JOBS:-$((by_cpu < by_memory ? by_cpu : by_memory))}"
}

# "setsid "${kOnLeftover[@]}" COMMAND..." gives COMMAND only what the processors have left. To a session of its own Linux
# gives an equal share of them (sched_autogroup), whatever the policy of what runs in it: its session must say less
# itself, as whoever starts it does not know when it is there, and before that would slow down its own.
readonly kOnLeftover=(bash -c '[[ ! -w /proc/$$/autogroup ]] || echo 19 >/proc/$$/autogroup; exec chrt --idle 0 "$@"' leftover)

# time_left START PERCENT: ", about 3 minutes left", once there is something to judge by.
time_left() {
  local spent=$((SECONDS - $1)) left
  (($2 >= 10 && spent >= 10)) || return 0
  left=$((spent * (100 - $2) / $2))
  ((left < 90)) && echo ", about $((left / 10 * 10 + 10)) s left" || echo ", about $(((left + 30) / 60)) minutes left"
}

# show_progress NAME LOG: appends standard input to LOG and shows Ninja's "[done/total]" as a
# percentage with the time that is left: one line redrawn on a terminal, else a line per fifth.
show_progress() {
  local line percent shown=-1 start=$SECONDS
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    percent=$((100 * BASH_REMATCH[1] / BASH_REMATCH[2]))
    if redraws; then
      printf '\r\033[Kpith: %s %3d%% (%d of %d)%s' "$1" $percent "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" \
        "$(time_left "$start" $percent)" >&2
    elif ((percent / 20 > shown)); then
      shown=$((percent / 20))
      say "$1 $percent%$( ((percent == 100)) || time_left "$start" $percent)"
    fi
  done 3>>"$2"
  if redraws; then printf '\r\033[K' >&2; fi
}
