# Sourced by the other scripts: a virtual environment with this checkout installed.
#
#   PYTHON           interpreter to make it with (default: the first of python3, python3.14 ... that fits)
#   DIFFTUMOR_VENV   where it is (default: .venv in the checkout)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${DIFFTUMOR_VENV:-$ROOT/.venv}"

pick_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            echo "PYTHON=$PYTHON is no Python 3.11 to 3.14." >&2
            return 1
        fi
    done
    echo "No Python 3.11 to 3.14 was found. Install one, or name it: PYTHON=/path/to/python bash $0" >&2
    return 1
}

# prepare_venv [EXTRA]: makes the environment if it is absent, and installs the checkout if that is not done
# or pyproject.toml has changed since.
prepare_venv() {
    local extra="${1:-}" stamp python
    stamp="$VENV/.difftumor-installed${extra:+-$extra}"
    if [ ! -x "$VENV/bin/python" ]; then
        python="$(pick_python)" || return 1
        echo "Making $VENV with $("$python" --version)"
        "$python" -m venv "$VENV" || return 1
    fi
    if [ ! -e "$stamp" ] || [ "$ROOT/pyproject.toml" -nt "$stamp" ]; then
        echo "Installing nnunet-difftumor and what it needs into $VENV (minutes, and some GB for PyTorch)"
        "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet \
            --editable "$ROOT${extra:+[$extra]}" </dev/null || return 1
        touch "$stamp"
    fi
}
