#!/bin/bash
# Runs a program of the build on an emulated processor with AVX-512 and VNNI, where this machine has none: results, not speed.
#
#   scripts/test_avx512.sh [PROGRAM [ARGUMENTS...]]     # default: build/release/tests/pith_kernels_tests
#
# PITH_BOCHS_CPU names another processor that `bochs -help cpu` knows (default corei7_icelake_u; corei7_skylake_x has no VNNI).
# PITH_BOCHS names another Bochs. An instruction takes about 100 times as long as here, so pass a filter.
# The emulator boots Debian's kernel with the program, its libraries and nothing else. Once, as root:
#   apt-get install bochs bochsbios vgabios grub-pc-bin grub-common xorriso mtools busybox-static cpio
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/common.sh"

program=${1:-$root/build/release/tests/pith_kernels_tests}
shift || true
bochs=${PITH_BOCHS:-bochs} cpu=${PITH_BOCHS_CPU:-corei7_icelake_u}
for tool in "$bochs" grub-mkrescue xorriso mformat busybox cpio; do
  command -v "$tool" >/dev/null || die "$tool is missing; the head of this script says what to install."
done
[[ -x $program ]] || die "$program is missing: build it first."

work=$root/build/avx512
mkdir -p "$work/kernel"
find_kernel() { find "$work/kernel" -name 'vmlinuz-*' | head -1; }
if [[ -z $(find_kernel) ]]; then
  say "fetching Debian's kernel"
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  (cd "$work" && apt-get download -qq "$package" && dpkg -x "$package"_*.deb kernel && rm -f "$package"_*.deb)
fi

disc=$work/disc files=$work/files serial=$work/serial
rm -rf "$disc" "$files" "$serial"
mkdir -p "$disc/boot/grub" "$files"/{bin,dev,proc,sys,tmp}
cp "$(command -v busybox)" "$files/bin/"
cp "$program" "$files/program"
ldd "$program" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$files$library"; done
printf '#!/bin/busybox sh\n' >"$files/init"
{
  printf 'busybox mount -t proc proc /proc; busybox mount -t sysfs sys /sys; busybox mount -t devtmpfs dev /dev\n'
  printf 'busybox grep -q avx512 /proc/cpuinfo || echo "Linux finds no AVX-512 here"\n'
  printf 'busybox grep -q avx512 /proc/cpuinfo && /program'
  for argument in "$@"; do printf ' %q' "$argument"; done
  printf '\necho "exit status $?"\nwhile true; do busybox sleep 1000; done\n'
} >>"$files/init"
chmod +x "$files/init"
(cd "$files" && find . | cpio -o -H newc --quiet | gzip -1) >"$disc/boot/files"
cp "$(find_kernel)" "$disc/boot/kernel"
# The emulator reports neither fast copies nor the sizes of compact register files as Linux wants them.
cat >"$disc/boot/grub/grub.cfg" <<'END'
set timeout=0
menuentry pith {
  linux /boot/kernel console=ttyS0 quiet mitigations=off nokaslr clearcpuid=fsrm,pku,xsavec,xsaves lpj=100000 panic=-1
  initrd /boot/files
}
END
grub-mkrescue -o "$work/disc.iso" "$disc" >"$work/grub.log" 2>&1 || die "grub-mkrescue failed: $work/grub.log"
cat >"$work/bochsrc" <<END
cpu: model=$cpu, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=1024, host=1024
romimage: file=${PITH_BOCHS_BIOS:-/usr/share/bochs/BIOS-bochs-latest}
vgaromimage: file=${PITH_BOCHS_VGABIOS:-/usr/share/bochs/VGABIOS-lgpl-latest}
ata0-master: type=cdrom, path="$work/disc.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$serial"
display_library: rfb, options="timeout=0"
log: $work/bochs.log
panic: action=fatal
END
# Debian's fails without a sound card, and others without sound know no such line.
[[ $bochs != bochs ]] || echo "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy" >>"$work/bochsrc"
say "booting an emulated $cpu"
: >"$serial"
yes c | "$bochs" -q -f "$work/bochsrc" >"$work/bochs.out" 2>&1 &
emulator=$!
trap 'kill -9 $emulator 2>/dev/null || true' EXIT
tail -f --pid=$emulator "$serial" | sed -u '/^exit status/q' || true
status=$(sed -n 's/^exit status \([0-9]*\).*/\1/p' "$serial")
[[ -n $status ]] || die "the emulator stopped before the program did: $work/bochs.log"
exit "$status"
