#!/bin/sh
# Every check of the project: style, types, shell scripts, tests. Extra arguments go to pytest.
#   sh scripts/test.sh [pytest arguments, such as -k NAME]
set -eu
. "$(dirname -- "$0")/flags.sh"
case ${1:-} in -h | --help) help ;; esac
CDPATH='' cd -- "$(dirname -- "$0")/.."
python=$(sh scripts/setup.sh)
PATH=$(dirname -- "$python"):$PATH
export PATH
ruff check .
ruff format --check .
mypy .
if command -v shellcheck >/dev/null; then
    shellcheck -x --source-path=SCRIPTDIR scripts/*.sh sensitivity/*.sh tests/*.sh docs/mnist_study/*.sh
else
    echo "shellcheck is not installed: the shell scripts are not linted" >&2
fi
python -m libdata.download mnist
OMP_NUM_THREADS=1 python -m pytest "$@"
