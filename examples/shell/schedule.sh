#!/bin/sh
# Has a Celery worker run a task in so many seconds; the broker is this Redis. Arguments are JSON, and go as they are.
set -eu
# shellcheck source-path=SCRIPTDIR source=delayq.sh
. "$(dirname "$0")/delayq.sh"

[ $# -ge 2 ] && [ $# -le 5 ] || fail "schedule.sh task seconds ['[argument, ...]' ['{\"name\": argument, ...}' [queue]]]"
task=$1 seconds=$2 args=${3:-[]} queue=${5:-celery}
kwargs=${4:-}
[ -n "$kwargs" ] || kwargs='{}'
case $task$queue in *[!A-Za-z0-9_.:-]*) fail 'a name here is letters, digits, _ . : and -' ;; esac
use 'delayq:{0}' "$queue"
due=$(microseconds "$seconds")

uuid() {
    random 16 | sed 's/\(........\)\(....\)\(....\)\(....\)\(.*\)/\1-\2-\3-\4-\5/'
}

# A time (s since 1970) as Celery writes it. By GNU's date, or by that of BSD.
iso() {
    date -u -d "@$1" +%Y-%m-%dT%H:%M:%S+00:00 2>/dev/null || date -u -r "$1" +%Y-%m-%dT%H:%M:%S+00:00
}

id=$(uuid)
body="[$args,$kwargs,{\"callbacks\":null,\"errbacks\":null,\"chain\":null,\"chord\":null}]"
# Celery's protocol 2 in the envelope of Kombu's Redis transport; without an eta, for which a worker would hold it.
message=$(
    cat <<END
{"body":"$(printf %s "$body" | base64 | tr -d '\n')","content-encoding":"utf-8","content-type":"application/json",
"headers":{"lang":"py","task":"$task","id":"$id","root_id":"$id","parent_id":null,"group":null,"retries":0,"eta":null,
"expires":null,"timelimit":[null,null],"origin":"shell","ignore_result":false},
"properties":{"delayq_due":"$(iso $(($(date +%s) + due / 1000000)))","correlation_id":"$id","delivery_mode":2,
"delivery_info":{"exchange":"","routing_key":"$queue"},"priority":0,"body_encoding":"base64","delivery_tag":"$(uuid)"}}
END
)
# Kombu's lists for the queue, one for each priority.
between='\u0006\u0016'
delivery="[[0,3,6,9],[\"$queue\",\"$queue${between}3\",\"$queue${between}6\",\"$queue${between}9\"],null]"
keys='index topics holds beat schedule: jobs: ties: steps: firsts: graces:'
said=$(call put "$keys" "$wake" '' replace new '' store 1 "$topic" "$delivery" 1 "$id" "+$due" 0 '' '' "$message")
case $said in
OK*) echo "$id" ;;
*) fail "$said" ;;
esac
