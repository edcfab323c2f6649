"""Leaving a Redis master at the moment when Sentinel puts another in its place.

A client learns of a failover from its own connection, and that can be late: a master that hangs says nothing, and one
that was failed over while it lives takes writes for another ten seconds, until Sentinel tells it to follow; what is
written to it then is thrown away, and what it hands over its successor hands over too. So we listen to the Sentinels:

* just before they promote a replica, pools that want it are cut off, and who calls :meth:`Watch.settle` waits until
  the promotion is over: what is written to the old master from now on would be lost;
* when they have promoted one, all connections of a followed pool to any other server are cut. Whoever reads from them
  sees what he would see if that server had died, and asks for the master anew.

It only ever makes earlier what would happen anyway; where Sentinel cannot be heard, everything is as without us.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from operator import itemgetter
from threading import Event, Lock, Thread
from time import monotonic, sleep
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

logger = logging.getLogger(__name__)

#: How long (s) a Sentinel may take to answer; one that is gone must not hold up the others.
SENTINEL_TIMEOUT = 1.0

#: What a Sentinel is asked with. redis-py would try one that is gone four times, for up to seven seconds.
SENTINEL_OPTIONS: dict[str, Any] = {
    "socket_timeout": SENTINEL_TIMEOUT,
    "socket_connect_timeout": SENTINEL_TIMEOUT,
    "retry": Retry(NoBackoff(), 0),
}

#: How long (s) a promotion is waited for at most; one that succeeds takes one or two.
PROMOTION_TIMEOUT = 5.0

#: So often (s) a Sentinel that says nothing is asked, since a connection can die in silence.
SILENCE = 10.0

#: Pause (s) before a Sentinel is called again that could not be reached.
PAUSE = 1.0

#: What Sentinels announce: the promotion of a replica begins in a moment, is given up, has succeeded.
PROMOTING, GIVEN_UP, SWITCHED = "+failover-state-send-slaveof-noone", "-failover-abort-*", "+switch-master"

Address = tuple[str, int]


class Master(NamedTuple):
    """Which server leads, since which epoch of the Sentinels, and which of them has said so."""

    epoch: int
    address: Address
    told_by: Address


class Watch:
    """What the Sentinels say of one master; a thread listens to each of them while any pool is followed.

    Args:
        name: the master's, as the Sentinels know it.
        options: how to connect to a Sentinel.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options
        #: pool -> whether it is cut off before a promotion, too.
        self._pools: WeakKeyDictionary[SentinelConnectionPool, bool] = WeakKeyDictionary()
        self._master: Master | None = None
        self._lock = Lock()
        self._over = False
        self._settled = Event()
        self._unsettled_until = 0.0  # (s, monotonic)

    def follow(self, pool: SentinelConnectionPool, early: bool) -> bool:
        """Take *pool* away from whatever is the master no more, now and later. False: nobody listens any more."""
        with self._lock:
            if not self._over and pool not in self._pools:
                self._pools[pool] = early
                _hasten(pool.sentinel_manager)
                if self._master is not None:
                    _leave([pool], self._master)
            return not self._over

    def _wanted(self) -> bool:
        with self._lock:
            self._over = self._over or not self._pools
            return not self._over

    def settle(self) -> None:
        """Return at once, unless a replica is just being promoted: then wait for that, 5 seconds at most."""
        remaining = self._unsettled_until - monotonic()
        if remaining > 0:
            self._settled.wait(remaining)

    def listen(self, address: Address) -> None:
        """Hear what the Sentinel there says, until no pool is followed any more."""
        sentinel = redis.Redis(host=address[0], port=address[1], **self._options)
        while self._wanted():
            try:
                with closing(sentinel.pubsub()) as pubsub:
                    pubsub.psubscribe(PROMOTING, GIVEN_UP, SWITCHED)
                    while self._wanted():
                        message = pubsub.get_message(timeout=SILENCE)
                        if message is None or message["type"] == "psubscribe":  # from now on nothing escapes us
                            self._ask(sentinel, address)
                        elif _master_in(message["data"]) == self._name:
                            self._hear(message["channel"], sentinel, address)
            except (redis.RedisError, OSError) as error:
                logger.debug("delayq: Sentinel at %s:%d: %s", *address, error)
                sleep(PAUSE)
        sentinel.close()

    def _hear(self, event: str, sentinel: redis.Redis, address: Address) -> None:
        logger.debug("delayq: Sentinel at %s:%d says %s %s", *address, event, self._name)
        if event == PROMOTING:
            self._settled.clear()
            self._unsettled_until = monotonic() + PROMOTION_TIMEOUT
            with self._lock:
                _cut([pool for pool, early in list(self._pools.items()) if early])
        else:
            self._ask(sentinel, address)
            self._unsettled_until = 0.0
            self._settled.set()

    def _ask(self, sentinel: redis.Redis, address: Address) -> None:
        """Who leads? Sentinels learn of a switch one after the other: an older epoch is news of yesterday."""
        states: Any = sentinel.sentinel_masters()
        state = states.get(self._name)
        if state is None:
            return
        master = Master(int(state["config-epoch"]), (state["ip"], int(state["port"])), address)
        with self._lock:
            known = self._master
            if known is not None and master.epoch < known.epoch:
                return
            self._master = master
            _leave(list(self._pools), master)
        if known is not None and known.address != master.address:
            logger.info("delayq: Sentinel has made %s:%d the master of %s", *master.address, self._name)


def _master_in(text: str) -> str:
    """Of which master an event tells: ``NAME ip port ip port``, or ``slave … @ NAME ip port``, or ``master NAME …``."""
    words = text.split()
    if "@" in words:
        return words[words.index("@") + 1]
    return words[1] if words[0] == "master" and len(words) == 4 else words[0]


def _hasten(manager: Sentinel) -> None:
    """Let no Sentinel that is gone hold up the others, where the user has not said how to ask one."""
    options = {name: value for name, value in SENTINEL_OPTIONS.items() if manager.sentinel_kwargs.get(name) is None}
    for sentinel in manager.sentinels:
        sentinel.get_connection_kwargs().update(options)
        if "retry" in options:
            sentinel.set_retry(options["retry"])


def _address_of(sentinel: redis.Redis) -> Address:
    options = sentinel.connection_pool.connection_kwargs
    return options["host"], options["port"]


def _leave(pools: Iterable[SentinelConnectionPool], master: Master) -> None:
    """Cut the connections to other servers than *master*, and have the pools ask first who knows of that one."""
    for pool in _cut(pools, master.address):
        manager = pool.sentinel_manager
        manager.sentinels = sorted(manager.sentinels, key=lambda sentinel: _address_of(sentinel) != master.told_by)


def _cut(pools: Iterable[SentinelConnectionPool], keep: Address | None = None) -> set[SentinelConnectionPool]:
    """Cut the connections to other servers than *keep*; return the pools that have any.

    Subscriptions last: a worker whose BRPOP fails reconnects; one whose subscription fails while it waits in BRPOP may
    end with "Unrecoverable error" instead (Celery 5.7).
    """
    found = [
        (bool(connection._connect_callbacks), connection, pool)
        for pool in pools
        for connection in [*pool._in_use_connections, *pool._available_connections]
        if connection._sock is not None and (connection.host, connection.port) != keep
    ]
    for _, connection, _ in sorted(found, key=itemgetter(0)):
        # Not disconnect(): that is for the thread that uses it. Below TLS, too: so that it reads an end, now.
        with suppress(OSError, TypeError):  # closed meanwhile
            socket.socket.shutdown(connection._sock, socket.SHUT_RDWR)
    return {pool for _, _, pool in found}


#: By the master's name and where its Sentinels are.
_watches: dict[tuple[str | Address, ...], Watch] = {}
# Threads are not forked: a child begins anew.
os.register_at_fork(after_in_child=_watches.clear)


def follow(pool: object, *, early: bool = False) -> Watch | None:
    """Cut the connections of *pool* when Sentinel has another master for it. None: it has nothing to do with Sentinel.

    Args:
        pool: of redis-py; may be given again and again. It is followed for as long as it lives.
        early: cut them just before a replica is promoted, too; :meth:`Watch.settle` before opening new ones.
    """
    if not isinstance(pool, SentinelConnectionPool) or not pool.is_master:
        return None
    manager = pool.sentinel_manager
    addresses = sorted(_address_of(sentinel) for sentinel in manager.sentinels)
    key = (pool.service_name, *addresses)
    watch = _watches.get(key)
    while watch is None or not watch.follow(pool, early):
        fresh = Watch(pool.service_name, {**manager.sentinel_kwargs, **SENTINEL_OPTIONS, "decode_responses": True})
        fresh.follow(pool, early)
        if _watches.get(key) is watch:  # if two threads come here at once there may be two watches: no harm
            _watches[key] = fresh
            for address in addresses:
                Thread(target=fresh.listen, args=(address,), name="delayq-sentinel", daemon=True).start()
        watch = _watches[key]
    return watch
