#!/bin/sh
# Execute a notebook with parameters and keep it, as .ipynb and .html, in a folder, under its name and what is given of
# data set, network and ratio: curv_privacy_mnist_smallcnn.html.
#   sh scripts/run_notebook.sh NOTEBOOK FOLDER [--config FILE] [-p NAME VALUE] [-y "NAME: VALUE"] ...
# The values go into the notebook's parameters cell; scripts/execute_notebook.py --help lists the flags.
set -eu
[ $# -ge 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
. "$(dirname -- "$0")/flags.sh"
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
python "$(dirname -- "$0")/execute_notebook.py" "$notebook" "$work" "$@"
set -- "$work"/*.ipynb
made=$(basename -- "$1" .ipynb)
mv -- "$work/$made.html" "$work/$made.ipynb" "$folder"
echo "executed notebook: $folder/$made.ipynb and $folder/$made.html"
