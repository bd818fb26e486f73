# Sourced by the scripts of this folder, at the repository's root: a Linux with Python under Bochs, an emulator of a
# Sapphire Rapids (AVX-512, VNNI, AVX512-BF16, AMX), for machines without these instructions. It needs Debian's packages
# (apt-get; nothing is installed), g++, cpio and zstd, and no root. BOCHS_SOURCES, if set, is a folder with Bochs'
# configure, of the commit below, in place of a download.

bochs_repository=https://github.com/bochs-emu/Bochs
bochs_commit=783b58fd6d9bae598a07c59719122322fa0edce6

# FOLDER: build Bochs and a small Debian into FOLDER, and set `amx`.
amx_environment() {
  amx=$(mkdir -p "$1" && cd "$1" && pwd)
  [[ -e $amx/bochs-ready ]] || amx_bochs
  [[ -e $amx/guest-ready ]] || amx_guest
}

amx_bochs() {
  rm -rf "$amx/bochs"
  if [[ -n ${BOCHS_SOURCES:-} ]]; then
    cp -r "$BOCHS_SOURCES" "$amx/bochs"
  else
    git init --quiet "$amx/repository"
    git -C "$amx/repository" fetch --quiet --depth 1 "$bochs_repository" "$bochs_commit"
    git -C "$amx/repository" archive FETCH_HEAD bochs | tar x -C "$amx"
  fi
  python3 tests/amx/correct_bochs.py "$amx/bochs"
  (
    cd "$amx/bochs"
    ./configure --enable-x86-64 --enable-cpu-level=6 --enable-all-optimizations --enable-avx --enable-evex --enable-amx \
      --with-nogui --disable-docbook CFLAGS=-O2 CXXFLAGS=-O2
    nice make -j2
  ) >"$amx/build.log" 2>&1
  touch "$amx/bochs-ready"
}

# What is unpacked here is the guest's file system, base.img; what changes between runs is in an image of its own.
amx_guest() {
  local packages=(
    libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1
    libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3.11 busybox-static
  )
  local tools=(isolinux syslinux-common xorriso libisoburn1 libisofs6 libburn4 libjte2)
  rm -rf "$amx"/{debs,kernel-deb,tool-debs,root,kernel,tools,wheels}
  mkdir -p "$amx"/{debs,kernel-deb,tool-debs,root,kernel,tools,wheels}
  local kernel
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: //p')
  (cd "$amx/debs" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}")
  (cd "$amx/tool-debs" && apt-get -qq -o APT::Sandbox::User=root download "${tools[@]}")
  (cd "$amx/kernel-deb" && apt-get -qq -o APT::Sandbox::User=root download "$kernel")
  local deb wheel root=$amx/root
  for deb in "$amx"/debs/*.deb; do dpkg -x "$deb" "$root"; done
  for deb in "$amx"/tool-debs/*.deb; do dpkg -x "$deb" "$amx/tools"; done
  for deb in "$amx"/kernel-deb/*.deb; do dpkg -x "$deb" "$amx/kernel"; done
  python3 -m pip download --quiet --no-deps --only-binary :all: --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 --platform any --python-version 311 --dest "$amx/wheels" \
    'numpy<2' 'pytest>=8,<10' iniconfig packaging pluggy pygments hypothesis sortedcontainers
  mkdir -p "$root"/{proc,sys,dev,tmp,site}
  for wheel in "$amx"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$root/site"; done
  # Loading the image takes seconds for each ten megabytes.
  rm -rf "$root"/usr/share "$root"/usr/lib/python3.11/{ensurepip,idlelib,lib2to3,turtledemo} "$root"/site/numpy/{f2py,doc}
  find "$root/site/numpy" -name tests -prune -exec rm -rf {} +
  # Debian's packages compile Python's modules when they are installed. The guest's Python takes those of any 3.11.
  python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' &&
    python3 -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$root/site" "$root/usr/lib/python3.11" || true
  install -m 755 tests/amx/init.sh "$root/init"
  (cd "$root" && find . | cpio --quiet --create --format=newc | zstd -q -3 -f -o "$amx/base.img")
  touch "$amx/guest-ready"
}

# PACKAGE: what the guest has of this repository: a folder with the package, and the tests.
amx_install() {
  rm -rf "$amx/job"
  mkdir -p "$amx/job"/{package,work}
  cp -r "$1/mindone" "$amx/job/package"
  cp -r tests pyproject.toml "$amx/job/work"
}

# SECONDS COMMAND...: run a command in the guest, print what it prints, and return its status; 124 if it takes longer.
amx_run() {
  local limit=$1
  shift
  printf 'cd /work\n%s\n' "${*@Q}" >"$amx/job/command"
  (cd "$amx/job" && find . | cpio --quiet --create --format=newc >"$amx/job.img")
  rm -rf "$amx/disk" "$amx"/{disk.iso,console.txt}
  mkdir "$amx/disk"
  cp "$amx"/kernel/boot/vmlinuz-* "$amx/disk/kernel"
  cp "$amx"/{base,job}.img "$amx/tools/usr/lib/ISOLINUX/isolinux.bin" \
    "$amx/tools/usr/lib/syslinux/modules/bios/ldlinux.c32" "$amx/disk"
  # clearcpuid=580 is FSRM: Bochs' CPU has it without ERMS, which no CPU does, and Linux 6.1 then moves 15 bytes as if they
  # were billions. Bochs counts instructions in place of time, one in 10 ns here, whatever its CPUID says of clocks.
  cat >"$amx/disk/isolinux.cfg" <<'END'
default linux
prompt 0
label linux
  kernel kernel
  initrd base.img,job.img
  append console=ttyS0 nokaslr mitigations=off tsc=reliable tsc_early_khz=100000 clearcpuid=580 quiet idle=halt nowatchdog rdinit=/init
END
  LD_LIBRARY_PATH=$amx/tools/usr/lib/x86_64-linux-gnu "$amx/tools/usr/bin/xorriso" -report_about SORRY -as mkisofs \
    -quiet -o "$amx/disk.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$amx/disk"
  cat >"$amx/bochsrc" <<END
cpu: model=sapphire_rapids, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=1024, host=1024
romimage: file=$amx/bochs/bios/BIOS-bochs-latest, options=fastboot
vgaromimage: file=$amx/bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
ata0-master: type=cdrom, path=$amx/disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$amx/console.txt
display_library: nogui
clock: sync=none
panic: action=fatal
log: $amx/bochs.log
END
  # The guest switches itself off, which to Bochs is a panic: its own status says nothing.
  BXSHARE=$amx/bochs/bios timeout "$limit" nice -n 19 "$amx/bochs/bochs" -q -f "$amx/bochsrc" \
    >"$amx/bochs-output.txt" 2>&1 </dev/null || true
  tr -d '\r' <"$amx/console.txt"
  grep '^executed: ' "$amx/bochs-output.txt" || true
  local status
  status=$(tr -d '\r' <"$amx/console.txt" | sed -n 's/^command ended with status //p')
  return "${status:-124}"
}

# SECONDS ARGUMENT...: run pytest in the guest, with its options and not those of pyproject.toml, which ask for workers.
amx_pytest() {
  local limit=$1
  shift
  amx_run "$limit" python3.11 -m pytest -q -o addopts= --strict-markers --import-mode=importlib -p no:cacheprovider \
    --confcutdir=tests/models/share4v/kernels "$@"
}
