"""What Redis's ACL must allow us, and a trial of it that changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from redis.exceptions import ExecAbortError, NoPermissionError

from celery_delayq.scripts import Value
from celery_delayq.store import Store

from .wording import named

#: Commands of the scripts and of the store for our keys, with what may stand behind the key.
OURS: Mapping[str, tuple[Value, ...]] = {
    "DEL": (),
    "EXISTS": (),
    "GET": (),
    "HDEL": ("field",),
    "HEXISTS": ("field",),
    "HGET": ("field",),
    "HGETALL": (),
    "HINCRBY": ("field", 0),
    "HKEYS": (),
    "HLEN": (),
    "HMGET": ("field",),
    "HSCAN": (0,),
    "HSET": ("field", ""),
    "HSTRLEN": ("field",),
    "PEXPIRE": (1,),
    "SET": ("",),
    "TYPE": (),
    "UNLINK": (),
    "ZADD": (0, "member"),
    "ZCARD": (),
    "ZCOUNT": (0, 0),
    "ZMSCORE": ("member",),
    "ZRANGE": (0, 0),
    "ZRANGEBYSCORE": (0, 0),
    "ZRANK": ("member",),
    "ZREM": ("member",),
    "ZREMRANGEBYRANK": (0, 0),
    "ZREMRANGEBYSCORE": (0, 0),
    "ZREVRANGE": (0, 0),
    "ZSCORE": ("member",),
}

#: The same for ready lists.
READY: Mapping[str, tuple[Value, ...]] = {"LLEN": (), "LPUSH": ("",), "PEXPIRE": (1,), "RPUSH": ("",)}

#: The hash of no script.
NO_SCRIPT = "0" * 40

Command = tuple[Value, ...]


def refused(store: Store, topics: Collection[str], *, relayed: bool) -> dict[str, str]:
    """What Redis would refuse us -> what it says to that. None of it is run.

    Args:
        topics: those whose keys and ready lists are tried.
        relayed: there are no ready lists.
    """
    keys = store.keys
    places = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains, keys.beat]
    places += [keys.expiries, keys.ways, keys.serves, keys.shards, keys.version]
    places += [key for topic in topics for key in (*keys.of_topic(topic), keys.leases(topic))]
    ready = [keys.ready(topic) for topic in topics if not relayed]
    places += ready
    plain: dict[str, Command] = {
        "EVALSHA": ("EVALSHA", NO_SCRIPT, 0),
        "EVAL": ("EVAL", "return 1", 0),
        "TIME": ("TIME",),
        "PING": ("PING",),
        "UNSUBSCRIBE": ("UNSUBSCRIBE",),
    }
    for channel in (keys.fleet, keys.wake):
        plain[f"PUBLISH {channel}"] = ("PUBLISH", channel, "")
        plain[f"SUBSCRIBE {channel}"] = ("SUBSCRIBE", channel)
    keyed: dict[str, Command] = {key: ("EVALSHA", NO_SCRIPT, 1, key) for key in places}
    typed: dict[str, Command] = {name: (name, keys.index, *rest) for name, rest in OURS.items()}
    typed |= {name: (name, key, *rest) for key in ready for name, rest in READY.items()}

    trials = {**plain, **keyed, **typed}
    try:
        said = {trial: text for trial, text in zip(trials, store.refused(trials.values()), strict=True) if text}
    except (NoPermissionError, ExecAbortError) as error:
        return {"a transaction": str(error)}
    found = {name: text for name, text in said.items() if name in plain}
    locked = [key for key in keyed if key in said]
    if "EVALSHA" in found:  # then it is refused for every key
        return found
    if locked:  # then it is any command that names one of them
        return {**found, f"access to {named(locked)}": said[locked[0]]}
    return said
