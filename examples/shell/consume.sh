#!/bin/sh
# Does the jobs of a topic when they are due, until Ctrl-C or SIGTERM: runs a command for each, with the job's body (and a line
# break behind it) as its stdin, and its id in $JOB. If the command fails, the job comes back in ten seconds.
set -eu
# shellcheck source-path=SCRIPTDIR source=delayq.sh
. "$(dirname "$0")/delayq.sh"

# A job is ours for so long (us); if we die, or the command takes longer, it comes back then.
LEASE=30000000
AGAIN=10000000
# A job that was reserved so often is dead.
MAX_ATTEMPTS=16
# We look once in so many microseconds; an earlier job than all others is found so late.
LONGEST=1000000

[ $# -ge 2 ] || fail 'consume.sh topic command [argument ...]'
use "delayq:{0:$1}" "$1"
shift
six='schedule: jobs: ties: steps: firsts: graces:'
four='attempts: leases: tickets: reserved:'
back="index topics holds totals expiries ways $six $four dead: letters: causes:"

stopped=
trap 'stopped=yes' INT TERM
reply=$(mktemp)
trap 'rm -f "$reply"' EXIT

# Takes a due job, if there is one: sets expired, left, now, next, ticket and id, and leaves the body in $reply.
reserve() {
    keys="index topics holds rates totals aside remains expiries ways $six $four"
    call reserve "$keys" '' "$topic" 1 "$LEASE" "$(random 16)" '' >"$reply" || return
    # shellcheck disable=SC2034  # some lines are of no use here
    {
        read -r dropped
        case $dropped in '' | *[!0-9]*) fail "$dropped" ;; esac
        read -r orphans && read -r expired && read -r left && read -r now && read -r next && read -r whose &&
            read -r delivery && read -r ticket && IFS= read -r id || id=
    } <"$reply"
    [ -n "$ticket" ] || id=
}

while [ -z "$stopped" ]; do
    if ! reserve; then # redis-cli has said why
        sleep 1
        continue
    fi
    if [ "$expired" = 1 ]; then
        call requeue "$back" "$wake" '' "$topic" 100 1000000 "$MAX_ATTEMPTS" >/dev/null || continue
    fi
    if [ -n "$ticket" ]; then
        token=${ticket%% *}
        if tail -n +11 "$reply" | JOB=$id "$@"; then
            lost=$(call ack 'totals expiries ways leases: tickets: reserved: dead:' "$topic" "$id" "$token") || continue
            [ -z "$lost" ] || echo "$id took too long, or was cancelled: $lost" >&2
        else
            echo "$id failed, and comes back" >&2
            call release "$back" "$wake" '' "$topic" "+$AGAIN" "$MAX_ATTEMPTS" 'the command failed' 1 "$id" "$token" \
                >/dev/null || continue
        fi
    elif [ "$left" = 0 ]; then
        rest=$((next < 0 ? LONGEST : next - now))
        [ "$rest" -lt "$LONGEST" ] || rest=$LONGEST
        [ "$rest" -le 0 ] || sleep "$(printf '%d.%06d' $((rest / 1000000)) $((rest % 1000000)))" || : # a signal
    fi
done
