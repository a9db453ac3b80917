#!/bin/sh
# Execute a notebook with parameters and keep it, as .ipynb and .html, in a folder.
#   sh scripts/run_notebook.sh NOTEBOOK FOLDER [papermill flags, such as -p name value]
set -eu
[ $# -ge 2 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2; }
notebook=$1 folder=$2
shift 2
name=$(basename -- "$notebook" .ipynb)
mkdir -p "$folder"
PYDEVD_DISABLE_FILE_VALIDATION=1
export PYDEVD_DISABLE_FILE_VALIDATION
python -m papermill --log-level WARNING --no-progress-bar "$notebook" "$folder/.$name.ipynb" "$@"
python -m jupyter nbconvert --log-level ERROR --to html --output "$name.html" "$folder/.$name.ipynb"
mv "$folder/.$name.ipynb" "$folder/$name.ipynb"
echo "executed notebook: $folder/$name.ipynb and $folder/$name.html"
