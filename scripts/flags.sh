# Sourced by every script that has flags: reading them, refusing them, --help.
# shellcheck shell=sh disable=SC2034
script_file=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/$(basename -- "$0")
say() { echo "$(basename -- "$0" .sh): $*"; }
refuse() { say "$@" >&2; exit 2; }
help() { sed -n '/^# shellcheck/d; 2,/^[^#]/s/^# \{0,1\}//p' "$script_file"; exit; }
positive() { case $2 in '' | 0* | *[!0-9]*) refuse "$1 $2: not a positive whole number" ;; esac; }

# end_by NUMBER: end by this signal, so that a shell above that looks at how its commands end stops, too.
end_by() {
    trap - "$1"
    kill "-$1" $$
    exit $((128 + $1)) # where the signal is ignored
}

# attend COMMAND...: run it in a session of its own and set $status. The first HUP, Ctrl-C or TERM reaches each of its
# processes once, as TERM, so that they can save and leave; then this script ends by the signal.
child='' stopped=''
hand_on() { kill -s TERM -- "-$child" 2>/dev/null || kill -s TERM "$child" 2>/dev/null || :; }
stop() {
    [ -z "$stopped" ] || return 0
    stopped=$1
    [ -z "$child" ] || hand_on
}
attend() {
    trap 'stop 1' HUP
    trap 'stop 2' INT
    trap 'stop 15' TERM
    "${PYTHON:-python}" -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' "$@" &
    child=$!
    [ -z "$stopped" ] || hand_on
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=''
    [ -n "$stopped" ] || return 0
    echo "$(basename -- "$0"): stopped; run the same command again to go on" >&2
    end_by "$stopped"
}

# quoted WORD: print the word so that a shell reads it back as one word.
quoted() { printf '%s' "$1" | sed "s/'/'\\\\''/g; s/.*/'&'/; s/^'\([A-Za-z0-9_.,/:=+-]*\)'\$/\1/"; }

# read_flags VALUED SWITCHES ARGUMENTS...: set the variable of each flag that is named in these two lists and given: to
# its value, or to itself; one that is in $listed, too, to all the words that follow. All other arguments are left in
# $flags, quoted.
listed=''
read_flags() {
    valued=$1 switches=$2 flags=''
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) help ;;
            --*) flag=${1#--} flag=$(echo "${flag%%=*}" | tr - _) ;;
            -j) flag=j ;;
            *) flag=/ ;;
        esac
        case " $valued " in
            *" $flag "*)
                case $1 in *=*) value=${1#*=} ;; *) value=${2:-} ;; esac
                [ -n "$value" ] || refuse "${1%%=*} needs a value"
                eval "$flag=\$value"
                case $1 in *=*) shift ;; *) shift 2 ;; esac
                case " $listed " in
                    *" $flag "*)
                        while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
                            eval "$flag=\$$flag\ \$1"
                            shift
                        done
                        ;;
                esac
                continue
                ;;
        esac
        case " $switches " in
            *" $flag "*) eval "$flag=\$1" ;;
            *) flags="$flags $(quoted "$1")" ;;
        esac
        shift
    done
}

# check_line LINE: refuse a job line whose flags its script does not take, and hand on what it says of them; nothing else
# of it is done.
check_line() {
    said=$(cd -- "$(dirname -- "$script_file")/.." && FLAGS_ONLY=1 sh -c "$1" 2>&1) || {
        status=$?
        said=$(echo "$said" | tail -n 1)
        [ "$status" != 2 ] || refuse "$said"
        [ -n "${unable:-}" ] || say "flags are not checked, as the script does not start here: $said" >&2
        unable=1 said=''
    }
    [ "$said" = "${remark:-}" ] || say "$said" >&2
    remark=$said
}

# refuse_flags WHY NAME...: refuse if one of these is in $flags.
refuse_flags() {
    why=$1
    shift
    for flag do
        for word in "$flag" "$(echo "$flag" | tr _ -)"; do
            case " $flags " in *" --$word "* | *" --$word="*) refuse "--$flag $why" ;; esac
        done
    done
}
