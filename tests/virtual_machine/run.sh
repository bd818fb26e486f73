#!/usr/bin/env bash
# Runs the package on emulated machines with many cores and NUMA nodes, and compares it with what their kernel says.
# tests/virtual_machine/run.sh FOLDER [MACHINE|MACHINE:job ...]; FOLDER is kept. See environment.sh for the machines.
# MACHINE runs checks.py (CHECKS="topology threads": those groups only), and MACHINE:job runs replicas with job.py; both
# need no MindSpore there.
# It needs Debian's qemu-system-x86, busybox-static, cpio, kmod and apt's lists; PYTHON (python3) has the package's
# requirements, and the kernels are built in place. Emulation is slow and says nothing about speed.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
. tests/virtual_machine/environment.sh
vm_environment "$folder"
python=$(command -v "${PYTHON:-python3}")
(($#)) || set -- one-core two-sockets four-sockets threads alternating odd many-cores two-sockets:job
mkdir -p "$vm/shared"
[[ -e $vm/weights ]] || head -c 48M /dev/urandom > "$vm/weights"
# An installed `mindone` would import all of MindSpore, which takes minutes there.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
hide="if [[ -e $site/mindone ]]; then mount -t tmpfs hidden $site/mindone; fi"
variables=(
  PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/tmp TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1
  "PYTHONPATH=$PWD:$PWD/tests:$PWD/tests/virtual_machine:$PWD/tests/aarch64/stand_ins"
  OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive
)
guest() { # NAME SECONDS SCRIPT ARGUMENT...: run a script on the machine NAME
  local name=$1 seconds=$2 script=$PWD/tests/virtual_machine/$3
  shift 3
  vm_run "$name" "$seconds" bash -c "$hide"' && exec "$@"' - env "${variables[@]}" "$python" "$script" "$@"
}

failed=()
for name; do
  echo "== $name"
  case $name in
    *:job)
      [[ -e $vm/job/answer.json ]] ||
        PYTHONPATH=$PWD:$PWD/tests SHARE4V_KERNELS=avx2 "$python" tests/virtual_machine/prepare_job.py "$vm/job"
      guest "${name%:job}" 3600 job.py "/run/shared/${name/:/-}.json" "$vm/job" || failed+=("$name")
      ;;
    *) guest "$name" 3600 checks.py "/run/shared/$name.json" "$vm/weights" ${CHECKS:-} || failed+=("$name") ;;
  esac
done
((!${#failed[@]})) || { echo "failed: ${failed[*]}" >&2; exit 1; }
