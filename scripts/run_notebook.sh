#!/bin/sh
# Execute a notebook with parameters and keep it, as .ipynb and .html, in a folder.
#   sh scripts/run_notebook.sh NOTEBOOK FOLDER [papermill flags, such as -p name value]
set -eu
. "$(dirname -- "$0")/flags.sh"
[ $# -ge 2 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2; }
notebook=$1 folder=$2
shift 2
name=$(basename -- "$notebook" .ipynb)
for left in "$folder/.$name".*; do
    case ${left##*.} in
        *[!0-9]*) ;;
        *) kill -0 "${left##*.}" 2>/dev/null || rm -rf -- "$left" ;;
    esac
done
work=$folder/.$name.$$
trap 'rm -rf -- "$work"' EXIT
trap 'rm -rf -- "$work"; end_by 2' INT
trap 'rm -rf -- "$work"; end_by 15' TERM
mkdir -p -- "$work"
PYDEVD_DISABLE_FILE_VALIDATION=1
export PYDEVD_DISABLE_FILE_VALIDATION
python -m papermill --log-level WARNING --no-progress-bar "$notebook" "$work/$name.ipynb" "$@"
python -m jupyter nbconvert --log-level ERROR --to html "$work/$name.ipynb"
mv -- "$work/$name.html" "$work/$name.ipynb" "$folder"
echo "executed notebook: $folder/$name.ipynb and $folder/$name.html"
