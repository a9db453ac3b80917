# Sourced: quoted WORD prints the word so that a shell reads it back as one word.
# shellcheck shell=sh
quoted() { printf '%s' "$1" | sed "s/'/'\\\\''/g; s/.*/'&'/; s/^'\([A-Za-z0-9_.,/:=+-]*\)'\$/\1/"; }
