#!/usr/bin/env bash
# Builds the package's wheel for aarch64, and runs all of the kernels' tests with it, or those that are named.
# tests/aarch64/run.sh FOLDER [CPU [pytest's arguments]]; FOLDER is kept, and a second run takes less time. See
# environment.sh for what it needs and for the CPUs; max by default.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd) cpu=${2:-max}
shift "$(($# < 2 ? $# : 2))"
cd "$(dirname "$0")/../.."
. tests/aarch64/environment.sh
arm_environment "$folder"
rm -rf "$folder/dist"
arm_wheel "$folder/dist"
arm_install "$folder"/dist/*.whl
arm_pytest "$cpu" "${@:-tests/models/share4v/kernels}"
