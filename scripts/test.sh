#!/usr/bin/env bash
# The tests: bash scripts/test.sh [arguments of pytest], e.g. bash scripts/test.sh -k phantom
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

prepare_venv dev
cd "$ROOT"
export nnUNet_def_n_proc=1 nnUNet_n_proc_DA=1 OMP_NUM_THREADS=1
exec "$VENV/bin/python" -m pytest "$@" </dev/null
