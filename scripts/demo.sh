#!/usr/bin/env bash
# Every stage on a small data set, and a report that shows what came out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

usage() {
    cat <<'USAGE'
usage: bash scripts/demo.sh [--data phantom|real] [--output DIR] [--fresh] [--quick] [--help]

Makes .venv in the checkout if it is absent, then trains the autoencoder and the diffusion model, trains
nnU-Net with injected tumours, predicts, and writes DIR/report.html. Every command is shown.

  --data phantom   a CT phantom, made on the spot; 7 to 15 minutes on two CPU cores (default)
  --data real      the real CT in the folder named by DIFFTUMOR_REAL_CT, which holds a folder sts;
                   about 45 minutes on two CPU cores
  --output DIR     folder for everything (default: demo_output/phantom or demo_output/real)
  --fresh          remove what an earlier demo made in DIR and start over
  --quick          as short as possible: shows that the commands fit, teaches nothing
  --help           this text

Run it again with the same DIR to go on after an interruption: finished stages are skipped.
PYTHON=/path/to/python names the Python (3.11 to 3.14) to make .venv with.
USAGE
}

data=phantom
output=
words=()
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) usage; exit 0 ;;
        --data | --output)
            if [ $# -lt 2 ]; then
                echo "$1 needs a value." >&2
                exit 2
            fi
            if [ "$1" = --data ]; then data="$2"; else output="$2"; fi
            shift 2
            ;;
        --data=*) data="${1#*=}"; shift ;;
        --output=*) output="${1#*=}"; shift ;;
        *) words+=("$1"); shift ;;
    esac
done
case "$data" in
    phantom | real) ;;
    *) echo "--data must be phantom or real, not '$data'." >&2; exit 2 ;;
esac
if [ "$data" = real ]; then
    export DIFFTUMOR_REAL_CT="${DIFFTUMOR_REAL_CT:-$ROOT/../shared/data}"
    if [ ! -d "$DIFFTUMOR_REAL_CT/sts" ]; then
        echo "$DIFFTUMOR_REAL_CT holds no folder sts. Set DIFFTUMOR_REAL_CT to the folder of the real CT." >&2
        exit 1
    fi
fi

prepare_venv
exec "$VENV/bin/difftumor" demo --data "$data" --output "${output:-$ROOT/demo_output/$data}" ${words[@]+"${words[@]}"}
