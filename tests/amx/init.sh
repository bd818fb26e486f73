#!/bin/busybox sh
# The first program of the guest: prints what the CPU has, runs /command, prints its status, and switches off.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin PYTHONPATH=/package:/site:/work/tests PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
export OPENBLAS_NUM_THREADS=1 OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "CPU: $(grep -m 1 'model name' /proc/cpuinfo | cut -d : -f 2),$(grep -o -w -E 'avx512_vnni|avx512_bf16|amx_[a-z0-9]*' /proc/cpuinfo | tr '\n' ' ' | sed 's/^/ /')"
sh /command
echo "command ended with status $?"
sleep 1
poweroff -f
