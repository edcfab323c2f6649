"""The checks of the server that holds what waits. Each takes what it needs and gives what it finds.

``info`` is what Redis's INFO says, by Redis's own names; ``config`` what CONFIG GET says, None where that is forbidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery_delayq.embedded import OLDEST

from .finding import Finding, broken, ok, unknown, warning
from .wording import size

Info = Mapping[str, Any]
Config = Mapping[str, str] | None

#: Above this part of maxmemory Redis is nearly full.
NEARLY_FULL = 0.9

#: A replica that has not been heard of for so long (s) lags.
REPLICA_LAG = 5

#: Clocks that differ by more than this (s) make an explicit eta visibly early or late.
CLOCK_SKEW = 1.0


def version(info: Info) -> Iterator[Finding]:
    """Redis >= 6.2; Valkey is 7.2 or newer and says it is Redis 7.2."""
    told = str(info["redis_version"])
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {told}"
    numbers = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    oldest = ".".join(map(str, OLDEST))
    if numbers < OLDEST:
        yield broken(
            f"{name} is too old, it must be {oldest} or newer", f"upgrade the server to Redis {oldest} or newer"
        )
    else:
        yield ok(name)


def role(info: Info) -> Iterator[Finding]:
    """A replica takes no writes."""
    if info["role"] == "master":
        yield ok("a master")
    else:
        yield broken(
            f"this is a replica of {info.get('master_host')}:{info.get('master_port')}; it refuses every delayed task",
            "point broker_url at the master, or use a sentinel:// URL, which finds it",
        )


def eviction(info: Info) -> Iterator[Finding]:
    """A schedule is one key; an allkeys policy may evict it whole. It never expires, so volatile-* leaves it alone."""
    policy, limit = str(info["maxmemory_policy"]), int(info.get("maxmemory", 0))
    fix = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration file"
    if not policy.startswith("allkeys"):
        yield ok(policy)
    elif limit:
        yield broken(f"maxmemory-policy is {policy}: at {size(limit)} Redis may drop a whole schedule", fix)
    else:
        yield warning(f"maxmemory-policy is {policy}: once maxmemory is set, Redis may drop a whole schedule", fix)


def memory(info: Info) -> Iterator[Finding]:
    """A full Redis refuses new tasks. With an eviction policy it makes room, and fills up by design."""
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if not limit:
        yield ok(f"{size(used)} used, no maxmemory")
        return
    text = f"{size(used)} of {size(limit)} used"
    fix = "raise maxmemory, or make room: celery -A proj delayq stats tells what waits, export and purge take it away"
    if info.get("maxmemory_policy") != "noeviction" or used < NEARLY_FULL * limit:
        yield ok(text)
    elif used < limit:
        yield warning(f"{text}: when it is full, new tasks are refused", fix)
    else:
        yield broken(f"{text}: new tasks are refused, those that wait still go out", fix)


def persistence(info: Info, config: Config) -> Iterator[Finding]:
    """What waits for days has to survive a restart of Redis."""
    if info.get("aof_last_write_status", "ok") != "ok":
        yield broken("Redis cannot write its AOF, and refuses writes until it can", "look at its disk and its log")
    stops = config is None or config.get("stop-writes-on-bgsave-error", "yes") == "yes"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        told = ", and refuses writes" if stops else ""
        yield broken(f"Redis could not write its last snapshot{told}", "look at its disk, its memory and its log")
    fix = "redis-cli CONFIG SET appendonly yes, and the same in its configuration file"
    if int(info.get("aof_enabled", 0)):
        fsync = (config or {}).get("appendfsync")
        if fsync == "no":
            yield warning("AOF with appendfsync no: a crash of the machine may cost half a minute", "set everysec")
        else:
            yield ok(f"AOF{', appendfsync ' + fsync if fsync else ''}")
    elif config is None:
        yield unknown("no AOF; not allowed to look whether there are snapshots (CONFIG GET)", "ask who runs it for AOF")
    elif config.get("save"):
        yield warning(f"no AOF: a crash costs all since the last snapshot (save {config['save']})", fix)
    else:
        yield warning("neither AOF nor snapshots: a restart of Redis loses all that waits", fix)


def replicas(info: Info, config: Config, wanted: int = 0) -> Iterator[Finding]:
    """What a failover would lose is what a replica has not got yet.

    Args:
        wanted: to how many of them a put shall have got; the setting ``delayq_wait_replicas``.
    """
    found = [info[name] for name in info if name.startswith("slave") and name[5:].isdigit()]
    needed = int((config or {}).get("min-replicas-to-write", 0))
    good = int(info.get("min_slaves_good_slaves", len(found)))
    if good < needed:
        yield broken(
            f"Redis wants {needed} good replicas (min-replicas-to-write) and has {good}: it refuses writes",
            "bring the replicas back, or lower min-replicas-to-write",
        )
    online = [one for one in found if one.get("state") == "online"]
    if len(online) < wanted:
        yield broken(
            f"delayq_wait_replicas is {wanted}, and {len(online)} replicas are online: every put ends with an error",
            "bring the replicas back, or lower delayq_wait_replicas",
        )
    for one in found:
        name, lag = f"{one.get('ip')}:{one.get('port')}", int(one.get("lag", 0))
        if one.get("state") != "online":
            yield warning(f"replica {name} is not in step yet: {one.get('state')}", "look at its log")
        elif lag > REPLICA_LAG:
            behind = int(info.get("master_repl_offset", 0)) - int(one.get("offset", 0))
            yield warning(
                f"replica {name} was last heard of {lag} s ago, {size(behind)} behind: a failover to it loses that",
                "look at its machine and at the network",
            )
    if found and len(online) == len(found) and all(int(one.get("lag", 0)) <= REPLICA_LAG for one in found):
        yield ok(f"{len(found)} in step")
    elif not found and not wanted and not needed:
        yield ok("none")


def rights(refused: Mapping[str, str], user: str) -> Iterator[Finding]:
    """Whether Redis's ACL lets us do what we must.

    Args:
        refused: command, with the keys that it was refused for -> what Redis says.
    """
    if not refused:
        yield ok("all commands, keys and channels that are needed")
    for command, said in refused.items():
        rule = f"ACL SETUSER {user} … as docs/operations.md has it"
        if command.startswith(("SUBSCRIBE", "PUBLISH")):
            yield warning(f"{command} is refused ({said}): earlier tasks are noticed by polling only", rule)
        else:
            yield broken(f"{command} is refused: {said}", rule)


def clock(skew: float) -> Iterator[Finding]:
    """Jobs are due by Redis's clock.

    Args:
        skew: seconds by which this host's clock is ahead of Redis's.
    """
    text = f"this host's clock is {abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} Redis's"
    if abs(skew) <= CLOCK_SKEW:
        yield ok(text)
    else:
        yield warning(
            f"{text}: a countdown is exact all the same, an eta that is computed here is off by that",
            "let NTP or chrony set the clocks of both",
        )
