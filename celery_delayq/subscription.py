"""The channels on which dispatchers hear of each other, and of jobs that became the earliest."""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError

from .store import Store

logger = logging.getLogger(__name__)

#: Redis confirms a subscription within this time (s), or is not well.
CONFIRMATION = 5.0


class Heard(NamedTuple):
    """One message: what was said, and whether it announces a job (else it is of the fleet's own)."""

    text: bytes
    announces: bool


class Subscription:
    """A connection that listens. We sleep on its socket with a timeout of our own: Redis's blocking commands time out
    on its tick, up to 0.1 s late.

    Only the active dispatcher listens to announcements, or each put would wake the whole fleet.

    Args:
        belongs: whether it listens to the fleet, too; who stands for himself hears announcements only.

    Attributes:
        forbidden: an ACL allows no channel; then there is nothing to hear, and every dispatcher must look for itself.
    """

    def __init__(self, store: Store, *, belongs: bool = True) -> None:
        self._belongs = belongs
        self._keys = store.keys
        self._pubsub: Any = store.client.pubsub()
        self._kept: deque[Heard] = deque()
        self.forbidden = False

    def __enter__(self) -> Subscription:
        try:
            if self._belongs:
                self._subscribe(self._keys.fleet)
            self.attend()
        except NoPermissionError:
            self.forbidden = True
            self._pubsub.close()
            logger.warning(
                "delayq dispatcher: Redis's ACL forbids the channels %s and %s (allow them with &%s*); "
                "earlier tasks are noticed by polling only, and each dispatcher polls for itself",
                self._keys.fleet,
                self._keys.wake,
                self._keys.beginning,
            )
        except BaseException:
            self._pubsub.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pubsub.close()

    def attend(self) -> None:
        """Listen to announcements, too. When this returns none escapes us any more."""
        self._subscribe(self._keys.wake)

    def disregard(self) -> None:
        """Listen to the fleet only."""
        self._pubsub.unsubscribe(self._keys.wake)

    def hear(self, timeout: float) -> Heard | None:
        """The next message; None if none comes within *timeout* seconds."""
        if self._kept:
            return self._kept.popleft()
        message = self._pubsub.get_message(timeout=timeout)
        return self._read(message)

    def _subscribe(self, channel: str) -> None:
        self._pubsub.subscribe(channel)
        deadline = monotonic() + CONFIRMATION
        while (remaining := deadline - monotonic()) > 0:
            message = self._pubsub.get_message(timeout=remaining)
            if message and message["type"] == "subscribe" and message["channel"] == channel.encode():
                return
            heard = self._read(message)
            if heard is not None:
                self._kept.append(heard)
        raise redis.TimeoutError(f"Redis did not confirm the subscription to {channel}")

    def _read(self, message: Any) -> Heard | None:
        if not message or message["type"] != "message":
            return None
        return Heard(message["data"], message["channel"] == self._keys.wake.encode())
