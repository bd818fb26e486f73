#!/usr/bin/env bash
# Builds the package's wheel, and runs tests of the kernels with it on an emulated Sapphire Rapids.
# tests/amx/run.sh FOLDER [pytest's arguments]; FOLDER is kept, and a second run takes less time. See environment.sh for
# what it needs. AMX_SECONDS limits the time, by default to two hours. By hand, not in CI.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
. tests/amx/environment.sh
amx_environment "$folder"
rm -rf "$folder/dist" "$folder/wheel"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder/dist" .
python3 -m zipfile -e "$folder"/dist/*.whl "$folder/wheel"
amx_install "$folder/wheel"
kernels=tests/models/share4v/kernels
if (($# == 0)); then
  set -- "$kernels"/test_{bfloat16,stored_results,linear,bits}.py -k 'amx or avx512 or stored or same'
fi
amx_pytest "${AMX_SECONDS:-7200}" "$@"
