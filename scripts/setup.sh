#!/bin/sh
# Make sure there is a Python with the pinned packages and print its path.
#   sh scripts/setup.sh
# An active environment (venv or conda) that meets requirements.txt is taken as it is; otherwise .venv is made from
# requirements.lock, with Python 3.11, 3.12 or 3.13 (the tests pass on 3.11 and 3.13). A .venv that is unfinished,
# damaged, moved or of another Python is mended or made again. Set PYTHON to choose the interpreter it is made with.
set -eu
. "$(dirname -- "$0")/flags.sh"
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
note() { say "$@" >&2; }
case $#:${1:-} in
    0:) ;;
    1:-h | 1:--help) help ;;
    1:--locked) set -- locked ;; # said by this script to itself
    *) refuse "$1: no such argument; see --help" ;;
esac

# install_project PYTHON: make the lib* packages of this clone importable.
install_project() { "$1" -m pip install --disable-pip-version-check --quiet --no-deps -e "$root" >&2; }

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    status=0
    python "$root/scripts/check_environment.py" 2>/dev/null || status=$?
    if [ "$status" = 5 ]; then
        note "installing the project into the active environment"
        status=0
        install_project python || status=$?
    fi
    [ "$status" != 0 ] || { command -v python; exit 0; }
fi

find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3.12 python3.13 python3 python; fi
    for candidate do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    note "Python 3.11, 3.12 or 3.13 with venv is needed and was not found as ${PYTHON:-python3.11, python3.12, python3.13, python3 or python}."
    note "Install it (Debian: apt install python3.11-venv; others: python.org), or use conda:"
    note "  conda env create -f environment.yml && conda activate privacy-links"
    exit 1
}

# look: set $state to whole, lacking (packages), unlinked (lacking the project alone) or broken, and $why.
look() {
    state=whole status=0
    why=$("$venv/bin/python" -I "$root/scripts/check_environment.py" --venv 2>&1) || status=$?
    case $status in
        0) [ "$(cat "$venv/lock.cksum" 2>/dev/null)" = "$wanted" ] || state=lacking why='requirements.lock is another' ;;
        4) state=lacking ;;
        5) state=unlinked ;;
        *) state=broken ;;
    esac
    why=$(echo "$why" | tail -n 1)
    [ -x "$venv/bin/python" ] || why='its bin/python is gone'
}
finish() {
    echo "$venv/bin/python"
    exit 0
}

wanted=$(cksum <"$root/requirements.lock")
look
[ "$state" != whole ] || finish
python=$(find_python)
if [ $# = 0 ]; then # once more, while no other set-up is at work
    exec "$python" -c 'import fcntl, os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
os.set_inheritable(folder, True)
try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: another set-up is at work, waiting for it", file=sys.stderr)
    fcntl.flock(folder, fcntl.LOCK_EX)
except OSError as error:
    print(f"setup: this file system has no locks ({error.strerror}): start one set-up at a time", file=sys.stderr)
os.execvp("sh", ["sh", sys.argv[2], "--locked"])' "$root/scripts" "$script_file"
fi

if [ -L "$venv" ] && [ ! -d "$venv" ]; then
    note "$venv is a link to $(readlink "$venv"), which is no folder: make it or remove the link"
    exit 1
fi
[ ! -d "$venv" ] || place=$(CDPATH='' cd -P -- "$venv" && pwd)
make() { "$python" -m venv --clear "${place:-$venv}" >&2 || { note "$venv cannot be made: see above"; exit 1; }; }
install() {
    rm -f "$venv/lock.cksum"
    if ! { "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$root/requirements.lock" >&2 &&
        install_project "$venv/bin/python"; }; then
        note "the installation failed (its message is above). Check the network and the free disk space, then run"
        note "the same command again: what pip has downloaded is kept."
        exit 1
    fi
    echo "$wanted" >"$venv/lock.cksum"
    look
}
size="about 8 GB with the CUDA build of PyTorch"
if [ "$state" = unlinked ]; then
    install_project "$venv/bin/python"
    look
fi
if [ "$state" = lacking ]; then
    note "installing requirements.lock into .venv ($size)"
    install
fi
if [ "$state" = broken ]; then
    [ ! -e "$venv" ] || note ".venv cannot be used: $why"
    note "making .venv from requirements.lock ($size)"
    make
    install
fi
[ "$state" = whole ] || { note "after the installation .venv still cannot be used: $why"; exit 1; }
finish
