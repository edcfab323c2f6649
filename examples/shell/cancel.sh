#!/bin/sh
# Takes back a job, whether it waits or somebody is at work on it.
set -eu
# shellcheck source-path=SCRIPTDIR source=delayq.sh
. "$(dirname "$0")/delayq.sh"

[ $# -eq 2 ] || fail 'cancel.sh topic id'
use "delayq:{0:$1}" "$1"
keys='index topics holds rates totals aside remains schedule: jobs: ties: steps: firsts: graces: attempts:'
keys="$keys expiries ways leases: tickets: reserved: dead:"
said=$(call delete "$keys" '' "$topic" '' "$2" '')
case $said in
1) echo "$2 is cancelled" ;;
0) fail "there is no $2" ;;
*) fail "$said" ;;
esac
