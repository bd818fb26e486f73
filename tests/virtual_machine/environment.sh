# Sourced by run.sh, at the repository's root: machines with many cores and NUMA nodes, which qemu-system-x86_64 emulates
# (TCG, without KVM) and Debian's kernel runs on. They see this machine's files, read-only, and have no network.

# FOLDER: unpack Debian's kernel into FOLDER and make an initial RAM file system, and set `vm`.
vm_environment() {
  vm=$(mkdir -p "$1" && cd "$1" && pwd)
  [[ ! -e $vm/ready ]] || return 0
  local package
  package=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  mkdir -p "$vm"/{kernel,initial/{bin,proc,sys,dev,root,modules}}
  (cd "$vm" && apt-get -qq -o APT::Sandbox::User=root download "$package" && dpkg -x "$package"_*.deb kernel)
  local version=${package#linux-image-} module
  cp "$(command -v busybox)" "$vm/initial/bin"
  /sbin/depmod -b "$vm/kernel" "$version"
  for module in virtio_pci 9pnet_virtio 9p; do
    /sbin/modprobe -d "$vm/kernel" -S "$version" --show-depends "$module"
  done | awk '!seen[$2]++ { print $2 }' > "$vm/modules"
  xargs cp -t "$vm/initial/modules" < "$vm/modules"
  sed 's:.*/::' "$vm/modules" > "$vm/initial/modules/order"
  ln -sf "$vm/kernel/boot/vmlinuz-$version" "$vm/kernel.image"
  touch "$vm/ready"
}

# MACHINE: set `machine` to the emulator's arguments. Numbers of CPUs are the emulator's.
vm_machine() {
  case $1 in
    two-sockets) machine=(-smp 16,sockets=2,cores=8 $(vm_nodes 3G 0-7 8-15)) ;;
    four-sockets) machine=(-smp 16,sockets=4,cores=4 $(vm_nodes 1536M 0-3 4-7 8-11 12-15)) ;;
    threads) machine=(-smp 32,sockets=2,cores=8,threads=2 -cpu max,vendor=GenuineIntel $(vm_nodes 3G 0-15 16-31)) ;;
    many-cores) machine=(-smp 64,sockets=4,cores=16 $(vm_nodes 1536M 0-15 16-31 32-47 48-63)) ;;
    # CPUs 0, 2, 4 ... on one node, the others on the other one.
    alternating) machine=(-smp 16,sockets=16,cores=1 $(vm_nodes 3G 0,2,4,6,8,10,12,14 1,3,5,7,9,11,13,15)) ;;
    # Node 1 has no memory, and is nearer to node 3 than to node 0; node 2 has no CPUs. Linux swaps the numbers 2 and 3.
    odd)
      machine=(
        -smp 8,sockets=4,cores=2 -m 5G
        -object memory-backend-ram,id=m0,size=2G -numa node,nodeid=0,cpus=0-1,memdev=m0
        -numa node,nodeid=1,cpus=2-3
        -object memory-backend-ram,id=m2,size=1G -numa node,nodeid=2,memdev=m2
        -object memory-backend-ram,id=m3,size=2G -numa node,nodeid=3,cpus=4-7,memdev=m3
        -numa dist,src=0,dst=1,val=31 -numa dist,src=0,dst=2,val=20 -numa dist,src=0,dst=3,val=31
        -numa dist,src=1,dst=2,val=31 -numa dist,src=1,dst=3,val=21 -numa dist,src=2,dst=3,val=31
      )
      ;;
    one-core) machine=(-smp 1 -m 4G) ;;
    *)
      echo "unknown machine $1: use one of two-sockets, four-sockets, threads, many-cores, alternating, odd, one-core" >&2
      return 1
      ;;
  esac
}

# SIZE CPUS...: print the arguments for a NUMA node of that much memory for each list of CPUs.
vm_nodes() {
  local size=$1 node=0 cpus total
  shift
  total=$(($(numfmt --from=iec "$size") * $# >> 20))
  printf -- '-m %sM ' "$total"
  for cpus; do
    printf -- '-object memory-backend-ram,id=m%s,size=%s -numa node,nodeid=%s,cpus=%s,memdev=m%s ' \
      "$node" "$size" "$node" "${cpus//,/,cpus=}" "$node"
    node=$((node + 1))
  done
}

# MACHINE SECONDS COMMAND...: run a command on the machine, which is stopped after so many seconds; $vm/shared is its
# /run/shared, the only folder that it writes to.
vm_run() {
  local machine name=$1 seconds=$2
  vm_machine "$name"
  shift 2
  mkdir -p "$vm/shared"
  rm -f "$vm/shared/status"
  printf '%q ' "$@" > "$vm/shared/command"
  install -m 755 tests/virtual_machine/init.sh "$vm/initial/init"
  (cd "$vm/initial" && find . | cpio -o -H newc --quiet | gzip -1) > "$vm/initial.gz"
  timeout "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -nodefaults -no-reboot -display none \
    -serial stdio -kernel "$vm/kernel.image" -initrd "$vm/initial.gz" \
    -append "share4v.guest console=ttyS0 quiet panic=-1 mitigations=off nokaslr nowatchdog no_timer_check tsc=reliable \
rcupdate.rcu_cpu_stall_suppress=1" \
    -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=host,mount_tag=host \
    -fsdev "local,id=shared,path=$vm/shared,security_model=none" \
    -device virtio-9p-pci,fsdev=shared,mount_tag=shared "${machine[@]}" < /dev/null || true
  [[ -e $vm/shared/status ]] || { echo "$name did not end within $seconds seconds, or did not start" >&2; return 1; }
  return "$(< "$vm/shared/status")"
}
