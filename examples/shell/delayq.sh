# shellcheck shell=sh
# What the programs here share; to be read in, not to be run. POSIX sh, and redis-cli 6.2 or newer.
#
# REDIS_URL   the Redis
# DELAYQ_LUA  the folder of the Lua files

REDIS_URL=${REDIS_URL:-redis://localhost:6379/0}
DELAYQ_LUA=${DELAYQ_LUA:-$(dirname "$0")/../../lua}

# The version of the keys that these programs know.
VERSION=1

fail() {
    echo "$*" >&2
    exit 1
}

# redis [option ...] word ...: one command. Its reply: a line for each part of it.
redis() {
    redis-cli -u "$REDIS_URL" --no-auth-warning --raw "$@"
}

# call script 'key ...' [argument ...]: run a Lua file. Keys are named as in its header, within $space; a colon stands for
# those of $topic. The script is loaded each time: a Redis that was restarted has forgotten it.
call() {
    script=$1 names=$2
    shift 2
    sha=$(redis -x SCRIPT LOAD <"$DELAYQ_LUA/$script.lua") || return
    arguments=$#
    for name in $names; do
        case $name in *:) name=$name$topic ;; esac
        set -- "$@" "$space:$name"
    done
    keys=$(($# - arguments))
    while [ "$arguments" -gt 0 ]; do # behind the keys
        argument=$1
        shift
        set -- "$@" "$argument"
        arguments=$((arguments - 1))
    done
    # shellcheck disable=SC2086  # one option, or none
    redis ${last_from_stdin:+-x} EVALSHA "$sha" "$keys" "$@"
}

# use space topic: the keys that are meant from here on, if these programs know their version.
use() {
    space=$1 topic=$2
    case $topic in '' | *[{}]*) fail "a topic needs a name without braces, not '$topic'" ;; esac
    said=$(call version version "$VERSION" mark) || exit
    case $said in
    OK*) ;;
    NEWER*) fail "the keys of $space are of a version that this example does not know: take a newer one" ;;
    *) fail "$said" ;;
    esac
    database=${REDIS_URL##*/}
    case $database in '' | *[!0-9]*) database=0 ;; esac
    # shellcheck disable=SC2034  # put.sh and others
    wake=$space:wake:$database # where whoever waits is told of a job that became the earliest
}

# microseconds seconds
microseconds() {
    case $1 in '' | *[!0-9.]* | *.*.*) fail "'$1' is no number of seconds" ;; esac
    awk "BEGIN { printf \"%.0f\", $1 * 1000000 }"
}

# random bytes: so many, as hexadecimal digits
random() {
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}
