#!/bin/sh
# Make sure there is a Python with the pinned packages and print its path.
# An active environment (venv or conda) that meets requirements.txt is taken as it is; otherwise .venv is made
# from requirements.lock, once per content of that file. Set PYTHON to choose the interpreter .venv is made with.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
say() { printf 'setup: %s\n' "$*" >&2; }

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python "$root/scripts/check_environment.py" 2>/dev/null; then
    command -v python
    exit 0
fi

find_python() {
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 with venv is needed and was not found as ${PYTHON:-python3.11, python3 or python}."
    say "Install it (Debian: apt install python3.11-venv; others: python.org), or use conda:"
    say "  conda env create -f environment.yml && conda activate privacy-links"
    exit 1
}

wanted=$(cksum <"$root/requirements.lock")
if [ "$(cat "$venv/lock.cksum" 2>/dev/null || true)" != "$wanted" ]; then
    python=$(find_python)
    say "installing requirements.lock into .venv (about 8 GB with the CUDA build of PyTorch)"
    rm -f "$venv/lock.cksum"
    "$python" -m venv "$venv" >&2
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$root/requirements.lock" >&2; then
        say "the installation failed (its message is above). Check the network and the free disk space, then run"
        say "the same command again: what has arrived is kept."
        exit 1
    fi
    echo "$wanted" >"$venv/lock.cksum"
fi
echo "$venv/bin/python"
