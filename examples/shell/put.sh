#!/bin/sh
# Puts a job, due in so many seconds. Its body may be any bytes if they come from stdin.
set -eu
# shellcheck source-path=SCRIPTDIR source=delayq.sh
. "$(dirname "$0")/delayq.sh"

[ $# -eq 3 ] || [ $# -eq 4 ] || fail 'put.sh topic id seconds [body; else it is read from stdin]'
use "delayq:{0:$1}" "$1"
id=$2 seconds=$3
shift 3
due=$(microseconds "$seconds")
keys='index topics holds beat schedule: jobs: ties: steps: firsts: graces:'
keys="$keys expiries attempts: leases: tickets: reserved:"
[ $# -eq 1 ] || last_from_stdin=yes # which is the body
said=$(call put "$keys" "$wake" '' error new '' store 1 "$topic" '[[],[],null]' 1 "$id" "+$due" 0 '' '' "$@")
case $said in
OK*) echo "$id is due in $seconds s" ;;
EXISTS*) fail "$id waits already" ;;
*) fail "$said" ;;
esac
